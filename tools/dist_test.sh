#!/usr/bin/env bash
# tools/test.py in one process per GPU, or, on a machine without one, in GPUS processes on the CPU.

if [ $# -lt 3 ]; then
    cat >&2 <<'END'
usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]

  dist_test.sh configs/imagenet_r152_r50.py work_dirs/imagenet_r152_r50/epoch_100.pth 8

On several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT as for dist_train.sh.
END
    exit 2
fi

exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" "$3" test.py "$1" "$2" "${@:4}"

#!/usr/bin/env bash
# tools/train.py in one process per GPU, or, on a machine without one, in GPUS processes on the CPU.

if [ $# -lt 2 ]; then
    cat >&2 <<'END'
usage: dist_train.sh CONFIG GPUS [arguments of train.py]

  dist_train.sh configs/imagenet_r152_r50.py 8 --resume

On several machines run it on each, with GPUS on each and in the environment:
  NNODES       number of machines; default: 1
  NODE_RANK    which of them this one is, from 0 on
  MASTER_ADDR  address of the machine with NODE_RANK=0
  PORT         a free port there; default: 29500, and on one machine any free one

When a process dies, all end. With MAX_RESTARTS=3 in the environment and --resume, all are started again, up to 3 times,
and go on from the latest checkpoint; several machines need to share the work directory for that.
END
    exit 2
fi

exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" "$2" train.py "$1" "${@:3}"

#!/usr/bin/env bash
# tools/train.py under Slurm, in one task per GPU.

if [ $# -lt 3 ]; then
    cat >&2 <<'END'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]

  GPUS=16 slurm_train.sh gpu resnet50 configs/imagenet_r152_r50.py work_dirs/resnet50 --resume

In the environment:
  GPUS           number of GPUs; default: 8
  GPUS_PER_NODE  of these on each machine; default: 8, or GPUS if that is less
  CPUS_PER_TASK  cores for each GPU; default: 5
  SRUN_ARGS      further arguments of srun, as "--time=2-0 --exclude=node3"
  PORT           a free port on the first machine; default: 29500
END
    exit 2
fi

if ! command -v srun > /dev/null; then
    echo "error: there is no srun on the PATH. Run this where Slurm is, or take dist_train.sh." >&2
    exit 2
fi

PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
WORK_DIR=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    WORK_DIR=(--work-dir "$1")
    shift
fi
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

export MASTER_PORT=${PORT:-${MASTER_PORT:-29500}}
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# SRUN_ARGS unquoted, for it is several arguments; last, for srun heeds the last of two that disagree.
# shellcheck disable=SC2086
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
    --gres=gpu:"$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 $SRUN_ARGS \
    python -u "$TOOLS/train.py" "$CONFIG" "${WORK_DIR[@]}" "$@" --launcher slurm

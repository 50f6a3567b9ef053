#!/usr/bin/env bash
# Runs a Python file of this folder in one process per GPU. dist_train.sh and dist_test.sh call it.
#
#   torchrun.sh GPUS FILE.py [arguments of FILE.py]

GPUS=$1
FILE=$2
PORT=${PORT:-$MASTER_PORT}
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if ! [[ $GPUS =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS is the number of processes on this machine, 1 or more, and not \"$GPUS\"." >&2
    exit 2
fi
if ! [[ ${NNODES:-1} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NNODES is the number of machines, 1 or more, and not \"$NNODES\"." >&2
    exit 2
fi
if ! [[ ${NODE_RANK:-0} =~ ^(0|[1-9][0-9]*)$ ]] || [ "${NODE_RANK:-0}" -ge "${NNODES:-1}" ]; then
    echo "error: NODE_RANK is the number of this machine, 0 to $((${NNODES:-1} - 1)), and not \"$NODE_RANK\"." >&2
    exit 2
fi
if [ "${NNODES:-1}" -gt 1 ]; then
    if [ -z "$NODE_RANK" ] || [ -z "$MASTER_ADDR" ]; then
        echo "error: on NNODES=$NNODES machines, give each its NODE_RANK, 0 to $((NNODES - 1)), and all of them the" \
            "MASTER_ADDR of the machine with NODE_RANK=0." >&2
        exit 2
    fi
elif [ -z "$PORT" ]; then
    # Any free port, so that two trainings can run on one machine.
    MEETING_POINT=(--standalone --local-addr=127.0.0.1)
fi
if [ -z "${MEETING_POINT[*]}" ] && [ -n "$MAX_RESTARTS" ]; then
    # After a restart the machines meet anew, which the plain meeting point below is not made for.
    MEETING_POINT=(
        --nnodes="${NNODES:-1}" --rdzv-backend=c10d --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
        --rdzv-conf="is_host=$((${NODE_RANK:-0} == 0))")
elif [ -z "${MEETING_POINT[*]}" ]; then
    MEETING_POINT=(
        --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}"
        --master-port="${PORT:-29500}")
fi

if [ -n "$MAX_RESTARTS" ]; then
    # Otherwise torchrun keeps one store, and processes that begin again may find the addresses of dead ones in it.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec python -m torch.distributed.run "${MEETING_POINT[@]}" ${MAX_RESTARTS:+--max-restarts="$MAX_RESTARTS"} \
    --nproc-per-node="$GPUS" "$TOOLS/$FILE" "${@:3}" --launcher pytorch

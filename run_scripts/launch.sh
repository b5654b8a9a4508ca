#!/usr/bin/env bash
# One configuration trained (or evaluated) on one node or several, through torchrun.
# Run:  run_scripts/launch.sh CONFIG.yaml [key=value ...]       with more than one node: on every node
#   NNODES          nodes (1)
#   NPROC_PER_NODE  processes per node (GPUS, its other name; else the GPUs that are visible; else 1)
#   MASTER_ADDR     address of node 0, the same on every node; needed for more than one node
#   MASTER_PORT     a free port of node 0, the same on every node (29500; one node: any free port)
#   NODE_RANK       0 on the node of MASTER_ADDR, 1 to NNODES - 1 on the others; needed for more than one node
#   JOB_ID          a name of this launch, the same on every node (lavis)
#   MAX_RESTARTS    how often all processes are started again when one has died (3). Unless it is 0 or the configuration names a
#                   checkpoint, run.resume_ckpt_path=auto is passed: a run that is in run.output_dir already is gone on with
#   EVALUATE        1: evaluate.py instead of train.py
#   LOG_DIR         what each process prints, in a file per process (output/logs); it is shown here too
#   PYTHON          the interpreter (python)
# SIGUSR1 reaches the training processes, which save and end; SIGTERM and SIGINT end torchrun, which ends them.
set -euo pipefail

fail() {
    echo "launch.sh: $*" >&2
    exit 2
}

number() { # name, value, least
    [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 is '$2'; accepted: a whole number of $3 or more"
    ((10#$2 >= $3)) || fail "$1 is $2; accepted: a whole number of $3 or more"
}

visible_gpus() { # at least 1: a process without a GPU works on the CPU
    local count
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        count="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^ *(GPU-|MIG-|[0-9])' || true)"
    else
        count="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
    fi
    echo $((count > 0 ? count : 1))
}

names_checkpoint() { # whether a file's own resume_ckpt_path is more than null
    grep -E '^[^#]*resume_ckpt_path: *[^ #]' "$1" | grep -qvE 'resume_ckpt_path: *(null|~)'
}

[[ $# -ge 1 ]] || fail "names no configuration; run it as launch.sh CONFIG.yaml [key=value ...]"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="$1"
shift
[[ -f "$config" ]] || config="$root/$config"
[[ -f "$config" ]] || fail "no configuration file at $config"
for option in "$@"; do
    [[ "$option" == *=* ]] || fail "'$option' is no key=value"
done

nodes="${NNODES:-1}" port="${MASTER_PORT:-29500}" restarts="${MAX_RESTARTS:-3}" evaluate="${EVALUATE:-0}"
processes="${NPROC_PER_NODE:-${GPUS:-$(visible_gpus)}}"
number NNODES "$nodes" 1
number NPROC_PER_NODE "$processes" 1
number MASTER_PORT "$port" 1
number MAX_RESTARTS "$restarts" 0
[[ "$evaluate" == [01] ]] || fail "EVALUATE is '$evaluate'; accepted: 0 or 1"
if ((nodes > 1)); then
    [[ -n "${MASTER_ADDR:-}" ]] || fail "MASTER_ADDR is not set: the address of node 0, the same on all $nodes nodes"
    [[ -n "${NODE_RANK:-}" ]] || fail "NODE_RANK is not set: 0 on the node of MASTER_ADDR, then 1 to $((nodes - 1))"
fi
rank="${NODE_RANK:-0}"
number NODE_RANK "$rank" 0
((10#$rank < nodes)) || fail "NODE_RANK is $rank; accepted with NNODES=$nodes: 0 to $((nodes - 1))"

endpoint="${MASTER_ADDR:-127.0.0.1}:$port"
((nodes > 1)) || endpoint="127.0.0.1:${MASTER_PORT:-0}"
script="$root/train.py"
options=("$@")
if ((evaluate)); then
    script="$root/evaluate.py"
elif ((restarts > 0)) && ! names_checkpoint "$config"; then
    options=(run.resume_ckpt_path=auto "$@") # what the caller says comes later, and counts
fi

cores="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"

# Which node keeps the rendezvous is said (is_host): torchrun's own guess fails where MASTER_ADDR is another name of node 0. Nodes
# may start ten minutes apart.
set -m # torchrun gets a process group of its own, so that signals reach it through the traps alone
"${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$processes" --max-restarts="$restarts" \
    --rdzv-backend=c10d --rdzv-endpoint="$endpoint" --rdzv-id="${JOB_ID:-lavis}" \
    --rdzv-conf="is_host=$((10#$rank == 0)),join_timeout=600,read_timeout=600" \
    --log-dir="${LOG_DIR:-output/logs}" --tee=3 \
    "$script" --cfg-path "$config" ${options[0]:+--options "${options[@]}"} &
agent=$!
set +m
trap 'signalled=1; kill -TERM "$agent" 2>/dev/null || true' TERM
trap 'signalled=1; kill -INT "$agent" 2>/dev/null || true' INT
trap 'signalled=1; pkill -USR1 -P "$agent" -f "${script##*/}" || true' USR1
code=0
while :; do # a signal ends wait, not torchrun; 127: it was waited for already
    signalled=0 status=0
    wait "$agent" || status=$?
    ((status == 127)) || code=$status
    ((signalled && status > 128)) || break
done
exit "$code"

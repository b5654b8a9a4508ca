#!/usr/bin/env bash
# One configuration trained on one node or several, through torchrun.
# Run:  run_scripts/launch.sh CONFIG.yaml [key=value ...]
#   NNODES       nodes (1)
#   GPUS         processes per node, one per GPU (8)
#   MASTER_ADDR  address of node 0, the same on every node; needed for more than one node
#   NODE_RANK    0 to NNODES - 1, another on every node; needed for more than one node
#   MASTER_PORT  a free port of node 0 (29500)
#   PYTHON       the interpreter (python)
set -euo pipefail

fail() {
    echo "launch.sh: $*" >&2
    exit 2
}

number() { # name, value, least
    [[ "$2" =~ ^[0-9]+$ ]] || fail "$1 is '$2'; accepted: a whole number of $3 or more"
    ((10#$2 >= $3)) || fail "$1 is $2; accepted: a whole number of $3 or more"
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

nodes="${NNODES:-1}" gpus="${GPUS:-8}" port="${MASTER_PORT:-29500}"
number NNODES "$nodes" 1
number GPUS "$gpus" 1
number MASTER_PORT "$port" 1
if ((nodes > 1)); then
    [[ -n "${MASTER_ADDR:-}" ]] || fail "MASTER_ADDR is not set: the address of node 0, the same on all $nodes nodes"
    [[ -n "${NODE_RANK:-}" ]] || fail "NODE_RANK is not set: 0 on the node of MASTER_ADDR, then 1 to $((nodes - 1))"
fi
rank="${NODE_RANK:-0}"
number NODE_RANK "$rank" 0
((10#$rank < nodes)) || fail "NODE_RANK is $rank; accepted with NNODES=$nodes: 0 to $((nodes - 1))"

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$gpus" --node_rank="$rank" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port" \
    "$root/train.py" --cfg-path "$config" ${1:+--options "$@"}

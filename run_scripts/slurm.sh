#!/usr/bin/env bash
# One configuration on the nodes of a Slurm job: one torchrun agent per node, through launch.sh.
# Run, in the repository's folder:
#   sbatch [--nodes=2 --time=08:00:00 ...] run_scripts/slurm.sh CONFIG.yaml [key=value ...]
#   sbatch run_scripts/slurm.sh run_scripts/train/regionblip_..._4node.sh [key=value ...]
# Options of sbatch go over the lines below. Five minutes before its time ends the job saves and stops.
#   REQUEUE  1: then it is queued again and goes on from there (0)
#   and the variables of launch.sh; those that say where a process is are set here
#SBATCH --job-name=regionblip
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

fail() {
    echo "slurm.sh: $*" >&2
    exit 2
}

[[ $# -ge 1 ]] || fail "names no configuration; run it as sbatch run_scripts/slurm.sh CONFIG.yaml [key=value ...]"
[[ -n "${SLURM_JOB_ID:-}" ]] || fail "there is no SLURM_JOB_ID; run it with sbatch"
root="${SLURM_SUBMIT_DIR:-$PWD}" # Slurm runs a copy of this file that lies elsewhere
[[ -f "$root/run_scripts/launch.sh" ]] || fail "no run_scripts/launch.sh in $root; run sbatch in the repository's folder"
[[ "${REQUEUE:-0}" == [01] ]] || fail "REQUEUE is '$REQUEUE'; accepted: 0 or 1"
command=("$root/run_scripts/launch.sh" "$@")
[[ "$1" != *.sh ]] || command=(bash "$@")

hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export NNODES="$SLURM_JOB_NUM_NODES" MASTER_ADDR="${hosts%%$'\n'*}" JOB_ID="$SLURM_JOB_ID"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" # two jobs may share a node
if [[ -n "${SLURM_GPUS_ON_NODE:-}" ]]; then
    export NPROC_PER_NODE="${NPROC_PER_NODE:-$SLURM_GPUS_ON_NODE}"
fi
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not take it from the job by itself
fi

# One agent that fails for good ends the others (--kill-on-bad-exit): they might wait for it.
# shellcheck disable=SC2016  # SLURM_NODEID is the task's, not this script's
srun --nodes="$NNODES" --ntasks="$NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    bash -c 'NODE_RANK="$SLURM_NODEID" exec "$@"' task "${command[@]}" &
step=$!
stopped=0
trap 'signalled=1 stopped=1; kill -USR1 "$step" 2>/dev/null || true' USR1 # srun hands it to its tasks
trap 'signalled=1; kill -TERM "$step" 2>/dev/null || true' TERM
code=0
while :; do # a signal ends wait, not the step; 127: it was waited for already
    signalled=0 status=0
    wait "$step" || status=$?
    ((status == 127)) || code=$status
    ((signalled && status > 128)) || break
done
if ((stopped && code == 0)) && [[ "${REQUEUE:-0}" == 1 ]]; then
    echo "slurm.sh: saved before the time ends; job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

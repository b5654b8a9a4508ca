#!/usr/bin/env bash
# The published training of RegionBLIP with Flan-T5-XXL: 4 nodes of 8 GPUs, 30 epochs, with box regression.
# Run on every node:  MASTER_ADDR=<address of node 0> NODE_RANK=<0 to 3> bash THIS_SCRIPT [key=value ...]
# or, under Slurm:    sbatch run_scripts/slurm.sh THIS_SCRIPT [key=value ...]
# NNODES, NPROC_PER_NODE and MASTER_PORT change the shape of the run; key=value overrides the configuration.
set -euo pipefail

name=regionblip_t5-xxl_freeze-qformer_regloss_pcqformer_A100
export NNODES="${NNODES:-4}" NPROC_PER_NODE="${NPROC_PER_NODE:-${GPUS:-8}}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "$here/../launch.sh" "$here/$name.yaml" \
    run.output_dir="training_dir/${name}_4node" run.max_epoch=30 \
    model.enable_aux_regloss=true model.aux_regloss_weight=1.0 "$@"

#!/usr/bin/env bash
# The numbers of a cascade, drawn and measured by all GPUs of the job; submitted again, it goes on where it ended.
#   sbatch slurm/evaluate.sh RUN_OR_CASCADE [RUN ...] [options of evaluate.py]
#   sbatch --nodes=2 slurm/evaluate.sh runs/cascade --unpaired --inception-weights pt_inception-2015-12-05-6726825d.pth
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=4:00:00
source slurm/prologue.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
on_all_nodes evaluate.py "$@"

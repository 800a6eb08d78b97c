#!/usr/bin/env bash
# Try-on images from a cascade, shared out over the GPUs of the job; submitted again, it goes on where it ended.
#   sbatch slurm/sample.sh RUN_OR_CASCADE [RUN ...] [options of sample.py]
#   sbatch --nodes=2 slurm/sample.sh runs/cascade --unpaired --pairs 2000 --format webdataset
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=4:00:00
source slurm/prologue.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
on_all_nodes sample.py "$@"

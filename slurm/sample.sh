#!/usr/bin/env bash
# Try-on images from a run folder, shared out over the GPUs of the job.
#   sbatch slurm/sample.sh RUN_DIR [options of sample.py]
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=4:00:00
source slurm/prologue.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
on_all_nodes sample.py "$@"

#!/usr/bin/env bash
# Trains on 2 nodes of 8 GPUs, and goes on by itself over as many jobs as it takes.
#   sbatch slurm/base_unet.sh [CONFIG.yaml] [key=value ...]
# It trains the config of its own name.  Copy it, or link to it, under another name to train another: sr_unet.sh is a
# link.  Options of sbatch win over the lines below: sbatch --nodes=4 --time=2:00:00 slurm/base_unet.sh
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
source slurm/train.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
train "$@"

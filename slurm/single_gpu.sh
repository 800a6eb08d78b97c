#!/usr/bin/env bash
# Trains configs/base_unet.yaml on one GPU: the same curve as on 16, in more hours.
#   sbatch slurm/single_gpu.sh [CONFIG.yaml] [key=value ...]
#   sbatch --array=0-3 slurm/single_gpu.sh seed=%a run.dir=runs/seed_%a       four runs; %a is the array's task
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
source slurm/train.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
default_config=configs/base_unet.yaml
train train.accumulation=16 "$@"

#!/usr/bin/env bash
# Photographs to the shards that configs/*.yaml name: a job array with a task for each stage and split.
#   sbatch slurm/prepare_shards.sh viton_hd --source FOLDER [--label-map cihp ...]
# Training pairs go to the config's data.shards, test pairs beside them, with `train` in the name replaced by `val`.
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
source slurm/prologue.sh
configs=(base_unet sr_unet) splits=(train test)
config=configs/${configs[SLURM_ARRAY_TASK_ID / 2]}.yaml split=${splits[SLURM_ARRAY_TASK_ID % 2]}
size=$(config_value model.image_size "$config" | tr -d "[] " | tr , x)
out=$(config_value data.shards "$config")
[ "$split" = train ] || out=${out//train/val}
say "python -m data.prepare $* --split $split --size $size --out $out"
run_python -m data.prepare "$@" --split "$split" --size "$size" --out "$out"

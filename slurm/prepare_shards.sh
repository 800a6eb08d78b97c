#!/usr/bin/env bash
# Photographs to the shards that configs/*.yaml name: a job array with a task for each stage and split.
#   sbatch slurm/prepare_shards.sh viton_hd --source FOLDER [--label-map cihp ...]
# Training pairs go to the config's data.shards, test pairs to its data.val_shards or else beside the former, with
# `train` in the folder's name replaced by `val`.  A source that is not split has no test pairs: sbatch --array=0,2
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
source slurm/prologue.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
case " $* " in
  *' --out '* | *' --size '* | *' --split '* | *' synthetic '*)
    echo "error: this job chooses --out, --size and --split, of a layout that has a split (viton_hd)" >&2
    exit 1
    ;;
esac
configs=(base_unet sr_unet) splits=(train test)
config=configs/${configs[SLURM_ARRAY_TASK_ID / 2]}.yaml split=${splits[SLURM_ARRAY_TASK_ID % 2]}
size=$(config_value model.image_size "$config" | tr -d "[] " | tr , x)
out=$(config_value data.shards "$config")
if [ "$split" = test ]; then
  held_out=$(config_value data.val_shards "$config") name=$(basename "$out")
  [ "$held_out" != null ] || held_out=$(dirname "$out")/${name/train/val}
  [ "$held_out" != "$out" ] || held_out=${out}_val
  out=$held_out
fi
say "python -m data.prepare $* --split $split --size $size --out $out"
run_python -m data.prepare "$@" --split "$split" --size "$size" --out "$out"

#!/usr/bin/env bash
# Photographs to the shards that configs/*.yaml name: a job array with a task for each stage and split.
#   sbatch slurm/prepare_shards.sh viton_hd --source FOLDER [--label-map cihp ...]
#   sbatch --array=0-63 slurm/prepare_shards.sh ...     the same by 16 times as many tasks, each making a slice
# Training pairs go to the config's data.shards, test pairs to its data.val_shards or else beside the former, with
# `train` in the folder's name replaced by `val`.  Where the data set has no split of its own, its tasks for test pairs
# end at once; with --split-shares 0.9,0.1 the folder of training pairs holds train/ and val/.
# Tasks that failed are submitted again, by their numbers or all: what is whole is not made twice.
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
source slurm/prologue.sh || { echo "error: submit this from the project's folder" >&2 && exit 1; }
case " $* " in
  *' --out '* | *' --size '* | *' --split '* | *' --slice '* | *' synthetic '*)
    echo "error: this job chooses --out, --size, --split and --slice, of a layout that has a --source" >&2
    exit 1
    ;;
esac
layout=$1 configs=(base_unet sr_unet) combinations=4
case $layout in
  viton_hd | dresscode) splits=(train test) ;;
  csv | pairs) splits=(train val) ;;
  *) splits=("" "") ;;
esac
task=$((SLURM_ARRAY_TASK_ID % combinations))
slice=$((SLURM_ARRAY_TASK_ID / combinations + 1))/$((SLURM_ARRAY_TASK_MAX / combinations + 1))
config=configs/${configs[task / 2]}.yaml split=${splits[task % 2]}
size=$(config_value model.image_size "$config" | tr -d "[] " | tr , x)
out=$(config_value data.shards "$config")
if [ $((task % 2)) = 1 ]; then
  case "$split $*" in
    ' '* | *' --split-shares '*) say "$layout is not split by itself here: nothing to do" && exit ;;
  esac
  held_out=$(config_value data.val_shards "$config") name=$(basename "$out")
  [ "$held_out" != null ] || held_out=$(dirname "$out")/${name/train/val}
  [ "$held_out" != "$out" ] || held_out=${out}_val
  out=$held_out
fi
words=("$@" --size "$size" --out "$out" --slice "$slice" --workers "${SLURM_CPUS_PER_TASK:-8}")
[ -z "$split" ] || words+=(--split "$split")
say "python -m data.prepare ${words[*]}"
run_python -m data.prepare "${words[@]}"

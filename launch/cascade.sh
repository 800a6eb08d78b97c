#!/usr/bin/env bash
# Trains the stages of the cascade one after the other, on all GPUs of this box:
#   bash launch/cascade.sh [DIR] [--configs FOLDER] [key=value ...] [STAGE.key=value ...]
# DIR is runs/cascade unless it is named; each stage's run folder is in it.  The stages are those of base_unet, sr_unet
# and sr_1024 whose config, STAGE.yaml, is in FOLDER, which is configs/.  key=value is for all stages,
# sr_unet.key=value for one.  The same command continues; a stage begins when the one before is done.  Paths are relative
# to the project's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder='' configs=configs words=()
parts="seed run data model diffusion sampler optim train ema engine distributed checkpoint log loss"
while [ $# -gt 0 ]; do
  case $1 in
    --configs) configs=${2:?--configs needs a folder} && shift ;;
    *=*) words+=("$1") ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' launch/cascade.sh && exit 0 ;;
    -*) echo "error: $1: no such option; --help says which there are" >&2 && exit 1 ;;
    *)
      [ -z "$folder" ] || { echo "error: $folder and $1: two folders; name one" >&2 && exit 1; }
      folder=$1
      ;;
  esac
  shift
done
folder=${folder:-runs/cascade}
for word in "${words[@]}"; do
  case " base_unet sr_unet sr_1024 $parts " in
    *" ${word%%[.=]*} "*) ;;
    *) echo "error: $word: ${word%%[.=]*} is neither a stage (base_unet, sr_unet, sr_1024) nor a part of a config" >&2 && exit 1 ;;
  esac
done
stages=()
for stage in base_unet sr_unet sr_1024; do
  [ ! -e "$configs/$stage.yaml" ] || stages+=("$stage")
done
[ ${#stages[@]} != 0 ] || { echo "error: $configs: has none of base_unet.yaml, sr_unet.yaml, sr_1024.yaml" >&2 && exit 1; }
for stage in "${stages[@]}"; do
  mine=("$configs/$stage.yaml" "run.dir=$folder/$stage")
  for word in "${words[@]}"; do
    case $word in
      base_unet.* | sr_unet.* | sr_1024.*) [ "${word%%.*}" != "$stage" ] || mine+=("${word#*.}") ;;
      *) mine+=("$word") ;;
    esac
  done
  echo "[cascade, $(date +%T)] $stage: ${mine[*]}"
  bash launch/torchrun_local.sh train_ddp.py "${mine[@]}"
  if [ ! -e "$folder/$stage/DONE" ]; then
    echo "[cascade, $(date +%T)] $stage is not done; the same command continues" >&2
    exit 1
  fi
done
echo "[cascade, $(date +%T)] done; try-on images of data.val_shards:"
echo "  bash launch/torchrun_local.sh sample.py $folder --unpaired"

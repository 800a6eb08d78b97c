#!/usr/bin/env bash
# Try-on training from nothing, in minutes: draws people, writes shards, trains a small base UNet on two ranks, samples.
#   bash launch/demo.sh [key=value ...]
# Run again, it continues: with train.num_steps=4000 it trains on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv requirements.txt

run=runs/demo
for word in "$@"; do
  case $word in run.dir=*) run=${word#run.dir=} ;; esac
done
python=.venv/bin/python
gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
ranks=$((gpus == 1 ? 1 : 2))
# Two ranks on one CPU share its cores: one thread each would waste a bigger machine.
cores=$($python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
export OMP_NUM_THREADS=$((cores / ranks > 1 ? cores / ranks : 1))

prepare() { # SET NUM SEED: drawn people, another seed draws others
  [ -e "shards/demo/$1" ] && return
  $python -m data.prepare synthetic --num "$2" --seed "$3" --size 48 --out "shards/demo/$1"
}
prepare train 2000 0
prepare val 64 1

$python -m torch.distributed.run --standalone --nproc_per_node="$ranks" train_ddp.py configs/demo.yaml \
  data.val_shards=shards/demo/val "$@"
$python sample.py "$run" --pairs 16 --overwrite
$python sample.py "$run" --pairs 16 --unpaired --overwrite

cat <<TEXT

The run is in $run:
  samples/sheet.png            held-out people in their own garments, beside the truth
  samples_unpaired/sheet.png   the same people in garments they never wore
  stats.jsonl, training.log    what training said
Watch it:   .venv/bin/tensorboard --logdir $run
TEXT

#!/usr/bin/env bash
# Submits the stages one after the other: each starts when the one before is done.  Run it; it is no job itself.
#   bash slurm/cascade.sh [--sample] [options of sbatch]
# --sample: at the end a job draws try-on images of data.val_shards with all stages (slurm/sample.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=(base_unet sr_unet sr_1024) sampled=()
if [ "${1:-}" = --sample ]; then
  sampled=("${jobs[@]/#/runs/}")
  jobs+=(sample)
  shift
fi
after=()
for job in "${jobs[@]}"; do
  words=()
  [ "$job" != sample ] || words=("${sampled[@]}")
  id=$(sbatch --parsable "$@" "${after[@]}" "slurm/$job.sh" "${words[@]}")
  id=${id%%;*} # a site of several clusters adds its name
  [ -n "$id" ] || continue # --test-only
  echo "slurm/$job.sh: job $id ${after[*]}"
  after=(--dependency="afterok:$id" --kill-on-invalid-dep=yes)
done

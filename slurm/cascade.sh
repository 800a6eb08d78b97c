#!/usr/bin/env bash
# Submits the stages one after the other: each starts when the one before is done.  Run it; it is no job itself.
#   bash slurm/cascade.sh [options of sbatch]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
after=()
for stage in base_unet sr_unet; do
  id=$(sbatch --parsable "$@" "${after[@]}" "slurm/$stage.sh")
  id=${id%%;*} # a site of several clusters adds its name
  [ -n "$id" ] || continue # --test-only
  echo "slurm/$stage.sh: job $id ${after[*]}"
  after=(--dependency="afterok:$id" --kill-on-invalid-dep=yes)
done

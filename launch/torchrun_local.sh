#!/usr/bin/env bash
# Trains on all GPUs of this box, one process each:
#   bash launch/torchrun_local.sh [SCRIPT.py] [CONFIG.yaml] [key=value ...]
# The script is train_ddp.py unless it is named; TRYON_NPROC=N takes N ranks.  Paths are relative to the project's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=train_ddp.py
case "${1:-}" in *.py)
  script=$1
  shift
  ;;
esac
read -ra run_in <<<"${TRYON_RUN_IN:-}"
# Threads, caches and limits; the rendezvous is torchrun's own, so that several runs may share the box.
export TRYON_JOB=local
# shellcheck source=launch/env.sh
source launch/env.sh localhost >/dev/null
echo "$PET_NPROC_PER_NODE ranks of $OMP_NUM_THREADS threads on $(uname -n)"
trap '' USR1 USR2
exec "${run_in[@]}" python3 -m launch.agent --standalone -- "$script" "$@"

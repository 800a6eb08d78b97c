#!/usr/bin/env bash
# Trains on all GPUs of this box, one process each:
#   bash launch/torchrun_local.sh [SCRIPT.py] [CONFIG.yaml] [key=value ...]
# The script is train_ddp.py unless it is named; TRYON_NPROC=N takes N ranks.  Paths are relative to the project's folder.
exec bash "$(dirname "${BASH_SOURCE[0]}")/torchrun_node.sh" --local "$@"

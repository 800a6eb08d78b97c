#!/usr/bin/env bash
# One node's share of a run, to be started once on every node, by srun, by ssh or by hand:
#   bash launch/torchrun_node.sh [--hostfile FILE | --local] [SCRIPT.py] [CONFIG.yaml] [key=value ...]
# The script is train_ddp.py unless it is named; launch/env.sh says how the nodes find each other.  Before torchrun
# starts, a roll call holds code, config, command and packages of all nodes against each other.  Paths are relative to
# the project's folder.
#   TRYON_RUN_IN     words before python3 and torchrun, such as a container's: "apptainer exec --nv image.sif"
#   ROLL_CALL_WAIT   seconds until a node that does not call counts as missing (50)
set -euo pipefail
hosts=(--) standalone=()
case "${1:-}" in
  --hostfile)
    hosts=(--hostfile "$(realpath -m "${2:?--hostfile needs a file}")")
    shift 2
    ;;
  --local) # this box alone; the rendezvous is torchrun's own, so that several runs may share the box
    hosts=(localhost) standalone=(--standalone)
    export TRYON_JOB=local
    shift
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=train_ddp.py
case "${1:-}" in *.py)
  script=$1
  shift
  ;;
esac
read -ra run_in <<<"${TRYON_RUN_IN:-}"
# shellcheck source=launch/env.sh
source launch/env.sh "${hosts[@]}"
mark node
"${run_in[@]}" python3 -m launch.rollcall --wait "${ROLL_CALL_WAIT:-50}" "$script" "$@"
mark rollcall
# All nodes are up and reach the master, so that a slow import on one of them may take its time.
export PET_RDZV_CONF=${PET_RDZV_CONF/read_timeout=15/read_timeout=120}
trap '' USR1 USR2 # they would kill torchrun; ranks that want USR2 ask for it
# --: the script's options are none of torchrun's.
exec "${run_in[@]}" python3 -m launch.agent "${standalone[@]}" -- "$script" "$@"

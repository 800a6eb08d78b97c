# shellcheck shell=bash
# What the job scripts share.  Sourced in the folder that the job was submitted from, which must be the project's.
#   on_all_nodes SCRIPT.py [ARGS]   any script under torchrun on all nodes
#   run_python, config_value        on this node
set -euo pipefail
# shellcheck source=slurm/site.sh
source slurm/site.sh
load_modules
# shellcheck source=launch/env.sh
source launch/env.sh -- >/dev/null
read -ra run_in <<<"${TRYON_RUN_IN:-}"

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # of an array, this task alone
job=${job:-$SLURM_JOB_ID}

asked_again() { # COMMAND: what it prints; Slurm's controller may be busy
  local try
  for try in 1 2 3 4 5; do
    "$@" && return
    sleep "$try"
  done
}

job_field() { # FIELD: what Slurm knows of this job; nothing when it does not answer
  asked_again scontrol show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

unix_time() { # of Slurm's local time; nothing when it is unknown
  [[ $1 != 20* ]] || date -d "$1" +%s
}

run_python() { "${run_in[@]}" python3 "$@"; }

config_value() { run_python -m launch.config_value "$@"; } # KEY [CONFIG.yaml] [key=value ...]

say() { echo "[slurm job $job, $(date +%T)] $*"; }

export TRYON_STOP_WORD="job $SLURM_JOB_ID" TRYON_TIMELINE
TRYON_TIMELINE="submit=$(unix_time "$(job_field SubmitTime)") batch=$(date +%s.%N)"

on_all_nodes() {
  local options=(--kill-on-bad-exit=1 --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
  # srun does not take this over from sbatch since Slurm 22.05.
  [ -n "${SLURM_CPUS_PER_TASK:-}" ] && options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  srun "${options[@]}" "${SRUN_OPTIONS[@]}" bash launch/torchrun_node.sh "$@"
}

wait_for() { # PID -> its status; signals interrupt bash's wait, not this one
  local status=0 again
  while kill -0 "$1" 2>/dev/null; do wait "$1" && status=0 || status=$?; done
  wait "$1" 2>/dev/null && again=0 || again=$? # the status that a signal kept from the first wait; 127: it did not
  [ "$again" = 127 ] || status=$again
  return "$status"
}

script_name() { # NAME of the submitted slurm/NAME.sh
  local command
  command=$(asked_again scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
  basename "${command%%.sh*}"
}

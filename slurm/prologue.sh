# shellcheck shell=bash
# What the job scripts share.  Sourced in the folder that the job was submitted from, which must be the project's.
#   train [CONFIG.yaml] [key=value ...]   train_ddp.py on all nodes of the job, again and again until RUN/DONE
#   on_all_nodes SCRIPT.py [ARGS]         any script under torchrun on all nodes
# slurm/NAME.sh trains configs/NAME.yaml unless a config is named; %a in an argument is the job array's task.
set -euo pipefail
# shellcheck source=slurm/site.sh
source slurm/site.sh
load_modules
# shellcheck source=launch/env.sh
source launch/env.sh -- >/dev/null
read -ra run_in <<<"${TRYON_RUN_IN:-}"

MAX_ATTEMPTS=3 # runs without a new checkpoint until the job gives up
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # of an array, this task alone
job=${job:-$SLURM_JOB_ID}

job_field() { # FIELD: what Slurm knows of this job
  scontrol show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

unix_time() { # of Slurm's local time; nothing when it is unknown
  date -d "$1" +%s 2>/dev/null || true
}

run_python() { "${run_in[@]}" python3 "$@"; }

config_value() { run_python -m launch.config_value "$@"; } # KEY [CONFIG.yaml] [key=value ...]

say() { echo "[slurm job $job, $(date +%T)] $*"; }

export TRYON_TIMELINE
TRYON_TIMELINE="submit=$(unix_time "$(job_field SubmitTime)") batch=$(date +%s.%N)"

on_all_nodes() {
  local options=(--kill-on-bad-exit=1 --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
  # srun does not take this over from sbatch since Slurm 22.05.
  [ -n "${SLURM_CPUS_PER_TASK:-}" ] && options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  srun "${options[@]}" "${SRUN_OPTIONS[@]}" bash launch/torchrun_node.sh "$@"
}

train() {
  local words=("${@//%a/${SLURM_ARRAY_TASK_ID:-0}}") word config=
  for word in "${words[@]}"; do
    case $word in *=*) ;; *.yaml | *.yml | -d*) config=$word ;; esac
  done
  if [ -z "$config" ]; then
    config=$(basename "$(job_field Command)" .sh).yaml
    words=("${default_config:-configs/$config}" "${words[@]}")
  fi
  run=$(config_value run.dir "${words[@]}") || exit 1 # says what is wrong with the config
  mkdir -p "$run/logs"
  export TRYON_REFUSED="$run/logs/refused-$SLURM_JOB_ID.txt"
  rm -f "$TRYON_REFUSED"
  set_deadline
  count_attempt
  say "attempt $attempts from step $step_before: train_ddp.py ${words[*]} on $SLURM_JOB_NODELIST"
  trap 'say "stop asked for: training saves at the next step"; touch "$run/STOP"' USR2
  trap 'cancelled=yes' TERM
  test_hosts "${words[@]}"
  on_all_nodes train_ddp.py "${words[@]}" &
  wait_for $! || true
  decide
}

test_hosts() { # WORDS of train_ddp.py; a rank a GPU.  A broken host is left out of the job's next start
  [ "$TRYON_PREFLIGHT" = yes ] || return 0
  local broken="$run/broken_hosts-$SLURM_JOB_ID.txt"
  local gpus=${SLURM_GPUS_ON_NODE:-1}
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * gpus)) --ntasks-per-node="$gpus" \
    --cpus-per-task=1 --overcommit \
    "${SRUN_OPTIONS[@]}" "${run_in[@]}" python3 -m launch.preflight "$@" --exclude-file "$broken" &
  wait_for $! && [ ! -s "$broken" ] && return 0
  [ -s "$broken" ] || give_up "a host is broken; see the table above"
  requeue "without $(paste -sd, "$broken"), which preflight found broken" "ExcNodeList=$(paste -sd, "$broken")"
}

set_deadline() { # training leaves by itself this long before the end, should the signal not reach anybody
  local limit
  job_end=$(unix_time "$(job_field EndTime)")
  [ -n "$job_end" ] || return 0
  limit=$((job_end - $(date +%s)))
  export TRYON_DEADLINE=$((job_end - (limit / 5 < 120 ? limit / 5 : 120)))
}

time_is_over() { # Slurm ended the job at its limit, before a checkpoint was there
  [ -n "$job_end" ] && [ "$(date +%s)" -ge "$job_end" ]
}

last_step() { # of the newest checkpoint
  local latest=step_0
  [ -e "$run/checkpoints/latest" ] && read -r latest <"$run/checkpoints/latest"
  echo $((10#${latest#step_}))
}

count_attempt() { # counted at the start, so that no kind of death goes uncounted
  local counted_at=-1
  step_before=$(last_step) attempts=0 attempts_file=$run/logs/attempts-$SLURM_JOB_ID
  if [ "${SLURM_RESTART_COUNT:-0}" != 0 ] && [ -e "$attempts_file" ]; then
    read -r counted_at attempts <"$attempts_file"
  fi
  [ "$step_before" = "$counted_at" ] || attempts=0
  attempts=$((attempts + 1))
  echo "$step_before $attempts" >"$attempts_file"
  [ "$attempts" -le "$MAX_ATTEMPTS" ] || give_up "$MAX_ATTEMPTS runs made no progress beyond step $step_before"
}

wait_for() { # PID -> its status; signals interrupt bash's wait, not this one
  local status=0
  while kill -0 "$1" 2>/dev/null; do wait "$1" && status=0 || status=$?; done
  return "$status"
}

decide() {
  local step
  step=$(last_step)
  if [ "$run/DONE" -nt "$attempts_file" ]; then # training removes what an earlier start left, if it comes so far
    say "done at step $step"
    exit 0
  fi
  if { [ -n "${cancelled:-}" ] || [ "$(squeue -h -j "$job" -o %T)" != RUNNING ]; } && ! time_is_over; then
    say "ended by Slurm at step $step; the same command continues"
    exit 143
  fi
  [ ! -s "$TRYON_REFUSED" ] || give_up "$(sed -n "1s/^error: //p" "$TRYON_REFUSED")"
  if [ "$step" = "$step_before" ] && [ "$attempts" -ge "$MAX_ATTEMPTS" ]; then
    give_up "$MAX_ATTEMPTS runs made no progress beyond step $step; the last said: $(last_error)"
  fi
  requeue "step $step; $([ "$run/REQUEUE" -nt "$attempts_file" ] && cat "$run/REQUEUE" || echo "it ended by itself: $(last_error)")"
}

last_error() {
  [ ! -f /proc/$$/fd/1 ] || grep -a '^error: ' /proc/$$/fd/1 | tail -n 1 || true
}

requeue() { # WHY [CHANGE of the job]
  say "requeued: $1"
  scontrol requeue "$job" || give_up "Slurm does not requeue this job; submit it again: the same command continues"
  # Slurm lets a requeued job wait for two minutes more.
  scontrol update "JobId=$job" StartTime=now ${2:+"$2"} || true
  exit 0
}

give_up() { # WHY
  say "failed: $1"
  run_python -c 'import json, sys; print(json.dumps({"reason": sys.argv[1], "step": int(sys.argv[2])}))' \
    "$1" "$(last_step)" >"$run/FAILED"
  exit 1
}

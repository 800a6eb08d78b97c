# shellcheck shell=bash
# A training job that comes back until it is done.  Sourced by the job scripts that train.
#   train [CONFIG.yaml] [key=value ...]   train_ddp.py on all nodes of the job, again and again until RUN/DONE
# slurm/NAME.sh trains configs/NAME.yaml unless a config is named; %a in an argument is the job array's task.
run='' cancelled='' stopping='' # the traps come first: without one, Slurm's early signal kills this script
trap 'stop_asked' USR2
trap 'cancelled=yes' TERM

stop_asked() { # before the run folder is known, it is kept in mind
  stopping=yes
  [ -n "$run" ] || return 0
  say "stop asked for: training saves at the next step"
  echo "$TRYON_STOP_WORD" >"$run/STOP"
}

# shellcheck source=slurm/prologue.sh
source slurm/prologue.sh

MAX_ATTEMPTS=3 # runs without a new checkpoint until the job gives up

train() {
  local words=("${@//%a/${SLURM_ARRAY_TASK_ID:-0}}") word config='' folder
  for word in "${words[@]}"; do
    case $word in *=*) ;; *.yaml | *.yml | -d*) config=$word ;; esac
  done
  if [ -z "$config" ]; then
    config=${default_config:-configs/$(script_name).yaml}
    words=("$config" "${words[@]}")
  fi
  folder=$(config_value run.dir "${words[@]}") || exit 1 # says what is wrong with the config
  mkdir -p "$folder/logs"
  run=$folder # from here on the signal is written down there
  export TRYON_REFUSED="$run/logs/refused-$SLURM_JOB_ID.txt"
  rm -f "$TRYON_REFUSED"
  set_deadline
  count_attempt
  say "attempt $attempts from step $step_before: train_ddp.py ${words[*]} on $SLURM_JOB_NODELIST"
  if [ "${SLURM_RESTART_COUNT:-0}" != 0 ] && [ -e "$run/STOP" ] && [ ! -s "$run/STOP" ]; then
    rm "$run/STOP"
    end_here "before it started again"
  fi
  test_hosts "${words[@]}"
  [ -z "$stopping" ] || stop_asked
  on_all_nodes train_ddp.py "${words[@]}" &
  wait_for $! || true
  decide
}

test_hosts() { # WORDS of train_ddp.py; a rank a GPU.  A broken host is left out of the job's next start
  [ "$TRYON_PREFLIGHT" = yes ] || return 0
  local broken="$run/logs/broken_hosts-$SLURM_JOB_ID.txt" gpus=${SLURM_GPUS_ON_NODE:-1} hosts before
  local told="$run/logs/preflight-$SLURM_JOB_ID.txt" passed=yes # srun may lose the words of a task that failed
  rm -f "$broken" "$broken.why" "$told"
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * gpus)) --ntasks-per-node="$gpus" \
    --cpus-per-task=1 --overcommit --kill-on-bad-exit=1 --output="$told" --open-mode=append \
    "${SRUN_OPTIONS[@]}" "${run_in[@]}" python3 -m launch.preflight "$@" --exclude-file "$broken" &
  wait_for $! || passed=no
  cat "$told" || true
  [ "$passed" = no ] || return 0
  leave_if_ended
  give_up_after "preflight failed; see what it says above"
  [ -s "$broken" ] || requeue "preflight failed"
  grep -q "^error: host" "$told" || cat "$broken.why" || true
  hosts=$(paste -sd, "$broken") before=$(job_field ExcNodeList | sed 's/(null)//')
  requeue "without $hosts, which preflight found broken" "ExcNodeList=${before:+$before,}$hosts"
}

set_deadline() { # training leaves by itself this long before the end, should the signal not reach anybody
  local limit
  job_end=$(unix_time "$(job_field EndTime)")
  limit=$((${job_end:-0} - $(date +%s)))
  [ "$limit" -gt 0 ] || return 0
  export TRYON_DEADLINE=$((job_end - (limit / 5 < 120 ? limit / 5 : 120)))
}

time_is_over() { # Slurm ended the job at its limit, before a checkpoint was there
  [ -n "$job_end" ] && [ "$(date +%s)" -ge "$job_end" ]
}

last_step() { # of the newest checkpoint
  local latest=
  read -r latest 2>/dev/null <"$run/checkpoints/latest" || true
  [[ $latest =~ ^step_[0-9]+$ ]] && echo $((10#${latest#step_})) || echo 0
}

count_attempt() { # counted at the start, so that no kind of death goes uncounted
  local counted_at='' counted=''
  step_before=$(last_step) attempts=1 attempts_file=$run/logs/attempts-$SLURM_JOB_ID
  if [ "${SLURM_RESTART_COUNT:-0}" != 0 ]; then
    read -r counted_at counted 2>/dev/null <"$attempts_file" || true
    [ "$step_before" != "$counted_at" ] || attempts=$((${counted:-0} + 1))
  fi
  echo "$step_before $attempts" >"$attempts_file.partial"
  mv "$attempts_file.partial" "$attempts_file"
  [ "$attempts" -le "$MAX_ATTEMPTS" ] || give_up "$MAX_ATTEMPTS runs made no progress beyond step $step_before"
}

leave_if_ended() { # by scancel or preemption; the end of the job's time is no reason not to come back
  local state
  state=$(asked_again squeue -h -j "$job" -o %T)
  if { [ -n "$cancelled" ] || [ "${state:-RUNNING}" != RUNNING ]; } && ! time_is_over; then
    say "ended by Slurm at step $(last_step); the same command continues"
    exit 143
  fi
}

decide() {
  local step why
  step=$(last_step)
  if [ "$run/DONE" -nt "$attempts_file" ]; then # training removes what an earlier start left, if it comes so far
    say "done at step $step"
    exit 0
  fi
  leave_if_ended
  [ ! -s "$TRYON_REFUSED" ] || give_up "$(sed -n "1s/^error: //p" "$TRYON_REFUSED")"
  why="it ended by itself: $(last_error)"
  if [ "$run/REQUEUE" -nt "$attempts_file" ]; then
    why=$(cat "$run/REQUEUE")
    [[ $why != *"by the file STOP"* ]] || end_here "at step $step"
  fi
  [ "$step" != "$step_before" ] || give_up_after "the last said: $(last_error)"
  requeue "step $step; $why"
}

end_here() { # WHERE: the user's STOP ends the chain of jobs
  say "stopped by $run/STOP $1; the same sbatch command continues"
  exit 1
}

last_error() { # of this attempt: its cause, rather than what that did to other ranks
  [ ! -f /proc/$$/fd/1 ] || awk '
    /^\[slurm job .*\] attempt / { cause = lost = ended = "" }
    /^error: / { if (/lost contact/) lost = $0; else cause = $0 }
    /^torchrun on .* ended first here, by / { ended = $0 }
    END { print (cause ? cause : ended ? ended : lost) }' /proc/$$/fd/1
}

requeue() { # WHY [CHANGE of the job]
  say "requeued: $1"
  trap '' TERM # which Slurm now sends to all of this job, scontrol included
  scontrol requeue "$job" || give_up "Slurm does not requeue this job; submit it again: the same command continues"
  # Slurm lets a requeued job wait for two minutes more.
  scontrol update "JobId=$job" StartTime=now ${2:+"$2"} || true
  exit 0
}

give_up_after() { # WHY: gives up when this is the last attempt without progress
  [ "$attempts" -lt "$MAX_ATTEMPTS" ] || give_up "$MAX_ATTEMPTS runs made no progress beyond step $step_before; $1"
}

give_up() { # WHY
  say "failed: $1"
  run_python -c 'import json, sys; print(json.dumps({"reason": sys.argv[1], "step": int(sys.argv[2])}))' \
    "$1" "$(last_step)" >"$run/FAILED"
  exit 1
}

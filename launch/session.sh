#!/usr/bin/env bash
# What launch/cluster.sh has each host do, over ssh and with the project's folder as the working directory.
# SESSION names the screen session; every process in it carries TRYON_SESSION, by which all are found again.
set -euo pipefail
host=$(uname -n)

pids() { # SESSION: its processes, also those that a killed torchrun left behind
  grep -lszxF "TRYON_SESSION=$1" /proc/[0-9]*/environ | cut -d/ -f3 || true
}

check() { # SESSION: whether it can be started here
  if ! command -v screen >/dev/null; then
    echo "error: host $host has no screen; install it there (apt-get install screen)" >&2
    return 1
  fi
  if [ -n "$(pids "$1")" ]; then
    echo "error: $1 still runs on host $host; look at it with attach or status, or end it with stop" >&2
    return 1
  fi
}

port() { # a free one
  local number
  for _ in {1..50}; do
    number=$((20000 + RANDOM % 10000))
    if [ -z "$(PATH="$PATH:/usr/sbin:/sbin" ss -Hltn "sport = :$number")" ]; then
      echo "$number"
      return
    fi
  done
  return 1
}

run_dir() { # ARGS: the run folder of a train command, absolute
  local python=.venv/bin/python3 folder
  local -a run_in
  read -ra run_in <<<"${TRYON_RUN_IN:-}"
  [ -x "$python" ] && [ -z "${TRYON_RUN_IN:-}" ] || python=python3
  folder=$("${run_in[@]}" "$python" -m launch.config_value run.dir "$@") || return 1
  realpath -m "$folder"
}

begin() { # SESSION RUN NUM NAME=VALUE (NUM of them) WORDS: the console of torchrun_node.sh WORDS in a screen session
  local session=$1 run=$2 num=$3
  shift 3
  mkdir -p "$run/logs/$host"
  screen -dmS "$session" env "${@:1:num}" "TRYON_SESSION=$session" bash launch/session.sh console "$run" "${@:num+1}"
}

console() { # RUN WORDS
  local run=$1
  shift
  {
    trap : INT # Ctrl-C in the session is for torchrun; what is said afterwards is said
    echo "--- $(date '+%F %T') on $host: $*"
    bash launch/torchrun_node.sh "$@" && status=0 || status=$?
    echo "--- $(date '+%F %T') on $host: ended with status $status"
  } 2>&1 | tee -ai "$run/logs/$host/console.log"
}

status() { # SESSION RUN
  local log=$2/logs/$host/console.log newest num last
  num=$(pids "$1" | wc -l) last=$(tail -n 1 "$log" 2>/dev/null || true)
  if [ "$num" != 0 ]; then
    echo "running, $num processes"
  elif [[ $last == '--- '*': ended with status '* ]]; then
    echo "ended with status ${last##* } at $(cut -d' ' -f2,3 <<<"$last")"
  elif [ -n "$last" ]; then
    echo "ended without a word: killed, or the host went down"
  else
    echo "never started here"
  fi
  newest=$(find "$2/logs/$host" -name 'rank_*.json' ! -name '*.flight.json' -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1 | cut -d' ' -f2-)
  if [ -n "$newest" ]; then
    echo "  heartbeat $(($(date +%s) - $(stat -c %Y "$newest"))) s ago:" \
      "$(sed -nE 's/.*"rank": ([0-9]+).*"step": ([0-9]+).*"phase": "([^"]*)".*/rank \1 after step \2, \3/p' "$newest")"
  fi
  nvidia-smi --query-gpu=index,utilization.gpu,memory.used,memory.total --format=csv,noheader 2>/dev/null |
    sed 's/^/  GPU /' || true
  tail -n 3 "$log" 2>/dev/null | cut -c1-200 | sed 's/^/  | /' || true
}

logs() { # SESSION RUN: the console, until the session ends
  local first log=$2/logs/$host/console.log
  first=$(pids "$1" | sort -n | head -n 1)
  if [ -n "$first" ]; then
    exec tail -n 20 -s 0.3 --pid="$first" -F "$log" 2>/dev/null
  fi
  exec tail -n 20 "$log"
}

end_now() { # SESSION: TERM, and KILL for what remains after ten seconds
  local signal
  for signal in TERM KILL; do
    pids "$1" | xargs -r kill -s "$signal" 2>/dev/null || true
    for _ in {1..50}; do
      [ -n "$(pids "$1")" ] || return 0
      sleep 0.2
    done
  done
  echo "error: host $host cannot end these processes: $(pids "$1" | xargs)" >&2
  return 1
}

wish_stop() { # RUN
  rm -f "$1/REQUEUE"
  touch "$1/STOP"
}

outcome() { # RUN: the step at which training stopped; nothing when it did not by itself
  rm -f "$1/STOP"
  { cat "$1/REQUEUE" "$1/DONE" 2>/dev/null || true; } | sed -nE 's/.*"step": ([0-9]+).*/\1/p' | head -n 1
}

"$@"

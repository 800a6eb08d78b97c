#!/usr/bin/env bash
# Trains on hosts that ssh reaches: a screen session on each, which outlives the ssh connection.
#   bash launch/cluster.sh start HOSTFILE [SCRIPT.py] [CONFIG.yaml] [key=value ...]
#   bash launch/cluster.sh status HOSTFILE          running or ended, last lines, GPUs and last heartbeat of each host
#   bash launch/cluster.sh attach HOSTFILE HOST     the console of a host; Ctrl-A d leaves it, and it runs on
#   bash launch/cluster.sh logs HOSTFILE            all consoles until they end, each line with its host
#   bash launch/cluster.sh stop HOSTFILE [--now]    training saves and ends; --now: within seconds, saved or not
# A line of the hostfile is `HOST [slots=N]`; the first host is the master.  Paths are relative to the project's folder
# on the hosts: the same as here, or TRYON_HOME.  Variables TRYON_*, NCCL_*, OMP_NUM_THREADS and PET_MAX_RESTARTS go
# along.  start keeps in HOSTFILE.run what the others need to know; the same start command continues a run.
set -euo pipefail
# shellcheck source=launch/nodes.sh
source "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"
STOP_WAIT=${STOP_WAIT:-900} # seconds for the step and the checkpoint after stop

fail() {
  echo "error: $*" >&2
  exit 1
}

usage() {
  sed -n '3,7s/^# *//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

over_ssh() { # HOST FUNCTION ARGS: of launch/session.sh, there
  local host=$1
  shift
  ssh -n -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 "$host" \
    "cd $(printf %q "$home") && exec bash launch/session.sh $(printf '%q ' "$@")"
}

on_all() { # ACTION ARGS: ACTION HOST ARGS for every host at once, told in the hostfile's order
  local action=$1 i status=0 folder pids=()
  shift
  folder=$(mktemp -d)
  for i in "${!hosts[@]}"; do
    "$action" "${hosts[i]}" "$@" >"$folder/$i" 2>&1 &
    pids[i]=$!
  done
  for i in "${!hosts[@]}"; do
    wait "${pids[i]}" || status=1
    cat "$folder/$i"
  done
  rm -r "$folder"
  return "$status"
}

session() { echo "$name-$1"; } # HOST: hosts may share the folder of screen's sockets

check() { # HOST
  local said
  said=$(ssh -n -o BatchMode=yes -o ConnectTimeout=10 "$1" "test -e $(printf %q "$home/launch/session.sh")" 2>&1) ||
    { case $? in
      255) fail "host $1: ssh says: ${said:-nothing}; \`ssh $1\` has to work without a password" ;;
      *) fail "host $1 has no project folder $home; copy it there, or name it: TRYON_HOME=FOLDER" ;;
      esac; }
  over_ssh "$1" check "$(session "$1")"
}

start_one() { # HOST PORT WORDS
  local host=$1 port=$2 variable settings=() slots
  shift 2
  for variable in $(compgen -e); do
    case $variable in TRYON_HOME | TRYON_SESSION | TRYON_NODE_RANK) ;;
    TRYON_* | NCCL_* | OMP_NUM_THREADS | PET_MAX_RESTARTS | ROLL_CALL_WAIT) settings+=("$variable=${!variable}") ;;
    esac
  done
  slots=$(awk -v host="$host" '$1 == host { print $2 }' <<<"$lines")
  [ "$slots" = 0 ] || settings+=("TRYON_NPROC=$slots")
  settings+=("TRYON_NODES=${hosts[*]}" "TRYON_PORT=$port" "TRYON_JOB=$job" "TRYON_TIMELINE=start=$began")
  over_ssh "$host" begin "$(session "$host")" "$run" "${#settings[@]}" "${settings[@]}" "$@"
}

start() { # WORDS
  local port words=("$@") job began
  began=$(date +%s.%N) job=$name-$(date +%Y%m%d-%H%M%S)
  on_all check || exit 1
  case "${1:-}" in *.py) shift ;; esac
  run=$(over_ssh "${hosts[0]}" run_dir "$@") || exit 1
  port=$(over_ssh "${hosts[0]}" port) || fail "host ${hosts[0]}: no free port found from 20000 to 29999"
  printf '%s\n' "home=$home" "run=$run" "job=$job" "command=${words[*]}" >"$hostfile.run"
  on_all start_one "$port" "${words[@]}" || fail "not every host could start; see above, and stop the others: stop --now"
  sleep 1
  on_all running || fail "a session ended when its ssh connection did; see above (\`loginctl enable-linger\` may help)"
  echo "started $name on ${hosts[*]}; the run folder is $run"
}

running() { # HOST
  local said
  said=$(over_ssh "$1" status "$(session "$1")" "$run") || said="not reachable: $said"
  [[ $said == running* ]] || { sed "1s/^/$1: /" <<<"$said" && return 1; }
}

ended() { # HOST
  local said
  said=$(over_ssh "$1" pids "$(session "$1")") && [ -z "$said" ]
}

status_of() { # HOST
  over_ssh "$1" status "$(session "$1")" "$run" | sed "1s/^/$1: /" || echo "$1: not reachable by ssh"
}

follow() {
  local host
  trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
  for host in "${hosts[@]}"; do
    over_ssh "$host" logs "$(session "$host")" "$run" 2>&1 | sed -u "s/^/$host: /" &
  done
  wait
}

stop() {
  local step began=$SECONDS
  ! on_all ended || fail "$name runs on none of ${hosts[*]}"
  over_ssh "${hosts[0]}" wish_stop "$run" || fail "host ${hosts[0]}: $run/STOP cannot be written"
  echo "asked training to stop; it saves at the next step"
  until on_all ended; do
    [ $((SECONDS - began)) -lt "$STOP_WAIT" ] || fail "still running after $STOP_WAIT s; see status; stop --now kills it"
    sleep 1
  done
  step=$(over_ssh "${hosts[0]}" outcome "$run") || step=
  [ -n "$step" ] || fail "it ended without a checkpoint of its own; see logs"
  echo "stopped at step $step; the same start command continues"
}

end_one() { over_ssh "$1" end_now "$(session "$1")"; } # HOST

[ $# -ge 2 ] || usage
action=$1 hostfile=$2
shift 2
case $action in start | status | attach | logs | stop) ;; *) usage ;; esac
lines=$(read_hostfile "$hostfile") || exit 1
mapfile -t hosts < <(cut -d' ' -f1 <<<"$lines")
name=tryon-$(basename "$hostfile" | sed 's/\.[^.]*$//; s/[^A-Za-z0-9_-]/_/g')
home=${TRYON_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
if [ "$action" != start ]; then
  [ -r "$hostfile.run" ] || fail "$hostfile.run is not there: nothing was started with this hostfile"
  home=$(sed -n 's/^home=//p' "$hostfile.run") run=$(sed -n 's/^run=//p' "$hostfile.run")
fi
case "$action${1:+ $1}" in
  start*) start "$@" ;;
  status) on_all status_of ;;
  attach\ *)
    [[ " ${hosts[*]} " == *" $1 "* ]] || fail "host $1 is none of $hostfile: ${hosts[*]}"
    exec ssh -t "$1" "screen -x $(printf %q "$(session "$1")")"
    ;;
  logs) follow ;;
  stop) stop ;;
  'stop --now') on_all end_one && echo "killed $name; the same start command continues at the last checkpoint" ;;
  *) usage ;;
esac

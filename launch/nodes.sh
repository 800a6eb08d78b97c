# shellcheck shell=bash
# Who the nodes of a run are.  Sourced.  A hostfile has a line `HOST [slots=N]` for each node; # starts a comment.
# shellcheck disable=SC2034 # its findings are for whoever sources it

_tryon_say() {
  echo "error: $*" >&2
  return 1
}

# read_hostfile FILE: its lines as HOST SLOTS, where 0 stands for slots that are not said.
read_hostfile() {
  if [ ! -r "$1" ]; then
    _tryon_say "hostfile $1 cannot be read on $(uname -n)"
    return 1
  fi
  sed 's/#.*//; s/\r$//' "$1" | awk -v file="$1" '
    function fail(what) { printf "error: hostfile %s%s\n", file, what >"/dev/stderr"; failed = 1; exit 1 }
    NF == 0 { next }
    NF > 2 || $1 ~ /[^A-Za-z0-9._-]/ || (NF == 2 && $2 !~ /^slots=[1-9][0-9]*$/) {
      fail(": \"" $0 "\" is not HOST [slots=N]")
    }
    seen[$1]++ { fail(": host " $1 " stands twice") }
    { print $1, (NF == 2 ? substr($2, 7) : 0); num++ }
    END { if (!failed && !num) fail(" names no host") }'
}

# _tryon_nodes [--hostfile FILE | HOST ...] -> nodes, origin (whose word it is) and slots (0: not said), an array each.
_tryon_nodes() {
  local words="" lines
  [ "${1:-}" != -- ] || shift
  nodes=() slots=()
  if [ "${1:-}" = --hostfile ]; then
    origin="hostfile ${2:-}"
    lines=$(read_hostfile "${2:-}") || return 1
    mapfile -t nodes < <(cut -d' ' -f1 <<<"$lines")
    mapfile -t slots < <(cut -d' ' -f2 <<<"$lines")
    return
  elif [ $# -gt 0 ]; then
    origin="arguments of env.sh" words=$*
  elif [ -n "${TRYON_NODES:-}" ]; then
    origin=TRYON_NODES words=$TRYON_NODES
  elif [ -n "${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}" ]; then
    origin="Slurm job" words=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}")
  fi
  read -ra nodes -d '' <<<"$words"
  [ "${#nodes[@]}" != 0 ] ||
    _tryon_say "no nodes are known: source launch/env.sh HOST HOST ..., or --hostfile FILE, or start it in a Slurm job"
}

# _tryon_place: of `nodes` -> addresses, and rank: which of them this host is.
_tryon_place() {
  local index name address own short
  own=" 127.0.0.1 $(ip -o -4 addr show 2>/dev/null | awk '{ sub("/.*", "", $4); print $4 }' | xargs) " short=$(uname -n | cut -d. -f1)
  addresses=() rank=
  for index in "${!nodes[@]}"; do
    name=${nodes[index]}
    address=$(getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }')
    if [ -z "$address" ]; then
      _tryon_say "host $name (from the $origin) has no IPv4 address on $(uname -n), neither by DNS nor in /etc/hosts;" \
        "correct the name in the $origin, or add it to /etc/hosts"
      return 1
    fi
    addresses[index]=$address
    if [ "$name" = "$(uname -n)" ]; then
      rank=$index
    elif [ -z "$rank" ] && { [ "${name%%.*}" = "$short" ] || [[ $own == *" $address "* ]]; }; then
      rank=$index
    fi
  done
  [ -n "$rank" ] || _tryon_say "this host, $(uname -n), is none of the nodes ${nodes[*]} (from the $origin);" \
    "start it on those, or name this one among them"
}

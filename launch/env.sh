# shellcheck shell=bash
# Sourced in bash on every node of a run: the environment with which a plain torchrun finds the other nodes.
#   source launch/env.sh [--hostfile FILE | HOST ...]
#   torchrun --nnodes=2 --nproc_per_node=8 train_ddp.py
# The nodes are the arguments, else TRYON_NODES, else those of the Slurm job; the first is the master, whose torchrun
# keeps the rendezvous.  `source` hands on the arguments of the script that it stands in; there, say
# `source launch/env.sh --` to name none.
#   TRYON_NPROC         ranks of each node; else Slurm's GPUs, the hostfile's slots, nvidia-smi's GPUs, or 1
#   TRYON_PORT          of the rendezvous; else from the job, the same on every node and below the ephemeral ports
#   TRYON_JOB           tells this run from others; else Slurm's job, or a checksum of the nodes
#   TRYON_IFNAME        the network interface of gloo and torchrun; else that of the route to the other nodes
#   TRYON_NUM_WORKERS   loader workers of a rank (4), which share its cores
# Kept where they are set: PET_MAX_RESTARTS, TORCH_ELASTIC_SHUTDOWN_TIMEOUT, OMP_NUM_THREADS.  NCCL's are left alone.
# Returns 1 with one line on stderr when something is wrong.
if [ -z "${BASH_VERSION:-}" ]; then
  echo "error: launch/env.sh is for bash; start one: bash" >&2
  return 1
elif [ "${BASH_SOURCE[0]}" = "$0" ]; then
  echo "error: launch/env.sh sets variables of your shell; source it: source launch/env.sh HOST HOST" >&2
  exit 1
fi
# shellcheck source=launch/nodes.sh
source "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"

# mark NAME: the start-up phase of this name ends now; training prints how long each took.
mark() {
  TRYON_TIMELINE="${TRYON_TIMELINE:+$TRYON_TIMELINE }$1=$(date +%s.%N)"
  export TRYON_TIMELINE
}

# The interface, own address and master's address -> device, address, master.
_tryon_network() {
  local peer=$((rank == 0 ? 1 : 0)) route
  device=lo address=127.0.0.1 master=127.0.0.1
  [ "${#nodes[@]}" -gt 1 ] || return 0
  master=${addresses[0]}
  route=$(ip -4 route get "${addresses[peer]}" 2>/dev/null)
  device=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$route")
  address=$(sed -n 's/.* src \([^ ]*\).*/\1/p' <<<"$route")
  if [ -z "$device" ] || [ "$device" = lo ]; then
    _tryon_say "host ${nodes[peer]} is ${addresses[peer]} on $(uname -n), which has no way there over a network;" \
      "mend the network, DNS or /etc/hosts"
    return 1
  fi
  if [ -n "${TRYON_IFNAME:-}" ]; then
    device=$TRYON_IFNAME
    address=$(ip -o -4 addr show dev "$device" 2>/dev/null | awk 'NR == 1 { sub("/.*", "", $4); print $4 }')
    if [ -z "$address" ]; then
      _tryon_say "TRYON_IFNAME=$device is no interface of $(uname -n) with an IPv4 address"
      return 1
    fi
  fi
  [ "$rank" != 0 ] || master=$address
}

# What tells this run from others -> job, port.
_tryon_meeting() {
  local number first last
  number=${SLURM_JOB_ID:-$(cksum <<<"${TRYON_JOB:-} ${nodes[*]} $(id -u)" | cut -d' ' -f1)}
  job=${TRYON_JOB:-${SLURM_JOB_ID:+$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}}}
  job=${job:-nodes-$number} port=${TRYON_PORT:-$((20000 + number % 10000))}
  if ! [[ $port =~ ^[1-9][0-9]{3,4}$ ]] || [ "$port" -lt 1024 ] || [ "$port" -gt 65535 ]; then
    _tryon_say "TRYON_PORT=$port is no port from 1024 to 65535"
    return 1
  fi
  read -r first last </proc/sys/net/ipv4/ip_local_port_range
  if [ -n "${TRYON_PORT:-}" ] && [ "$port" -ge "$first" ] && [ "$port" -le "$last" ]; then
    echo "warning: TRYON_PORT=$port is one of the ports $first to $last, which any connection may take;" \
      "choose one below $first" >&2
  fi
  if [ "$rank" = 0 ] && [ -n "$(ss -Hltn "sport = :$port" 2>/dev/null)" ]; then
    _tryon_say "port $port of the master ${nodes[0]} is taken by another program; on every node choose a free one:" \
      "TRYON_PORT=N"
    return 1
  fi
}

# Ranks of this node, threads of a rank -> ranks, threads.
_tryon_shares() {
  local cores workers=${TRYON_NUM_WORKERS:-4}
  ranks=${TRYON_NPROC:-${SLURM_GPUS_ON_NODE:-${slots[rank]:-0}}}
  [ "$ranks" != 0 ] || ranks=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
  [ "$ranks" != 0 ] || ranks=1
  if ! [[ $ranks =~ ^[1-9][0-9]*$ && $workers =~ ^[0-9]+$ ]]; then
    _tryon_say "TRYON_NPROC=$ranks, TRYON_NUM_WORKERS=$workers: expected whole numbers"
    return 1
  fi
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
  threads=${OMP_NUM_THREADS:-$((cores / (ranks * (1 + workers))))}
  [ "$threads" != 0 ] || threads=1
}

_tryon_env() {
  local - PATH="$PATH:/usr/sbin:/sbin"
  set +euo pipefail
  local command nodes slots origin addresses rank device address master job port ranks threads scratch
  _tryon_nodes "$@" || return 1
  for command in ip ss getent; do
    if [ "${#nodes[@]}" -gt 1 ] && ! command -v "$command" >/dev/null; then
      _tryon_say "$(uname -n) has no command $command; install iproute2 and libc-bin"
      return 1
    fi
  done
  _tryon_place && _tryon_network && _tryon_meeting && _tryon_shares || return 1
  scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/tryon-$(id -u) # compiled once a host; several jobs may share it
  if ! mkdir -p "$scratch"; then
    _tryon_say "$(uname -n) cannot write $scratch; set TMPDIR to a folder on its own disk"
    return 1
  fi
  ulimit -Sn "$(ulimit -Hn)" 2>/dev/null
  export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton OMP_NUM_THREADS=$threads
  export TRYON_NODES=${nodes[*]} GLOO_SOCKET_IFNAME=$device PET_LOCAL_ADDR=$address
  export PET_NNODES=${#nodes[@]} PET_NPROC_PER_NODE=$ranks TRYON_NODE_RANK=$rank PET_MAX_RESTARTS=${PET_MAX_RESTARTS:-0}
  export PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT=$master:$port PET_RDZV_ID=$job
  # torchrun gives up an unreachable master after one to three times the read_timeout: within a minute.
  export PET_RDZV_CONF=is_host=$((rank == 0)),join_timeout=300,read_timeout=15
  # Restarted ranks would read the addresses of those before them from a shared store.
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  # Seconds from SIGTERM to SIGKILL; torchrun's 30 can end a save.
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
  # Where addresses have no names in DNS, every start would warn of it several times.
  export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR}
  echo "node $((rank + 1)) of ${#nodes[@]} (${nodes[*]}): $ranks ranks of $threads threads;" \
    "master ${nodes[0]} at $PET_RDZV_ENDPOINT over $device, job $job"
}

# The project's own packages, unless an environment with torchrun is active.
_tryon_path() {
  local bin
  bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin
  [ -x "$bin/torchrun" ] && [[ :$PATH: != *:"$bin":* ]] || return 0
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || ! command -v torchrun >/dev/null; then
    export PATH="$bin:$PATH"
  fi
}

_tryon_env "$@" && _tryon_path || return 1

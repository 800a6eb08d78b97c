"""Where this process stands among the processes of a job: torchrun, srun, a list of hosts, or alone."""

import os
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

PORT = 29517  # where no scheduler names one


class Place(NamedTuple):
    """One process of `size`; the one with rank 0 serves the board unless torchrun's agent does."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    serves: bool = True
    attempt: str = "0"
    nodes: tuple[str, ...] = ()  # the hosts that must answer, where somebody names them


def find_place(env: Mapping[str, str]) -> Place:
    """From what torchrun, srun or TRYON_NODES says.  Raises ValueError when this host is not in TRYON_NODES."""
    listed = (
        tuple(re.split(r"[\s,]+", env.get("TRYON_NODES", "").strip())) if env.get("TRYON_NODES", "").strip() else ()
    )
    nodes = listed or expand(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if "RANK" in env:
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(
            rank, size, int(env.get("LOCAL_RANK", "0")), int(env.get("LOCAL_WORLD_SIZE", "1")), env["MASTER_ADDR"],
            int(env["MASTER_PORT"]), rank == 0 and not agent, env.get("TORCHELASTIC_RESTART_COUNT", "0"), nodes,
        )  # fmt: skip
    if "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # sbatch's own script is no step
        rank, job, step = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "JOB_ID", "STEP_ID"))
        port = int(env.get("MASTER_PORT", 20000 + (job * 7 + step) % 10000))
        local_size = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
        return Place(
            rank, int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]), local_size,
            env.get("MASTER_ADDR", nodes[0]), port, rank == 0, "0", nodes,
        )  # fmt: skip
    if len(listed) > 1:
        if host_name(env) not in listed:
            raise ValueError(f"TRYON_NODES={' '.join(listed)}: host {host_name(env)} is not in it; name it as it does")
        rank = listed.index(host_name(env))
        port = int(env.get("MASTER_PORT", PORT))
        return Place(rank, len(listed), 0, 1, env.get("MASTER_ADDR", listed[0]), port, rank == 0, "0", listed)
    return Place(0, 1, 0, 1)


def host_name(env: Mapping[str, str] = os.environ) -> str:
    """As Slurm calls this host, or as it calls itself."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def expand(nodelist: str) -> tuple[str, ...]:
    """Slurm's 'gpu[01-03,7],login' -> ('gpu01', 'gpu02', 'gpu03', 'gpu7', 'login'); containers have no scontrol."""
    names: list[str] = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        before, bracket, rest = entry.partition("[")
        if not bracket:
            names.append(entry)
            continue
        ranges, _, after = rest.partition("]")
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1))
            names += [name for number in numbers for name in expand(f"{before}{number}{after}")]
    return tuple(names)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's '2(x3),1' -> [2, 2, 2, 1]."""
    parts = (part.partition("(x") for part in text.split(","))
    return [int(count) for count, _, times in parts for _ in range(int(times.rstrip(")") or 1))]

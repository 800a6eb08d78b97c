"""Whether the hosts of a run fit together: the same code, config and packages, one folder, no GPU twice."""

import json
import platform
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.mixture import Mixture
from data.pipes import Pipes
from training.config import Config, flat
from training.distributed import Agreed, all_gather, num_ranks
from training.snapshot import code_hash

VISIBLE_S = 30  # until a file that one host wrote must be seen by all; network file systems cache what is missing


# Each host may have its own of these.
OWN_KEYS = ("data.shards", "data.val_shards", "data.num_workers", "data.prefetch", "data.cache", "data.cache_gb")
REMEDIES = {
    "code": "copy the same code to all hosts, or use a shared folder",
    "torch": "install the same packages on all hosts (requirements.txt)",
    "python": "use the same Python on all hosts",
}


class Host(NamedTuple):
    """What a rank tells of its host and itself."""

    name: str
    device: str
    config: dict[str, Any]  # by dotted key
    software: dict[str, str]


def check_hosts(config: Config, device: torch.device) -> list[str]:
    """The device of every rank, by rank.

    Raises the same ValueError on all ranks, naming the host that differs and in what, or the GPU that two ranks use.
    """
    ranks = all_gather(this_host(config, device))
    for name, remedy in REMEDIES.items():
        _same(name, [(rank.name, rank.software[name]) for rank in ranks], remedy)
    for key in ranks[0].config.keys() - set(OWN_KEYS):
        _same(key, [(rank.name, rank.config[key]) for rank in ranks], "start the same command on all hosts")
    for (host, gpu), times in Counter((rank.name, rank.device) for rank in ranks).items():
        if times > 1 and gpu.startswith("GPU"):
            raise Agreed(
                f"host {host}: {times} ranks use the same {gpu}; start one torchrun on each host, with at most as many "
                "ranks as it has GPUs"
            )
    return [f"{rank.name}: {rank.device}" for rank in ranks]


def check_data(config: Config, dataset: Mixture | Pipes) -> None:
    """Raises the same ValueError on all ranks when their shards are not the same data."""
    _same(
        f"data.shards={','.join(config.data.places())} with fingerprint",
        all_gather((socket.gethostname(), list(dataset.fingerprints().values()))),
        "copy the same shards to all hosts",
    )


def _same(what: str, told: list[tuple[str, Any]], remedy: str) -> None:
    """Raises ValueError naming the hosts whose value is not the usual one."""
    values = [json.dumps(value) for _, value in told]
    usual = max(values, key=values.count)
    odd = {host: value for (host, _), value in zip(told, values, strict=True) if value != usual}
    if odd:
        differ = ", ".join(f"host {host} has {what} {value}" for host, value in odd.items())
        others = sorted({host for (host, _), value in zip(told, values, strict=True) if value == usual})
        raise Agreed(f"{differ}, but {', '.join(others)} has {usual}; {remedy}")


def this_host(config: Config, device: torch.device) -> Host:
    software = {"code": code_hash(), "torch": torch.__version__, "python": platform.python_version()}
    return Host(socket.gethostname(), _device_name(device), dict(flat(config.model_dump(mode="json"))), software)


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"GPU {getattr(properties, 'uuid', torch.cuda.current_device())} ({properties.name})"


def check_shared(run_dir: Path, start: str) -> None:
    """Raises ValueError when this host does not see the RUN/start that rank 0 wrote."""
    if num_ranks() == 1:
        return
    end = time.monotonic() + VISIBLE_S
    while not (run_dir / "start").is_file() or (run_dir / "start").read_text(encoding="utf-8") != start:
        if time.monotonic() > end:
            raise ValueError(
                f"run.dir={run_dir}: host {socket.gethostname()} does not see there what rank 0 wrote; choose a run "
                "folder on a file system that all hosts share"
            )
        time.sleep(0.2)

"""The ranks of a run and what they agree on.  The sole importer of torch.distributed.

Every function works without a process group too, as one rank of one.
"""

import ctypes
import datetime
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name up to torch 2.12


class DistributedConfig(BaseModel, extra="forbid", frozen=True):
    backend: Literal["auto", "nccl", "gloo"] = Field("auto", description="auto: nccl on GPUs, gloo on CPUs")
    timeout_s: int = Field(1800, ge=10, description="seconds until a rank that waits for another gives up")
    hang_s: int = Field(
        300,
        ge=0,
        description="seconds without progress until the rank that stopped is named and the run ends; 0: off",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "DistributedConfig":
        if self.hang_s >= self.timeout_s:
            raise ValueError(
                f"distributed.hang_s={self.hang_s} must be less than distributed.timeout_s={self.timeout_s}: who waits "
                "would give up before it is known for whom"
            )
        return self


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process among those of its host, as torchrun numbers them."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_local_ranks() -> int:
    """Processes of this host, as torchrun counts them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def where() -> str:
    """'host nodeA, rank 3': how messages name a process."""
    return f"host {socket.gethostname()}, rank {get_rank()}"


@contextmanager
def process_group(config: DistributedConfig, device: str = "auto") -> Iterator[None]:
    """The process group of torchrun's ranks; left alone by an error, closed by all ranks together after success.

    Raises ValueError when the script was not started by torchrun.
    """
    if not under_torchrun():
        raise ValueError(
            "train_ddp.py is started by torchrun: torchrun --nproc_per_node=NUM_GPUS train_ddp.py [CONFIG.yaml] "
            "[key=value ...]; on one device use train_single.py"
        )
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    backend = ("nccl" if gpus else "gloo") if config.backend == "auto" else config.backend
    if gpus and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus:  # every rank of this host says no
        raise ValueError(
            f"host {socket.gethostname()} has {gpus} GPUs but torchrun started more ranks there; "
            f"use --nproc_per_node={gpus}"
        )
    if gpus:
        torch.cuda.set_device(local_rank())
    _end_with_parent()
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that NCCL's flight recorder remembers
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=config.timeout_s))
    yield
    # A worker that still holds a DDP reducer can abort in its destructors after the group is gone, and torchrun would
    # call the finished run a failure.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()


@contextmanager
def fake_process_group(rank: int, num_ranks: int) -> Iterator[None]:
    """One rank of a group whose others do not exist: collectives return at once and move nothing.

    For rehearsing a layout on a machine that has not got it.
    """
    dist.init_process_group("fake", rank=rank, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """SIGTERM when torchrun's agent is killed: its ranks would train on as orphans.  It stops the run as any signal
    does, with a checkpoint.  (Linux alone can.)"""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def flight_record() -> str | None:
    """The last collectives of this rank as NCCL's flight recorder knows them, as JSON; None where there are none."""
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump = getattr(torch._C._distributed_c10d, name, None)
        told = json.loads(dump()) if dump else {}
        if told.get("entries"):
            return json.dumps(told, indent=1)
    return None


def record_error(error: BaseException) -> None:
    """Tells torchrun's agent why this rank fails, so that its summary names the first cause."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)


def under_torchrun() -> bool:
    return "RANK" in os.environ


def is_stray_rank() -> bool:
    """Whether torchrun started this process as one of many, and it never joined the others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and under_torchrun() and not dist.is_initialized()


def wrap_ddp(model: nn.Module) -> DistributedDataParallel:
    """The model under DDP.  Every parameter gets a gradient every step, so that nothing is searched for."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def say(message: str) -> None:
    """One line on the console, from one rank."""
    if get_rank() == 0:
        print(message, file=sys.stderr)


def main_stream(stream: TextIO) -> TextIO:
    """The stream on rank 0, and one that nobody reads elsewhere."""
    return stream if get_rank() == 0 else Path(os.devnull).open("w")


def main_only(value: T) -> T | None:
    """The value on rank 0, None elsewhere."""
    return value if get_rank() == 0 else None


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather_flat(part: Tensor) -> Tensor:
    """The parts of all ranks, (N,) each, in one tensor (R N,), by rank."""
    if not dist.is_initialized():
        return part
    whole = part.new_empty(num_ranks() * len(part))
    ALL_GATHER(whole, part.contiguous())
    return whole


def all_gather(value: T) -> list[T]:
    """The value of every rank, by rank.  Values are small: messages, flags, preview images."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: T) -> list[T]:
    """The value of every rank, by rank, on rank 0; elsewhere nothing: values may be large."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.gather_object(value, values if get_rank() == 0 else None)
    return values if get_rank() == 0 else []


@contextmanager
def agreed() -> Iterator[None]:
    """A block that every rank leaves together: a ValueError on some rank becomes the same ValueError on all.

    No rank is left waiting in a collective for one that refused.
    """
    message = None
    try:
        yield
    except ValueError as error:
        message = str(error)
    messages = all_gather(None if message is None else (message, where()))
    told = dict(reversed([m for m in messages if m]))  # each message, and the first rank that says so
    if told:
        everywhere = len(told) == 1 and all(messages)
        raise Agreed("\n".join(m if everywhere else f"[{place}] {m}" for m, place in reversed(told.items())))


class Agreed(ValueError):
    """A refusal that all ranks know of: one of them says it."""

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing  # starting again later may help


class Passing(ValueError):
    """A refusal that ends by itself: the same command may work later."""

    passing = True


def one_a_host(action: Callable[[], Any]) -> None:
    """Does it on one rank of each host while the others wait; its ValueError is raised on every rank."""
    with agreed():
        if local_rank() == 0:
            action()


def on_main(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, on every rank; its ValueError is raised on every rank too."""
    outcome: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            outcome[0] = action()
        except ValueError as error:
            outcome[1] = str(error), isinstance(error, Passing)
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise Agreed(*outcome[1])
    return outcome[0]

"""The ranks of a run and what they agree on.  The sole importer of torch.distributed.

Every function works without a process group too, as one rank of one.
"""

import datetime
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class DistributedConfig(BaseModel, extra="forbid", frozen=True):
    backend: Literal["auto", "nccl", "gloo"] = Field("auto", description="auto: nccl on GPUs, gloo on CPUs")
    timeout_s: int = Field(600, ge=10, description="seconds until a rank that waits for another gives up")


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process among those of its host, as torchrun numbers them."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=config.timeout_s))
    yield
    # A worker that still holds a DDP reducer can abort in its destructors after the group is gone, and torchrun would
    # call the finished run a failure.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()


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


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather(value: T) -> list[T]:
    """The value of every rank, by rank.  Values are small: messages, flags, preview images."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


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
    messages = [m for m in dict.fromkeys(all_gather(message)) if m]
    if messages:
        raise Agreed("\n".join(messages))


class Agreed(ValueError):
    """A refusal that all ranks know of: one of them says it."""


def on_main(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, on every rank; its ValueError is raised on every rank too."""
    outcome: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            outcome[0] = action()
        except ValueError as error:
            outcome[1] = str(error)
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise Agreed(outcome[1])
    return outcome[0]

"""What a rank holds through a run, whatever its batch: weights, gradients, Adam, averages, DeepSpeed's buffers; on its
device, or in the host's memory.

N parameters, R ranks.
"""

import math
from typing import NamedTuple

import torch

from training.config import Config
from training.engine import ZERO_BUCKET, ZERO_LIVE
from training.fit import accumulation_of

BLOCK, SMALLEST = 256, 4096  # of adamw8bit (training/adam8bit.py): values a scale, values of the least that is rounded
PERSISTENT = 100_000  # values; DeepSpeed's stage 3 keeps smaller parameters whole


class Sizes(NamedTuple):
    """Numbers of values of a network's parameters."""

    every: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.every)


def sizes_of(config: Config) -> Sizes:
    with torch.device("meta"):
        return Sizes(tuple(p.numel() for p in config.model.build().parameters()))


def resident_bytes(config: Config, sizes: Sizes, num_ranks: int, gpu: bool = True) -> dict[str, float]:
    """Bytes of each resident on one rank's device, by name.  gpu: what lies in the host's memory is not counted."""
    stage = config.engine.zero_stage or 0
    parts = _zero(config, sizes, num_ranks, gpu) if stage else _whole(config, sizes)
    kept = {"device": 1.0, "cpu": 0.0 if gpu else 1.0, "sharded": 1.0 / num_ranks}[config.ema.placement]
    if stage == 3:
        kept = min(kept, 1.0 / num_ranks)
    averages = config.ema.profiles()
    name = "average (EMA)" if len(averages) == 1 else f"{len(averages)} averages (EMA)"
    return parts | {name: 4.0 * sizes.total * len(averages) * kept}


def host_bytes(config: Config, sizes: Sizes, num_ranks: int) -> dict[str, float]:
    """Bytes of what one rank of GPUs keeps in the host's memory instead, by name."""
    whole, parts = 4.0 * sizes.total, {}
    if config.engine.offload != "none":
        parts["gradients, Adam and its copy of the weights"] = 4 * whole / num_ranks
    if config.engine.offload == "all":
        parts["weights"] = whole / num_ranks
    if config.ema.placement == "cpu":
        kept = whole / num_ranks if config.engine.zero_stage == 3 else whole
        num = len(config.ema.profiles())
        parts["the average" if num == 1 else f"{num} averages"] = kept * num
    return parts


def _whole(config: Config, sizes: Sizes) -> dict[str, float]:
    """One device, DataParallel's first GPU, and DDP, whose buckets are the gradients themselves.

    Clipping, fused Adam and the averages work in place: no temporary of that size.  DeepSpeed's stage 0 is the same.
    """
    moments = sum(map(_of_8_bits, sizes.every)) if config.optim.name == "adamw8bit" else 8.0 * sizes.total
    return {"weights": 4.0 * sizes.total, "gradients": 4.0 * sizes.total, "Adam's moments": moments}


def _of_8_bits(num: int) -> float:
    return 8.0 * num if num < SMALLEST else 2.0 * (num + 4 * math.ceil(num / BLOCK))


def _zero(config: Config, sizes: Sizes, num_ranks: int, gpu: bool) -> dict[str, float]:
    """DeepSpeed 0.19 in fp32 (Rajbhandari et al. 2020, Fig. 1, and what the implementation adds).

    Adam steps on a copy of the rank's share of the weights; stage 1 reduces gradients only when a step is made.
    """
    stage, offload = config.engine.zero_stage, config.engine.offload
    whole, share = 4.0 * sizes.total, 4.0 * sizes.total / num_ranks
    adams = 0.0 if gpu and offload != "none" else share  # of what Adam steps on
    buckets = 4.0 * min(ZERO_BUCKET, sizes.total) * (2 if gpu and stage == 2 else 1)  # one fills, one is reduced
    parts = {"Adam's copy of its weights": adams, "Adam's moments": 2 * adams}
    if not gpu and stage < 3:  # a process takes what it has written to: new buckets fill as activations go
        buckets = 0.0
    if stage == 1:
        late = not gpu and accumulation_of(config, num_ranks) == 1  # and so does what one pass makes
        return {"weights": whole, "gradients": 0.0 if late else whole, **parts, "buckets": buckets}
    if stage == 2:
        return {"weights": whole, "gradients": adams, **parts, "buckets": buckets}
    small = 4.0 * sum(n for n in sizes.every if n <= PERSISTENT)
    return {
        "weights": 0.0 if gpu and offload == "all" else share,
        "gradients": adams,
        **parts,
        "buckets": buckets,
        "gathered weights": min(whole, small + 4.0 * ZERO_LIVE),
    }


def step_bytes(config: Config, sizes: Sizes, num_ranks: int, gpu: bool = True) -> float:
    """Bytes beside the residents while Adam steps: DeepSpeed's flat copies of gradients, and, where Adam is not fused,
    two temporaries of the largest tensor that it steps on."""
    stage = config.engine.zero_stage or 0
    share = 4.0 * sizes.total / num_ranks
    if stage == 0:
        return 0.0 if gpu else 8.0 * max(sizes.every)
    if gpu and config.engine.offload != "none":
        return 0.0
    copies = 1 if stage > 1 else 0  # stage 1 frees the whole gradient as it goes
    if gpu:
        return share * copies
    return share * (copies + 1) + (4.0 * min(ZERO_BUCKET, sizes.total) if stage < 3 else 0.0)

"""Batches of the training stream, the same for any number of ranks and workers.

B micro-batch, C H W image, K keypoints, G global batch, R ranks, M micro-batches a step.  A step that starts at
position p takes the positions [p, p + G); rank and worker only slice that range.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import augment
from data.dataset import ShardedDataset
from data.order import FixedOrder, ShuffledOrder
from data.schema import Sample

Order = ShuffledOrder | FixedOrder


class DataConfig(BaseModel, extra="forbid", frozen=True):
    shards: str = Field("shards/train", description="folder of training shards (python -m data.prepare writes one)")
    val_shards: str | None = Field(None, description="folder of held-out shards; null: no validation loss")
    num_workers: int = Field(4, ge=0, description="loader processes a rank; 0 loads in the training process")
    prefetch: int = Field(4, ge=1, description="micro-batches that each worker prepares ahead")
    shuffle_block: int = Field(16, ge=1, description="shards that are shuffled together")
    flip_prob: float = Field(0.0, ge=0, le=1, description="probability of mirroring a whole sample")


class Batch(NamedTuple):
    """One micro-batch as it leaves the loader.  A NamedTuple: it pins, moves and splits as it is."""

    position: Tensor  # (B,) int64, places in the training stream
    person: Tensor  # (B, 3, H, W) uint8
    clothing_agnostic: Tensor  # (B, 3, H, W) uint8
    garment: Tensor  # (B, 3, H, W) uint8
    person_pose: Tensor  # (B, K, 3) float32
    garment_pose: Tensor  # (B, K, 3) float32
    draws: Any  # NamedTuple of (B, ...) tensors: the randomness that belongs to these positions


class Layout(NamedTuple):
    """How a global batch is cut: G = ranks x micro-batches x B."""

    global_batch: int
    rank: int = 0
    num_ranks: int = 1
    num_micro_batches: int = 1

    @property
    def micro_batch(self) -> int:
        return self.global_batch // (self.num_ranks * self.num_micro_batches)


def rank_positions(layout: Layout, start: int, num_steps: int) -> Iterator[list[int]]:
    """The positions of each micro-batch of this rank, for steps that begin with the sample at `start`."""
    size = layout.micro_batch
    for step in range(num_steps):
        for micro in range(layout.num_micro_batches):
            first = start + step * layout.global_batch + (micro * layout.num_ranks + layout.rank) * size
            yield list(range(first, first + size))


class Stream(Dataset):
    """Position -> training sample with its draws.  What a loader's worker holds."""

    def __init__(
        self,
        dataset: ShardedDataset,
        order: Order,
        draw: Callable[[int], NamedTuple],
        seed: int = 0,
        flip_prob: float = 0.0,
    ):
        self.dataset, self.order, self.draw = dataset, order, draw
        self.seed, self.flip_prob = seed, flip_prob

    def sample(self, position: int) -> Sample:
        sample = self.dataset.read(self.order.sample_id(position))
        return augment(sample, self.seed, position, self.flip_prob)

    def __getitems__(self, positions: list[int]) -> Batch | str:
        """A batch, or the message of what is wrong with a sample: an exception would lose its shape between
        processes."""
        try:
            return collate(positions, [self.sample(p) for p in positions], [self.draw(p) for p in positions])
        except ValueError as error:
            return str(error)


def collate(positions: list[int], samples: list[Sample], draws: list[NamedTuple]) -> Batch:
    def images(field: str) -> Tensor:
        stacked = np.stack([getattr(sample, field) for sample in samples])
        return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))

    def poses(field: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, field) for sample in samples]))

    return Batch(
        position=torch.tensor(positions),
        person=images("person"),
        clothing_agnostic=images("clothing_agnostic"),
        garment=images("garment"),
        person_pose=poses("person_pose"),
        garment_pose=poses("garment_pose"),
        draws=type(draws[0])(*(torch.from_numpy(np.stack(values)) for values in zip(*draws, strict=True))),
    )


def batches(
    stream: Stream, positions: Iterator[list[int]], *, num_workers: int, prefetch: int = 2, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches of these position lists, in their order.  Raises ValueError naming the sample that is broken."""
    loader = DataLoader(
        stream,
        batch_sampler=positions,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=_whole,
        pin_memory=pin_memory,
        worker_init_fn=_outlive_signals,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        yield batch


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach a whole process group: training hears them and needs its workers until it
    has saved.  SIGTERM is also how a stuck worker is ended, so it means: in 30 seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows has none, and no such signals either
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


def _whole(batch: Batch | str) -> Batch | str:
    return batch

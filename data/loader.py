"""Batches of the training stream, the same for any number of ranks and workers.

B micro-batch, C H W image, K keypoints, G global batch, R ranks, M micro-batches a step.  A step that starts at
position p takes the positions [p, p + G); rank and worker only slice that range.
"""

import ctypes
import math
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.augment import NO_AUGMENTATION, AugmentConfig, augment
from data.crops import crop
from data.dataset import BadSample, ShardedDataset
from data.mixture import Mixture
from data.order import FixedOrder, MixedOrder, ShuffledOrder
from data.randomness import Purpose, keyed_rng
from data.schema import IMAGES, JOINTS, POSES, Sample

Order = ShuffledOrder | MixedOrder | FixedOrder
ALIGN = 64  # bytes
# libjpeg-turbo writes past the caches where its output is aligned to 32 bytes, which makes small pictures 15 % slower.
OFF_ALIGNMENT = 16
SOCKET_NAME = 103  # bytes of the longest, of macOS; Linux takes 107
MAX_SPARES = 100  # bad ones in a row: the data set is broken, not a sample


class Batch(NamedTuple):
    """One micro-batch as it leaves the loader.  A NamedTuple: nn.DataParallel and the like split it as it is.

    Images that are not decoded are (B, 3, 0, 0).
    """

    position: Tensor  # (B,) int64, places in the training stream
    person: Tensor  # (B, 3, H, W) uint8, in memory as it was decoded: (B, H, W, 3)
    clothing_agnostic: Tensor  # (B, 3, H, W) uint8, so too
    garment: Tensor  # (B, 3, H, W) uint8, so too
    person_pose: Tensor  # (B, K, 3) float32
    garment_pose: Tensor  # (B, K, 3) float32
    draws: Any  # NamedTuple of (B, ...) tensors: the randomness that belongs to these positions


class Replaced(NamedTuple):
    """A broken sample, whose place in the stream another one took."""

    key: str
    shard: str
    reason: str
    position: int


class Loaded(NamedTuple):
    """What a worker hands over: a batch, or what ended it.  An exception would lose its shape between processes."""

    batch: Batch | None  # None: that of this slot, which training has seen before
    replaced: list[Replaced]
    slot: tuple[int, int, int] = (0, 0, 0)  # worker, batch size, number
    error: str | None = None


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
        dataset: ShardedDataset | Mixture,
        order: Order,
        draw: Callable[[int], NamedTuple],
        seed: int = 0,
        augmentation: AugmentConfig = NO_AUGMENTATION,
        crop_size: tuple[int, int] | None = None,
    ):
        self.dataset, self.order, self.draw = dataset, order, draw
        self.seed, self.augmentation, self.crop_size = seed, augmentation, crop_size
        self.keep(1)

    def keep(self, num_slots: int) -> None:
        """Starts anew: the memory of so many batches is used in turn."""
        self.num_slots = num_slots
        self._slots: dict[tuple[int, int], Batch] = {}  # by batch size and number
        self._count = 0
        self._expected: list[int] = []

    def sample(self, position: int, out: tuple[np.ndarray, ...] = (None,) * len(IMAGES)) -> Sample:
        """The augmented sample at a position.  Raises BadSample."""
        return self._augmented(self.order.sample_id(position), position, out)

    def _augmented(self, sample_id: int, position: int, out: tuple[np.ndarray, ...]) -> Sample:
        sample = self.dataset.read(sample_id, out if self.crop_size is None else (None,) * len(IMAGES))
        return augment(crop(sample, self.seed, position, self.crop_size), self.seed, position, self.augmentation)

    def __getitems__(self, positions: list[int]) -> Loaded:
        """The batch of these positions, in memory that is used again num_slots batches later.

        A sample that is broken gives its place to a spare, drawn from (seed, position) alone: the batch never shortens,
        and any rank or worker would take the same one.
        """
        replaced: list[Replaced] = []
        slot = (len(positions), self._count % self.num_slots)
        self._count += 1
        try:
            self._look_ahead(positions)
            draws = [self.draw(position) for position in positions]
            known = slot in self._slots
            if not known:
                num_images, size = self.dataset.num_images, self.crop_size or self.dataset.image_size
                sizes = [size] * num_images + [(0, 0)] * (len(IMAGES) - num_images)
                self._slots[slot] = _memory(len(positions), sizes, draws[0])
            self._fill(self._slots[slot], positions, draws, replaced)
        except ValueError as error:
            return Loaded(None, replaced, error=str(error))
        worker = get_worker_info()
        batch = None if worker and known else self._slots[slot]
        return Loaded(batch, replaced, (worker.id if worker else 0, *slot))

    def _fill(self, batch: Batch, positions: list[int], draws: list[NamedTuple], replaced: list[Replaced]) -> None:
        batch.position[:] = torch.tensor(positions)
        images = [getattr(batch, field).permute(0, 2, 3, 1).numpy() for field in IMAGES]
        poses = [getattr(batch, field).numpy() for field in POSES]
        for i, position in enumerate(positions):
            views = tuple(array[i] for array in images)
            sample = self._or_spare(position, views, replaced)
            for view, image in zip(views, sample[1 : 1 + len(IMAGES)], strict=True):
                if image is not view:
                    view[...] = image
            for array, pose in zip(poses, sample[1 + len(IMAGES) :], strict=True):
                array[i] = pose
        for tensor, values in zip(batch.draws, zip(*draws, strict=True), strict=True):
            np.stack(values, out=tensor.numpy())

    def _or_spare(self, position: int, out: tuple[np.ndarray, ...], replaced: list[Replaced]) -> Sample:
        try:
            return self.sample(position, out)
        except BadSample as error:
            first = error
            replaced.append(Replaced(error.key, error.shard, error.reason, position))
        spares = keyed_rng(self.seed, position, Purpose.SPARE)
        for _ in range(MAX_SPARES):
            try:
                return self._augmented(int(spares.integers(len(self.dataset))), position, out)
            except BadSample as error:
                replaced.append(Replaced(error.key, error.shard, error.reason, position))
        raise ValueError(f"{first}; and {MAX_SPARES} others in a row: run python -m data.verify on these shards")

    def _look_ahead(self, positions: list[int]) -> None:
        upcoming = self.order.upcoming(positions[-1])
        if upcoming != self._expected:
            self.dataset.expect(upcoming)
            self._expected = upcoming


def _memory(num: int, sizes: list[tuple[int, int]], draws: NamedTuple) -> Batch:
    """A batch to be filled, all of it in one piece of memory; in a worker, one that it shares with training."""
    pose = ((num, len(JOINTS), 3), torch.float32)
    values = [torch.from_numpy(np.asarray(value)) for value in draws]
    wanted = [((num,), torch.int64), *(((num, *size, 3), torch.uint8) for size in sizes), *[pose] * len(POSES)]
    wanted += [((num, *value.shape), value.dtype) for value in values]
    ends = list(accumulate(ALIGN * (math.prod(shape) * dtype.itemsize // ALIGN + 2) for shape, dtype in wanted))
    if get_worker_info():
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(ends[-1]))
    else:
        memory = torch.from_numpy(np.empty(ends[-1], np.uint8))  # in huge pages
    tensors = []
    for start, (shape, dtype) in zip([0, *ends], wanted, strict=False):
        start += (OFF_ALIGNMENT * (dtype == torch.uint8) - start - memory.data_ptr()) % ALIGN
        piece = memory[start : start + math.prod(shape) * dtype.itemsize]
        tensors.append(piece.view(dtype).view(shape))
    return _named(tensors, type(draws))


def _named(tensors: list[Tensor], draws: type) -> Batch:
    """A Batch of its tensors in their order, images as (B, H, W, 3)."""
    first, last = 1 + len(IMAGES), 1 + len(IMAGES) + len(POSES)
    images = [image.permute(0, 3, 1, 2) for image in tensors[1:first]]
    return Batch(tensors[0], *images, *tensors[first:last], draws=draws(*tensors[last:]))


def collate(positions: list[int], samples: list[Sample], draws: list[NamedTuple]) -> Batch:
    """The batch of samples that are read already."""
    arrays = [np.stack(values) for values in zip(*(sample[1:] for sample in samples), strict=True)]
    arrays += [np.stack(values) for values in zip(*draws, strict=True)]
    return _named([torch.tensor(positions), *map(torch.from_numpy, arrays)], type(draws[0]))


def batches(
    stream: Stream, positions: Iterator[list[int]], *, num_workers: int, prefetch: int = 2, borrow: bool = False,
    on_replaced: Callable[[list[Replaced]], None] = lambda replaced: None,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of these position lists, in their order; on_replaced hears of broken samples before their batch.

    borrow: the memory of a batch is used again once the next one is asked for, which spares a copy.  Raises ValueError
    naming what cannot be read.
    """
    if num_workers:
        _check_sockets()
    stream.keep(prefetch + 1 if num_workers else 1)
    loader = DataLoader(
        stream,
        batch_sampler=positions,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=_whole,
        worker_init_fn=start_worker,
    )
    seen: dict[tuple[int, int, int], Batch] = {}
    for loaded in loader:
        if loaded.replaced:
            on_replaced(loaded.replaced)
        if loaded.error is not None:
            raise ValueError(loaded.error)
        if loaded.batch is not None:
            seen[loaded.slot] = loaded.batch
        batch = seen[loaded.slot]
        yield (
            batch if borrow else Batch(*map(torch.clone, batch[:-1]), type(batch.draws)(*map(torch.clone, batch.draws)))
        )


def _check_sockets() -> None:
    """Workers hand their memory over through sockets in the temporary folder: one whose name is too long would leave
    training waiting for its first batch."""
    folder = tempfile.gettempdir()
    room = SOCKET_NAME - len("/pymp-12345678/listener-12345678")
    if len(os.fsencode(folder)) > room:
        raise ValueError(
            f"TMPDIR={folder}: too long for the sockets of loader workers; set TMPDIR to a folder whose name has "
            f"at most {room} bytes, such as /tmp, or data.num_workers=0"
        )


def start_worker(worker: int) -> None:
    _outlive_signals()
    _keep_memory()


def _keep_memory() -> None:
    """glibc hands pieces above 128 KiB back to the system and takes them again for the next picture, page by page: a
    worker that keeps them decodes and resizes up to three times as fast."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**26)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError, TypeError):  # another C library
        pass


def _outlive_signals() -> None:
    """Ctrl-C and a cluster's SIGTERM reach a whole process group: training hears them and needs its workers until it
    has saved.  SIGTERM is also how a stuck worker is ended, so it means: in 30 seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows has none, and no such signals either
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


def _whole(loaded: Loaded) -> Loaded:
    return loaded

"""Shards that are only streams: what a command prints, read by plain webdataset.

    data.shards="pipe:aws s3 cp s3://bucket/{000000..000099}.tar -"

A stream has no index: which samples stand where depends on ranks, workers and restarts, and after a restart some come
again.  Noise, timesteps and augmentation still belong to the position.  Use https://, s3:// or gs:// URLs, which are
exact, wherever they serve.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.shardlists import expand_urls

from data.augment import AugmentConfig, augment
from data.crops import crop
from data.dataset import EMPTY
from data.decode import decode_image, decode_pose
from data.loader import Batch, Replaced, collate, start_worker
from data.randomness import Purpose, keyed_rng
from data.schema import FIELDS, IMAGES, Sample
from data.shard_index import SUFFIXES

POOL = 500  # samples that are shuffled together
MAX_EMPTY = 3  # rounds over all streams without a sample


class Pipes:
    """The streams of a config, in the place of a data set."""

    def __init__(self, places: tuple[str, ...], image_size: tuple[int, int] | None, num_images: int = len(IMAGES)):
        if image_size is None:
            raise ValueError("model.image_size=null: pipes do not tell the size of their images; give model.image_size")
        self.places, self.image_size, self.num_images = places, image_size, num_images
        self.urls = [url for place in places for url in expand_urls(place)]

    def fingerprints(self) -> dict[str, str]:
        """Nothing is known of what a stream holds."""
        return dict.fromkeys(self.places, "a pipe, inexact")


class PipedStream(IterableDataset):
    """The micro-batches of one rank.  Worker w of W makes every W-th of them, from streams of its own."""

    def __init__(
        self, pipes: Pipes, plan: Callable[[], Iterator[list[int]]], draw: Callable[[int], NamedTuple],
        seed: int, augmentation: AugmentConfig, start: int, rank: int, num_ranks: int,
        crop_size: tuple[int, int] | None = None,
    ):  # fmt: skip
        self.pipes, self.plan, self.draw, self.seed, self.augmentation = pipes, plan, draw, seed, augmentation
        self.crop_size = crop_size
        self.start, self.rank, self.num_ranks = start, rank, num_ranks
        self.broken: list[Replaced] = []

    def __iter__(self) -> Iterator[tuple[Batch | None, list[Replaced], str | None]]:
        worker = get_worker_info()
        index, num = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            samples = None
            for n, positions in enumerate(self.plan()):
                if n % num != index:
                    continue
                samples = samples or self._samples(self.rank * num + index, self.num_ranks * num)
                pieces = [crop(next(samples), self.seed, p, self.crop_size) for p in positions]
                chosen = [
                    augment(piece, self.seed, p, self.augmentation) for piece, p in zip(pieces, positions, strict=True)
                ]
                broken, self.broken = self.broken, []
                yield collate(positions, chosen, [self.draw(p) for p in positions]), broken, None
        except ValueError as error:
            yield None, self.broken, str(error)

    def _samples(self, reader: int, num_readers: int) -> Iterator[Sample]:
        """The samples of every num_readers-th stream over and over, in an order that differs from start to start."""
        # All readers permute the streams alike, and each its own pool.
        streams, rng = keyed_rng(self.seed, self.start, Purpose.ORDER), keyed_rng(self.seed, reader, Purpose.MIX)
        empty = 0
        while True:
            order, found = streams.permutation(len(self.pipes.urls)), 0
            mine = [self.pipes.urls[i] for i in order[reader % len(order) :: num_readers]] or [
                self.pipes.urls[order[0]]
            ]
            pool: list[Sample] = []
            for sample in self._read(mine):
                found += 1
                pool.append(sample)
                if len(pool) > POOL:
                    yield pool.pop(int(rng.integers(len(pool))))
            yield from (pool[i] for i in rng.permutation(len(pool)))
            empty = 0 if found else empty + 1
            if empty == MAX_EMPTY:
                last = self.broken[-1] if self.broken else None
                why = f" ({last.shard}: {last.key}: {last.reason})" if last else ""
                raise ValueError(
                    f"data.shards={','.join(self.pipes.places)}: the streams gave no sample{why}; run the command by "
                    "itself and look at what it prints"
                )

    def _read(self, urls: list[str]) -> Iterator[Sample]:
        for url in urls:
            entries = webdataset.WebDataset(
                url, shardshuffle=False, handler=partial(self._cut_off, url), empty_check=False, nodesplitter=None,
                workersplitter=None,
            )  # fmt: skip
            for entry in entries:
                try:
                    yield _sample(entry, self.pipes.image_size, self.pipes.num_images)
                except ValueError as error:
                    self.broken.append(Replaced(entry["__key__"], url, str(error), -1))

    def _cut_off(self, url: str, error: Exception) -> bool:
        """A stream that breaks is told of, and the next one read."""
        reason = str(error.args[0] if error.args else error).partition("\n")[0]
        self.broken.append(Replaced("(the rest of it)", url, f"the stream broke off: {reason}", -1))
        return True


def _sample(entry: dict, size: tuple[int, int], num_images: int) -> Sample:
    values: list[np.ndarray] = []
    for field in FIELDS:
        if field in IMAGES[num_images:]:
            values.append(EMPTY)
            continue
        data = next((entry[f"{field}.{end}"] for end in SUFFIXES[field] if f"{field}.{end}" in entry), None)
        if data is None:
            raise ValueError(f"no {field}")
        try:
            values.append(decode_image(data, size) if field in IMAGES else decode_pose(data))
        except ValueError as error:
            raise ValueError(f"{field} cannot be decoded ({error})") from error
    return Sample(entry["__key__"], *values)


def piped_batches(
    stream: PipedStream, *, num_workers: int, prefetch: int, on_replaced: Callable[[list[Replaced]], None]
) -> Iterator[Batch]:
    """The micro-batches; on_replaced hears of broken samples.  Raises ValueError when the streams are empty."""
    loader = DataLoader(
        stream, batch_size=None, num_workers=num_workers, prefetch_factor=prefetch if num_workers else None,
        worker_init_fn=start_worker,
    )  # fmt: skip
    for batch, broken, error in loader:
        if broken:
            on_replaced(broken)
        if error is not None:
            raise ValueError(error)
        yield batch

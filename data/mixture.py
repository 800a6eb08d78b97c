"""The data sets of a config as one."""

from bisect import bisect_right
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt

from data.augment import AugmentConfig
from data.dataset import NUM_IMAGES, ShardedDataset
from data.order import MixedOrder, ShuffledOrder
from data.schema import Sample


class DataConfig(BaseModel, extra="forbid", frozen=True):
    shards: str | tuple[str, ...] = Field(
        "shards/train",
        description="folder, or https://, s3:// or gs:// URL, of training shards (python -m data.prepare writes them); "
        "a list of them is trained on together",
    )
    weights: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="of a list of shards: how much of the stream each gives; null: every sample equally often"
    )
    val_shards: str | None = Field(None, description="held-out shards; null: no validation loss")
    cache: str | None = Field(
        None, description="folder on this host's own disk for copies of remote shards; null: the temporary folder"
    )
    cache_gb: float = Field(100, ge=0, description="of remote shards that a host keeps; 0: read every sample remotely")
    resize: Literal["none", "lanczos", "dct"] = Field(
        "none",
        description="shards of another size than the model's; none: refuse them, lanczos: resize as data.prepare does, "
        "dct: from what libjpeg decodes at a fraction of the size (faster, slightly other pixels)",
    )
    max_bad: float = Field(0.01, ge=0, le=1, description="share of the samples that may be broken before a run stops")
    num_workers: int = Field(4, ge=0, description="loader processes a rank; 0 loads in the training process")
    prefetch: int = Field(4, ge=1, description="micro-batches that each worker prepares ahead")
    shuffle_block: int = Field(16, ge=1, description="shards that are shuffled together")
    crop_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="train on random crops of this (height, width), for networks that see no garment; null: whole"
    )
    augment: AugmentConfig = AugmentConfig()

    def places(self) -> tuple[str, ...]:
        """The training shards as a list."""
        return (self.shards,) if isinstance(self.shards, str) else self.shards


class Mixture:
    """Several data sets as one, their ids running on from set to set."""

    def __init__(self, parts: list[ShardedDataset], weights: tuple[float, ...] | None = None):
        self.parts = parts
        self.weights = weights or tuple(map(len, parts))
        self.first_id = np.cumsum([0, *map(len, parts)]).tolist()
        self.first_shard = np.cumsum([0, *(len(part.shards) for part in parts)]).tolist()
        self.image_size, self.num_images = parts[0].image_size, parts[0].num_images

    def __len__(self) -> int:
        return self.first_id[-1]

    def read(self, sample_id: int, out: tuple[np.ndarray, ...] = (None,) * NUM_IMAGES) -> Sample:
        """As ShardedDataset.read."""
        part, own_id = self._find(sample_id)
        return part.read(own_id, out)

    def key(self, sample_id: int) -> str:
        """As ShardedDataset.key."""
        part, own_id = self._find(sample_id)
        return part.key(own_id)

    def _find(self, sample_id: int) -> tuple[ShardedDataset, int]:
        part = bisect_right(self.first_id, sample_id) - 1
        return self.parts[part], sample_id - self.first_id[part]

    def share(self, part: ShardedDataset) -> float:
        """Of the stream that comes from this data set."""
        return self.weights[self.parts.index(part)] / sum(self.weights)

    def expect(self, shards: list[int]) -> None:
        """Samples of these shards are read soon."""
        for part, first, end in zip(self.parts, self.first_shard, self.first_shard[1:], strict=False):
            part.expect([shard - first for shard in shards if first <= shard < end])

    def fingerprints(self) -> dict[str, str]:
        """What each data set is, by its place: of the same tars, wherever they lie, the same."""
        told = ((part, len(part.shards)) for part in self.parts)
        return {part.folder: f"{part.fingerprint}, {len(part)} samples in {n} shards" for part, n in told}


def open_training(config: DataConfig, size: tuple[int, int] | None, num_images: int = NUM_IMAGES) -> Mixture:
    """The training data of a config, resized to size (height, width) if the config says so; see ShardedDataset.

    Raises ValueError beginning with the key when a set cannot be used, or the weights do not fit.
    """
    places = config.places()
    if not places:
        raise ValueError("data.shards: an empty list; name at least one folder of shards")
    if len(set(places)) < len(places):
        raise ValueError(f"data.shards={list(places)}: names a folder twice; use data.weights to show one more often")
    if config.weights is not None and (len(config.weights) != len(places) or not sum(config.weights)):
        raise ValueError(
            f"data.weights={list(config.weights)}: {len(places)} data sets in data.shards need as many weights, "
            "and not all may be 0"
        )
    parts = [open_shards("data.shards", place, config, size, num_images) for place in places]
    return Mixture(parts, config.weights)


def open_shards(
    key: str, place: str, config: DataConfig, size: tuple[int, int] | None, num_images: int = NUM_IMAGES
) -> ShardedDataset:
    """One data set, with the config's cache and resize.  Raises ValueError beginning with the key."""
    cache = Path(config.cache) if config.cache else None
    try:
        return ShardedDataset(
            place, size=size, resize=config.resize, cache=cache, cache_gb=config.cache_gb, num_images=num_images
        )
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def shuffled(mixture: Mixture, config: DataConfig, seed: int) -> ShuffledOrder | MixedOrder:
    """The order that training takes."""
    sizes = [part.shard_sizes for part in mixture.parts]
    if config.weights is None:
        return ShuffledOrder([size for part in sizes for size in part], seed, config.shuffle_block)
    return MixedOrder(sizes, list(config.weights), seed, config.shuffle_block)

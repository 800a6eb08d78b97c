"""What is to be drawn: pairs of persons and garments of shards, or low-resolution images.

H, W pixels.  A pair is known by its number from 0 on, which its noise belongs to.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.dataset import ShardedDataset
from data.framing import fit
from data.mixture import DataConfig
from data.schema import Sample
from data.shards import escape_key
from sampling.photos import joined, name_of, read_photograph, unique
from sampling.stages import Trained

Pair = tuple[int, int]  # numbers of a person and a garment


class Inputs(Protocol):
    num: int
    paired: bool  # whether the person wears the garment: there is a truth to compare with
    about: dict[str, Any]  # what the pictures depend on, as JSON

    def key(self, i: int) -> str:
        """The name of pair i, which no other has, fit for a file."""

    def sample(self, i: int, size: tuple[int, int]) -> Sample:
        """Pair i at this size (height, width)."""


def choose_pairs(there: int, num: int, unpaired: bool, grid: tuple[int, int] | None) -> list[Pair]:
    """The first `num` of the pairs that are there; unpaired, each person in the next one's garment.

    grid: so many persons, each in every garment of so many others.  Raises ValueError where too few are there.
    """
    if grid is not None:
        persons, garments = grid
        if persons + garments > there:
            raise ValueError(
                f"--grid {persons}x{garments}: needs {persons} pairs for the persons and {garments} others for the "
                f"garments, there are {there}; ask for fewer"
            )
        return [(i, persons + j) for i in range(persons) for j in range(garments)]
    num = min(num, there)
    if unpaired and num < 2:
        raise ValueError(f"--unpaired: needs at least two pairs to exchange garments, there is {num}")
    return [(i, (i + 1) % num if unpaired else i) for i in range(num)]


class ShardPairs:
    """Pairs of a folder of shards, which is opened once for each size."""

    def __init__(
        self, shards: str, sizes: Sequence[tuple[int, int]], num: int, unpaired: bool = False,
        grid: tuple[int, int] | None = None,
    ):  # fmt: skip
        self.sets = {size: ShardedDataset(shards, size=size, resize="lanczos") for size in sizes}
        self.one = next(iter(self.sets.values()))
        _check_size(shards, self.one.stored_size, max(sizes))
        try:
            self.pairs = choose_pairs(len(self.one), num, unpaired, grid)
        except ValueError as error:
            raise ValueError(f"{shards}: {error}") from None
        self.num = len(self.pairs)
        self.paired = self.one.paired and not unpaired and grid is None
        how = "x".join(map(str, grid)) if grid else "unpaired" if unpaired else "paired"
        self.about = {"shards": self.one.fingerprint, "pairs": how}
        self._key = lru_cache(maxsize=None)(self.one.key)

    def key(self, i: int) -> str:
        person, garment = self.pairs[i]
        return escape_key(self._key(person)) if person == garment else joined(self._key(person), self._key(garment))

    def person_key(self, i: int) -> str:
        """The name of the person of pair i, fit for a file."""
        return escape_key(self._key(self.pairs[i][0]))

    def sample(self, i: int, size: tuple[int, int]) -> Sample:
        person, garment = self.pairs[i]
        sample = self.sets[size].read(person)
        if person == garment:
            return sample
        other = self.sets[size].read(garment)
        key = joined(sample.key, other.key)
        return sample._replace(key=key, garment=other.garment, garment_pose=other.garment_pose)


class ImagesAlone:
    """Low-resolution images for stages that know no garment."""

    paired = False

    def __init__(self, files: Sequence[Path]):
        self.keys, self.num, self.about = unique([file.stem for file in files]), len(files), {}

    def key(self, i: int) -> str:
        return escape_key(self.keys[i])

    def sample(self, i: int, size: tuple[int, int]) -> Sample:
        raise AssertionError("these stages know no garment")


class Lowres:
    """The low-resolution input of a first stage that wants one: images of one's own, or the persons' pictures."""

    def __init__(self, stage: Trained, inputs: Inputs, files: Sequence[Path] | None):
        self.stage, self.inputs, self.files = stage, inputs, files
        self.images = [low_resolution(read_photograph(file), stage, name_of(file)) for file in files or ()]
        if files and len(files) != inputs.num:
            raise ValueError(
                f"--image: {len(files)} images for {inputs.num} pairs; give one for each pair, in their order, or take "
                f"the first {len(files)} pairs with --pairs {len(files)}"
            )

    @property
    def about(self) -> dict[str, Any]:
        if self.files is None:
            return {"image": "of the person"}
        return {f"image {i}": f"{zlib.crc32(image):08x}" for i, image in enumerate(self.images)}

    def __call__(self, i: int) -> np.ndarray:
        """That of pair i, (H, W, 3) uint8 at the size that the previous stage gives, or at the stage's own."""
        if self.files is not None:
            return self.images[i]
        return self.inputs.sample(i, own_size(self.stage)).person


def data_of(stages: Sequence[Trained]) -> list[DataConfig]:
    """What pairs may be taken from, the best first: the largest stage that tries on was trained on shards that serve
    the smaller ones too."""
    return [stage.config.data for stage in reversed(stages) if stage.config.model.tries_on] or [stages[0].config.data]


def held_out_of(stages: Sequence[Trained]) -> str | None:
    """The held-out pairs that these stages' configs name, if any."""
    return next((data.val_shards for data in data_of(stages) if data.val_shards), None)


def own_size(stage: Trained) -> tuple[int, int]:
    """The size at which the person's picture is read that a stage without a predecessor shall sharpen."""
    return stage.config.model.image_size if stage.config.model.tries_on else stage.stage().lowres_size


def low_resolution(image: np.ndarray, stage: Trained, where: str) -> np.ndarray:
    """An image at the size that a stage expects from the one before.  Raises ValueError for other proportions."""
    have, want = image.shape[:2], stage.stage().lowres_size
    if not stage.config.model.lowres:
        raise ValueError(f"{where}: {stage.name} is a first stage and takes no low-resolution image; leave it out")
    if abs(have[0] * want[1] / (have[1] * want[0]) - 1) > 0.01:
        raise ValueError(
            f"{where}: {_text(have)} pixels, {stage.name} wants the proportions of {_text(want)}; crop the image"
        )
    return image if have == want else fit(image, want)


def _check_size(shards: str, have: tuple[int, int], want: tuple[int, int]) -> None:
    if have[0] * want[1] != have[1] * want[0]:
        raise ValueError(
            f"{shards}: images of {_text(have)}, the stages' are of other proportions, {_text(want)}; prepare shards "
            f"with --size {_text(want)}"
        )
    if have < want:
        raise ValueError(
            f"{shards}: images of {_text(have)}, smaller than a stage's, {_text(want)}; prepare shards with --size "
            f"{_text(want)}, or end before that stage with --stop"
        )


def _text(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))

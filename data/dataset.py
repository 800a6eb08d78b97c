"""Shards as a sequence of samples, each read by itself through the index."""

import hashlib
import json
import zlib
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from data.decode import decode_image, decode_smaller, parse_pose
from data.framing import fit, fit_pose
from data.schema import FIELDS, IMAGES, Sample
from data.shard_index import FORMAT, REMEDY, ROW, Place, damaged, key_of, place_of
from data.sources import OPEN_SHARDS, Remote, open_source

RESIZES = ("none", "lanczos", "dct")
NUM_IMAGES = len(IMAGES)
EMPTY = np.zeros((0, 0, 3), np.uint8)  # an image that is not decoded


class BadSample(ValueError):
    """A sample whose bytes are damaged, or are not what a sample is.  Only the sample is at fault."""

    def __init__(self, key: str, shard: str, reason: str):
        super().__init__(f"{shard}: sample {key!r}: {reason}; {REMEDY}")
        self.key, self.shard, self.reason = key, shard, reason


class ShardFacts(BaseModel, strict=True):
    """What dataset.json says of one shard."""

    name: str = Field(pattern=r"^[^/\\]+\.tar$")
    samples: PositiveInt
    bytes: PositiveInt
    crc: int


class About(BaseModel, strict=True):
    """dataset.json."""

    format: Literal[FORMAT]
    paired: bool = True  # false: the person does not wear the garment, there is no truth to train on
    image_size: tuple[PositiveInt, PositiveInt]  # (height, width)
    fields: tuple[Literal[FIELDS], ...] = Field(min_length=len(FIELDS), max_length=len(FIELDS))
    shards: list[ShardFacts] = Field(min_length=1)


class ShardedDataset:
    """Reads any sample of a folder, or URL, of shards by its id in [0, len).

    Opening it costs one small file, whatever the number of samples; the index rows are memory-mapped, so that all
    workers and ranks of a host share them in the page cache.  With a size, samples of another size are resized as
    python -m data.prepare does it (resize="lanczos"), or from what libjpeg decodes at a fraction of the size ("dct").
    Of its images only the first num_images are decoded: 1 is the person alone.
    Raises ValueError when the folder or its index is missing, or, if it is checked, a shard is not as the index says.
    """

    def __init__(
        self, folder: str | Path, *, size: tuple[int, int] | None = None, resize: str = "none",
        cache: Path | None = None, cache_gb: float = 100, checked: bool = True, num_images: int = NUM_IMAGES,
    ):  # fmt: skip
        self.source = open_source(folder, cache, cache_gb)
        self.folder = str(folder).rstrip("/")
        about = _read_about(self.source, self.folder)
        self.stored_size, self.paired = about.image_size, about.paired
        self.image_size = self.stored_size if size is None or resize == "none" else tuple(size)
        self.resize, self.num_images = resize, num_images
        self.shards = about.shards
        self.shard_sizes = [shard.samples for shard in about.shards]
        self.first_id = np.concatenate([[0], np.cumsum(self.shard_sizes)]).tolist()
        facts = [[shard.name, shard.samples, shard.bytes, shard.crc] for shard in about.shards]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        if checked and not isinstance(self.source, Remote):
            for shard in about.shards:
                self.check_shard(shard)
        self._open()

    def check_shard(self, shard: ShardFacts) -> None:
        """Raises ValueError when a shard is missing or has another size than the index says."""
        path = self.source.name(shard.name)
        try:
            num_bytes = self.source.size(shard.name)
        except OSError:
            raise ValueError(f"{path}: this shard is missing; copy it back, or {REMEDY}") from None
        if num_bytes != shard.bytes:
            raise ValueError(f"{path}: {num_bytes} bytes, but its index says {shard.bytes}: cut off? {REMEDY}")

    def _open(self) -> None:
        self._rows = lru_cache(maxsize=OPEN_SHARDS)(self._map_rows)

    def __len__(self) -> int:
        return self.first_id[-1]

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    def _map_rows(self, shard: int) -> np.ndarray:
        facts = self.shards[shard]
        name = str(Path(facts.name).with_suffix(".npy"))
        path = self.source.path(name)
        remedy = f"index the tars of this folder again with python -m data.shards {self.folder}"
        try:
            rows = np.lib.format.open_memmap(path, mode="r")  # never unpickles
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.source.name(name)}: not a readable index ({error}); {remedy}") from error
        if rows.dtype != ROW or len(rows) != facts.samples or zlib.crc32(rows) != facts.crc:
            raise ValueError(f"{self.source.name(name)}: damaged, or of another tar (its checksum differs); {remedy}")
        return rows

    def place(self, sample_id: int) -> tuple[str, Place]:
        """(its shard's name, where it lies there)"""
        shard = bisect_right(self.first_id, sample_id) - 1
        return self.shards[shard].name, place_of(self._rows(shard)[sample_id - self.first_id[shard]])

    def key(self, sample_id: int) -> str:
        name, place = self.place(sample_id)
        return _key(self.source.read(name, place.start, place.end - place.start), sample_id)

    def read(self, sample_id: int, out: tuple[np.ndarray, ...] = (None,) * NUM_IMAGES) -> Sample:
        """The sample with this id, its images in the arrays of out where they are given.

        Raises BadSample naming shard, key and member when its bytes are damaged or no sample, Unreachable when they
        cannot be had.
        """
        name, place = self.place(sample_id)
        data = self.source.read(name, place.start, place.end - place.start)
        members = [data[at : at + size] for at, size in place.members]
        if damaged(members, place.crcs):
            data = self.source.again(name, place.start, place.end - place.start)
            members = [data[at : at + size] for at, size in place.members]
            if what := damaged(members, place.crcs):
                raise self._bad(sample_id, data, f"{what} is damaged (its checksum differs)")
        values = []
        for i, member in enumerate(members):
            try:
                values.append(self._pose(member) if i >= NUM_IMAGES else self._image(member, i, out[i]))
            except ValueError as error:
                raise self._bad(sample_id, data, f"{FIELDS[i]} cannot be decoded ({error})") from error
        return Sample(_key(data, sample_id), *values)

    def _bad(self, sample_id: int, data: bytes, reason: str) -> BadSample:
        return BadSample(_key(data, sample_id), self.source.name(self.place(sample_id)[0]), reason)

    def _image(self, data: bytes, field: int, out: np.ndarray | None) -> np.ndarray:
        if field >= self.num_images:
            return EMPTY if out is None else out
        if self.image_size == self.stored_size:
            return decode_image(data, self.stored_size, out)
        if self.resize == "dct":
            image = decode_smaller(data, self.image_size)
        else:
            image = decode_image(data, self.stored_size)
        resized = fit(image, self.image_size)
        if out is None:
            return resized
        out[...] = resized
        return out

    def _pose(self, data: bytes) -> np.ndarray:
        pose = parse_pose(data)  # its values were checked when it was indexed, and its checksum holds
        if self.image_size == self.stored_size:
            return pose
        height, width = self.stored_size
        return fit_pose(pose * np.float32([width, height, 1]), self.stored_size, self.image_size)

    def expect(self, shards: list[int]) -> None:
        """Samples of these shards are read soon."""
        self.source.expect([self.shards[shard].name for shard in shards])


def _key(data: bytes, sample_id: int) -> str:
    """No checksum covers a header: one that is damaged costs the sample its name only."""
    try:
        return key_of(data)
    except ValueError:
        return f"id {sample_id}"


def _read_about(source, folder: str) -> About:
    path = source.name("dataset.json")
    if not source.place.is_dir():
        raise ValueError(
            f"{folder}: no such folder; write shards with python -m data.prepare, e.g. "
            f"python -m data.prepare viton_hd --source DIR --out {folder}"
        )
    if not source.path("dataset.json").is_file():
        raise ValueError(f"{path}: missing; index the tars of this folder with python -m data.shards {folder}")
    try:
        return About.model_validate_json(source.path("dataset.json").read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(
            f"{path}: not a shard index of this version ({where + ': ' if where else ''}{problem['msg']}); run "
            f"python -m data.shards {folder}"
        ) from None

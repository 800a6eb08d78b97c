"""A folder of shards as a sequence of samples, each read by itself through the index."""

import hashlib
import io
import json
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from data.schema import JOINTS, Sample
from data.shards import FIELDS, FORMAT, IMAGES, REMEDY

OPEN_SHARDS = 64  # file handles a process keeps


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
    """Reads any sample of a shard folder by its id in [0, len).

    Opening it costs one small file, whatever the number of samples; the index rows are memory-mapped, so that all
    workers and ranks of a host share them in the page cache.  Raises ValueError when the folder, its index or a shard
    is missing or has another size than the index says.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = _read_about(self.folder)
        self.image_size, self.paired = about.image_size, about.paired
        self.shards = about.shards
        self.shard_sizes = [shard.samples for shard in about.shards]
        self.first_id = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        facts = [[shard.name, shard.samples, shard.bytes, shard.crc] for shard in about.shards]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        for shard in about.shards:
            _check_shard(self.folder / shard.name, shard.bytes)
        self._open()

    def _open(self) -> None:
        self._rows = lru_cache(maxsize=OPEN_SHARDS)(self._map_rows)
        self._file = lru_cache(maxsize=OPEN_SHARDS)(self._open_file)

    def __len__(self) -> int:
        return int(self.first_id[-1])

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_rows", "_file")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    def _map_rows(self, shard: int) -> np.ndarray:
        path = self.folder / Path(self.shards[shard].name).with_suffix(".npy")
        remedy = f"index the tars of this folder again with python -m data.shards {self.folder}"
        try:
            rows = np.lib.format.open_memmap(path, mode="r")  # never unpickles
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable index ({error}); {remedy}") from error
        if zlib.crc32(rows.tobytes()) != self.shards[shard].crc:
            raise ValueError(f"{path}: damaged, or of another tar (its checksum differs); {remedy}")
        return rows

    def _open_file(self, shard: int) -> BinaryIO:
        return (self.folder / self.shards[shard].name).open("rb", buffering=0)

    def _locate(self, sample_id: int) -> tuple[int, np.ndarray]:
        shard = int(np.searchsorted(self.first_id, sample_id, side="right")) - 1
        return shard, self._rows(shard)[sample_id - self.first_id[shard]]

    def key(self, sample_id: int) -> str:
        return unquote(self._locate(sample_id)[1]["key"].decode())

    def read(self, sample_id: int) -> Sample:
        """The sample with this id.  Raises ValueError naming shard, key and member when its bytes are damaged."""
        shard, row = self._locate(sample_id)
        key, path = unquote(row["key"].decode()), self.folder / self.shards[shard].name
        values = {}
        for i, field in enumerate(FIELDS):
            try:
                data = _read_at(self._file(shard), int(row["size"][i]), int(row["offset"][i]))
            except OSError as error:
                raise ValueError(f"{path}: cannot be read ({error}); check the disk or {REMEDY}") from error
            if zlib.crc32(data) != row["crc"][i]:
                raise ValueError(f"{path}: sample {key!r}: {field} is damaged (its checksum differs); {REMEDY}")
            try:
                values[field] = self._decode_image(data) if field in IMAGES else _decode_pose(data)
            except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path}: sample {key!r}: {field} cannot be decoded ({error}); {REMEDY}") from error
        return Sample(key=key, **values)

    def _decode_image(self, data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            if (image.height, image.width) != self.image_size:
                raise ValueError(f"{image.height}x{image.width} pixels, not {'x'.join(map(str, self.image_size))}")
            return np.array(image.convert("RGB"))


def _read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """The bytes at an offset, without moving the file's position, which a forked worker shares with its parent.

    Windows has no pread, and does not fork either.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)
    return file.read(size)


def _decode_pose(data: bytes) -> np.ndarray:
    """(K, 3) float32: x, y in [0, 1], visible 0 or 1."""
    pose = np.asarray(json.loads(data), dtype=np.float32)
    if pose.shape != (len(JOINTS), 3) or not np.isfinite(pose).all():
        raise ValueError(f"a pose of shape {pose.shape}, not {len(JOINTS)} finite rows [x, y, visible]")
    if pose.min() < 0 or pose.max() > 1 or not np.isin(pose[:, 2], (0, 1)).all():
        raise ValueError("x and y must lie in [0, 1] of the image, visible must be 0 or 1")
    return pose


def _read_about(folder: Path) -> About:
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; write shards with python -m data.prepare, e.g. "
            f"python -m data.prepare viton_hd --source DIR --out {folder}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: missing; index the tars of this folder with python -m data.shards {folder}")
    try:
        return About.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(
            f"{path}: not a shard index of this version ({where + ': ' if where else ''}{problem['msg']}); run "
            f"python -m data.shards {folder}"
        ) from None


def _check_shard(path: Path, num_bytes: int) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: this shard is missing; copy it back, or {REMEDY}")
    if path.stat().st_size != num_bytes:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, but its index says {num_bytes}: cut off? {REMEDY}")

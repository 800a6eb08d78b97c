"""A folder of shards as a sequence of samples, each read by itself through the index."""

import hashlib
import io
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
from PIL import Image

from data.schema import JOINTS, Sample
from data.shards import FIELDS, FORMAT, IMAGES, REMEDY

OPEN_SHARDS = 64  # file handles a process keeps


class ShardedDataset:
    """Reads any sample of a shard folder by its id in [0, len).

    Opening it costs one small file, whatever the number of samples; the index rows are memory-mapped, so that all
    workers and ranks of a host share them in the page cache.  Raises ValueError when the folder, its index or a shard
    is missing or has another size than the index says.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = _read_about(self.folder)
        self.image_size: tuple[int, int] = tuple(about["image_size"])  # (height, width)
        self.shard_names = [shard["name"] for shard in about["shards"]]
        self.shard_sizes = [shard["samples"] for shard in about["shards"]]
        self.first_id = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        facts = [[shard["name"], shard["samples"], shard["bytes"], shard["crc"]] for shard in about["shards"]]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        for shard in about["shards"]:
            _check_shard(self.folder / shard["name"], shard["bytes"])
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
        path = self.folder / Path(self.shard_names[shard]).with_suffix(".npy")
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path}: not a readable index ({error}); run python -m data.shards {self.folder}"
            ) from error
        if len(rows) != self.shard_sizes[shard]:
            raise ValueError(f"{path}: {len(rows)} rows, not {self.shard_sizes[shard]}; run python -m data.shards")
        return rows

    def _open_file(self, shard: int) -> BinaryIO:
        return (self.folder / self.shard_names[shard]).open("rb", buffering=0)

    def _locate(self, sample_id: int) -> tuple[int, np.ndarray]:
        shard = int(np.searchsorted(self.first_id, sample_id, side="right")) - 1
        return shard, self._rows(shard)[sample_id - self.first_id[shard]]

    def key(self, sample_id: int) -> str:
        return unquote(self._locate(sample_id)[1]["key"].decode())

    def read(self, sample_id: int) -> Sample:
        """The sample with this id.  Raises ValueError naming shard, key and member when its bytes differ from the index."""
        shard, row = self._locate(sample_id)
        key, path = unquote(row["key"].decode()), self.folder / self.shard_names[shard]
        values = {}
        for i, field in enumerate(FIELDS):
            try:
                file = self._file(shard)
                file.seek(int(row["offset"][i]))
                data = file.read(int(row["size"][i]))
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


def _decode_pose(data: bytes) -> np.ndarray:
    """(K, 3) float32: x, y in [0, 1], visible 0 or 1."""
    pose = np.asarray(json.loads(data), dtype=np.float32)
    if pose.shape != (len(JOINTS), 3) or not np.isfinite(pose).all():
        raise ValueError(f"a pose of shape {pose.shape}, not {len(JOINTS)} finite rows [x, y, visible]")
    return pose


def _read_about(folder: Path) -> dict:
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise ValueError(
            f"data.shards={folder}: no such folder; write shards with python -m data.prepare, e.g. "
            f"python -m data.prepare viton_hd --source DIR --out {folder}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: missing; index the tars of this folder with python -m data.shards {folder}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        known = about["format"] == FORMAT and tuple(about["fields"]) == FIELDS and len(about["shards"]) > 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a shard index ({error}); run python -m data.shards {folder}") from error
    if not known:
        raise ValueError(f"{path}: written by another version or empty; run python -m data.shards {folder}")
    return about


def _check_shard(path: Path, num_bytes: int) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: this shard is missing; copy it back, or {REMEDY}")
    if path.stat().st_size != num_bytes:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, but its index says {num_bytes}: cut off? {REMEDY}")

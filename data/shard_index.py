"""The index of tar shards: where each member of each sample lies, so that any sample is read by itself.

46 bytes a sample: 4 million samples take 184 MB of page cache, once a host.  Keys stay in the tar's own headers, which
stand in front of what is read anyway.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import Image

from data.decode import decode_pose
from data.schema import FIELDS, IMAGES, POSES

FORMAT = 2
BLOCK = tarfile.BLOCKSIZE  # what everything in a tar is aligned to
ROW = np.dtype(
    [
        ("start", "<u4"),  # block of the sample's first header
        ("at", "<u2", (len(FIELDS),)),  # blocks from there to each member's data
        ("image_size", "<u4", (len(IMAGES),)),  # bytes
        ("pose_size", "<u2", (len(POSES),)),
        ("crc", "<u4", (len(IMAGES) + 1,)),  # CRC-32 of each image, and of all poses one after the other
    ]
)
UNPACK = struct.Struct("<I5H3I2H4I").unpack  # the same row, as plain numbers
SUFFIXES = {**dict.fromkeys(IMAGES, ("jpg", "jpeg", "png", "webp")), **dict.fromkeys(POSES, ("npy", "json"))}
REMEDY = "prepare this shard again with python -m data.prepare"


class Place(NamedTuple):
    """Where a sample lies in its tar."""

    start: int  # byte of its first header
    end: int
    members: list[tuple[int, int]]  # of each field: byte after start, size
    crcs: list[int]  # of each image, and of all poses


def place_of(row: np.void) -> Place:
    start, *numbers = UNPACK(row.tobytes())
    num = len(FIELDS)
    members = [(BLOCK * at, size) for at, size in zip(numbers[:num], numbers[num : 2 * num], strict=True)]
    end = BLOCK * start + max(at + size for at, size in members)
    return Place(BLOCK * start, end, members, numbers[2 * num :])


def damaged(members: list[bytes], crcs: list[int]) -> str:
    """What has another checksum: an image's field, "a pose", or ""."""
    for field, member, crc in zip(IMAGES, members, crcs, strict=False):
        if zlib.crc32(member) != crc:
            return field
    return "" if crc_of(members[len(IMAGES) :]) == crcs[-1] else "a pose"


def crc_of(parts: list[bytes]) -> int:
    """CRC-32 of parts one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


class Members(NamedTuple):
    """A sample while its tar is read."""

    start: int  # bytes, as the others
    offset: dict[str, int]
    size: dict[str, int]
    crc: dict[str, int]  # of images
    pose: dict[str, bytes]


class ShardRows(NamedTuple):
    """What the index says of one shard."""

    rows: np.ndarray  # (N,) ROW
    keys: list[str]


def index_shard(tar: Path) -> ShardRows:
    """The rows of this tar, and the keys of its samples.

    Members are named KEY.FIELD.EXTENSION or ./KEY.FIELD.EXTENSION, and a KEY may hold dots; other fields are left
    alone.  Raises ValueError naming file and key when the tar is cut off or damaged, a sample lacks a member or its
    members do not stand together, a key comes twice, a member is empty or not a plain file in the root, or a pose is
    none.
    """
    samples: dict[str, Members] = {}
    last = None
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as raw:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                key, field, extension = _parse(name)
                if field not in FIELDS:
                    continue
                if not member.isreg() or parent or not key or "\\" in name:
                    raise ValueError(f"{tar}: {member.name!r} is not a plain file in the archive's root; {REMEDY}")
                if extension.lower() not in SUFFIXES[field]:
                    raise ValueError(f"{tar}: {member.name!r} is none of .{', .'.join(SUFFIXES[field])}; {REMEDY}")
                if key in samples and key != last:
                    raise ValueError(f"{tar}: the members of sample {key!r} do not stand together; {REMEDY}")
                sample = samples.setdefault(key, Members(member.offset, {}, {}, {}, {}))
                if field in sample.offset:
                    raise ValueError(f"{tar}: sample {key!r} has {field} twice; {REMEDY}")
                raw.seek(member.offset_data)
                data = raw.read(member.size)
                if len(data) != member.size:
                    raise ValueError(f"{tar}: cut off inside sample {key!r}; {REMEDY}")
                if not data:
                    raise ValueError(f"{tar}: sample {key!r}: {field} is empty; {REMEDY}")
                if field in POSES:
                    _check_pose(data, f"{tar}: sample {key!r}: {field}")
                    sample.pose[field] = data
                else:
                    sample.crc[field] = zlib.crc32(data)
                sample.offset[field], sample.size[field] = member.offset_data, member.size
                last = key
            # tarfile takes a broken header, or the end of the file between two members, for the archive's end.
            raw.seek(archive.offset)
            rest = raw.read(tarfile.RECORDSIZE)
            if len(rest) < BLOCK or any(rest):
                after = f"after sample {last!r}" if last else "at its first member"
                raise ValueError(f"{tar}: cut off or damaged {after}, at byte {archive.offset}; {REMEDY}")
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise ValueError(f"{tar}: not a readable tar file ({error}); {REMEDY}") from error
    if not samples:
        raise ValueError(f"{tar}: holds no sample; {REMEDY}")
    rows = np.zeros(len(samples), ROW)
    for row, (key, sample) in zip(rows, samples.items(), strict=True):
        _fill(row, key, sample, tar)
    return ShardRows(rows, list(samples))


def _check_pose(data: bytes, where: str) -> None:
    try:
        decode_pose(data)
    except ValueError as error:
        raise ValueError(f"{where} cannot be decoded ({error}); {REMEDY}") from error


def _parse(name: str) -> tuple[str, str, str]:
    """(key, field, extension) of a member's name; the key as it was before escape_key."""
    parts = name.rsplit(".", 2)
    return (unquote(parts[0]), parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def _fill(row: np.void, key: str, sample: Members, tar: Path) -> None:
    missing = [field for field in FIELDS if field not in sample.offset]
    if missing:
        raise ValueError(f"{tar}: sample {key!r} has no {', '.join(missing)}; {REMEDY}")
    at = [(sample.offset[field] - sample.start) // BLOCK for field in FIELDS]
    sizes = [sample.size[field] for field in FIELDS]
    if max(at) >= 2**16 or max(sizes[len(IMAGES) :]) >= 2**16:
        raise ValueError(f"{tar}: sample {key!r} is larger than 32 MiB, or its pose than 64 KiB; store smaller ones")
    crcs = [*(sample.crc[field] for field in IMAGES), crc_of([sample.pose[field] for field in POSES])]
    row["start"], row["at"], row["crc"] = sample.start // BLOCK, at, crcs
    row["image_size"], row["pose_size"] = sizes[: len(IMAGES)], sizes[len(IMAGES) :]


def key_of(header: bytes) -> str:
    """The key of a sample whose first header (and whatever extends it) these bytes begin with."""
    if header[156:157] == b"0" and header[345:346] == b"\0":  # a plain file with a short name
        name = header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
        return _parse(name.removeprefix("./"))[0]
    try:
        with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as archive:
            return _parse(archive.next().name.removeprefix("./"))[0]
    except (tarfile.TarError, AttributeError) as error:
        raise ValueError(f"a damaged header ({error})") from error


def write_rows(tar: Path, rows: np.ndarray) -> None:
    """The index file beside its tar."""
    partial = tar.with_suffix(".npy.partial")
    with partial.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    partial.replace(tar.with_suffix(".npy"))


def write_index(folder: Path, paired: bool = True) -> int:
    """Indexes every tar of a folder and publishes dataset.json last, so that an index is whole or absent; returns the
    number of samples.

    An older index stays as it is when a tar is refused.
    """
    tars = sorted(folder.glob("[!.]*.tar"))
    if not tars:
        raise ValueError(f"{folder}: holds no .tar shard; write some with python -m data.prepare")
    indexed = {tar: index_shard(tar) for tar in tars}
    unique_keys((tar, shard.keys) for tar, shard in indexed.items())
    image_size = first_image_size(tars[0], indexed[tars[0]])  # refused before anything is replaced
    (folder / "dataset.json").unlink(missing_ok=True)  # it would vouch for rows that are being replaced
    for tar, shard in indexed.items():
        write_rows(tar, shard.rows)
    publish_index(folder, {tar.name: shard.rows for tar, shard in indexed.items()}, image_size, paired)
    return sum(len(shard.keys) for shard in indexed.values())


def unique_keys(shards: Iterable[tuple[Path, list[str]]]) -> None:
    """Raises ValueError naming both tars when two samples of a folder have one key."""
    shard_of: dict[str, str] = {}
    for tar, keys in shards:
        for key in keys:
            if key in shard_of:
                twice = f"sample {key!r} is in {shard_of[key]} too"
                raise ValueError(f"{tar}: {twice}; keys must be unique: remove one of the two")
            shard_of[key] = tar.name


def publish_index(
    folder: Path, rows: Mapping[str, np.ndarray], image_size: tuple[int, int], paired: bool = True
) -> None:
    """dataset.json of a folder whose tars have their rows beside them already; rows by the tar's name."""
    shards = [
        {"name": name, "samples": len(part), "bytes": (folder / name).stat().st_size, "crc": zlib.crc32(part)}
        for name, part in sorted(rows.items())
    ]
    about = {"format": FORMAT, "paired": paired, "image_size": image_size, "fields": list(FIELDS), "shards": shards}
    partial = folder / "dataset.json.partial"
    partial.write_text(json.dumps(about, indent=1), encoding="utf-8")
    partial.replace(folder / "dataset.json")


def first_image_size(tar: Path, shard: ShardRows) -> tuple[int, int]:
    """(height, width) of the first image, which all others must share."""
    row = shard.rows[0]
    with tar.open("rb") as raw:
        raw.seek(BLOCK * (int(row["start"]) + int(row["at"][0])))
        data = raw.read(int(row["image_size"][0]))
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{tar}: sample {shard.keys[0]!r}: {FIELDS[0]} is no readable image ({error}); {REMEDY}"
        ) from error

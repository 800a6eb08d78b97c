"""WebDataset tar shards: writing them, and the index that lets any sample be read by itself.

    OUT/000000.tar      KEY.person.jpg  KEY.clothing_agnostic.jpg  KEY.garment.jpg  KEY.person_pose.json  ...
    OUT/000000.npy      one row a sample: key, and offset, size and CRC-32 of each member
    OUT/dataset.json    image size, and name, samples, bytes and CRC-32 of the index of every shard

Plain `webdataset.WebDataset` reads the tars; the index is ours.  `python -m data.shards OUT` writes it for tars that
other tools made.
"""

import io
import json
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import webdataset
from PIL import Image

from data.schema import Sample

IMAGES = ("person", "clothing_agnostic", "garment")
POSES = ("person_pose", "garment_pose")
FIELDS = IMAGES + POSES
FORMAT = 1
REMEDY = "prepare this shard again with python -m data.prepare"


def escape_key(key: str) -> str:
    """The key without dots and slashes, where WebDataset would cut it: '001.front' -> '001%2Efront'."""
    return quote(key, safe="").replace(".", "%2E")


def encode_sample(sample: Sample, quality: int = 95) -> dict[str, str | bytes]:
    """The members of one sample: JPEG without chroma subsampling, poses as JSON rows [x, y, visible]."""
    members: dict[str, str | bytes] = {"__key__": escape_key(sample.key)}
    for field in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(getattr(sample, field)).save(buffer, "JPEG", quality=quality, subsampling=0)
        members[f"{field}.jpg"] = buffer.getvalue()
    for field in POSES:
        rows = [[round(float(x), 5) for x in row] for row in getattr(sample, field)]
        members[f"{field}.json"] = json.dumps(rows).encode()
    return members


def write_shards(
    samples: Iterable[Sample], out: Path, *, samples_per_shard: int = 1000, quality: int = 95, paired: bool = True
) -> int:
    """Writes tar shards with their index; returns the number of samples.  paired: the person wears the garment.

    Everything is written beside `out` first and appears under that name only when it is whole.  Raises ValueError
    when `out` exists already, when two samples share a key, or when there is nothing to write.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another --out, or remove it to prepare it again")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        num = _write_tars(samples, partial, out, samples_per_shard, quality)
        if not num:
            raise ValueError(f"{out}: the source gave no sample to write")
        write_index(partial, paired)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return num


def _write_tars(samples: Iterable[Sample], folder: Path, out: Path, samples_per_shard: int, quality: int) -> int:
    keys: set[str] = set()
    pattern = str(folder.absolute()).replace("%", "%%") + "/%06d.tar"  # absolute: "s3:out" is a folder, not a URL
    with webdataset.ShardWriter(pattern, maxcount=samples_per_shard, mtime=0, verbose=0) as writer:
        for sample in samples:
            if not sample.key:
                raise ValueError(f"{out}: sample {len(keys)} has an empty key; name every sample")
            if sample.key in keys:
                raise ValueError(f"{out}: two samples have the key {sample.key!r}; keys must be unique")
            keys.add(sample.key)
            writer.write(encode_sample(sample, quality))
    return len(keys)


def index_shard(tar: Path) -> np.ndarray:
    """One row a sample of this tar: key, and offset, size and crc of each field in the order of FIELDS.

    Members are named KEY.FIELD.EXTENSION or ./KEY.FIELD.EXTENSION; other fields are left alone.  Raises ValueError
    naming file and key when the tar is cut off or damaged, a sample lacks a member or its members do not stand
    together, a key comes twice, or a member is not a plain file in the root.
    """
    samples: dict[str, dict[str, tuple[int, int, int]]] = {}
    last = None
    try:
        with tarfile.open(tar, "r:") as archive, tar.open("rb") as raw:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                key, _, extension = name.partition(".")
                field = extension.rpartition(".")[0]
                if field not in FIELDS:
                    continue
                if not member.isreg() or parent or not key or "\\" in key:
                    raise ValueError(f"{tar}: {member.name!r} is not a plain file in the archive's root; {REMEDY}")
                if key in samples and key != last:
                    raise ValueError(f"{tar}: the members of sample {unquote(key)!r} do not stand together; {REMEDY}")
                if field in samples.setdefault(key, {}):
                    raise ValueError(f"{tar}: sample {unquote(key)!r} has {field} twice; {REMEDY}")
                raw.seek(member.offset_data)
                data = raw.read(member.size)
                if len(data) != member.size:
                    raise ValueError(f"{tar}: cut off inside sample {unquote(key)!r}; {REMEDY}")
                samples[key][field] = (member.offset_data, member.size, zlib.crc32(data))
                last = key
            # tarfile takes a broken header, or the end of the file between two members, for the archive's end.
            raw.seek(archive.offset)
            rest = raw.read(tarfile.RECORDSIZE)
            if len(rest) < tarfile.BLOCKSIZE or any(rest):
                after = f"after sample {unquote(last)!r}" if last else "at its first member"
                raise ValueError(f"{tar}: cut off or damaged {after}, at byte {archive.offset}; {REMEDY}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{tar}: not a readable tar file ({error}); {REMEDY}") from error
    for key, members in samples.items():
        missing = [field for field in FIELDS if field not in members]
        if missing:
            raise ValueError(f"{tar}: sample {unquote(key)!r} has no {', '.join(missing)}; {REMEDY}")
    if not samples:
        raise ValueError(f"{tar}: holds no sample; {REMEDY}")
    key_bytes = max(len(key) for key in samples)
    width = (len(FIELDS),)
    row = np.dtype([("key", f"S{key_bytes}"), ("offset", "<u8", width), ("size", "<u4", width), ("crc", "<u4", width)])
    rows = np.zeros(len(samples), row)
    for i, (key, members) in enumerate(samples.items()):
        offset, size, crc = zip(*(members[field] for field in FIELDS), strict=True)
        rows[i] = (key.encode(), offset, size, crc)
    return rows


def write_index(folder: Path, paired: bool = True) -> None:
    """Indexes every tar of a folder and publishes dataset.json last, so that an index is whole or absent.

    An older index stays as it is when a tar is refused.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: holds no .tar shard; write some with python -m data.prepare")
    shards, shard_of, image_size, indexed = [], {}, None, {}
    for tar in tars:
        rows = index_shard(tar)
        for key in rows["key"].tolist():
            if key in shard_of:
                twice = f"sample {unquote(key.decode())!r} is in {shard_of[key]} too"
                raise ValueError(f"{tar}: {twice}; keys must be unique: remove one of the two")
            shard_of[key] = tar.name
        image_size = image_size or _image_size(tar, rows)
        indexed[tar] = rows
        shards.append(
            {"name": tar.name, "samples": len(rows), "bytes": tar.stat().st_size, "crc": zlib.crc32(rows.tobytes())}
        )
    (folder / "dataset.json").unlink(missing_ok=True)  # it would vouch for rows that are being replaced
    for tar, rows in indexed.items():
        partial = tar.with_suffix(".npy.partial")
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        partial.replace(tar.with_suffix(".npy"))
    about = {"format": FORMAT, "paired": paired, "image_size": image_size, "fields": list(FIELDS), "shards": shards}
    partial = folder / "dataset.json.partial"
    partial.write_text(json.dumps(about, indent=1), encoding="utf-8")
    partial.replace(folder / "dataset.json")


def _image_size(tar: Path, rows: np.ndarray) -> tuple[int, int]:
    """(height, width) of the first image, which all others must share."""
    with tar.open("rb") as raw:
        raw.seek(int(rows["offset"][0, 0]))
        data = raw.read(int(rows["size"][0, 0]))
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        key = unquote(rows["key"][0].decode())
        raise ValueError(f"{tar}: sample {key!r}: {FIELDS[0]} is no readable image ({error}); {REMEDY}") from error


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m data.shards FOLDER    writes the index of the .tar shards in FOLDER")
    try:
        write_index(Path(sys.argv[1]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

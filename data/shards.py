"""WebDataset tar shards: what stands in them, and how they are written.

    OUT/000000.tar      KEY.person.jpg  KEY.clothing_agnostic.jpg  KEY.garment.jpg  KEY.person_pose.npy  ...
    OUT/000000.npy      one row a sample: where its members lie, how long they are, and their CRC-32
    OUT/dataset.json    image size, and name, samples, bytes and CRC-32 of the index of every shard

Plain `webdataset.WebDataset` reads the tars; the index is ours.  `python -m data.shards OUT` writes it for tars that
other tools made; their images may be PNG too, and their poses JSON rows [x, y, visible].
"""

import io
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from data.schema import IMAGES, POSES, Sample
from data.shard_index import write_index


def escape_key(key: str) -> str:
    """The key without dots and slashes, where WebDataset would cut it: '001.front' -> '001%2Efront'."""
    return quote(key, safe="").replace(".", "%2E")


def encode_sample(sample: Sample, quality: int = 95) -> dict[str, str | bytes]:
    """The members of one sample: JPEG without chroma subsampling, poses as .npy of (K, 3) float32."""
    members: dict[str, str | bytes] = {"__key__": escape_key(sample.key)}
    for field in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(getattr(sample, field)).save(buffer, "JPEG", quality=quality, subsampling=0)
        members[f"{field}.jpg"] = buffer.getvalue()
    for field in POSES:
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(getattr(sample, field), np.float32), allow_pickle=False)
        members[f"{field}.npy"] = buffer.getvalue()
    return members


def write_tar(path: Path, samples: Iterable[dict[str, str | bytes]]) -> None:
    """One shard of encoded samples, the same bytes for the same samples."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for members in samples:
            for name, data in members.items():
                if name != "__key__":
                    member = tarfile.TarInfo(f"{members['__key__']}.{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


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

    def encoded() -> Iterator[dict[str, str | bytes]]:
        for sample in samples:
            if not sample.key:
                raise ValueError(f"{out}: sample {len(keys)} has an empty key; name every sample")
            if sample.key in keys:
                raise ValueError(f"{out}: two samples have the key {sample.key!r}; keys must be unique")
            keys.add(sample.key)
            yield encode_sample(sample, quality)

    rest, shard = encoded(), 0
    while some := list(islice(rest, samples_per_shard)):
        write_tar(folder / f"{shard:06d}.tar", some)
        shard += 1
    return len(keys)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m data.shards FOLDER    writes the index of the .tar shards in FOLDER")
    try:
        num = write_index(Path(sys.argv[1]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{sys.argv[1]}: {num} samples; read every byte of them: python -m data.verify {sys.argv[1]}")


if __name__ == "__main__":
    main()

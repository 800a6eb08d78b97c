"""Where pictures go: a file each, or WebDataset shards; what is written and whole is not drawn again.

    OUT/KEY.png             the last stage's picture; KEY.jpg with JPEG
    OUT/STAGE/KEY.png       another stage's, where all are wanted
    OUT/000000.tar          or KEY.png of PER_SHARD pairs, and KEY.STAGE.png, for plain webdataset.WebDataset
    OUT/sampling.json       what the pictures depend on

Everything is written beside its place and renamed: what is there is whole.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data.shards import escape_key, write_tar
from sampling.stages import Trained
from training.config import flat

ABOUT = "sampling.json"
SUFFIXES = {"png": "png", "jpeg": "jpg", "webdataset": "png"}
FORMATS = tuple(SUFFIXES)
PER_SHARD = 256
SHOWN = 3  # differences that a refusal names

Pictures = dict[str, np.ndarray]  # by stage, (H, W, 3) uint8
Key = Callable[[int], str]  # the name of a pair


class Output(Protocol):
    """Pairs come in units, each of which is written at once or not at all."""

    def units(self, num: int) -> list[list[int]]:
        """The units of the pairs 0 to num - 1."""

    def is_there(self, unit: list[int]) -> bool: ...

    def write(self, unit: list[int], pictures: list[Pictures]) -> None: ...

    def read(self, i: int) -> np.ndarray:
        """The last stage's picture of a pair, (H, W, 3) uint8."""

    def remove(self, unit: list[int]) -> None: ...


class Files:
    """A file a picture."""

    def __init__(self, out: Path, key: Key, stages: Sequence[str], suffix: str, quality: int):
        self.out, self.key, self.stages, self.suffix, self.quality = out, key, stages, suffix, quality
        for stage in stages[:-1]:
            make_folder(out / stage)

    def units(self, num: int) -> list[list[int]]:
        return [[i] for i in range(num)]

    def _paths(self, i: int) -> dict[str, Path]:
        name = f"{escape_key(self.key(i))}.{self.suffix}"
        last = self.stages[-1]
        return {stage: self.out / name if stage == last else self.out / stage / name for stage in self.stages}

    def is_there(self, unit: list[int]) -> bool:
        return all(_is_whole(path) for i in unit for path in self._paths(i).values())

    def write(self, unit: list[int], pictures: list[Pictures]) -> None:
        for i, each in zip(unit, pictures, strict=True):
            for stage, path in self._paths(i).items():
                write_whole(path, encoded(each[stage], self.suffix, self.quality))

    def read(self, i: int) -> np.ndarray:
        return np.array(Image.open(self._paths(i)[self.stages[-1]]).convert("RGB"))

    def remove(self, unit: list[int]) -> None:
        for i in unit:
            for path in self._paths(i).values():
                path.unlink(missing_ok=True)


class Shards:
    """PER_SHARD pairs a tar, which plain webdataset reads."""

    def __init__(self, out: Path, key: Key, stages: Sequence[str]):
        self.out, self.key, self.stages = out, key, stages

    def units(self, num: int) -> list[list[int]]:
        return [list(range(start, min(start + PER_SHARD, num))) for start in range(0, num, PER_SHARD)]

    def _path(self, i: int) -> Path:
        return self.out / f"{i // PER_SHARD:06d}.tar"

    def is_there(self, unit: list[int]) -> bool:
        return self._path(unit[0]).is_file()

    def write(self, unit: list[int], pictures: list[Pictures]) -> None:
        path = self._path(unit[0])
        partial = _partial_of(path)
        try:
            write_tar(partial, [self._members(i, each) for i, each in zip(unit, pictures, strict=True)])
            partial.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _members(self, i: int, pictures: Pictures) -> dict[str, str | bytes]:
        last = self.stages[-1]
        named = {("png" if stage == last else f"{stage}.png"): pictures[stage] for stage in self.stages}
        return {"__key__": escape_key(self.key(i))} | {name: encoded(each, "png", 0) for name, each in named.items()}

    def read(self, i: int) -> np.ndarray:
        with tarfile.open(self._path(i)) as archive:
            return np.array(Image.open(archive.extractfile(f"{escape_key(self.key(i))}.png")).convert("RGB"))

    def remove(self, unit: list[int]) -> None:
        self._path(unit[0]).unlink(missing_ok=True)


def about(
    stages: Sequence[Trained], crcs: dict[str, str], seed: int, inputs: dict[str, Any], form: dict[str, Any]
) -> dict[str, Any]:
    """What the pictures depend on, as JSON."""
    each = {
        stage.name: {
            "weights": crcs[stage.name],
            "precision": stage.config.engine.precision,
            "diffusion": stage.config.diffusion.model_dump(mode="json", include={"prediction", "log_snr_shift"}),
            "sampler": stage.config.sampler.model_dump(mode="json", exclude={"tile_rows"}),  # tiles change nothing
        }
        for stage in stages
    }
    return {"seed": seed, "inputs": inputs, "form": form, "stages": each}


def claim(out: Path, output: Output, num: int, facts: dict[str, Any], overwrite: bool) -> None:
    """Says in OUT what its pictures are made of; removes those of this call that are made of something else.

    To be called by one process.  Raises ValueError when the folder holds pictures of other options, unless they shall
    be overwritten.
    """
    path = out / ABOUT
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error}); choose another --out, or use --overwrite") from error
    if before == facts and not overwrite:
        return
    if before is not None and not overwrite:
        old, new = dict(flat(before)), dict(flat(facts))
        differ = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        told = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in sorted(differ)[:SHOWN]]
        raise ValueError(
            f"{out}: its pictures were made with other options ({'; '.join(told)}); choose another --out, or replace "
            "them with --overwrite"
        )
    try:
        path.unlink(missing_ok=True)
        if any(each.is_file() for each in out.rglob("*")):
            for unit in output.units(num):
                output.remove(unit)
    except OSError as error:
        raise _unwritable(out, error) from error
    write_whole(path, json.dumps(facts, indent=1).encode())


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error}); choose another folder") from error


def encoded(image: np.ndarray, suffix: str, quality: int) -> bytes:
    """The picture (H, W, 3) uint8 as a file's bytes."""
    buffer = io.BytesIO()
    if suffix == "jpg":
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    partial = _partial_of(path)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: cannot be written ({error}); free space, or choose another --out")


def _partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _is_whole(path: Path) -> bool:
    """Whether the picture is there and can be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True

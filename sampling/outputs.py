"""Where pictures go: a file each, or WebDataset shards; what is written and whole is not drawn again.

    OUT/KEY.png             the last stage's picture; KEY.jpg with JPEG
    OUT/STAGE/KEY.png       another stage's, where all are wanted
    OUT/000000.tar          or KEY.png of PER_SHARD pairs, and KEY.STAGE.png, for plain webdataset.WebDataset
    OUT/sampling.json       what the pictures depend on

Every picture has a stamp: a digest of sampling.json and of its pair.  Everything is written beside its place, as
HOST.PID.partial, and renamed: what is there is whole.
"""

import json
import os
import socket
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data.shards import write_tar
from sampling.sheets import ANIMATIONS
from sampling.stages import Trained
from sampling.stamps import SUFFIXES, digest, encoded, is_whole, stamp_of, stamps_in_tar
from training.config import flat

ABOUT, SHEET = "sampling.json", "sheet.png"
OWN = (SHEET, *(f"animation.{suffix}" for suffix in ANIMATIONS))  # pictures that are of no pair
FORMATS = ("png", "jpeg", "webdataset")
PER_SHARD = 256
SHOWN = 3  # differences that a refusal names

Pictures = dict[str, np.ndarray]  # by stage, (H, W, 3) uint8


class Output(Protocol):
    """Pairs come in units, each of which is written at once or not at all."""

    out: Path
    names: "Names"
    units: list[list[int]]

    def paths(self, unit: list[int]) -> list[Path]:
        """The files of a unit."""

    def is_there(self, unit: list[int]) -> bool: ...

    def write(self, unit: list[int], pictures: list[Pictures]) -> None: ...

    def read(self, i: int) -> np.ndarray:
        """The last stage's picture of a pair, (H, W, 3) uint8.  Raises ValueError when it is gone."""


class Names:
    """What the files of `num` pairs are called, and the stamps in them.

    key: that of a pair, which no other has, fit for a file.
    """

    def __init__(self, key: Callable[[int], str], num: int, stages: Sequence[str], suffix: str, facts: dict[str, Any]):
        self.key, self.num, self.suffix, self.made = key, num, suffix, digest(facts)
        self.taken = {*OWN, ABOUT, *stages}

    def __getitem__(self, i: int) -> str:
        name = self.key(i)
        if f"{name}.{self.suffix}" in self.taken:  # a pair named sheet becomes %73heet, which no key escapes to
            return f"%{ord(name[0]):02X}{name[1:]}"
        return name

    def stamp(self, what: int | str, num: int = 1) -> str:
        """Of pair `what`; or of the sheet or the animation of `num` pairs."""
        return digest(self.made, what, self[what] if isinstance(what, int) else num)


class Files:
    """A file a picture."""

    def __init__(self, out: Path, names: Names, stages: Sequence[str], quality: int):
        self.out, self.names, self.stages, self.quality = out, names, stages, quality
        self.units = [[i] for i in range(names.num)]

    def _paths(self, i: int) -> dict[str, Path]:
        name, last = f"{self.names[i]}.{self.names.suffix}", self.stages[-1]
        return {stage: self.out / name if stage == last else self.out / stage / name for stage in self.stages}

    def paths(self, unit: list[int]) -> list[Path]:
        return [path for i in unit for path in self._paths(i).values()]

    def is_there(self, unit: list[int]) -> bool:
        return all(is_whole(path, self.names.stamp(i)) for i in unit for path in self.paths([i]))

    def write(self, unit: list[int], pictures: list[Pictures]) -> None:
        for i, each in zip(unit, pictures, strict=True):
            for stage, path in self._paths(i).items():
                write_whole(path, encoded(each[stage], self.names.suffix, self.quality, self.names.stamp(i)))

    def read(self, i: int) -> np.ndarray:
        path = self._paths(i)[self.stages[-1]]
        try:
            return np.array(Image.open(path).convert("RGB"))
        except OSError as error:
            raise _gone(path, error) from error


class Shards:
    """PER_SHARD pairs a tar, which plain webdataset reads."""

    def __init__(self, out: Path, names: Names, stages: Sequence[str]):
        self.out, self.names, self.stages = out, names, stages
        starts = range(0, names.num, PER_SHARD)
        self.units = [list(range(start, min(start + PER_SHARD, names.num))) for start in starts]

    def _path(self, i: int) -> Path:
        return self.out / f"{i // PER_SHARD:06d}.tar"

    def paths(self, unit: list[int]) -> list[Path]:
        return [self._path(unit[0])]

    def is_there(self, unit: list[int]) -> bool:
        stamps = stamps_in_tar(self._path(unit[0]), [f"{self.names[i]}.png" for i in unit])
        return stamps == [self.names.stamp(i) for i in unit]

    def write(self, unit: list[int], pictures: list[Pictures]) -> None:
        path = self._path(unit[0])
        partial = _partial_of(path)
        try:
            write_tar(partial, [self._members(i, each) for i, each in zip(unit, pictures, strict=True)])
            partial.replace(path)
        except OSError as error:
            raise unwritable(path, error) from error

    def _members(self, i: int, pictures: Pictures) -> dict[str, str | bytes]:
        named = {("png" if stage == self.stages[-1] else f"{stage}.png"): pictures[stage] for stage in self.stages}
        files = {name: encoded(each, "png", 0, self.names.stamp(i)) for name, each in named.items()}
        return {"__key__": self.names[i]} | files

    def read(self, i: int) -> np.ndarray:
        path = self._path(i)
        try:
            with tarfile.open(path) as archive:
                return np.array(Image.open(archive.extractfile(f"{self.names[i]}.png")).convert("RGB"))
        except (OSError, KeyError, tarfile.TarError) as error:
            raise _gone(path, error) from error


def about(
    stages: Sequence[Trained], crcs: dict[str, str], seed: int, inputs: dict[str, Any], form: dict[str, Any]
) -> dict[str, Any]:
    """What the pictures depend on, as JSON."""
    each = {
        stage.name: {
            "weights": crcs[stage.name],
            "precision": stage.config.engine.precision,
            "model": stage.config.model.model_dump(mode="json"),
            "diffusion": stage.config.diffusion.model_dump(mode="json", include={"prediction", "log_snr_shift"}),
            "sampler": stage.config.sampler.model_dump(mode="json", exclude={"tile_rows"}),  # tiles change nothing
        }
        for stage in stages
    }
    return {"seed": seed, "inputs": inputs, "form": form, "stages": each}


def claim(output: Output, facts: dict[str, Any], overwrite: bool) -> None:
    """Says in OUT what its pictures are made of; with overwrite, removes all that sample.py has made there before.

    To be called by one process.  Raises ValueError when the folder holds pictures of other options, or files of these
    names that are somebody else's, unless they shall be overwritten.
    """
    out = output.out
    path = out / ABOUT
    try:
        before = None if overwrite else _facts_in(path)
        if before == facts:
            return
        if before is not None:
            old, new = dict(flat(before)), dict(flat(facts))
            differ = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
            told = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in sorted(differ)[:SHOWN]]
            trained = any(key.startswith("stages.") and key.endswith(".weights") for key in differ)
            why = "; the weights are others: has training gone on?" if trained else ""
            raise ValueError(
                f"{out}: its pictures were made with other options ({'; '.join(told)}){why}; choose another --out, or "
                "replace them with --overwrite"
            )
        there = [out / name for name in OWN if (out / name).exists()]
        if any(each.is_file() for each in out.rglob("*")):  # paths are known by samples, which cost time to read
            there += [each for unit in output.units for each in output.paths(unit) if each.exists()]
        if there and not overwrite:
            raise ValueError(
                f"{there[0]}: is there already, and nothing says that sample.py has made it; choose another --out, or "
                f"replace it ({len(there)} files) with --overwrite"
            )
        path.unlink(missing_ok=True)
        for each in {*there, *_made_in(out)} if overwrite else ():
            each.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    write_whole(path, json.dumps(facts, indent=1).encode())


def _facts_in(path: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable ({error}); choose another --out, or use --overwrite") from error
    return facts


def _made_in(out: Path) -> list[Path]:
    """The pictures there that have a stamp, and those in folders of stages."""
    folders = [out, *(each for each in out.iterdir() if each.is_dir() and not (each / ABOUT).exists())]
    files = [path for folder in folders for path in folder.iterdir()]
    pictures = [path for path in files if path.suffix[1:] in SUFFIXES.values() and stamp_of(path)]
    return pictures + [path for path in files if path.suffix == ".tar" and any(stamps_in_tar(path))]


def make_folder(out: Path) -> None:
    """Makes the folder, and removes what processes of this host that were killed have left half written in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        host = socket.gethostname()
        for pattern in ("*.partial", "*/*.partial"):
            for path in out.glob(pattern):
                whose, _, pid = path.stem.rpartition(".")
                if whose == host and pid.isdecimal() and not _lives(int(pid)):
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error}); choose another folder") from error


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_whole(path: Path, data: bytes) -> None:
    partial = _partial_of(path)
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise unwritable(path, error) from error


def _partial_of(path: Path) -> Path:
    """One for every process."""
    return path.with_name(f"{socket.gethostname()}.{os.getpid()}.partial")


def unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: cannot be written ({error}); free space, or choose another --out")


def _gone(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: the picture that was drawn cannot be read ({error}); the same command draws it again")

"""Checkpoint folders on the disk: begun out of sight, published whole, found damaged, pruned.

One process does this for all.  Whatever ends it at whatever moment, the newest checkpoint that was whole still is.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from training.pieces import PIECE, hash_of, is_pickle

FORMAT = 3
PARTIAL = ".partial"
REMOVED = "removed while it was read"  # by training that goes on: no damage
FileName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*\.(safetensors|json)$", max_length=200)]  # no path
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileFacts(BaseModel, extra="forbid"):
    size: int = Field(ge=0, lt=2**60)
    sha256: list[Digest]  # of each piece


class Version(BaseModel):
    format: int


class OtherFormat(ValueError):
    """A checkpoint that another version of the code wrote, for which it may be whole."""


class Manifest(BaseModel, extra="forbid"):
    format: int
    piece: int = Field(ge=1, le=2**40)  # bytes of each piece of a file but the last
    files: dict[FileName, FileFacts]
    sha256: Digest | None = None  # of all that stands above

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def begin(partial: Path, sizes: dict[str, int]) -> None:
    """An empty folder with files of these sizes, for all ranks to write into.  Raises OSError."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, size in sizes.items():
        with (partial / name).open("xb") as raw:
            raw.truncate(size)


def publish(folder: Path, digests: dict[str, list[str]], keep: int) -> list[Path]:
    """Makes the folder visible whose files are written, points to it and takes old ones out of sight.

    digests: SHA-256 of the files' pieces.  -> folders to be removed.  Raises OSError.
    """
    partial = partial_of(folder)
    files = {name: FileFacts(size=(partial / name).stat().st_size, sha256=each) for name, each in digests.items()}
    manifest = Manifest(format=FORMAT, piece=PIECE, files=files)
    manifest.sha256 = manifest.digest()
    (partial / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    flush(partial / "manifest.json")
    flush(partial)
    shutil.rmtree(folder, ignore_errors=True)  # one of this step that was not whole, or training fell back behind
    partial.replace(folder)
    flush(folder.parent)
    _point_to(folder)
    return _prune(folder, keep)


def remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Where a checkpoint lies until it is whole."""
    return folder.with_name(folder.name + PARTIAL)


def newest_first(parent: Path) -> list[Path]:
    """The published checkpoints of a folder, whole or not.  Files of such names are none."""
    named = (folder for folder in parent.glob("step_*") if folder.name.removeprefix("step_").isdigit())
    # unlike Path.is_file, it raises nothing where a disk does not answer: that one counts, as not whole
    return sorted((folder for folder in named if not os.path.isfile(folder)), reverse=True)  # noqa: PTH113


def is_there(folder: Path) -> bool:
    return os.path.lexists(folder)


def problem_with(folder: Path, share: tuple[int, int] = (0, 1), hashes: bool = True, threads: int = 2) -> str | None:
    """What makes this checkpoint not whole, or None; REMOVED when it is no longer there.

    share: (i, n): only the bytes of every n-th piece from the i-th on are compared; names and sizes always are.
    """
    problem = _problem_of_files(folder, share, hashes, threads)
    return REMOVED if problem and not is_there(folder) else problem


def _problem_of_files(folder: Path, share: tuple[int, int], hashes: bool, threads: int) -> str | None:
    try:
        manifest = read_manifest(folder)
        for name, facts in manifest.files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if name.endswith(".safetensors") and is_pickle(file):
                return f"{name} is a pickle, which is never loaded: it could run anything"
            if file.stat().st_size != facts.size:
                return f"{name} has {file.stat().st_size} bytes, not {facts.size}"
    except (OSError, ValueError) as error:
        return str(error)
    pieces = [(name, i) for name, facts in manifest.files.items() for i in range(len(facts.sha256))]
    with ThreadPoolExecutor(threads) as executor:
        mine = pieces[share[0] :: share[1]] if hashes else []
        return next(filter(None, executor.map(lambda piece: _damage(folder, manifest, *piece), mine)), None)


def other_format(folder: Path) -> str | None:
    """What to say of a checkpoint that another version of the code wrote: both formats and the remedy.  Else None."""
    try:
        read_manifest(folder)
    except OtherFormat as error:
        return str(error)
    except (OSError, ValueError):
        return None
    return None


def size_of(folder: Path) -> int:
    """Bytes of its files, as the manifest says; 0 when that cannot be read."""
    try:
        return sum(facts.size for facts in read_manifest(folder).files.values())
    except (OSError, ValueError):
        return 0


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError when it is none that this version writes, of which OtherFormat is no damage, and OSError when
    it cannot be read."""
    if not (folder / "manifest.json").is_file():
        raise ValueError("manifest.json is missing")
    text = (folder / "manifest.json").read_bytes()
    try:
        version = Version.model_validate_json(text, strict=True).format
        if version != FORMAT:
            run_dir = folder.parent.parent
            raise OtherFormat(
                f"manifest.json is of format {version}, this code reads format {FORMAT}; continue with the code that "
                f"wrote it ({run_dir / 'code'}/*.zip and {run_dir / 'environment.jsonl'} say which), or choose "
                "another run.dir"
            )
        manifest = Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"manifest.json is damaged ({first_of(error)})") from None
    if manifest.sha256 != manifest.digest():
        raise ValueError("manifest.json is damaged (its SHA-256 differs)")
    for name, facts in manifest.files.items():
        if len(facts.sha256) != -(-facts.size // manifest.piece):
            raise ValueError(f"manifest.json: {name}: {len(facts.sha256)} pieces for {facts.size} bytes")
    return manifest


def first_of(error: ValidationError) -> str:
    """One line of pydantic's many: 'key: what is wrong'."""
    found = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in found['loc']) or 'all of it'}: {found['msg']}"


def _damage(folder: Path, manifest: Manifest, name: str, i: int) -> str | None:
    facts, begin = manifest.files[name], i * manifest.piece
    end = min(begin + manifest.piece, facts.size)
    try:
        if hash_of(folder / name, begin, end) != facts.sha256[i]:
            return f"{name} is damaged: the SHA-256 of its bytes {begin} to {end - 1} differs"
    except OSError as error:
        return f"{name}: {error}"
    return None


def flush(path: Path) -> None:
    """The file or folder is on the disk, not only in its cache.  (Windows has no fsync of folders.)"""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point_to(folder: Path) -> None:
    pointer = folder.parent / "latest"
    partial = partial_of(pointer)
    partial.write_text(folder.name + "\n", encoding="utf-8")
    flush(partial)
    partial.replace(pointer)


def _prune(newest: Path, keep: int) -> list[Path]:
    """Hides all checkpoints but `newest`, the keep - 1 whole ones before it, and those of another format.

    Later ones were not whole, or training fell back behind them.  -> what to remove: those, and what a kill left half
    done; half a deleted checkpoint does not look like one.
    """
    there = [folder for folder in newest_first(newest.parent) if other_format(folder) is None]
    earlier = (folder for folder in there if folder.name <= newest.name)
    kept = [folder for folder in earlier if problem_with(folder, hashes=False) is None][:keep]
    for folder in set(there) - set(kept):
        remove([partial_of(folder)])
        folder.replace(partial_of(folder))
    return sorted(newest.parent.glob(f"step_*{PARTIAL}"))

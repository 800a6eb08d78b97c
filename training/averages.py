"""Averages of the weights that a run stores while it trains, for any other to be made of them afterwards.

    RUN/averages/step_00001000/
        ema_power_0.050.safetensors   fp32, by parameter name
        ema_power_0.100.safetensors
        manifest.json                 step, updates, and the SHA-256 of every tensor

A folder is there whole or not at all, and none is ever pruned.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from training.distributed import agreed, main_only, on_main
from training.pieces import Tensors, header_of
from training.publish import PARTIAL, flush, partial_of


class Average(BaseModel, extra="forbid", frozen=True):
    length: float = Field(gt=0, lt=1, description="of the power function, relative to the run")
    sha256: dict[str, str] = Field(description="of each tensor's bytes, by parameter name")


class Manifest(BaseModel, extra="forbid", frozen=True):
    format: Literal[1] = 1
    step: int = Field(ge=1)
    updates: int = Field(ge=1, description="of the averages: steps whose gradient was finite")
    averages: list[Average] = Field(min_length=1)


def name_of(length: float) -> str:
    return f"ema_power_{length:.3f}"


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "averages" / f"step_{step:08d}"


def stored_folders(run_dir: Path) -> list[Path]:
    """Every folder of averages, from the first step to the last."""
    folders = (run_dir / "averages").glob("step_*")
    return sorted(folder for folder in folders if folder.name.removeprefix("step_").isdigit())


def read_manifest(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes(), strict=True)
        if folder.name != f"step_{manifest.step:08d}":
            raise ValueError(f"it is that of step {manifest.step}")
        if manifest.updates > manifest.step:
            raise ValueError(f"{manifest.updates} updates in {manifest.step} steps")
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{folder / 'manifest.json'}: not readable ({reason}); remove {folder} to do without it"
        ) from error
    return manifest


def sha256(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy()).hexdigest()


def store(run_dir: Path, step: int, updates: int, averages: dict[float, Tensors]) -> None:
    """Writes a folder of these averages, by length.

    Rank 0 writes; every rank calls, and every rank raises when it could not: ValueError naming folder and remedy, with
    earlier folders as they were.
    """
    folder = folder_of(run_dir, step)
    partial = partial_of(folder)
    try:
        on_main(lambda: _make(partial))
        stored = []
        for length, tensors in averages.items():
            path, values, hashes = main_only(partial / f"{name_of(length)}.safetensors"), tensors.values(), {}
            with agreed():
                try:
                    if path is not None:
                        hashes = write(path, tensors.shapes, values)
                finally:
                    for _ in values:  # the other ranks help to gather them
                        pass
            stored.append(Average(length=length, sha256=hashes))
        on_main(lambda: _publish(partial, folder, Manifest(step=step, updates=updates, averages=stored)))
    except ValueError:
        on_main(lambda: shutil.rmtree(partial, ignore_errors=True))
        raise


def forget_from(run_dir: Path, step: int) -> None:
    """Removes what was stored at this step or later: training fell back behind it and stores it anew.

    Every rank calls.
    """
    on_main(lambda: _forget_from(run_dir, step))


def _forget_from(run_dir: Path, step: int) -> None:
    for leftover in (run_dir / "averages").glob(f"step_*{PARTIAL}"):  # of a kill
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in stored_folders(run_dir):
        if folder.name >= folder_of(run_dir, step).name:
            # Renamed first: half a deleted folder must not look like one.
            doomed = partial_of(folder)
            with _told(folder):
                folder.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def write(path: Path, shapes: dict[str, tuple[int, ...]], values: Iterator[Tensor]) -> dict[str, str]:
    """Writes a safetensors file, whole or not at all, with one tensor in memory at a time.  -> SHA-256 of each one's
    bytes, by name

    values: fp32, in the order of shapes.  Raises ValueError when it could not.
    """
    partial, hashes = partial_of(path), {}
    with _told(path):
        try:
            with partial.open("wb") as file:
                file.write(header_of(shapes))
                for name, value in zip(shapes, values, strict=True):
                    data = value.detach().cpu().contiguous().numpy()
                    file.write(data)
                    hashes[name] = hashlib.sha256(data).hexdigest()
            flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return hashes


def _make(partial: Path) -> None:
    with _told(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


def _publish(partial: Path, folder: Path, manifest: Manifest) -> None:
    with _told(folder):
        (partial / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        flush(partial / "manifest.json")
        flush(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        flush(folder.parent)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An OSError inside becomes a ValueError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path}: the average could not be written ({error}); free space, store averages less often "
            "(ema.snapshot_every), or choose another place; what was stored before is whole"
        ) from error

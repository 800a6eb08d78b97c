"""Checkpoints: folders that are visible only when they are whole.

    RUN/checkpoints/step_00001000/
        model.safetensors      weights, fp32, by parameter name
        ema.safetensors        their average, by the same names
        optimizer.safetensors  Adam's moments by parameter name
        state.json             step, samples, counters, what the data was
        manifest.json          size and SHA-256 of every file above
    RUN/checkpoints/latest     the name of the newest one

No file holds a pickle, and none knows how many ranks wrote it or which engine.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.distributed import all_gather, local_rank, on_main

FORMAT = 2
PARTIAL = ".partial"


class CheckpointConfig(BaseModel, extra="forbid", frozen=True):
    every: int = Field(1000, ge=1, description="optimizer steps between checkpoints; the last step writes one too")
    keep: int = Field(3, ge=1, description="newest checkpoints that are kept")


@dataclass
class TrainState:
    """Where training stands: everything beside tensors that the next step depends on."""

    step: int = 0  # optimizer steps done
    samples: int = 0  # samples of the stream consumed: the position of the next one
    ema_updates: int = 0
    nonfinite_in_row: int = 0
    window: list[float] = field(default_factory=list)  # sums of what is logged next, so that a restart splits no mean
    optimizer_steps: int = 0  # of Adam: those with a finite gradient
    loss_scale: dict[str, float] = field(default_factory=dict)  # of fp16
    seed: int = 0
    data: dict[str, str] = field(default_factory=dict)  # fingerprint of each training set, by its place


class Tensors(NamedTuple):
    """One file of a checkpoint, which all ranks read along: the values come whole, one after the other."""

    shapes: dict[str, tuple[int, ...]]  # by name, in the order of the file
    values: Callable[[], Iterator[Tensor]]  # fp32, in that order


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def save(run_dir: Path, state: TrainState, tensors: dict[str, Tensors], keep: int) -> None:
    """Publishes a checkpoint of these tensors, by file name, and prunes all but the newest `keep`.

    Rank 0 writes; every rank calls, and every rank raises when it could not: ValueError naming folder and remedy, with
    the previous checkpoints as they were.
    """
    on_main(lambda: _publish(folder_of(run_dir, state.step), state, tensors, keep))


def _publish(folder: Path, state: TrainState, tensors: dict[str, Tensors], keep: int) -> None:
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, values in tensors.items():
            values = zip(values.shapes, values.values(), strict=True)
            clean = {key: value.detach().cpu().contiguous() for key, value in values}
            save_file(clean, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        files = {file.name: _fingerprint(file) for file in sorted(partial.iterdir())}
        manifest = {"format": FORMAT, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        shutil.rmtree(folder, ignore_errors=True)  # one of this step that was not whole, or training fell back behind
        partial.replace(folder)
        _flush(folder.parent)
        _point_to(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(_existing(folder.parent)).free / 2**30
        raise ValueError(
            f"{folder}: the checkpoint could not be written ({error}); {free:.1f} GiB are free there. Free space, "
            "lower checkpoint.keep or choose another run.dir; earlier checkpoints are whole"
        ) from error
    _prune(folder, keep)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as raw:
        return {"size": file.stat().st_size, "sha256": _sha256(raw)}


def _sha256(raw: Any) -> str:
    digest = hashlib.sha256()
    while chunk := raw.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
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
    partial = pointer.with_name("latest" + PARTIAL)
    partial.write_text(folder.name + "\n", encoding="utf-8")
    _flush(partial)
    partial.replace(pointer)


def _prune(newest: Path, keep: int) -> None:
    """Removes all checkpoints but `newest` and the keep - 1 whole ones before it, and what a kill left half done.

    Later ones were not whole, or training fell back behind them.
    """
    for leftover in newest.parent.glob(f"step_*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    earlier = (folder for folder in _newest_first(newest.parent) if folder.name <= newest.name)
    kept = [folder for folder in earlier if problem_with(folder, hashes=False) is None][:keep]
    for folder in set(_newest_first(newest.parent)) - set(kept):
        # Renamed first: half a deleted checkpoint must not look like one.
        doomed = folder.with_name(folder.name + PARTIAL)
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _newest_first(parent: Path) -> list[Path]:
    folders = (folder for folder in parent.glob("step_*") if folder.name.removeprefix("step_").isdigit())
    return sorted(folders, reverse=True)


def problem_with(folder: Path, hashes: bool = True) -> str | None:
    """What makes this checkpoint not whole, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        for name, expected in manifest["files"].items():
            file = folder / name
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['size']}"
            if hashes and _fingerprint(file)["sha256"] != expected["sha256"]:
                return f"{name} is damaged (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def find(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole on every rank, and what was wrong with newer ones.

    Rank 0 names the candidates; one rank of each host hashes them, the others compare sizes.
    """
    rejected = []
    for folder in on_main(lambda: _newest_first(run_dir / "checkpoints")):
        problems = all_gather(problem_with(folder, hashes=local_rank() == 0))
        if not any(problems):
            return folder, rejected
        rank, problem = next((i, p) for i, p in enumerate(problems) if p)
        rejected.append(f"{folder} is not whole for rank {rank}: {problem}")
    return None, rejected


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


@contextmanager
def open_tensors(folder: Path, name: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[Callable[[str], Tensor]]:
    """A function from a tensor's name to its values, on the CPU; nothing is read before it is asked for.

    Raises ValueError when names or shapes are others than expected: a checkpoint of another architecture.
    """
    path = folder / f"{name}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            there = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            for key in sorted(shapes.keys() | there.keys()):
                has, wants = (list(which[key]) if key in which else "nothing" for which in (there, shapes))
                if has != wants:
                    raise ValueError(
                        f"{path}: {key} is {has} there and {wants} in this model: a checkpoint of another "
                        "architecture; use the run's own config.yaml, or another run.dir"
                    )
            yield file.get_tensor
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error

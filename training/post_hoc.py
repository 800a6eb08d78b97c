"""An average of any length, made after training of those that were stored (EDM2, arXiv 2312.02696, Sec. 3.2)."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.averages import Average, folder_of, name_of, read_manifest, sha256, stored_folders, write
from training.checkpoint import open_tensors
from training.profiles import combine, gamma_of

LARGEST_ERROR = 0.05  # of a fit
NEGLIGIBLE = 1e-9  # coefficients below it are left out, as those of averages long before the wanted one's first step


class Part(NamedTuple):
    """A stored average and how much of it the wanted one has."""

    folder: Path
    average: Average
    coefficient: float


class Fit(NamedTuple):
    """A wanted average as a sum of stored ones."""

    length: float
    step: int
    parts: list[Part]
    error: float  # of the weighing of the steps: its L2 norm, relative


def fit(run_dir: Path, length: float, step: int | None = None) -> Fit:
    """The average of this length at a step at which some were stored; None: at the last of these.

    Raises ValueError when there are none, or too few for that length.
    """
    gamma_of(length)
    folders = stored_folders(run_dir)
    if not folders:
        raise ValueError(
            f"{run_dir / 'averages'}: no averages are stored there; train with ema.power=[0.05,0.1] and "
            "ema.snapshot_every"
        )
    last = folders[-1] if step is None else folder_of(run_dir, step)
    if last not in folders:
        near = sorted(sorted((int(f.name.removeprefix("step_")) for f in folders), key=lambda s: abs(s - step))[:4])
        raise ValueError(f"--step {step}: no averages are stored at it; use one of {', '.join(map(str, near))}")
    manifests = [(folder, read_manifest(folder)) for folder in folders if folder <= last]
    stored = [(folder, m.updates, average) for folder, m in manifests for average in m.averages]
    lengths, updates = np.array([a.length for _, _, a in stored]), np.array([u for _, u, _ in stored])
    try:
        coefficients, error = combine(lengths, updates, length, manifests[-1][1].updates)
    except ValueError as problem:
        raise ValueError(f"{run_dir / 'averages'}: {problem}") from problem
    if error > LARGEST_ERROR:
        known = ", ".join(f"{known:.3f}" for known in sorted(set(lengths)))
        raise ValueError(
            f"--length {length}: the {len(stored)} averages of {len(manifests)} steps in {run_dir / 'averages'} "
            f"(lengths {known}) do not give it: the steps would be weighed {error:.0%} wrong, and "
            f"{LARGEST_ERROR:.0%} is too much; choose a length nearer to theirs, or store averages more often "
            "(ema.snapshot_every)"
        )
    parts = [Part(f, average, float(c)) for (f, _, average), c in zip(stored, coefficients, strict=True)]
    return Fit(length, manifests[-1][1].step, [part for part in parts if abs(part.coefficient) > NEGLIGIBLE], error)


def reconstruct(run_dir: Path, length: float, step: int | None = None, out: Path | None = None) -> tuple[Path, Fit]:
    """Writes that average as a safetensors file, and never over another one.  -> (the file, what it is made of)

    In memory there are a few tensors at a time, however many averages it is made of.  Raises ValueError also when a
    stored file is damaged.
    """
    wanted = fit(run_dir, length, step)
    out = out or run_dir / "averages" / f"{name_of(length)}_step_{wanted.step:08d}.safetensors"
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: name a file that ends in .safetensors")
    if out.exists():
        raise ValueError(f"--out {out}: is there already; remove it, or name another file")
    files = [_file(part) for part in wanted.parts]
    shapes = _shapes(files[0])
    with ExitStack() as stack:
        gets = [stack.enter_context(open_tensors(file.parent, file.stem, shapes)) for file in files]
        sources = list(zip(wanted.parts, gets, strict=True))
        write(out, shapes, (_sum(sources, name, shape) for name, shape in shapes.items()))
    return out, wanted


def _sum(sources: list[tuple[Part, Callable[[str], Tensor]]], name: str, shape: tuple[int, ...]) -> Tensor:
    """fp32, summed in fp64."""
    total = torch.zeros(shape, dtype=torch.float64)
    for part, get in sources:
        value = get(name)
        if value.dtype != torch.float32 or sha256(value) != part.average.sha256.get(name):
            raise ValueError(
                f"{_file(part)}: {name} is damaged (its SHA-256 differs); remove {part.folder} to do without it"
            )
        total.add_(value, alpha=part.coefficient)
    return total.float()


def _file(part: Part) -> Path:
    return part.folder / f"{name_of(part.average.length)}.safetensors"


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); remove {path.parent}") from error

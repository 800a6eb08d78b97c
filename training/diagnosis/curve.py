"""What a run's stats.jsonl says of its training loss."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SMOOTH = 10  # parts of the curve whose means are compared


@dataclass(frozen=True)
class Curve:
    """Means over tenths of the curve, the first of them and the last; None where the file tells nothing."""

    lines: int  # whose loss and gradient are finite
    first: float | None
    last: float | None
    best: float | None
    grad_norm: float | None  # median
    step: int = 0  # the last one told
    skipped: int = 0  # steps until then whose gradient was not finite


def read_curve(path: Path) -> Curve:
    """Lines that are damaged or have no finite loss are passed over."""
    losses, norms, step, skipped = [], [], 0, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            loss, norm = values["loss"], values["grad_norm"]
            step, skipped = int(values["step"]), int(values.get("skipped", 0))
        except (ValueError, KeyError, TypeError):
            continue
        if all(isinstance(value, int | float) and math.isfinite(value) for value in (loss, norm)):
            losses.append(loss)
            norms.append(norm)
    if not losses:
        return Curve(0, None, None, None, None, step, skipped)
    means = [float(part.mean()) for part in np.array_split(losses, min(SMOOTH, len(losses)))]
    return Curve(len(losses), means[0], means[-1], min(means), float(np.median(norms)), step, skipped)

"""The curves of training.report as numbers, for the page's script to draw."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from training.history import Curve, Run, smoothed

POINTS = 400  # of a curve


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the script draws: title, note, whether a run that diverged is cut off, and a series for each run that has
    one.  None stands for no number."""
    result = [
        _chart("Training loss", runs, lambda run: run.curve("loss"), "smoothed; pale: as logged", True, cuts=True)
    ]
    for name in measured_names(runs):
        note = "held-out samples, fixed noise, averaged weights" if name == "validation/loss" else ""
        of = partial(Run.measurements, name=name)
        result.append(_chart(titled(name), runs, of, note, cuts=name == "validation/loss"))
    by_t = [
        {"run": i, "x": list(told), "y": _numbers(told.values())} for i, run in enumerate(runs) if (told := run.by_t())
    ]
    if by_t:
        note = "at the end of the run; t 0: clean, 1: noise"
        result.append(
            {"title": "Training loss by noise level t", "note": note, "own": "t", "cuts": True, "series": by_t}
        )
    for name, title, note, smooth in (
        ("grad_norm", "Gradient norm", "before clipping; smoothed", True),
        ("lr", "Learning rate", "", False),
        ("samples_per_s", "Throughput", "samples a second; smoothed", True),
        ("data_wait_share", "Waiting for data", "share of the time of rank 0; smoothed", True),
        ("memory_gib", "Memory", "GiB of rank 0", False),
    ):
        of = partial(Run.curve, name=name)
        result.append(_chart(title, runs, of, note, smooth, cuts=name == "grad_norm"))
    return [chart for chart in result if chart["series"]]


def _chart(
    title: str, runs: Sequence[Run], of: Callable[[Run], Curve], note: str, smooth: bool = False, cuts: bool = False
) -> dict[str, Any]:
    series = []
    for i, run in enumerate(runs):
        curve = of(run)
        if not np.isfinite(curve.values).any():
            continue
        shown = _thinned(len(curve.values))
        told = {"run": i, "samples": _numbers(curve.samples[shown]), "y": _numbers(curve.values[shown])}
        if np.isfinite(curve.seconds).any():
            told["seconds"] = _numbers(curve.seconds[shown])
        if smooth:
            told["raw"], told["y"] = told["y"], _numbers(smoothed(curve).values[shown])
        series.append(told)
    return {"title": title, "note": note, "cuts": cuts, "series": series}


def measured_names(runs: Sequence[Run]) -> list[str]:
    """Names of what any of the runs measures, the validation loss first."""
    return sorted({name for run in runs for name in run.measured}, key=lambda name: (name != "validation/loss", name))


def titled(name: str) -> str:
    """'Validation loss', 'Evaluation: lpips_alex'"""
    group, _, rest = name.partition("/")
    return f"Validation {rest}" if group == "validation" else f"Evaluation: {rest}" if group == "eval" else name


def _thinned(num: int) -> np.ndarray:
    """At most POINTS places out of so many, close to each other at the beginning; the first and last are among them."""
    even = np.linspace(0, num - 1, POINTS // 2)
    early = np.geomspace(1, num, POINTS // 2) - 1
    return np.unique(np.concatenate([even, early]).round().astype(int)) if num > POINTS else np.arange(num)


def _numbers(values: Iterable[float]) -> list[float | None]:
    """As JSON has them, of 5 digits."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]

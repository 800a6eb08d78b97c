"""What evaluate.py has found of runs, as rows of the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.history import Run

# Without which numbers of one name are of other pictures, or of pictures drawn otherwise.
ALIKE = ("pair_list", "size", "region", "repainted", "sampler", "steps", "guidance_scale")
MARK = "*"


class Metric(NamedTuple):
    value: float
    num: int  # pictures
    facts: dict[str, Any]  # protocol, pairing, pair_list, step, ...


def metric_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """A row a metric: its name, marked where the numbers do not compare, and a text for each run."""
    found = [metrics_of(run.folder) for run in runs]
    rows = []
    for key in dict.fromkeys(key for each in found for key in each):
        told = [each.get(key) for each in found]
        ways = {tuple(str(metric.facts.get(name)) for name in ALIKE) for metric in told if metric}
        protocol, pairing, name = key
        mark = MARK if len(ways) > 1 else ""
        rows.append((f"{name}, {pairing}, as {protocol}{mark}", [_told(metric) if metric else "" for metric in told]))
    return rows


def metrics_of(folder: Path) -> dict[tuple[str, str, str], Metric]:
    """By protocol, pairing and name; of several evaluations of a kind, the newest.  What is damaged is passed over."""
    found: dict[tuple[str, str, str], Metric] = {}
    there = (path for path in folder.glob("*/*/metrics.json") if path.is_file())
    for path in sorted(there, key=lambda path: path.stat().st_mtime):
        try:
            for each in json.loads(path.read_text(encoding="utf-8"))["metrics"]:
                key = str(each["protocol"]), str(each["pairing"]), str(each["name"])
                found[key] = Metric(float(each["value"]), int(each["num"]), each)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _told(metric: Metric) -> str:
    """'0.7421 (256 pictures, ema, step 4000)'"""
    about = [f"{metric.num} pictures", metric.facts.get("weights"), metric.facts.get("step")]
    about[2] = about[2] and f"step {about[2]}"
    return f"{metric.value:.4g} ({', '.join(str(part) for part in about if part)})"

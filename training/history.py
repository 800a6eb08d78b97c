"""What a run folder tells of its run.  Nothing in it is changed, and nothing in it is trusted to be whole."""

import json
import math
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np

from training.config import Config, flat, read_config

TOLD = 72  # characters of a reason beside others; the events have all of it
ALIVE_S = 120  # since a rank last told that it lives
SMOOTH, SMOOTH_LINES = 0.02, 5  # the length of the average over a loss: of the samples so far, and lines at least
LAST = 0.1  # of a run's lines: what is meant by its end
LOGGED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (.*)")
STARTED = re.compile(r": (?:a new run of|(?:continuing|nothing is left to do) at step (\d+))")
EVENTS = re.compile(r"(stopped at step|finished:|error:|interrupted|warning:|straggler:|changed since)")
LAST_WORDS = ("stopped", "finished", "error:", "interrupted")  # of a start
T_BIN = re.compile(r"loss_by_t/(0\.\d)")
PICTURE = re.compile(r"(.+)_(\d{8,})")


class Event(NamedTuple):
    time: str
    text: str
    times: int = 1  # that it was said in a row, in other numbers
    bad: bool = False


class Curve(NamedTuple):
    """Values against what they cost, in the order of steps; seconds are NaN where the run does not tell its speed."""

    samples: np.ndarray
    seconds: np.ndarray  # of training: without validation, previews, checkpoints, restarts and what they trained twice
    values: np.ndarray  # NaN where the run said that a value is not finite


class Run:
    """A run folder.  remarks: what is missing or strange, a line each.

    Raises ValueError when there is no such folder, or no run in it.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such run folder; name the run.dir of a training run")
        if not (folder / "config.yaml").is_file() and (stages := sorted(folder.glob("*/stats.jsonl"))):
            told = " ".join(str(path.parent) for path in stages)
            raise ValueError(f"{folder}: no run folder, but it holds some; name those: {told}")
        if not any((folder / name).is_file() for name in ("config.yaml", "stats.jsonl")):
            raise ValueError(f"{folder}: no run folder, for it has no stats.jsonl; name the run.dir of a training run")
        self.folder, self.name, self.remarks = folder, folder.resolve().name, list[str]()
        self.lines, self.measured = self._stats(folder / "stats.jsonl")
        self.config, self.keys = self._config(folder / "config.yaml")
        self.starts = list(_objects(_text(folder / "environment.jsonl")))
        self.events = _events(_text(folder / "training.log"))
        self.state = self._state()
        self.pictures = _pictures(folder)
        self._samples = np.array([line["samples"] for line in self.lines], float)
        self._seconds = _seconds(self.lines, self._samples)
        self._steps = np.array([line["step"] for line in self.lines], float)

    def _stats(self, path: Path) -> tuple[list[dict], dict[str, dict[int, float]]]:
        """(lines of training, each step once; measurements by name and step)"""
        text = _text(path)
        said = [line for line in _objects(text) if _number(line.get("step")) and line["step"] >= 0]
        trained = [line for line in said if "loss" in line and _number(line.get("samples"))]
        measuring = [line for line in said if "loss" not in line]
        measured: dict[str, dict[int, float]] = {}
        for line in measuring:
            for name, value in line.items():
                if "/" in name and _number(value):
                    measured.setdefault(name, {})[int(line["step"])] = value
        lines = [line for _, line in sorted({line["step"]: line for line in trained}.items())]
        rising = [line for i, line in enumerate(lines) if i == 0 or line["samples"] > lines[i - 1]["samples"]]
        if not trained:
            self.remarks.append(f"no step is told in {path}: training has not come that far, or it is damaged")
        whole = len(trained) + len(measuring) - (len(lines) - len(rising))
        if broken := sum(map(bool, text.splitlines())) - whole:
            self.remarks.append(f"{path}: lines left out, for they are unreadable or do not fit the others: {broken}")
        if len(trained) > len(lines):
            self.remarks.append(
                f"{path}: steps told more than once, of which the last word counts: {len(trained) - len(lines)}"
            )
        return rising, measured

    def _config(self, path: Path) -> tuple[Config | None, dict[str, Any]]:
        """The configuration, and its dotted keys; nothing where it cannot be read."""
        try:
            config = read_config(path) if path.is_file() else None
        except ValueError as error:
            self.remarks.append(f"{str(error).splitlines()[0]}: its settings and FLOP are not shown")
            return None, {}
        if config is None:
            self.remarks.append(f"no {path}: its settings and FLOP are not shown")
            return None, {}
        return config, dict(flat(config.model_dump(mode="json")))

    def _state(self) -> str:
        for name, told in (("DONE", "finished"), ("FAILED", "given up"), ("REQUEUE", "stopped, to be continued")):
            if (self.folder / name).is_file():
                said = next(_objects(_text(self.folder / name)), {})
                reason = said.get("reason") if name != "DONE" else None
                return f"{told} ({_short(str(reason))})" if reason else told
        beats = [path for path in self.folder.glob("logs/*/rank_*.json") if _age(path) < ALIVE_S]
        phases = [next(_objects(_text(path)), {}).get("phase") for path in beats]
        if any(phase != "ended" for phase in phases):
            return "running"
        if self.events and self.events[-1].text.startswith(LAST_WORDS):
            return f"ended ({_short(self.events[-1].text)})"
        return "ended without a word" if self.lines else "no step yet"

    @property
    def steps(self) -> int:
        """The last one that is told."""
        return int(self._steps[-1]) if self.lines else 0

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite."""
        told = self.lines[-1].get("skipped") if self.lines else None
        return int(told) if _number(told) else 0

    @property
    def samples(self) -> float:
        return float(self._samples[-1]) if self.lines else 0.0

    @property
    def seconds(self) -> float:
        """Of training; NaN where the run does not tell its speed."""
        return float(self._seconds[-1]) if self.lines else math.nan

    def curve(self, name: str) -> Curve:
        """What the lines of training say of this name; values at steps that do not say it are left out."""
        told = [name in line for line in self.lines]
        values = [line[name] if _number(line[name]) else math.nan for line in self.lines if name in line]
        return Curve(self._samples[told], self._seconds[told], np.array(values, float))

    def measurements(self, name: str) -> Curve:
        """A curve of values that are measured at some steps: validation/loss, eval/..."""
        told = sorted(self.measured.get(name, {}).items())
        steps, values = (np.array([pair[i] for pair in told], float) for i in (0, 1))
        return Curve(self._at(steps, self._samples), self._at(steps, self._seconds), values)

    def _at(self, steps: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """The cost of so many steps, between and beyond those that are told."""
        if not self.lines:
            return np.full(len(steps), math.nan)
        known, paid = np.append(0, self._steps), np.append(0, cost)
        beyond = np.maximum(steps - known[-1], 0) * paid[-1] / max(known[-1], 1)
        return np.interp(steps, known, paid) + beyond

    def typical(self, name: str) -> float | None:
        """The median of what the lines of training say of this name."""
        values = self.curve(name).values
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    def by_t(self) -> dict[float, float]:
        """The loss of each tenth of t, by the middle of that tenth, at the end of the run."""
        last = self.lines[-max(1, round(LAST * len(self.lines))) :]
        told: dict[float, list[float]] = {}
        for line in last:
            for name, value in line.items():
                if (tenth := T_BIN.fullmatch(name)) and _number(value):
                    told.setdefault(round(float(tenth[1]) + 0.05, 2), []).append(value)
        return {t: statistics.fmean(values) for t, values in sorted(told.items())}


def smoothed(curve: Curve) -> Curve:
    """An exponential average whose length grows with the run: what it says of a place does not depend on how far the
    run went on from there."""
    values, total, weight, before = [], 0.0, 0.0, 0.0
    for lines, (samples, value) in enumerate(zip(curve.samples, curve.values, strict=True), 1):
        length = max(samples, 1) * max(SMOOTH, SMOOTH_LINES / lines)
        keep, before = math.exp((before - samples) / length), samples
        total, weight = total * keep, weight * keep
        if math.isfinite(value):
            total, weight = total + value, weight + 1
        values.append(total / weight if weight else math.nan)
    return curve._replace(values=np.array(values, float))


def named_apart(runs: Sequence[Run]) -> None:
    """Gives runs of one name as much of their paths as tells them apart."""
    for run in runs:
        same = [other for other in runs if other.folder.resolve().name == run.folder.resolve().name]
        parts = [other.folder.resolve().parts for other in same]
        mine = run.folder.resolve().parts
        length = next((n for n in range(1, len(mine)) if sum(p[-n:] == mine[-n:] for p in parts) == 1), len(mine))
        run.name = "/".join(mine[-length:])


def _seconds(lines: list[dict], samples: np.ndarray) -> np.ndarray:
    """Of training until each line: its samples at the speed that it tells, or else at the run's usual one."""
    speeds = [line.get("samples_per_s") for line in lines]
    known = [speed for speed in speeds if _number(speed) and speed > 0]
    if not known:
        return np.full(len(lines), math.nan)
    usual = statistics.median(known)
    taken = [speed if _number(speed) and speed > 0 else usual for speed in speeds]
    return np.cumsum(np.diff(samples, prepend=0) / np.array(taken, float))


def _events(log: str) -> list[Event]:
    """Starts, stops and warnings, in their order; starts that ended without a word are found out."""
    events: list[Event] = []
    step, open_since = 0, False
    for line in log.splitlines():
        if not (logged := LOGGED.match(line)):
            continue
        when, text = logged.groups()
        if told := re.match(r"step (\d+)  ", text):
            step = int(told[1])
        elif started := STARTED.search(text):
            first = int(started[1] or 0)
            said = [f"the start before ended without a word after step {step}"] if open_since else []
            said += [f"steps {first + 1} to {step} were trained again"] if first < step else []
            if said:
                events.append(Event(when, "; ".join(said), bad=True))
            events.append(Event(when, text))
            step, open_since = first, "nothing is left" not in text
        elif EVENTS.match(text):
            open_since &= not text.startswith(LAST_WORDS)
            bad = text.startswith(("warning", "straggler", "error"))
            last = events[-1] if events else None
            if last and bad and _worded(last.text) == _worded(text):
                events[-1] = last._replace(times=last.times + 1)
            else:
                events.append(Event(when, text, bad=bad))
    return events


def _short(text: str) -> str:
    return shorten(text, TOLD, placeholder=" ...")


def _worded(text: str) -> str:
    return re.sub(r"[\d.]+", "0", text)


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    """Pictures that training drew, by name and step."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("previews/*.png")):
        if told := PICTURE.fullmatch(path.stem):
            found.setdefault(told[1], {})[int(told[2])] = path
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _objects(text: str) -> Iterator[dict]:
    """The JSON objects among the lines."""
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            yield told


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf

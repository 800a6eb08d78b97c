"""What all ranks know of a step, and what rank 0 says of it."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from training.checkpoint import TrainState
from training.distributed import all_reduce_sum, get_rank, num_ranks
from training.heartbeat import Pulse
from training.stop import REASONS
from training.timeline import Forecast, duration, mark

T_BINS = 10
STRAGGLES = 1.5  # times the median step: a rank that holds up the others
QUIET_S = 60  # between lines that say so


class Report(NamedTuple):
    """What all ranks know of a step after its one all-reduce."""

    loss: float
    bins: list[float]  # loss sums of T_BINS equal intervals of t, then their counts
    stop: str | None  # why some rank wishes to stop
    hurry: bool
    waits: list[float]  # by rank: seconds that it waited for data since the last line of statistics
    works: list[float]  # by rank: seconds of its own forward passes
    broken: bool  # whether some rank met broken samples
    saving: bool  # whether some rank is still writing a checkpoint


def share(loss: Tensor, t: Tensor, wishes: list[float], broken: int, saving: bool, pulse: Pulse) -> Report:
    """The step's one all-reduce.

    loss, t (B,) of this rank's micro-batches; wishes: StopWish.flags(); broken: samples that its loader replaced;
    saving: whether it is still writing a checkpoint.
    """
    dtype = torch.float32 if loss.device.type == "mps" else torch.float64
    bins = ((t * T_BINS).long().clamp(max=T_BINS - 1)[:, None] == torch.arange(T_BINS, device=t.device)).to(dtype)
    times = torch.zeros(2, num_ranks(), dtype=dtype)
    times[:, get_rank()] = torch.tensor([pulse.seconds["data"], pulse.seconds["forward"]], dtype=dtype)
    flags = torch.tensor([*wishes, broken, saving], dtype=dtype)
    parts = [bins.T @ loss.to(dtype), bins.sum(0), flags, *times]
    sizes = [len(part) for part in parts]
    summed = all_reduce_sum(torch.cat([part.to(t.device) for part in parts])).cpu()
    losses, counts, (*reasons, hurry, broken, saving), waits, works = (part.tolist() for part in summed.split(sizes))
    reason = next((name for name, count in zip(REASONS, reasons, strict=True) if count), None)
    return Report(sum(losses) / sum(counts), losses + counts, reason, hurry > 0, waits, works, broken > 0, saving > 0)


class Meter:
    """What the steps since the last line of statistics cost, and how long the rest will take."""

    def __init__(self, pulse: Pulse, hosts: list[str], deadline: float):
        self.pulse, self.hosts, self.deadline = pulse, hosts, deadline
        self.forecast: Forecast | None = None
        self.next_straggler = 0.0
        self.first, self.steps = time.monotonic(), 0  # of this start, when its first step was done
        self._start_window()

    def _start_window(self) -> None:
        self.samples, self.window_steps, self.since = 0, 0, time.perf_counter()
        self.pulse.start_window()

    @contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """A phase that is no training: validation, preview, checkpoint."""
        began = time.perf_counter()
        with self.pulse(phase):
            yield
        self.since += time.perf_counter() - began

    def step(self, samples: int) -> None:
        self.samples += samples
        self.window_steps += 1
        if self.forecast is None:
            mark("first step")
            self.forecast, self.first = Forecast(self.deadline, time.time()), time.monotonic()
        else:
            self.steps += 1

    def started(self) -> bool:
        """Whether the first step of this start has just been done."""
        return self.steps == 0

    def left(self, steps: int) -> str:
        """The time that this many steps will take, validation, checkpoints and requeues included."""
        if not self.steps or self.forecast is None:
            return "?"
        training_s = steps * (time.monotonic() - self.first) / self.steps
        seconds, requeues = self.forecast.of(training_s, time.time())
        return duration(seconds) + (f" with {requeues} requeues" if requeues else "")

    def values(self, report: Report, device: torch.device) -> dict[str, float]:
        """Speed, waiting and memory since the last line; starts anew."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        told = {
            "samples_per_s": self.samples / elapsed,
            "data_wait_share": self.pulse.seconds["data"] / elapsed,
            "memory_gib": _memory_gib(device),
        }
        if len(report.waits) > 1:
            slowest, seconds = _slowest(report)
            told |= {
                "slowest_rank": slowest,
                "slowest_s": seconds[slowest] / self.window_steps,
                "median_s": statistics.median(seconds) / self.window_steps,
            }
        self._start_window()
        return told

    def straggler(self, report: Report) -> str | None:
        """The slowest rank, when the others wait for it."""
        if len(report.waits) == 1:
            return None
        slowest, seconds = _slowest(report)
        median = statistics.median(seconds)
        if seconds[slowest] < STRAGGLES * median or time.monotonic() < self.next_straggler:
            return None
        self.next_straggler = time.monotonic() + QUIET_S
        n, waits = self.window_steps, report.waits
        return (
            f"straggler: rank {slowest} ({self.hosts[slowest]}) needs {seconds[slowest] / n:.2f} s for data and "
            f"forward pass of a step (median {median / n:.2f} s) and waits {waits[slowest] / n:.2f} s for data "
            f"(median {statistics.median(waits) / n:.2f} s)"
        )


def _slowest(report: Report) -> tuple[int, list[float]]:
    """(the slowest rank, seconds of every rank before it meets the others)"""
    seconds = [wait + work for wait, work in zip(report.waits, report.works, strict=True)]
    return max(range(len(seconds)), key=seconds.__getitem__), seconds


def statistics_line(state: TrainState, lr: float, grad_norm: float) -> dict[str, float]:
    """What a line of stats.jsonl says of the loss since the last one; starts anew."""
    sums, counts = state.window[:T_BINS], state.window[T_BINS:]
    state.window = []
    by_t = {f"loss_by_t/{i / T_BINS:.1f}": s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}
    mean = sum(sums) / sum(counts)
    return {
        "samples": state.samples, "loss": mean, "lr": lr, "grad_norm": grad_norm, "skipped": state.skipped, **by_t
    }  # fmt: skip


def add_to_window(state: TrainState, report: Report) -> None:
    window = state.window or [0.0] * (2 * T_BINS)
    state.window = [a + b for a, b in zip(window, report.bins, strict=True)]


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30

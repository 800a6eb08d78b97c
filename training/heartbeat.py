"""What every rank is doing, and the watch that names the one that stopped.

Each process tells its phase to RUN/logs/HOST/rank_N.json.  A run has hung when no rank makes progress: a rank that
stands still leaves all others waiting in the next all-reduce.  Whoever waits too long then reads the files of all
ranks, names those that others wait for, and ends the run, so that a batch script can start it again.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from training import console
from training.distributed import DistributedConfig, flight_record, get_rank, record_error, where
from training.exits import leave

# Phases in which a rank works for itself or waits for others a step long; the rest may take as long as a collective.
STEP_PHASES = ("data", "forward", "backward", "all-reduce")
WAITING = "all-reduce"
PATIENCE = 0.8  # of timeout_s: what any other phase may take, so that the watch speaks first
HUNG = 3  # exit status of a run that the watch ended


class Heartbeat(NamedTuple):
    """One rank's file."""

    start: str  # of which start of the run
    rank: int
    host: str
    pid: int
    step: int
    phase: str
    beats: int  # grows with every change of phase: progress
    ticks: int  # grows with every writing: the process runs


class Pulse:
    """The phases of this process's steps: told to the others, timed, and watched.

        with pulse("data"):
            batch = next(stream)

    `seconds[phase]` sums up the time since `start_window`; on a GPU, "forward" is the device's own time.
    """

    def __init__(self, run_dir: Path, start: str, config: DistributedConfig, device: torch.device):
        self.folder, self.start = run_dir / "logs", start
        self.hang_s, self.patience_s = config.hang_s, PATIENCE * config.timeout_s
        self.cuda = device.type == "cuda"
        self.phase, self.step, self.beats, self.steps_done = "start", 0, 0, 0
        self.progressed = time.monotonic()
        self.start_window()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Pulse":
        self._tell(0)  # a rank that stops before its first interval is over is known all the same
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.phase = "ended"
        self._ended.set()
        self._watch.join()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer, self.phase = self.phase, phase
        self.beat()
        events = self._record() if self.cuda and phase == "forward" else None
        began = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - began
        if events:
            events[1].record()
        self.phase = outer
        self.beat()

    def beat(self) -> None:
        """Progress within a long phase."""
        self.beats += 1
        self.progressed = time.monotonic()

    def end_step(self, step: int) -> None:
        """After the step's all-reduce, when the device has done all of it."""
        self.step, self.steps_done = step, self.steps_done + 1
        if self._events:
            self.seconds["forward"] = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000

    def start_window(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._events = []

    def _record(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        self._events.append(pair)
        return pair

    def _limit(self) -> float:
        """Seconds that the phase of now may take.  The first step may compile; a checkpoint may be large."""
        if self.hang_s == 0:
            return float("inf")
        return self.hang_s if self.phase in STEP_PHASES and self.steps_done else self.patience_s

    def _run(self) -> None:
        interval = min(5.0, max(0.2, (self.hang_s or self.patience_s) / 20))
        ticks, watched = 0, Watched()
        while True:
            ended = self._ended.wait(interval)
            ticks += 1
            self._tell(ticks)
            if ended:
                return
            stood = time.monotonic() - self.progressed
            if stood < self._limit() / 2:
                watched = Watched()
                continue
            watched.look(self.folder, self.start)
            if stood > self._limit() and watched.all_stood_for(self._limit() / 2 - 2 * interval):
                self._end(watched.verdict(stood), watched.speaks_for_host())

    def _tell(self, ticks: int) -> None:
        host = socket.gethostname()
        beat = Heartbeat(self.start, get_rank(), host, os.getpid(), self.step, self.phase, self.beats, ticks)
        _write(self.folder / host / f"rank_{get_rank()}.json", beat)

    def _end(self, verdict: str, aloud: bool) -> None:
        """Says who stopped, leaves behind what helps to find out why, and ends this process."""
        message = f"error: [{where()}] {verdict}"
        if aloud:
            console.error(message)
        else:
            print(message, file=sys.stderr)
        console.dump_stacks()
        record_error(TimeoutError(verdict))
        if record := flight_record():
            (self.folder / socket.gethostname() / f"rank_{get_rank()}.flight.json").write_text(record)
        leave(HUNG, "")


class Watched:
    """All ranks' files as this process sees them change, by its own clock: hosts' clocks may differ."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.newest: dict[int, Heartbeat] = {}
        self.silent: set[int] = set()
        self._first_ticks: dict[int, int] = {}
        self._progress = self.began  # when any rank was last seen to make progress

    def look(self, folder: Path, start: str) -> None:
        for beat in _read(folder, start):
            known = self.newest.get(beat.rank)
            if known and beat.beats != known.beats:
                self._progress = time.monotonic()
            self.newest[beat.rank] = beat
            self._first_ticks.setdefault(beat.rank, beat.ticks)
        self.silent = {rank for rank, beat in self.newest.items() if beat.ticks == self._first_ticks[rank]}

    def all_stood_for(self, seconds: float) -> bool:
        return time.monotonic() - self._progress >= seconds

    def speaks_for_host(self) -> bool:
        """One rank of each host that still runs says it on the console."""
        here = [rank for rank, beat in self.newest.items() if beat.host == socket.gethostname()]
        return get_rank() == min(set(here) - self.silent, default=get_rank())

    def verdict(self, stood: float) -> str:
        """Who stopped, in words.  Stopped processes of this host are killed: no SIGTERM reaches them."""
        ranks = sorted(self.newest.values(), key=lambda beat: (beat.step, beat.rank))
        culprits = [beat for beat in ranks if beat.rank in self.silent]
        if culprits:
            what = "stopped: its process stands still, or its host is gone"
            for beat in culprits:
                if beat.host == socket.gethostname() and beat.pid != os.getpid():
                    _kill(beat)
        else:
            culprits = [beat for beat in ranks if beat.phase != WAITING and beat.step == ranks[0].step]
            what = "hangs there while the others wait for it"
        if not culprits:
            slow = ", ".join(sorted({beat.host for beat in ranks}))
            return f"every rank has waited in an all-reduce for {stood:.0f} s: the network between {slow} is broken"
        told = "; ".join(
            f"host {beat.host}, rank {beat.rank} (pid {beat.pid}), in phase '{beat.phase}' after step {beat.step}"
            for beat in culprits[:4]
        )
        more = f" and {len(culprits) - 4} more" if len(culprits) > 4 else ""
        return f"no progress for {stood:.0f} s. {told}{more} {what}. The same command continues"


def _kill(beat: Heartbeat) -> None:
    """Unless the number is another process's by now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(beat.pid)
        if process.environ().get("RANK", str(beat.rank)) == str(beat.rank):
            process.kill()


def _write(path: Path, beat: Heartbeat) -> None:
    """A heartbeat that cannot be written is missed; it never ends a run."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(beat._asdict()) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        return


def _read(folder: Path, start: str) -> Iterator[Heartbeat]:
    """The heartbeats of this start; older ones lie in the same folder."""
    for path in sorted(folder.glob("*/rank_*.json")):
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            beat = Heartbeat(**told)
        except (OSError, ValueError, TypeError):
            continue
        if beat.start == start:
            yield beat

"""When a run ends before its last step, and the files in its folder that say how it stands.

    RUN/STOP      anybody's wish: training saves at the next step and leaves.  It removes the file when it obeys.
                  Empty, it ends the run, until somebody starts it again; a batch script writes its TRYON_STOP_WORD
                  into it, which is a wish to be requeued and concerns no other job in the same folder
    RUN/REQUEUE   stopped with a checkpoint; the same command continues
    RUN/DONE      the last step is done
    RUN/FAILED    a batch script gave up (slurm/train.sh); training never writes it

The others are JSON with the reason.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training import timeline

REASONS = ("the file STOP", "a signal", "its batch script", "the end of the job's time")
ECHO_S = 1.0  # torchrun passes on a signal that its ranks heard already: within this time it is the same one
LOOK_S = 0.5  # between looks at the file system


class StopWish:
    """Whether this process wishes to stop.  All ranks agree on it in the step's all-reduce, save and leave together."""

    def __init__(self, run_dir: Path):
        self.file = run_dir / "STOP"
        self.deadline = float(os.environ.get("TRYON_DEADLINE", "inf"))  # Unix time, from the batch script
        self.signalled: float | None = None  # when the first signal came
        self.hurry = False  # a second signal: no validation and no pictures before the checkpoint
        self.word = os.environ.get("TRYON_STOP_WORD", "")
        self._looked, self._found = 0.0, None

    def flags(self) -> list[float]:
        """One number for each of REASONS, then one for hurry; for an all-reduce."""
        if time.monotonic() - self._looked > LOOK_S:
            self._looked, self._found = time.monotonic(), read_stop(self.file)
        by_script = bool(self.word) and self._found == self.word
        wishes = (self._found == "", self.signalled is not None, by_script, time.time() > self.deadline, self.hurry)
        return [float(wish) for wish in wishes]

    def hear(self, number: int, frame: object) -> None:
        """The signal handler.  It sets a flag and nothing else: no file is ever written in one."""
        now = time.monotonic()
        if self.signalled is None:
            self.signalled = now
        elif now - self.signalled > ECHO_S:
            self.hurry = True
            if number == signal.SIGINT:
                raise KeyboardInterrupt


def read_stop(file: Path) -> str | None:
    """What the file STOP says; None when there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None


@contextmanager
def listening(run_dir: Path) -> Iterator[StopWish]:
    """SIGINT, SIGTERM and SIGUSR2 are wishes to stop.

    A second one skips what is due before the checkpoint; a second Ctrl-C leaves at once, without one.  Neither harms
    what is written.
    """
    wish = StopWish(run_dir)
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else [])]
    before = {number: signal.signal(number, wish.hear) for number in numbers}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clear_markers(run_dir: Path) -> None:
    """Removes what an earlier start left; a STOP that is younger than this start is for this one."""
    for name in ("DONE", "REQUEUE", "FAILED"):
        (run_dir / name).unlink(missing_ok=True)
    stop = run_dir / "STOP"
    if stop.exists() and stop.stat().st_mtime < timeline.began():
        stop.unlink(missing_ok=True)


def leave_marker(run_dir: Path, name: str, step: int, reason: str) -> None:
    """Writes DONE or REQUEUE, whole or not at all, and removes the STOP that was obeyed.

    Raises ValueError when it cannot be written.
    """
    told = {"reason": reason, "step": step, "host": socket.gethostname(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    partial = run_dir / f"{name}.partial"
    try:
        (run_dir / "STOP").unlink(missing_ok=True)
        partial.write_text(json.dumps(told) + "\n", encoding="utf-8")
        partial.replace(run_dir / name)
    except OSError as error:
        raise ValueError(
            f"{run_dir / name}: cannot be written ({error}); the checkpoint of step {step} is whole"
        ) from error

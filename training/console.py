"""Where a process's words go: rank 0 speaks on the console, and every rank of many has a file of its own.

RUN/logs/HOST/rank_N.log    all that the rank printed, native libraries and stacks included
"""

import contextlib
import faulthandler
import io
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from training.distributed import get_rank, main_stream, num_ranks

LOGS: list[TextIO] = []  # the file of this process; held open


class Tee(io.TextIOBase):
    """Writes to a file and to a stream.  A progress bar that redraws itself goes to the stream alone."""

    def __init__(self, file: TextIO, stream: TextIO):
        self.file, self.stream = file, stream

    def write(self, text: str) -> int:
        # Neither a full disk nor a terminal that is gone ends a run here, or silences the other.
        if not text.startswith("\r"):
            with contextlib.suppress(OSError):
                self.file.write(text)
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.file.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


class Lasting:
    """A stream whose reader may leave, as with `| head`: what is written from then on is lost, and nothing else."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self.stream.fileno())


def outlive_readers() -> None:
    """A run, or pictures, go on without whoever read what they print."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)


def keep_apart(run_dir: Path) -> None:
    """From here on each of several ranks writes to its own file, and rank 0 to the console too.

    Raises ValueError, naming the host, when the file cannot be written.
    """
    if num_ranks() == 1:
        return
    path = run_dir / "logs" / socket.gethostname() / f"rank_{get_rank()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"host {socket.gethostname()} cannot write {path} ({error}); mount the run folder for writing there, or "
            "choose another run.dir"
        ) from error
    console = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    LOGS[:] = [file, console]
    sys.stdout = sys.stderr = Tee(file, main_stream(console))
    faulthandler.enable(file)


def error(message: str) -> None:
    """A line on the console, whatever the rank; on the one that writes training.log, there too."""
    keep(message)
    for stream in (sys.__stderr__, *LOGS[1:]):
        with contextlib.suppress(OSError):  # a full disk silences the file, not the console
            print(message, file=stream, flush=True)


def keep(message: str) -> None:
    """A line of training.log, on the rank that writes it; what cannot be written any more is passed over."""
    logger, logging.raiseExceptions = logging.getLogger("training"), False
    if logger.handlers:
        logger.error(" ".join(message.split()))


def log_file() -> str | None:
    """The file of this rank, if it has one."""
    return LOGS[0].name if LOGS else None


def dump_stacks() -> None:
    """The stack of every thread, to this rank's file or the console."""
    faulthandler.dump_traceback(LOGS[0] if LOGS else sys.__stderr__, all_threads=True)

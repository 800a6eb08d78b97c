"""How a process ends: what a user got wrong is one line, what we got wrong is a traceback."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from training import console, timeline
from training.distributed import Agreed, get_rank, local_rank, num_ranks, record_error, under_torchrun, where

LOST_RANK = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|recvValueWithTimeout", re.IGNORECASE)


def run(main: Callable[[], None], again: str = "the same command continues at the last checkpoint") -> None:
    """Runs an entry script's main.  Exit status 0, 1 after an error, 130 after Ctrl-C, which says what comes again.

    A ValueError is for the user to mend, and starting again would not help: where a batch script asks for it in
    TRYON_REFUSED, the message goes to that file too.
    """
    timeline.mark("imports")
    console.outlive_readers()
    refusal = None
    try:
        main()
    except ValueError as error:
        refusal = error
    except KeyboardInterrupt:
        leave(130, f"interrupted at once; {again}" if get_rank() == 0 else "")
    except Exception as error:
        if num_ranks() == 1:
            console.keep(f"error: {_last_line(error)}")
            raise
        if LOST_RANK.search(str(error)) and isinstance(error, RuntimeError):
            said = str(error).strip().splitlines()[0][:200]
            leave(1, f"error: [{where()}] lost contact with another rank, which says why itself ({said})")
        record_error(error)
        traceback.print_exc()  # in this rank's file
        leave(1, f"error: [{where()}] {_last_line(error)}; the traceback is in {console.log_file() or 'what is above'}")
    if refusal is not None:  # here, where torchrun finds no traceback to show
        _leave_refused(refusal)
    if under_torchrun():
        leave(0, "")


def _leave_refused(error: ValueError) -> None:
    record_error(ValueError(str(error)))
    # Before the ranks have found each other, all of a host fail alike: one of them speaks.
    alone = num_ranks() > 1 and not isinstance(error, Agreed)
    speaks = alone or (get_rank() if isinstance(error, Agreed) else local_rank()) == 0
    message = f"error: [{where()}] {error}" if alone else f"error: {error}"
    if speaks and not getattr(error, "passing", False):
        _refuse(message)
    leave(1, message if speaks else "")


def _last_line(error: Exception) -> str:
    """'RuntimeError: what happened (training/loop.py:88)': an error and the innermost line of ours or others."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {said} ({'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno})"


def _refuse(message: str) -> None:
    with contextlib.suppress(KeyError, OSError), Path(os.environ["TRYON_REFUSED"]).open("a", encoding="utf-8") as file:
        file.write(message + "\n")


def leave(status: int, message: str) -> None:
    """Ends the process at once.  After a process group, interpreter shutdown can abort in gloo's threads."""
    if message:
        console.error(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

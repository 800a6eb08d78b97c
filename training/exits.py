"""How a process ends: what a user got wrong is one line, what we got wrong is a traceback."""

import os
import re
import sys
from collections.abc import Callable

from training.distributed import Agreed, get_rank, local_rank, num_ranks, under_torchrun, where

LOST_RANK = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|recvValueWithTimeout", re.IGNORECASE)


def run(main: Callable[[], None]) -> None:
    """Runs an entry script's main.  Exit status 0, 1 after an error, 130 after Ctrl-C."""
    try:
        main()
    except Agreed as error:
        leave(1, f"error: {error}" if get_rank() == 0 else "")
    except ValueError as error:
        # Before the ranks have found each other, all of a host fail alike: one of them speaks.
        alone = num_ranks() > 1
        leave(1, f"error: [{where()}] {error}" if alone else f"error: {error}" if local_rank() == 0 else "")
    except KeyboardInterrupt:
        leave(130, "interrupted at once; the same command continues at the last checkpoint" if get_rank() == 0 else "")
    except RuntimeError as error:
        if num_ranks() > 1 and LOST_RANK.search(str(error)):
            leave(1, f"error: [{where()}] lost contact with another rank; the rank that failed says why")
        raise
    if under_torchrun():
        leave(0, "")


def leave(status: int, message: str) -> None:
    """Ends the process at once.  After a process group, interpreter shutdown can abort in gloo's threads."""
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

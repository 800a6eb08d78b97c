"""torchrun whose last word is a line: python -m launch.agent takes the arguments of torchrun.

A rank that fails has said why, on the console and in RUN/logs/HOST/rank_N.log; torchrun then adds its own traceback and
the rank's once more, on every node.  This says instead which rank failed first here, and what to look at when the nodes
do not find each other.  And it ends: an agent that is cut off from the rendezvous waits for it for minutes after its
ranks are gone, deaf to SIGTERM.
"""

import inspect
import os
import signal
import socket
import sys
import threading
import time

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
from torch.distributed.run import main

STOPPED_S = 60  # that a rank may stand still, as after SIGSTOP
LINGER_S = 20  # seconds that torchrun may take to say goodbye to the other nodes


def run() -> int:
    """Exit status: 0, 1 after a failure, 128 + the number of the signal that ended it."""
    over = threading.Event()
    watch = threading.Thread(target=watch_ranks, args=(over,), daemon=True)
    if os.environ.get("PET_MAX_RESTARTS", "0") == "0":  # else it waits for the others to start again with them
        watch.start()
    try:
        inspect.unwrap(main)()  # without torchrun's own wrapper, which logs a traceback
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        ended = f"by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else f"status {failure.exitcode}"
        told(f"rank {rank} ended first here, {ended}")
    except SignalException as error:
        told(f"ended by {signal.Signals(error.sigval).name}")
        return 128 + error.sigval
    except RendezvousTimeoutError:
        told(f"not all of {os.environ.get('PET_NNODES', 'the')} nodes came within the time; look at the missing ones")
    except RendezvousError as error:
        endpoint = os.environ.get("PET_RDZV_ENDPOINT", "the rendezvous")
        told(f"{endpoint} does not answer ({str(error).splitlines()[0]}); the torchrun there has ended or is cut off")
    else:
        return 0
    finally:
        over.set()
        if watch.is_alive():
            watch.join()
    return 1


def watch_ranks(over: threading.Event) -> None:
    """Ends this process LINGER_S after the last of its ranks, and a rank that stands still for STOPPED_S.

    The others of a stopped rank have named it by then and gone; it would keep its GPU for ever.
    """
    process, had_ranks, alone_since = psutil.Process(), False, None
    stopped_since: dict[psutil.Process, float] = {}
    while not over.wait(0.5):
        states = {child: status(child) for child in process.children()}
        ranks = [child for child, state in states.items() if state not in (None, psutil.STATUS_ZOMBIE)]
        had_ranks = had_ranks or bool(ranks)
        for rank in ranks:
            if states[rank] != psutil.STATUS_STOPPED:
                stopped_since.pop(rank, None)
            elif time.monotonic() - stopped_since.setdefault(rank, time.monotonic()) > STOPPED_S:
                told(f"the rank with pid {rank.pid} has been stopped for {STOPPED_S} s, and is killed")
                rank.kill()
        alone_since = (alone_since or time.monotonic()) if had_ranks and not ranks else None
        if alone_since and time.monotonic() - alone_since > LINGER_S:
            told("its ranks have ended, and the rendezvous does not answer; its host may be gone or cut off")
            os._exit(1)


def status(child: psutil.Process) -> str | None:
    try:
        return child.status()
    except psutil.NoSuchProcess:
        return None


def told(message: str) -> None:
    print(f"torchrun on {socket.gethostname()}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run())

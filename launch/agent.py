"""torchrun whose last word is a line: python -m launch.agent takes the arguments of torchrun.

A rank that fails has said why, on the console and in RUN/logs/HOST/rank_N.log; torchrun then adds its own traceback and
the rank's once more, on every node.  This says instead which rank failed first here, and what to look at when the nodes
do not find each other.
"""

import inspect
import os
import signal
import socket
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
from torch.distributed.run import main


def run() -> int:
    """Exit status: 0, 1 after a failure, 128 + the number of the signal that ended it."""
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
    return 1


def told(message: str) -> None:
    print(f"torchrun on {socket.gethostname()}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run())

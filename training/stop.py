"""A wish to stop, heard at the next step boundary."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    def __init__(self) -> None:
        self.wished = False


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """SIGINT and SIGTERM set the flag and nothing else; a second SIGINT is Ctrl-C as usual.

    All ranks agree on the flag in the step's all-reduce, save, and leave together.
    """
    flag = StopFlag()

    def wish(number: int, frame: object) -> None:
        flag.wished = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

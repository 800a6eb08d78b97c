"""A function over many items by several processes: in order, with bounded memory, and not left behind."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")
AHEAD = 4  # results that may wait for their turn, for each worker


class WorkerDied(Exception):
    """A process that made results is gone; the message says how it ended."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """function(item) of each item, in the order of the items; items are taken as they are needed.

    One worker is this process itself.  What function raises is raised here.  When the results are left, by an error or
    by Ctrl-C, the processes end at once, and also when this process dies.  Raises WorkerDied when one is killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    items, known = iter(items), set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    waiting: deque[Future] = deque()
    processes: set[multiprocessing.Process] = set()
    try:
        with deaf():
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, AHEAD * workers))
        processes = set(multiprocessing.active_children()) - known
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        pool.shutdown()
    except BrokenProcessPool:
        raise WorkerDied(_end_of(processes)) from None
    finally:
        processes = processes or set(multiprocessing.active_children()) - known
        for process in processes:
            process.kill()
        pool.shutdown(cancel_futures=True)  # and its thread ends: Python's own end stumbles over one that still does
        for process in processes:
            process.join()


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that start meanwhile never hear Ctrl-C, which reaches a whole process group: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A killed parent cannot end its workers, which would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_of(processes: Iterable[multiprocessing.Process]) -> str:
    """How the process ended that ended first; the pool then terminates the others."""
    for process in processes:
        process.join(5)
        if process.exitcode not in (None, 0, -signal.SIGTERM):
            code = process.exitcode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            return f"worker process {process.pid} ended {how}"
    return "a worker process ended"

"""Who may train in a run folder."""

import multiprocessing
import os
import signal
import socket

import pytest

from training import start
from training.distributed import Passing

FORK = multiprocessing.get_context("fork")


def hold(run_dir, ready) -> None:
    start._take(run_dir)
    ready.set()
    signal.pause()


def test_a_second_job_is_told_host_and_pid_and_a_stale_lock_is_none(tmp_path):
    """A lock is stale when its process was killed, or its host: the file still names it, and nobody holds it."""
    ready = FORK.Event()
    first = FORK.Process(target=hold, args=(tmp_path, ready))
    first.start()
    assert ready.wait(30)
    told = f"host {socket.gethostname()}, pid {first.pid}"
    with pytest.raises(Passing, match=f"^run.dir={tmp_path}: {told} is training there; stop it, or choose another"):
        start._take(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert (tmp_path / "lock").read_text() == told + "\n"
    try:
        start._take(tmp_path)
        assert (tmp_path / "lock").read_text() == f"host {socket.gethostname()}, pid {os.getpid()}\n"
    finally:
        start.HELD.pop().close()


def test_a_lock_file_of_a_host_that_is_gone_is_no_lock(tmp_path):
    (tmp_path / "lock").write_text("host gone, pid 1\n")
    start._take(tmp_path)
    start.HELD.pop().close()

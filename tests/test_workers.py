"""Results come in order, and no process outlives its errand.  Every death is that of a real process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from data.workers import WorkerDied, cores, ordered
from runs import HOME


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number * number


def fail_at_20(number: int) -> int:
    if number == 20:
        raise ValueError("no 20")
    return number


def die_at_20(number: int) -> int:
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def living_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(workers):
    taken = []

    def items():
        for i in range(40):
            taken.append(i)
            yield i

    results = ordered(slow_square, items(), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 3 + 4 * workers, "memory is bounded"
    assert list(results) == [i * i for i in range(3, 40)]
    assert not living_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_at_its_place(workers):
    results, got = ordered(fail_at_20, range(100), workers), []
    with pytest.raises(ValueError, match="no 20"):
        got.extend(results)
    assert not got or got == list(range(20))
    results.close()
    assert not living_children()


def test_items_that_fail_end_the_work_on_those_before():
    def items():
        yield from range(1, 3)
        raise ValueError("no more")

    began = time.monotonic()
    with pytest.raises(ValueError, match="no more"):
        next(ordered(sleep_long, items(), 2))
    assert time.monotonic() - began < 20 and not living_children()


def sleep_long(number: int) -> None:
    time.sleep(60)


def test_a_killed_worker_is_named():
    with pytest.raises(WorkerDied, match=r"worker process \d+ ended by SIGKILL"):
        list(ordered(die_at_20, range(100), 2))


def test_results_that_are_left_leave_no_process_and_no_thread():
    threads = set(threading.enumerate())
    for _ in range(3):
        results = ordered(abs, range(10_000), 2)
        next(results)
        assert len(living_children()) == 2
        results.close()
        assert not living_children() and set(threading.enumerate()) == threads


SLOW = """
import sys, time
from data.workers import ordered
from tests_slow import sleep
print("ready", flush=True)
try:
    for _ in ordered(sleep, range(10**6), 2):
        print("made", flush=True)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.fixture
def slow_script(tmp_path):
    """A process, in a process group of its own, with two workers; each has work for minutes after the first item."""
    (tmp_path / "tests_slow.py").write_text("import time\n\n\ndef sleep(i):\n    time.sleep(100 * (i > 0))\n")
    starting = "import time\ntime.sleep(__name__ == '__mp_main__')\n"
    (tmp_path / "main.py").write_text(f"{starting}if __name__ == '__main__':\n    exec({SLOW!r})\n")
    env = os.environ | {"PYTHONPATH": f"{HOME}:{tmp_path}"}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()


def children_after(process: subprocess.Popen, line: str) -> list[psutil.Process]:
    while process.stdout.readline() != f"{line}\n":
        assert process.poll() is None, process.stderr.read()
    time.sleep(0.3)
    return psutil.Process(process.pid).children(recursive=True)


def ignores_sigint(process: psutil.Process) -> bool:
    """Or holds it back: Python's resource tracker does until it has come as far as to ignore it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = (int(status.split(f"{name}:")[1].split()[0], 16) for name in ("SigIgn", "SigBlk"))
    return any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


@pytest.mark.parametrize("line", ["ready", "made"])
def test_ctrl_c_ends_all_at_once_and_no_worker_complains(slow_script, line):
    """While workers start, and while they are at work."""
    children = children_after(slow_script, line)
    for child in children if sys.platform == "linux" else ():
        assert ignores_sigint(child), "it never hears it"
    started = time.time()
    os.killpg(slow_script.pid, signal.SIGINT)
    _, errors = slow_script.communicate(timeout=10)
    assert errors.strip() == "interrupted" and slow_script.returncode == 1 and time.time() - started < 5
    assert not psutil.wait_procs(children, 5)[1]


def test_workers_follow_a_killed_parent(slow_script):
    children = children_after(slow_script, "made")
    assert len(children) >= 2
    slow_script.kill()
    assert not psutil.wait_procs(children, 5)[1], "nobody waits for work for ever"


def test_cores():
    assert 1 <= cores() <= os.cpu_count()

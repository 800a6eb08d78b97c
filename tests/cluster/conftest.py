"""Hosts for the tests of this folder, and the table of faults that they fill."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import machines
import pytest

from runs import HOME, unavailable

LONGEST = 240  # letters of a line in the table
TABLE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
HEADER = """\
# What goes wrong, what you see, and how soon

Written by `tests/cluster`: each line is a fault that the tests caused on two hosts of one machine with a real Slurm,
a real sshd and real torchrun agents, what it said, and the seconds from the fault to that line (2 CPU cores, gloo).

| fault | what the user sees | seconds |
|---|---|---|
"""


class Fault(NamedTuple):
    fault: str
    seen: str
    seconds: float


FAULTS = pytest.StashKey[list[Fault]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the table after a run in which no test failed; lines of faults that it did not cause stay."""
    faults = session.config.stash[FAULTS]
    if exitstatus != 0 or not faults:
        return
    old = TABLE.read_text(encoding="utf-8").splitlines(keepends=True) if TABLE.exists() else []
    lines = {line.split(" | ")[0]: line for line in old if line.startswith("| ") and not line.startswith("| fault |")}
    lines |= {f"| {one.fault}": f"| {one.fault} | {one.seen} | {one.seconds:.0f} |\n" for one in faults}
    TABLE.write_text(HEADER + "".join(lines[key] for key in sorted(lines, key=str.lower)), encoding="utf-8")


@pytest.fixture
def faults(request, tmp_path, tmp_path_factory) -> Callable[[str, str, float], None]:
    """faults(fault, seen, seconds): a line of docs/faults.md."""

    def note(fault: str, seen: str, seconds: float) -> None:
        text = " ".join(seen.split()).replace("|", "\\|")
        for folder in (tmp_path, tmp_path_factory.getbasetemp(), HOME):
            text = text.replace(f"{folder}/", "")
        text = text if len(text) < LONGEST else f"{text[:LONGEST]} ..."
        request.config.stash[FAULTS].append(Fault(fault, f"`{text}`", seconds))

    return note


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two hosts.  Where they cannot be made the test is skipped, but fails in CI."""
    if why := machines.missing():
        unavailable(why)
    machines.hosts_up()
    yield machines.HOSTS
    if "KEEP_HOSTS" not in os.environ:
        machines.down()


@pytest.fixture(scope="session")
def slurm(hosts) -> tuple[str, str]:
    """The two hosts as Slurm's nodes with 8 GPUs each."""
    machines.slurm_up()
    return hosts


@pytest.fixture(scope="session")
def sshd(hosts) -> tuple[str, str]:
    """The two hosts behind `ssh HOST`."""
    machines.sshd_up()
    return hosts


@pytest.fixture
def shell(hosts, tmp_path, request):
    """shell(HOST, SCRIPT, **env): a bash on that host, in the project's folder; all its processes end with the test.

    read_only: a folder that this host cannot write.
    """
    mark = f"test-{os.getpid()}-{request.node.name}"

    def start(
        host: str, script: str, home: Path = HOME, read_only: Path | None = None, **env: str
    ) -> subprocess.Popen:  # fmt: skip
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_", "GLOO_"))}
        values = {"OMP_NUM_THREADS": "1", "TRYON_SESSION": mark, "TRYON_JOB": tmp_path.name, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(
            machines.on(host, "bash", "-c", script, read_only=read_only), cwd=home, env=kept | values | env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    yield start
    subprocess.run(["bash", "launch/session.sh", "end_now", mark], cwd=HOME, check=True)


@pytest.fixture
def until() -> Callable[[Callable[[], object], float, Callable[[], str]], float]:
    """until(condition, seconds, told): seconds until it holds; fails with what `told` returns."""

    def wait(condition: Callable[[], object], seconds: float, told: Callable[[], str] = str) -> float:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"not within {seconds} s:\n{told()}"
            time.sleep(0.05)
        return time.monotonic() - began

    return wait

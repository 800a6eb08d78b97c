"""The check before training names the host that is slow, broken, silent or another, on two real hosts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machines
import pytest

from runs import HOME, TORCHRUN, empty_config, free_port, output, start, words
from training.probe import Board

SECONDS = "20"
SHORT = "14"  # where somebody is waited for in vain


class Job:
    """One process a host, as `ssh HOST python -m launch.preflight ...` on each of them starts it."""

    def __init__(self, folder: Path, shards: Path):
        self.port, self.listed, self.run_dir = str(free_port()), folder / "exclude", folder / "run"
        self.words = [str(empty_config(folder)), *words(shards, self.run_dir), "--exclude-file", str(self.listed)]
        self.run_dir.mkdir()
        self.began = time.monotonic()

    def start(self, host: str, *changes: str, home: Path = HOME, read_only: Path | None = None, before: str = ""):
        command = [sys.executable, "-m", "launch.preflight", *self.words, "--seconds", SECONDS, *changes]
        if before:  # a file system of its own
            command = ["unshare", "--mount", "bash", "-c", f'{before} && exec "$@"', "bash", *command]
        line = machines.on(host, "env", "-C", str(home), *command, read_only=read_only)
        return start(line, TRYON_NODES=" ".join(machines.HOSTS), MASTER_PORT=self.port, GLOO_SOCKET_IFNAME="eth0")

    def end(self, *processes: subprocess.Popen, status: int) -> str:
        """What the first host says; all end with this status, and quietly."""
        texts = [output(process) for process in processes]
        self.took = time.monotonic() - self.began
        assert [process.returncode for process in processes] == [status] * len(processes), texts
        assert not any("Traceback" in text or "frame #" in text for text in texts), texts
        return texts[0]

    def excluded(self) -> str:
        return self.listed.read_text() if self.listed.exists() else ""


@pytest.fixture
def job(tmp_path, shards, hosts) -> Job:
    return Job(tmp_path, shards)


@contextmanager
def stopped(process: subprocess.Popen) -> Iterator[None]:
    """It stands still within, and is killed after."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def line_of(text: str, *said: str) -> str:
    """The one remark, which says all of this."""
    lines = [line for line in text.splitlines() if line.startswith(("error:", "warning:"))]
    found = [line for line in lines if all(word in line for word in said)]
    assert len(found) == 1, text
    return found[0]


def test_two_good_hosts_under_torchrun(tmp_path, shards, hosts):
    job, port = Job(tmp_path, shards), free_port()
    options = ["--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=nodeA:{port}"]
    command = [*TORCHRUN, *options, "-m", "launch.preflight", *job.words, "--seconds", SECONDS]
    processes = [start(machines.on(host, *command), GLOO_SOCKET_IFNAME="eth0") for host in hosts]
    texts = [output(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    text = "".join(texts)
    assert "2 of 2 ranks answered" in text and text.count("verdict") == 1 and "the sum is right" in text
    assert not job.excluded() and "error" not in text and list(job.run_dir.iterdir()) == []


def test_under_srun(tmp_path, shards, slurm):
    job = Job(tmp_path, shards)
    command = ["srun", "-N2", "-n2", f"--chdir={HOME}", sys.executable]
    process = start([*command, "-m", "launch.preflight", *job.words, "--seconds", SECONDS], GLOO_SOCKET_IFNAME="eth0")
    text = output(process)
    assert process.returncode == 0 and "2 of 2 ranks answered" in text, text
    assert text.count("nodeA ") == 1 and text.count("nodeB ") == 1


def test_a_slow_link(job, faults):
    shape = ["nsenter", "--net=/run/netns/nodeB", "tc", "qdisc"]
    rate = ["tbf", "rate", "20mbit", "burst", "64kb", "latency", "400ms"]
    subprocess.run([*shape, "add", "dev", "eth0", "root", *rate], check=True)
    try:
        text = job.end(job.start("nodeA"), job.start("nodeB"), status=0)
    finally:
        subprocess.run([*shape, "del", "dev", "eth0", "root"])
    line = line_of(text, "warning: host nodeB: sends at 0.01")
    assert not job.excluded()
    faults("preflight: a host's link carries 20 Mbit/s", line, job.took)


def test_a_host_that_stops_at_the_start(job, faults):
    one, two = (job.start(host, "--seconds", SHORT) for host in machines.HOSTS)
    with stopped(two):
        text = job.end(one, status=1)
    assert job.took < float(SHORT) + 10 and job.excluded() == "nodeB\n"
    faults("preflight: a host's process is stopped", line_of(text, "error: host nodeB: did not answer"), job.took)


def test_a_rank_that_stops_while_links_are_measured(job, faults):
    one, two = (job.start(host, "--seconds", SHORT) for host in machines.HOSTS)
    end = time.monotonic() + 20
    board = Board(machines.ADDRESSES["nodeA"], int(job.port), serves=False, prefix="preflight/0", until=end)
    assert board.read(["facts/1"], end)
    with stopped(two):
        text = job.end(one, status=1)
    line = line_of(text, "error: host nodeB: rank 1 stopped answering")
    assert job.took < float(SHORT) + 10 and job.excluded() == "nodeB\n" and "nodeA:" not in text
    faults("preflight: a rank stops while links are measured", line, job.took)


def test_the_host_of_the_board_stops(job, faults):
    one, two = (job.start(host, "--seconds", SHORT) for host in machines.HOSTS)
    with stopped(one):
        text = job.end(two, status=1)
    assert job.took < float(SHORT) + 10 and job.excluded() == "nodeA\n"
    faults("preflight: the first host is stopped", line_of(text, "error: host nodeA: gives no answer"), job.took)


def test_other_code_and_another_config(job, tmp_path, faults):
    home = tmp_path / "copy"
    for name in ("data", "model", "training", "launch"):
        shutil.copytree(HOME / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*HOME.glob("*.py"), HOME / "pyproject.toml"]:
        shutil.copy(file, home)
    with (home / "model" / "sampler.py").open("a") as file:
        file.write("# changed\n")
    text = job.end(job.start("nodeA"), job.start("nodeB", "optim.lr=0.5", home=home), status=1)
    faults("preflight: a host has other code", line_of(text, "error: host nodeB: runs other code"), job.took)
    line = line_of(text, "error: host nodeB: has another config (optim.lr=0.5, others 0.001)")
    faults("preflight: a host has another config", line, job.took)
    assert job.excluded() == "nodeB\n"


def test_a_run_folder_that_cannot_be_written(job, faults):
    text = job.end(job.start("nodeA"), job.start("nodeB", read_only=job.run_dir), status=1)
    line = line_of(text, "error: host nodeB: run folder: Read-only file system")
    assert job.excluded() == "nodeB\n"
    faults("preflight: a host cannot write the run folder", line, job.took)


def test_a_run_folder_that_is_not_shared(job, faults):
    text = job.end(job.start("nodeA"), job.start("nodeB", before=f"mount -t tmpfs none {job.run_dir}"), status=1)
    line = line_of(text, "error: host nodeB: its run folder is not the one that nodeA see")
    assert job.excluded() == "nodeB\n" and list(job.run_dir.iterdir()) == []
    faults("preflight: a host has a run folder of its own", line, job.took)

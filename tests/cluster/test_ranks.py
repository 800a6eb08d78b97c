"""Ranks of two hosts that fail after they have found each other: every other one ends, and the cause is told."""

import time
from pathlib import Path

import machines
import pytest

from runs import BROKEN, empty_config, output, words

ENDLESS = {"train__num_steps": 100_000, "checkpoint__every": 20, "distributed__hang_s": 6, "distributed__timeout_s": 60}


@pytest.fixture
def nodes(shell, shards, tmp_path):
    """nodes(script, **environment) -> the processes of torchrun_node.sh on both hosts, and their run folder."""

    def start(script: str = "train_ddp.py", read_only: Path | None = None, **environment: str):
        arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **ENDLESS)]
        quoted = " ".join(f"'{word}'" for word in [script, *arguments])
        values = {"TRYON_NODES": " ".join(machines.HOSTS), "TRYON_NPROC": "1"} | environment
        kept = {"nodeA": None, "nodeB": read_only}
        command = f"bash launch/torchrun_node.sh {quoted}"
        return [shell(host, command, read_only=kept[host], **values) for host in machines.HOSTS], tmp_path / "run"

    return start


def wait_for_checkpoint(processes, run_dir: Path) -> float:
    """The time when the first checkpoint is there."""
    end = time.monotonic() + 60
    while not (run_dir / "checkpoints" / "latest").exists():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.05)
    return time.monotonic()


def finished(processes, seconds: float) -> list[str]:
    """What both printed; both must fail by themselves."""
    texts = [output(process, seconds) for process in processes]
    assert all(process.returncode not in (0, None) for process in processes), "\n".join(texts)
    return texts


def line(texts: list[str], part: str) -> str:
    return next(line for line in "\n".join(texts).splitlines() if part in line)


@pytest.mark.parametrize(("rank", "name"), [("0", "rank 0"), ("1", "the last rank")])
def test_an_exception_on_one_rank_ends_all(nodes, tmp_path, faults, rank, name):
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    began = time.monotonic()
    processes, run_dir = nodes(str(broken), BROKEN_RANK=rank)
    texts = finished(processes, 60)
    cause = line(texts, f"rank {rank}] IndexError: nothing there")
    assert "error: [host node" in cause and f"rank_{rank}.log" in cause
    assert "lost contact with another rank" in texts[0] + texts[1]
    (log,) = (run_dir / "logs").glob(f"*/rank_{rank}.log")
    assert "Traceback" in log.read_text()
    faults(f"an exception on {name} only", cause, time.monotonic() - began)


def test_a_run_folder_that_one_host_cannot_write(nodes, tmp_path, faults):
    (tmp_path / "run").mkdir()
    began = time.monotonic()
    processes, _ = nodes(read_only=tmp_path / "run")
    texts = finished(processes, 60)
    told = line(texts, "error: ")
    assert "host nodeB cannot write" in told and "Read-only file system" in told and "Traceback" not in "".join(texts)
    faults("the run folder is read-only on one node", told, time.monotonic() - began)


def test_a_cut_cable_is_named_on_both_sides(nodes, faults):
    """Also the agent of the side that lost the rendezvous ends; torchrun alone waits for minutes."""
    processes, run_dir = nodes()
    began = wait_for_checkpoint(processes, run_dir)
    with machines.cable_out("nodeB"):
        texts = finished(processes[:1], 60)
        seconds = time.monotonic() - began
        texts += finished(processes[1:], 60)
    assert time.monotonic() - began < 50
    for host, text in zip(machines.HOSTS, texts, strict=True):
        assert f"[host {host}" in text and "the network between nodeA, nodeB is broken" in text
    logs = sorted((run_dir / "logs").glob("*/rank_?.log"))
    assert len(logs) == 2 and all('File "' in log.read_text() for log in logs)  # stacks
    faults("the network between two nodes is cut (distributed.hang_s=6)", line(texts, "the network between"), seconds)

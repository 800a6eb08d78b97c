"""Two hosts of one run under torchrun: the curve of one process, and what is said when something is wrong."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import machines
import pytest

from runs import HOME, deviation, empty_config, losses, output, stats, train, words

NODES = "source launch/env.sh nodeA nodeB"
NODE = "bash launch/torchrun_node.sh"
SOON = 20  # seconds until a fault that can be seen at once is told, two cores and their load allowed for


@pytest.fixture(scope="module")
def single(shards, tmp_path_factory) -> Path:
    """The run folder of the curve that the others are compared with."""
    folder = tmp_path_factory.mktemp("single")
    train(folder, arguments(shards, folder))
    return folder / "run"


def arguments(shards: Path, folder: Path, **changes) -> list[str]:
    return [str(empty_config(folder)), *words(shards, folder / "run", **changes)]


def quoted(values: list[str]) -> str:
    return " ".join(f"'{value}'" for value in values)


def error_of(text: str) -> str:
    """The one error that a console shows."""
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text, text
    return error


def told(process: subprocess.Popen, began: float, seconds: float) -> tuple[str, float]:
    """(its error, seconds since the start) of a process that must fail within that time."""
    text = output(process, seconds)
    assert process.returncode == 1, text
    return error_of(text), time.monotonic() - began


def test_the_literal_torchrun_line_after_sourcing(shell, shards, single, tmp_path):
    script = f"{NODES} && torchrun --nnodes=2 --nproc_per_node=2 train_ddp.py " + quoted(arguments(shards, tmp_path))
    nodes = [shell(host, script) for host in machines.HOSTS]
    texts = [output(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(texts)
    assert "global batch 4 on 4 x cpu" in texts[0] + texts[1]
    assert "node 1 of 2 (nodeA nodeB)" in texts[0] and "node 2 of 2 (nodeA nodeB)" in texts[1]
    assert deviation(losses(single), losses(tmp_path / "run")) < 1e-5


@pytest.mark.parametrize("options", ["set +eu", "set -euo pipefail"])
def test_env_sh_leaves_the_shell_as_it_was(shell, options):
    state = '"$-$(shopt -po pipefail)"'
    shown = 'mark one; mark two; echo "$TRYON_TIMELINE"; ulimit -Sn; ulimit -Hn; env'
    kept = f'[ "$before" = {state} ] || exit 9'
    script = f"{options}; before={state}; ulimit -Sn 256; {NODES}; {kept}; {shown}"
    process = shell("nodeB", script, OMP_NUM_THREADS="", PET_MAX_RESTARTS="3")
    text = output(process)
    assert process.returncode == 0, text
    lines = text.splitlines()
    timeline, soft, hard = lines[1:4]
    assert [word.partition("=")[0] for word in timeline.split()] == ["one", "two"] and soft == hard, text
    values = dict(line.partition("=")[::2] for line in lines[4:])
    expected = {
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "TRYON_NODE_RANK": "1", "PET_LOCAL_ADDR": "10.77.0.2",
        "PET_MAX_RESTARTS": "3", "GLOO_SOCKET_IFNAME": "eth0", "TRYON_NODES": "nodeA nodeB",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
        "PET_RDZV_CONF": "is_host=0,join_timeout=300,read_timeout=15",
    }  # fmt: skip
    assert {name: values.get(name) for name in expected} == expected
    address, _, port = values["PET_RDZV_ENDPOINT"].partition(":")
    assert address == "10.77.0.1" and 20000 <= int(port) < 30000
    assert int(values["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 5)


def test_wrong_nodes(shell, tmp_path, faults):
    hostfile = tmp_path / "hosts.txt"
    hostfile.write_text("nodeA slots=1\nnodeX slots=1  # there is none\n")
    cases = [
        ("no nodes given", "source launch/env.sh", "no nodes are known: source launch/env.sh HOST HOST"),
        ("unknown host in the hostfile", f"{NODE} --hostfile {hostfile}", "host nodeX (from the hostfile"),
        ("started on a host that is not in the list", "source launch/env.sh nodeB", "this host, nodeA, is none of"),
        (
            "a wrong TRYON_IFNAME", f"TRYON_IFNAME=ib9; {NODES}", "TRYON_IFNAME=ib9 is no interface of nodeA",
        ),
    ]  # fmt: skip
    for fault, script, expected in cases:
        error, seconds = told(shell("nodeA", f"set -e; {script}; echo goes on"), time.monotonic(), SOON)
        assert expected in error
        faults(fault, error.replace(str(tmp_path), "..."), seconds)
    hostfile.write_text("nodeA slots=many\n")
    assert "is not HOST [slots=N]" in told(shell("nodeA", f"{NODE} --hostfile {hostfile}"), 0, SOON)[0]


def test_slow_faults(shell, tmp_path, faults):
    """Those that nobody can tell before the wait is over, all at once."""
    cases = {
        "a node was not started": ("nodeA", NODE, {}, "nodeB never called nodeA:"),
        "the master was not started": ("nodeB", NODE, {}, "nothing listens there; start the same command on nodeA"),
        "the master is down or behind a firewall": (
            "nodeB", NODE, {"TRYON_NODES": "10.77.0.9 nodeB"}, "is eth0 the network between the hosts"),
    }  # fmt: skip
    began, running = time.monotonic(), {}
    for i, (fault, (host, script, env, _)) in enumerate(cases.items()):
        running[fault] = shell(host, script, **({"TRYON_NODES": "nodeA nodeB", "TRYON_JOB": f"slow {i}"} | env))
    plain = shell("nodeB", f"{NODES}; torchrun train_ddp.py 2>&1 | grep -v ^W", TRYON_JOB="slow plain")
    for fault, process in running.items():
        error, seconds = told(process, began, 70)
        assert cases[fault][3] in error and 45 < seconds < 60
        faults(fault, error, seconds)
    text, seconds = output(plain, 30), time.monotonic() - began
    assert "RendezvousConnectionError" in text and seconds < 70
    last = text.strip().splitlines()[-1]
    faults("the same without the roll call (torchrun alone after env.sh)", last, seconds)


def test_the_port_is_taken(shell, faults):
    code = "import socket, time; s = socket.create_server(('', 23456)); print('here', flush=True); time.sleep(60)"
    other = shell("nodeA", f"exec '{sys.executable}' -c \"{code}\"")
    assert other.stdout.readline() == "here\n"
    env, began = {"TRYON_NODES": "nodeA nodeB", "TRYON_PORT": "23456"}, time.monotonic()
    nodes = [shell(host, NODE, **env) for host in machines.HOSTS]
    (first, seconds), (second, later) = (told(node, began, SOON) for node in nodes)
    assert "port 23456 of the master nodeA is taken by another program" in first
    assert told(shell("nodeA", f"{NODES} || exit 1", **env), began, SOON)[0] == first
    assert "another program listens on port 23456 of the master nodeA (10.77.0.1)" in second
    faults("the port is taken, on the master", first, seconds)
    faults("the port is taken, on another node", second, later)
    text = output(shell("nodeB", NODES, TRYON_PORT="40000"))
    assert "warning: TRYON_PORT=40000 is one of the ports 32768 to 60999" in text


def test_nodes_that_differ(shell, shards, tmp_path, faults):
    copy = tmp_path / "copy"
    hidden = shutil.ignore_patterns(".*", "runs", "shards", "__pycache__")
    shutil.copytree(HOME, copy, ignore=hidden)
    (copy / "training" / "loop.py").write_text((copy / "training" / "loop.py").read_text() + "# changed here alone\n")
    (copy / ".venv").symlink_to(HOME / ".venv")
    for host, seed in (("nodeA", 1), ("nodeB", 2)):
        (tmp_path / host).mkdir()
        (tmp_path / host / "my.yaml").write_text(f"seed: {seed}\n")
        (tmp_path / host / "hosts.txt").write_text("nodeA slots=2\nnodeB slots=2\n")
    (tmp_path / "nodeB" / "hosts.txt").write_text("nodeA slots=2\nnodeB slots=1\n")
    cases = [
        ("other code on one node", NODE, {"nodeB": copy}, "nodeB has other code than nodeA: training/loop.py; copy"),
        (
            "another config on one node", f"cd {tmp_path}/$(uname -n); PYTHONPATH={HOME} python3 -m launch.rollcall "
            "train_ddp.py my.yaml", {}, "nodeB has another config than nodeA: my.yaml; copy the same file",
        ),
        ("another command on one node", f"{NODE} optim.lr=$(uname -n)", {}, "nodeB was started with optim.lr=nodeB"),
        (
            "a node with fewer GPUs", f"{NODE} --hostfile {tmp_path}/$(uname -n)/hosts.txt", {},
            "nodeB starts 1 ranks, nodeA 2; give every node the same number of GPUs",
        ),
    ]  # fmt: skip
    for i, (fault, script, homes, expected) in enumerate(cases):
        began = time.monotonic()
        script = f"{NODES} && {script}" if "rollcall" in script else script
        env = {"TRYON_NODES": "nodeA nodeB", "TRYON_JOB": f"differ {i}"}
        nodes = [shell(host, script, homes.get(host, HOME), **env) for host in machines.HOSTS]
        (error, seconds), (same, _) = (told(node, began, SOON) for node in nodes)
        assert error == same and expected in error
        faults(fault, error, seconds)


def test_a_killed_rank_and_all_start_again(shell, shards, single, tmp_path, until, faults):
    """PET_MAX_RESTARTS=1: torchrun starts the ranks of both hosts anew, and they go on at the checkpoint."""
    settings = {"train__num_steps": 60, "checkpoint__every": 5}
    train(tmp_path / "whole", arguments(shards, _folder(tmp_path / "whole"), **settings))
    env = {"TRYON_NODES": "nodeA nodeB", "PET_MAX_RESTARTS": "1"}
    script = f"{NODE} {quoted(arguments(shards, tmp_path, **settings))}"
    nodes = [shell(host, script, **env) for host in machines.HOSTS]
    run = tmp_path / "run"
    until(lambda: _step(run) >= 12, 60)
    os.kill(_rank_of("nodeB", tmp_path.name), signal.SIGKILL)
    killed = time.monotonic()
    texts = [output(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(texts)
    (again,) = [line for line in "".join(texts).splitlines() if "continuing at step" in line]
    assert deviation(losses(tmp_path / "whole" / "run"), losses(run)) < 1e-5
    shown = again.replace(str(tmp_path), "...").partition(";")[0]
    faults("a rank is killed, PET_MAX_RESTARTS=1 (seconds: to the end)", shown, time.monotonic() - killed)


def test_a_killed_torchrun_takes_its_ranks_along(shell, shards, tmp_path, until, faults):
    """They save before they end, and with them the other host's."""
    script = f"{NODE} {quoted(arguments(shards, tmp_path, train__num_steps=4000))}"
    for host in machines.HOSTS:
        shell(host, script, TRYON_NODES="nodeA nodeB")
    run = tmp_path / "run"
    until(lambda: _step(run) >= 3, 60)
    rank = _rank_of("nodeB", tmp_path.name)
    agent = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(agent, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: not Path(f"/proc/{rank}").exists() and (run / "REQUEUE").exists(), 20)
    saved = json.loads((run / "REQUEUE").read_text())
    assert saved["reason"] == "stopped by a signal" and saved["step"] >= 3
    seconds = time.monotonic() - killed
    faults(
        "torchrun itself is killed on one host",
        f"stopped at step {saved['step']} by a signal, with a checkpoint",
        seconds,
    )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _step(run: Path) -> int:
    return stats(run)[-1]["step"] if (run / "stats.jsonl").exists() and (run / "stats.jsonl").stat().st_size else 0


def _rank_of(host: str, job: str) -> int:
    """The process of a rank on a host."""
    wanted = {f"TRYON_JOB={job}", f"TRYON_NODE_RANK={machines.HOSTS.index(host)}", "LOCAL_RANK=0"}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().decode(errors="replace").split("\0")):
                return int(path.parent.name)
    raise AssertionError(f"no rank on {host}")

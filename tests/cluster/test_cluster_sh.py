"""launch/cluster.sh over real ssh: sessions outlive their connections, stop with a checkpoint, and go on."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runs import HOME, deviation, empty_config, losses, output, stats, train, words

CLUSTER = ["bash", "launch/cluster.sh"]


def cluster(*arguments: object, **env: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_"))}
    return subprocess.Popen(
        [*CLUSTER, *map(str, arguments)], cwd=HOME, env=kept | {"OMP_NUM_THREADS": "1"} | env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def says(*arguments: object, status: int = 0, seconds: float = 60, **env: str) -> str:
    process = cluster(*arguments, **env)
    text = output(process, seconds)
    assert process.returncode == status, text
    return text


@pytest.fixture
def hostfile(sshd, tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("# two hosts\nnodeA slots=1\nnodeB slots=1\n")
    yield path
    if path.with_name("two.txt.run").exists():
        says("stop", path, "--now")


def steps(run: Path) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return stats(run)[-1]["step"]
    return 0


def test_a_run_from_start_over_dropped_connections_to_its_end(hostfile, shards, tmp_path, until, faults):
    run, settings = tmp_path / "run", {"train__num_steps": 300, "checkpoint__every": 1000}
    words_of = [str(empty_config(tmp_path)), *words(shards, run, **settings)]
    assert f"started tryon-two on nodeA nodeB; the run folder is {run}" in says("start", hostfile, *words_of)
    until(lambda: steps(run) >= 3, 60, lambda: says("status", hostfile))

    # The console within a terminal; then the connection is cut.
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.chdir(HOME)
        os.execvp("bash", [*CLUSTER, "attach", str(hostfile), "nodeA"])
    seen = b""
    end = time.monotonic() + 15
    while b"a new run of 300 steps" not in seen and time.monotonic() < end:
        seen += _read(terminal)
    assert b"a new run of 300 steps" in seen, seen.decode(errors="replace")
    os.kill(pid, signal.SIGKILL)  # ssh itself, by exec
    os.waitpid(pid, 0)
    os.close(terminal)
    before = steps(run)
    until(lambda: steps(run) > before + 2, 20)

    status = says("status", hostfile)
    assert re.search(r"^nodeA: running, \d+ processes$.*^nodeB: running, ", status, re.MULTILINE | re.DOTALL), status
    began = time.monotonic()
    refused = says("start", hostfile, *words_of, status=1)
    assert "error: tryon-two-nodeA still runs on host nodeA; " in refused and "host nodeB" in refused
    faults("cluster.sh start while it runs", refused.splitlines()[0], time.monotonic() - began)

    logs = cluster("logs", hostfile)
    began = time.monotonic()
    stopped = int(re.search(r"^stopped at step (\d+); ", says("stop", hostfile), re.MULTILINE)[1])
    told = json.loads((run / "REQUEUE").read_text())
    assert before < stopped < 300 and told["step"] == stopped and not (run / "STOP").exists()
    faults(
        "cluster.sh stop (2 ranks)",
        f"stopped at step {stopped}; the same start command continues",
        time.monotonic() - began,
    )
    followed = output(logs, 15)
    assert "nodeA: roll call: nodeA, nodeB: 2 x 1 ranks" in followed and "nodeB: node 2 of 2" in followed
    assert f"nodeA: stopped at step {stopped} by the file STOP" in followed
    status = says("status", hostfile)
    assert status.count("ended with status 0") >= 2 and f"after step {stopped}, ended" in status, status
    assert "runs on none of nodeA nodeB" in says("stop", hostfile, status=1)

    says("start", hostfile, *words_of)
    until(lambda: steps(run) > stopped, 60, lambda: says("status", hostfile))
    assert "killed tryon-two; the same start command continues at the last checkpoint" in says(
        "stop", hostfile, "--now"
    )
    assert "nodeB: ended" in says("status", hostfile)

    says("start", hostfile, *words_of)
    followed = output(cluster("logs", hostfile), 90)
    console = (run / "logs" / "nodeA" / "console.log").read_text()
    resumed = [int(step) for step in re.findall(r"continuing at step (\d+) of 300 steps", console)]
    assert resumed[0] == stopped and len(resumed) == 2, console
    assert stopped <= resumed[1] < 300, "stop --now sends TERM first, upon which training saves if it is quick"
    assert "finished: 300 steps" in followed
    train(tmp_path / "whole", [*words_of[:1], *words(shards, tmp_path / "whole", **settings)])
    assert deviation(losses(tmp_path / "whole"), losses(run)) < 1e-5


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_what_cannot_start_is_told(sshd, tmp_path, faults):
    hostfile = tmp_path / "bad.txt"

    def refusal(fault: str, hosts: str, expected: str, *arguments: str, **env: str) -> None:
        hostfile.write_text(hosts)
        began = time.monotonic()
        text = says("start", hostfile, *arguments, status=1, **env)
        seconds = time.monotonic() - began
        (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert expected in error and not hostfile.with_name("bad.txt.run").exists()
        if fault:
            faults(fault, error.replace(str(tmp_path), "..."), seconds)

    refusal("a host that ssh does not reach", "nodeA\n10.77.0.9\n", "error: host 10.77.0.9: ssh says: ")
    refusal(
        "no project folder on a host", "nodeA\n", f"host nodeA has no project folder {tmp_path}; copy it there",
        TRYON_HOME=str(tmp_path),
    )  # fmt: skip
    refusal("", "", "names no host")
    refusal("", "nodeA slots=0\n", "is not HOST [slots=N]")
    refusal("", "nodeA\nnodeA\n", "host nodeA stands twice")
    refusal("", "nodeA\n", "unknown key 'optim.lrr'", "optim.lrr=1")
    assert "nothing was started with this hostfile" in says("status", hostfile, status=1)
    assert "cluster.sh start HOSTFILE" in says("begin", hostfile, status=2)


def test_a_host_without_screen(tmp_path):
    for name in ("bash", "uname", "grep", "cut"):
        (tmp_path / name).symlink_to(shutil.which(name))
    command = ["bash", "launch/session.sh", "check", "tryon-none"]
    done = subprocess.run(command, cwd=HOME, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "has no screen; install it there" in done.stderr

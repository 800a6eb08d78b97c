"""Every shell script parses, shellcheck has nothing to say, and the starters start what they should."""

import os
import shutil
import signal
import subprocess

import pytest

from runs import HOME, unavailable

HIDDEN = {"runs", "shards", "samples"}  # what the project writes
SCRIPTS = sorted(
    path
    for path in HOME.rglob("*.sh")
    if not any(part in HIDDEN or part.startswith(".") for part in path.relative_to(HOME).parts)
)


def test_the_scripts_are_seen():
    names = {path.relative_to(HOME).as_posix() for path in SCRIPTS}
    assert {"launch/env.sh", "launch/torchrun_node.sh", "launch/cluster.sh", "tests/run.sh"} <= names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(HOME).as_posix())
def test_it_parses_and_is_short(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 160, "two ideas"


def test_shellcheck_is_clean():
    if shutil.which("shellcheck") is None:
        unavailable("shellcheck is not installed")
    command = ["shellcheck", "--external-sources", "--shell=bash", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["torchrun_local.sh"], "train_ddp.py"),
        (["torchrun_local.sh", "sample.py", "a b"], "sample.py a b"),
        (["torchrun_node.sh", "configs/demo.yaml", "a=1"], "train_ddp.py configs/demo.yaml a=1"),
        (["torchrun_node.sh", "--hostfile", "HOSTS", "sample.py", "x"], "sample.py x"),
    ],
)
def test_what_is_started_and_with_which_environment(tmp_path, arguments, started):
    """TRYON_RUN_IN, which may be a container, stands before every python; here it tells what it was to run."""
    (tmp_path / "hosts.txt").write_text("localhost slots=3\n")
    inside = tmp_path / "inside"
    inside.write_text('#!/usr/bin/env bash\necho "run: $*"\ngrep SigIgn /proc/self/status\nenv\n')
    inside.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_"))}
    env = kept | {"TRYON_RUN_IN": f"{inside} --nv", "TRYON_NODES": "localhost", "TMPDIR": str(tmp_path)}
    env |= {} if "--hostfile" in arguments else {"TRYON_NPROC": "3"}
    words = [str(tmp_path / "hosts.txt") if word == "HOSTS" else word for word in arguments]
    command = ["bash", f"{HOME}/launch/{words[0]}", *words[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = done.stdout.rpartition("run: ")[2]
    assert last.startswith("--nv ") and last.splitlines()[0].endswith(f" -- {started}"), last
    assert ("--standalone" in last.splitlines()[0]) == (words[0] == "torchrun_local.sh")
    ignored = int(last.split("SigIgn:")[1].split()[0], 16)
    assert all(ignored >> (number - 1) & 1 for number in (signal.SIGUSR1, signal.SIGUSR2))
    values = dict(line.partition("=")[::2] for line in last.splitlines()[2:])
    assert values["PET_NPROC_PER_NODE"] == "3" and values["PWD"] == str(HOME)
    if words[0] == "torchrun_node.sh":
        assert "run: --nv python3 -m launch.rollcall --wait 50 " + started in done.stdout
        assert "node=" in values["TRYON_TIMELINE"] and "rollcall=" in values["TRYON_TIMELINE"]
        assert "read_timeout=120" in values["PET_RDZV_CONF"]


def test_a_console_tells_the_status_of_its_training(tmp_path):
    inside = tmp_path / "inside"
    inside.write_text('#!/usr/bin/env bash\ncase "$*" in *launch.agent*) exit 7 ;; esac\n')
    inside.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_"))}
    env = kept | {"TRYON_RUN_IN": str(inside), "TRYON_NODES": "localhost", "TRYON_NPROC": "1", "TMPDIR": str(tmp_path)}
    run = tmp_path / "a run"
    log = run / "logs" / os.uname().nodename / "console.log"
    log.parent.mkdir(parents=True)
    session = ["bash", "launch/session.sh"]
    subprocess.run([*session, "console", run, "x=1"], cwd=HOME, env=env, capture_output=True, timeout=60)
    assert ": ended with status 7\n" in log.read_text()
    told = subprocess.run([*session, "status", "none", run], cwd=HOME, env=env, capture_output=True, text=True)
    assert told.stdout.startswith("ended with status 7 at ")


def test_a_wish_to_stop_forgets_an_earlier_stop(tmp_path):
    def session(word: str) -> str:
        command = ["bash", "launch/session.sh", word, tmp_path]
        return subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True).stdout

    (tmp_path / "REQUEUE").write_text('{"reason": "stopped by a signal", "step": 7}\n')
    session("wish_stop")
    assert (tmp_path / "STOP").exists() and session("outcome") == ""
    (tmp_path / "REQUEUE").write_text('{"reason": "stopped by the file STOP", "step": 9}\n')
    assert session("outcome") == "9\n" and not (tmp_path / "STOP").exists()


@pytest.mark.parametrize(("nodes", "rank"), [("localhost 192.0.2.1", 0), ("192.0.2.1 localhost", 1)])
def test_the_first_node_alone_is_the_master(tmp_path, nodes, rank):
    """The way to the other node, an address that no host has, is played."""
    ip = tmp_path / "ip"
    ip.write_text('#!/usr/bin/env bash\ncase "$*" in *route*) echo "192.0.2.1 dev eth7 src 192.0.2.9" ;; esac\n')
    ip.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_", "OMP_"))}
    env = kept | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "TRYON_NPROC": "2"}
    done = subprocess.run(
        ["bash", "-c", f"source launch/env.sh {nodes} && env"], cwd=HOME, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    values = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert values["PET_RDZV_CONF"].startswith(f"is_host={1 - rank},") and values["TRYON_NODE_RANK"] == str(rank)
    master = "192.0.2.9" if rank == 0 else "192.0.2.1"
    assert values["PET_RDZV_ENDPOINT"].startswith(f"{master}:") and values["GLOO_SOCKET_IFNAME"] == "eth7"

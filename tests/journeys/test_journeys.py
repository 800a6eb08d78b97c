"""What a user types, as processes of their own: every command of README and docs, and one of each family in the ways
that users start them.

A command ends with status 0, in time, without a traceback; no process, thread, temporary file or piece of shared memory
outlives it, and nothing new lies beside what it names.
"""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from commands import Command, at_toy_size, commands, exception
from filelock import FileLock
from workspace import furnish, make

WITNESS = Path(__file__).parent / "witness"
SECONDS = 240
FAULTS = ("Traceback (most recent call last)", "terminate called", "Exception ignored", "Segmentation fault")
SHOWN = commands()
TO_RUN = list({at_toy_size(each.text): each for each in SHOWN if not exception(each)}.values())
PHOTOGRAPHS = re.compile(r"\.jpg|my_photos")
SERVES = "tensorboard"  # until Ctrl-C

FAMILIES = {
    "train_single": "python train_single.py configs/demo.yaml run.dir=runs/new",
    "train_dp": "python train_dp.py configs/demo.yaml run.dir=runs/new",
    "train_ddp": "torchrun --nproc_per_node=2 train_ddp.py configs/demo.yaml run.dir=runs/new",
    "sample": "python sample.py runs/one --pairs 4",
    "evaluate": "python evaluate.py --images results --reference test/image",
    "prepare": "python -m data.prepare synthetic --num 4 --size 32 --out shards/new",
    "inspect": "python -m data.inspect shards/train",
    "index": "python -m data.shards shards/train",
    "verify": "python -m data.verify shards/train",
    "doctor": "python -m launch.doctor configs/base_unet.yaml",
    "report": "python -m training.report runs/one runs/two",
    "diagnose": "python -m training.diagnose runs/one",
    "checkpoint verify": "python -m training.checkpoint verify runs/one",
    "checkpoint export": "python -m training.checkpoint export runs/one",
    "averages": "python -m training.ema reconstruct runs/post_hoc --length 0.09",
    "cascade": "bash launch/cascade.sh runs/new",
    "demo": "bash launch/demo.sh",
}
REFUSED_AGAIN = {"averages": 1, "checkpoint export": 2}  # what it makes is there already
QUICK = ("train_single", "sample", "prepare")  # those of the fast tier


class Ended(NamedTuple):
    status: int
    text: str


@pytest.fixture(scope="session")
def furnished(tmp_path_factory) -> Path:
    """A workspace with all that earlier commands leave, made once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workspace"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            cotton = Path(os.environ.get("TRYON_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "cotton"
            partial = tmp_path_factory.mktemp("workspace")
            furnish(make(partial, cotton if cotton.is_dir() else None))
            partial.rename(folder)
    return folder


@pytest.fixture
def workspace(furnished, tmp_path) -> Path:
    """One to be changed."""
    shutil.copytree(furnished, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


@pytest.fixture
def journey(tmp_path) -> Iterator[Callable[..., Ended]]:
    """journey(command, folder, terminal=, without=) -> how it ended, once everything was looked at that may be left."""
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # with a short name: Python makes sockets there

    def run(command: str, folder: Path, terminal: bool = True, without: tuple[str, ...] = ()) -> Ended:
        token, own = uuid.uuid4().hex, tmp_path / "own"
        seen = own / "seen"
        shutil.rmtree(own, ignore_errors=True)
        seen.mkdir(parents=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CI", "TRYON_FUZZ"))}
        env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "TMPDIR": str(temporary), "JOURNEY": token}
        env |= {"PYTHONPATH": f"{WITNESS}:{env.get('PYTHONPATH', '')}", "JOURNEY_WITNESS": str(seen)}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(own / "compiled")
        for name in without:
            env.pop(name, None)
        before, shared = _names(folder), _shared_memory()
        ended = _run(command, folder, env, terminal)
        if not command.startswith(SERVES):  # which stumbles over Ctrl-C by itself
            assert not any(fault in ended.text for fault in FAULTS), ended.text
        assert not (left := _alive(token)), f"processes outlive {command!r}: {left}\n{ended.text}"
        for path in seen.iterdir():
            witness = json.loads(path.read_text())
            clean = not witness["threads"] and not witness["children"]
            assert clean or command.startswith(SERVES), witness
        assert not (left := _left(temporary)), f"{command!r} leaves {left} in TMPDIR"
        assert not (left := _shared_memory() - shared), f"{command!r} leaves {left} in /dev/shm"
        new = _names(folder) - before
        if "| head" not in command:
            assert all(name in command + ended.text for name in new), f"{command!r} leaves {new}, without a word of it"
        return ended

    yield run
    shutil.rmtree(temporary)


def _run(command: str, folder: Path, env: dict[str, str], terminal: bool) -> Ended:
    """In a session of its own, with a terminal or without any."""
    if terminal:
        ours, theirs = pty.openpty()
        how = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    else:
        ours, theirs = os.pipe()
        how = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, env=env, start_new_session=True, **how)
    os.close(theirs)
    text, end = "", time.monotonic() + SECONDS
    while True:
        ready, _, _ = select.select([ours], [], [], max(0, end - time.monotonic()))
        if not ready:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command!r} still runs after {SECONDS} s:\n{text}")
        try:
            part = os.read(ours, 65536)
        except OSError:  # a terminal that nobody has open any more
            part = b""
        if not part:
            break
        serves, text = "http://localhost" in text, text + part.decode(errors="replace")
        if command.startswith(SERVES) and not serves and "http://localhost" in text:
            os.killpg(process.pid, signal.SIGINT)
    os.close(ours)
    return Ended(process.wait(), text)


def _alive(token: str) -> list[str]:
    """The processes of a journey that are there, after a moment in which they may end."""
    end = time.monotonic() + 3
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("JOURNEY") == token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _left(folder: Path) -> list[str]:
    """All but what torchrun and TensorBoard leave, and this user's compile cache."""
    left, known = (path.relative_to(folder) for path in folder.rglob("*")), ("torchelastic_", ".tensorboard-", "tryon-")
    return sorted(path.as_posix() for path in left if not path.parts[0].startswith(known))


def _shared_memory() -> set[str]:
    """What lies in /dev/shm and no process has open: tests beside this one have theirs open."""
    names = _names(Path("/dev/shm"))
    if names:
        held = set()
        for process in psutil.process_iter():
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text()
            except OSError:
                continue
            held |= {line.rpartition("/dev/shm/")[2].split()[0] for line in maps.splitlines() if "/dev/shm/" in line}
        names -= held
    return names


def python_of(command: Command) -> str:
    return f"python - <<'END'\n{command.text}END\n" if command.python else at_toy_size(command.text)


def test_the_docs_are_read():
    """97 when this was written; a parser that finds a few is broken."""
    assert len(SHOWN) > 90 and len(TO_RUN) > 50
    assert {command.page for command in SHOWN} >= {"README.md", "sampling.md", "evaluation.md", "checkpoints.md"}
    print(f"{len(SHOWN)} commands found, {len(TO_RUN)} run, {sum(map(bool, map(exception, SHOWN)))} excepted")


@pytest.mark.slow
@pytest.mark.parametrize("command", TO_RUN, ids=str)
def test_as_written(command, workspace, journey, request):
    if PHOTOGRAPHS.search(command.text):
        request.getfixturevalue("real_data")
        request.getfixturevalue("estimator_weights")
    if out := re.search(r"prepare .*--out (\S+)", command.text):
        shutil.rmtree(workspace / out[1], ignore_errors=True)  # of earlier commands
    ended = journey(python_of(command), workspace)
    if command.text.startswith(SERVES):
        assert ended.status in (0, -signal.SIGINT) and "http://localhost" in ended.text, ended.text
    else:
        assert ended.status == 0, ended.text


QUICKLY = [  # by one worker of pytest-xdist: the other need not wait for the workspace
    pytest.param(each, marks=pytest.mark.xdist_group("journeys") if each in QUICK else pytest.mark.slow)
    for each in FAMILIES
]


@pytest.mark.parametrize("family", QUICKLY)
def test_twice_in_a_row(family, workspace, journey):
    first, second = (journey(FAMILIES[family], workspace) for _ in range(2))
    assert first.status == 0, first.text
    assert second.status == REFUSED_AGAIN.get(family, 0), second.text


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_elsewhere_without_terminal_and_home(family, workspace, journey, tmp_path):
    """The project lies where a space and a # are in the path, the working directory is another, HOME is not set."""
    project = tmp_path / "a b#c" / "project"
    project.parent.mkdir()
    workspace.rename(project)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("shards", "runs", "results", "test"):
        (project / name).rename(elsewhere / name)
        if "bash" in FAMILIES[family]:  # paths are relative to the project's folder there
            (project / name).symlink_to(elsewhere / name)
    command = re.sub(r"(?<= )(\w+\.py|configs/\S+|launch/\S+)", rf"'{project}/\1'", FAMILIES[family])
    if " -m " in command:
        command = f"PYTHONPATH='{project}':$PYTHONPATH {command}"
    ended = journey(command, elsewhere, terminal=False, without=("HOME",))
    assert ended.status == 0, ended.text


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reader_that_leaves(family, workspace, journey):
    """`COMMAND | head`: what is printed has no reader any more."""
    ended = journey(f"{FAMILIES[family]} 2>&1 | head -c 1; exit ${{PIPESTATUS[0]}}", workspace)
    assert ended.status in (0, 1, 128 + signal.SIGPIPE), ended.text
    if family.startswith("train"):
        assert (workspace / "runs/new/DONE").exists(), "training goes on"

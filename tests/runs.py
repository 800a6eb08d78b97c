"""Runs of the training scripts as the tests need them: tiny, and as processes of their own.

`Script` starts a script in a fresh process that is forked from a server which has torch imported already, so that a
start costs milliseconds; `command` starts it as a user would.
"""

import ctypes
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file

HOME = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SECONDS = 90  # that any process here may take

TINY = {
    "engine.device": "cpu",
    "model.image_size": [32, 32],
    "model.channels": [8, 16],
    "model.num_blocks": [1, 1],
    "model.garment_num_blocks": None,
    "model.attention_levels": [1],
    "model.head_dim": 8,
    "model.emb_dim": 16,
    "sampler.num_steps": 2,
    "optim.warmup_steps": 4,
    "optim.lr": 1e-3,
    "data.num_workers": 0,
    "train.global_batch": 4,
    "train.num_steps": 20,
    "ema.decay": 0.9,
    "checkpoint.every": 100,
    "log.every": 1,
    "log.validate_every": 1000,
    "log.num_validation": 4,
    "log.preview_every": 1000,
    "log.num_previews": 2,
    "log.preview_steps": 2,
}


def unavailable(why: str) -> NoReturn:
    """Skips a test for what it needs and this machine has not; fails it in CI, where all is there."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


# train_ddp.py whose third step fails on the rank BROKEN_RANK of the environment.
BROKEN = f"""
import os, runpy, sys
sys.path.insert(0, {str(HOME)!r})
from training.engine import DDP
step, steps = DDP.step, [0]
def fail(self, lr):
    steps[0] += 1
    if steps[0] == 3 and self.rank == int(os.environ["BROKEN_RANK"]):
        raise IndexError("nothing there")
    return step(self, lr)
DDP.step = fail
runpy.run_path({str(HOME / "train_ddp.py")!r}, run_name="__main__")
"""

_forkserver = multiprocessing.get_context("forkserver")
# The last one is what DeepSpeed imports, and Inductor with it, when an optimizer is handed to it.
DEEPSPEED = ["deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"]
_forkserver.set_forkserver_preload(["training.loop", "torch.distributed", *DEEPSPEED])


def words(shards: Path, run_dir: Path, **changes) -> list[str]:
    """The command line of a tiny run; changes are keys with '__' for the dot."""
    values = TINY | {"data.shards": str(shards), "run.dir": str(run_dir)}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def empty_config(folder: Path) -> Path:
    """A config file that says nothing, so that a run does not depend on those of the project."""
    path = folder / "empty.yaml"
    path.write_text("{}\n")
    return path


def damage(folder: Path, tmp_path: Path) -> Path:
    """A copy of a shard folder in which every image of the last shard has a wrong bit."""
    bad = tmp_path / "damaged"
    shutil.copytree(folder, bad)
    tar = sorted(bad.glob("*.tar"))[-1]
    data = bytearray(tar.read_bytes())
    for place in range(600, len(data), 1024):
        data[place] ^= 1
    tar.write_bytes(data)
    return bad


class Script:
    """A script's process, in the working directory `where`; out.txt holds what it printed on either stream."""

    def __init__(
        self, folder: Path, script: str, arguments: list[str], env: dict[str, str] | None = None, where: Path = HOME
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.out = folder / f"out_{time.monotonic_ns()}.txt"
        self.began = time.monotonic()
        how = script, arguments, env or {}, str(where), str(self.out)
        self.process = _forkserver.Process(target=_script, args=how)
        self.process.start()

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit status; negative: the signal that ended it.  A hang is a failure."""
        self.process.join(seconds)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s:\n{self.text}")
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """The signal for the process and its loader workers."""
        while not self.out.exists() and self.process.is_alive():  # it has no group of its own yet
            time.sleep(0.001)
        os.killpg(self.process.pid, number)

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""


def _script(script: str, arguments: list[str], env: dict[str, str], where: str, out: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process of a shell
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(env)
    os.chdir(where)
    sys.argv = [script, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a fork server ignores it
    status = 0
    try:
        runpy.run_path(str(HOME / script), run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    ctypes.pythonapi.Py_Exit(status)  # the interpreter's whole end, which a fork leaves out: it can abort too


def ranks(
    folder: Path, num: int, arguments: list[str] | list[list[str]], script: str = "train_ddp.py",
    env: dict[str, str] | None = None,
) -> list[Script]:  # fmt: skip
    """The processes that torchrun would start, without torchrun: each has to end by itself."""
    port = free_port()
    each = arguments if arguments and isinstance(arguments[0], list) else [arguments] * num
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    env = (env or {}) | meeting | {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    return [
        Script(folder / f"rank_{i}", script, each[i], env | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(num)
    ]


def finish(scripts: list[Script], seconds: float = SECONDS) -> tuple[list[int], str]:
    """The exit statuses, and all that was printed."""
    try:
        statuses = [script.wait(seconds) for script in scripts]
    finally:
        for script in scripts:
            if script.process.is_alive():
                script.kill()
    return statuses, "\n".join(script.text for script in scripts)


def wait_for_step(scripts: list[Script], run_dir: Path, step: int) -> None:
    """Until the run has told this step; its processes must live until then."""
    path, end = run_dir / "stats.jsonl", time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < step:
        living = all(script.process.is_alive() for script in scripts)
        assert living and time.monotonic() < end, "\n".join(script.text for script in scripts)
        time.sleep(0.01)


def train(folder: Path, arguments: list[str], script: str = "train_single.py") -> str:
    """What a run that must succeed prints."""
    run = Script(folder, script, arguments)
    assert run.wait() == 0, run.text
    return run.text


def start(command: list[str], **env: str) -> subprocess.Popen:
    """A command in a session of its own, as a user would start it; its streams are one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | env
    return subprocess.Popen(
        command, cwd=HOME, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def output(process: subprocess.Popen, seconds: float = SECONDS) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {seconds} s:\n{process.communicate()[0]}") from None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stats(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> np.ndarray:
    """The loss of each step from 1 on, which every line must be there for, once."""
    lines = [line for line in stats(run_dir) if "loss" in line]  # the others are of measurements
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


def newest(run_dir: Path) -> Path:
    """The folder of the newest checkpoint."""
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()


def tensors(run_dir: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint, by 'file/name'."""
    files = sorted(newest(run_dir).glob("*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same_bits(one: Path, two: Path) -> None:
    """Both runs end in the same model, average and optimizer state, bit by bit, and told the same losses."""
    first, second = tensors(one), tensors(two)
    assert {name.split("/")[0] for name in first} == {"model", "ema", "optimizer"} and first.keys() == second.keys()
    differing = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert not differing, differing[:5]
    assert losses(one).tolist() == losses(two).tolist()


def deviation(one: np.ndarray, two: np.ndarray) -> float:
    """The largest relative difference of two curves."""
    assert one.shape == two.shape
    return float(np.max(np.abs(one - two) / np.abs(one)))

"""SIGKILL at every change of the disk that a save makes, on one rank and on three: the deaths are of real processes."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from runs import free_port
from saves import find_step, names, save, small_pieces
from training import checkpoint, pieces
from training.distributed import DistributedConfig, get_rank, process_group

FORK = multiprocessing.get_context("fork")
STAGES = {  # what was about to happen at a death, as the log of changes says it
    "before the folder": "mkdir step_00000003.partial",
    "a thread writes a piece": "write step_00000003.partial/ema.safetensors",
    "a thread flushes a piece": "fsync step_00000003.partial/optimizer.safetensors",
    "before the manifest": "write_text step_00000003.partial/manifest.json",
    "the manifest is not flushed": "fsync step_00000003.partial/manifest.json",
    "before the rename": "rename step_00000003.partial",
    "before the pointer": "rename latest.partial",
    "before the prune": "rename step_00000001",
    "amid the prune": "rmtree step_00000001.partial",
}


def deadly(run_dir: Path, victim: int, moment: int | str) -> None:
    """From here on the victim dies by SIGKILL before its n-th change of the disk, or before the first that is called
    so; every change is told in RUN/changes_RANK."""
    counter = count(1)

    def die_or(kind: str, change, path_of):
        def changed(*args, **kwargs):
            path = Path(path_of(args))
            if run_dir / "checkpoints" in path.parents and get_rank() == victim:
                number, what = next(counter), f"{kind} {path.relative_to(run_dir / 'checkpoints')}"
                with (run_dir / f"changes_{victim}").open("a") as file:
                    file.write(what + "\n")
                if moment in (number, what):
                    os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return changed

    def first(args):
        return args[0]

    def half_written(raw, data):  # half of the piece is there at death
        raw.write(data[: len(data) // 2])
        raw.seek(-(len(data) // 2), os.SEEK_CUR)
        return write(raw, data)

    write = die_or("write", pieces._write_hashed, lambda args: args[0].name)
    pieces._write_hashed = half_written
    os.fsync = die_or("fsync", os.fsync, lambda args: Path(f"/proc/self/fd/{args[0]}").readlink())
    shutil.rmtree = die_or("rmtree", shutil.rmtree, first)
    for name, kind in (("write_text", "write_text"), ("mkdir", "mkdir"), ("replace", "rename")):
        setattr(Path, name, die_or(kind, getattr(Path, name), first))


def rank_of(action: Callable[[], None], rank: int, num: int, port: int) -> None:
    small_pieces()
    if num == 1:
        action()
        return
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the others of a group complain of a dead one
    with process_group(DistributedConfig(backend="gloo", timeout_s=20, hang_s=0), "cpu"):
        action()
    os._exit(0)


def on_ranks(num: int, action: Callable[[], None]) -> list[int]:
    """The exit statuses of so many ranks that do it."""
    port = free_port()
    ranks = [FORK.Process(target=rank_of, args=(action, rank, num, port)) for rank in range(num)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert not rank.is_alive(), "a hang"
    return [rank.exitcode for rank in ranks]


def save_on(run_dir: Path, step: int, num: int, victim: int | None = None, moment: int | str = 0) -> list[int]:
    def action() -> None:
        if victim is not None:
            deadly(run_dir, victim, moment)
        save(run_dir, step)

    return on_ranks(num, action)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    small_pieces(monkeypatch.setattr)


@pytest.fixture
def two_saved(tmp_path):
    """name -> a run folder of that name with steps 1 and 2."""
    save(tmp_path / "before", 1)
    save(tmp_path / "before", 2)
    return lambda name: Path(shutil.copytree(tmp_path / "before", tmp_path / name))


def goes_on(run_dir: Path, num: int) -> None:
    """The same command goes on: both later checkpoints are there, and nothing else."""
    assert save_on(run_dir, 3, num) == save_on(run_dir, 4, num) == [0] * num
    assert find_step(run_dir) == 4 and names(run_dir) == ["latest", "step_00000003", "step_00000004"]


def test_death_at_any_change_of_the_disk_leaves_a_whole_checkpoint(two_saved):
    found, told = [], set()
    for moment in range(1, 200):
        run_dir = two_saved(f"run{moment}")
        (status,) = save_on(run_dir, 3, 1, 0, moment)
        assert status in (0, -signal.SIGKILL)
        told |= set((run_dir / "changes_0").read_text().splitlines())
        found.append(find_step(run_dir))
        goes_on(run_dir, 1)
        if status == 0:
            break
    assert set(STAGES.values()) <= told, set(STAGES.values()) - told
    assert moment > 40 and found == sorted(found) and set(found) == {2, 3}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_death_of_the_first_of_three_ranks_at_each_stage(two_saved, stage):
    run_dir = two_saved("run")
    statuses = save_on(run_dir, 3, 3, 0, stage)
    assert statuses[0] == -signal.SIGKILL and 0 not in statuses[1:], "the others end too"
    published = stage.startswith(("rename latest", "rename step_00000001", "rmtree"))
    assert find_step(run_dir) == (3 if published else 2)
    goes_on(run_dir, 3)


@pytest.mark.parametrize("stage", [stage for stage in STAGES.values() if stage.startswith(("write step", "fsync"))][:2])
def test_death_of_another_rank_while_its_thread_writes(two_saved, stage):
    run_dir = two_saved("run")
    statuses = save_on(run_dir, 3, 3, 2, stage)
    assert statuses[2] == -signal.SIGKILL and 0 not in statuses
    assert find_step(run_dir) == 2
    goes_on(run_dir, 3)


def test_three_ranks_write_the_bytes_of_one(tmp_path):
    save(tmp_path / "one", 5)
    assert save_on(tmp_path / "three", 5, 3) == [0, 0, 0]
    for path in sorted((tmp_path / "one").rglob("*.*")):
        if path.is_file():
            assert (tmp_path / "three" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()
    assert find_step(tmp_path / "three") == 5


def test_three_ranks_share_the_hashing_and_agree(two_saved):
    """A bit that one of them finds damaged counts for all, whichever piece it is in."""
    for place in (100, 5000, 9000):
        run_dir = two_saved(f"run{place}")
        path = run_dir / "checkpoints/step_00000002/ema.safetensors"
        data = bytearray(path.read_bytes())
        data[place] ^= 8
        path.write_bytes(data)

        def look(run_dir: Path = run_dir) -> None:
            folder, rejected = checkpoint.find(run_dir)
            (run_dir / f"told_{get_rank()}").write_text(f"{folder.name}: {rejected}")

        assert on_ranks(3, look) == [0, 0, 0]
        told = {(run_dir / f"told_{rank}").read_text() for rank in range(3)}
        assert len(told) == 1 and next(iter(told)).startswith("step_00000001: "), told
        assert "is not whole for rank " in (said := told.pop()) and "ema.safetensors is damaged" in said


def test_three_ranks_refuse_another_format_together(two_saved):
    run_dir = two_saved("run")
    (run_dir / "checkpoints/step_00000002/manifest.json").write_text('{"format": 99}')

    def look() -> None:
        with pytest.raises(ValueError, match=r"step_00000002: manifest\.json is of format 99"):
            checkpoint.find(run_dir)

    assert on_ranks(3, look) == [0, 0, 0]

"""What is on the disk after anything that can happen to a checkpoint.  Each death is that of a real process."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import TrainState

FILES = ("model", "ema", "optimizer")


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    return {name: {"w": torch.full((64, 64), float(step)), "step": torch.tensor(float(step))} for name in FILES}


def save(run_dir: Path, step: int, keep: int = 2) -> Path:
    checkpoint.save(run_dir, TrainState(step=step, samples=4 * step), tensors(step), keep)
    return checkpoint.folder_of(run_dir, step)


def step_of(run_dir: Path) -> int:
    """The step of the newest whole checkpoint, whose every number must be of that step."""
    folder, _ = checkpoint.find(run_dir)
    step = checkpoint.read_state(folder).step
    for name in FILES:
        assert all((value == step).all() for value in checkpoint.read_tensors(folder, name).values())
    return step


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_was_saved_is_read_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert step_of(tmp_path) == 4
    assert names(tmp_path) == ["latest", "step_00000003", "step_00000004"]
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000004\n"
    assert checkpoint.read_state(checkpoint.folder_of(tmp_path, 3)) == TrainState(step=3, samples=12)


def test_nothing_yet_is_no_checkpoint(tmp_path):
    assert checkpoint.find(tmp_path) == (None, [])


def test_no_file_is_a_pickle(tmp_path):
    for path in save(tmp_path, 1).iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            head = path.read_bytes()
            assert path.suffix == ".safetensors" and head[8:9] == b"{"
            json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "flipped bit in the average": lambda folder: flip(folder / "ema.safetensors"),
    "flipped bit in the optimizer": lambda folder: flip(folder / "optimizer.safetensors"),
    "flipped bit in the state": lambda folder: flip(folder / "state.json"),
    "truncated": lambda folder: os.truncate(folder / "ema.safetensors", 100),
    "missing file": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 60),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    folder, rejected = checkpoint.find(tmp_path)
    assert folder == checkpoint.folder_of(tmp_path, 1) and step_of(tmp_path) == 1
    assert len(rejected) == 1 and "step_00000002 is not whole for rank 0" in rejected[0]


def test_a_broken_one_counts_as_none_when_pruning(tmp_path):
    save(tmp_path, 1, keep=2)
    os.truncate(save(tmp_path, 2, keep=2) / "ema.safetensors", 10)
    later = checkpoint.folder_of(tmp_path, 9)
    shutil.copytree(checkpoint.folder_of(tmp_path, 2), later)
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000003"], "1 is the second whole one"
    assert step_of(tmp_path) == 3
    shutil.copytree(checkpoint.folder_of(tmp_path, 3), later)
    os.truncate(later / "ema.safetensors", 10)
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["latest", "step_00000005"] and step_of(tmp_path) == 5


def test_leftovers_of_a_kill_go_with_the_next_checkpoint(tmp_path):
    for name in ("step_00000007.partial", "step_00000001.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step_00000001"]


def _die_at(call: int, run_dir: str) -> None:
    """Saves step 3 and dies by SIGKILL before the `call`-th change of the disk; status 0: there were fewer."""
    remaining = call

    def deadly(change):
        def changed(*args, **kwargs):
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return changed

    def deadly_write(values, path):  # half of the file is there at death
        checkpoint_save(values, path)
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_save = checkpoint.save_file
    checkpoint.save_file = deadly_write
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "rename")):
        setattr(owner, name, deadly(getattr(owner, name)))
    for name in ("write_text", "mkdir", "replace"):
        setattr(Path, name, deadly(getattr(Path, name)))
    save(Path(run_dir), 3)


def test_death_at_any_stage_of_publishing_leaves_a_whole_checkpoint(tmp_path):
    save(tmp_path / "before", 1)
    save(tmp_path / "before", 2)
    found, fork = [], multiprocessing.get_context("fork")
    for call in range(1, 100):
        run_dir = tmp_path / f"run{call}"
        shutil.copytree(tmp_path / "before", run_dir)
        process = fork.Process(target=_die_at, args=(call, str(run_dir)))
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        found.append(step_of(run_dir))
        save(run_dir, 3)  # the same command goes on
        save(run_dir, 4)
        assert step_of(run_dir) == 4 and names(run_dir) == ["latest", "step_00000003", "step_00000004"], call
        if process.exitcode == 0:
            break
    assert call > 15 and found == sorted(found) and set(found) == {2, 3}


def test_a_checkpoint_of_another_architecture_is_named(tmp_path):
    folder = save(tmp_path, 1)
    like = {"w": torch.zeros(64, 32), "step": torch.tensor(0.0)}
    with pytest.raises(ValueError, match=r"model\.safetensors: w is \[64, 64\] there and \[64, 32\] in this model"):
        checkpoint.read_tensors(folder, "model", like)
    with pytest.raises(ValueError, match=r"step is \[\] there and nothing in this model: .*another run\.dir"):
        checkpoint.read_tensors(folder, "model", {"w": torch.zeros(64, 64)})


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """On a disk of 200 KiB, where a checkpoint takes 50 and two are kept."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if os.name == "nt" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("a small disk needs root and mount")
    try:
        save(tmp_path, 1)
        (tmp_path / "filler").write_bytes(bytes(110 * 1024))
        with pytest.raises(
            ValueError, match=r"step_00000002: the checkpoint could not be written .*No space left"
        ) as e:
            save(tmp_path, 2)
        assert "Free space, lower checkpoint.keep or choose another run.dir" in str(e.value)
        assert step_of(tmp_path) == 1 and names(tmp_path) == ["latest", "step_00000001"]
        (tmp_path / "filler").unlink()
        save(tmp_path, 2)
        assert step_of(tmp_path) == 2
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

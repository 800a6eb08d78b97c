"""What is on the disk after anything that can happen to a checkpoint.  Each death is that of a real process."""

import json
import os
import random
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch

from runs import unavailable
from saves import FILES, SHAPES, find_step, names, save, small_pieces, tensors
from training import checkpoint, pieces, publish
from training.checkpoint import CheckpointConfig, Saver, TrainState


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    small_pieces(monkeypatch.setattr)


@pytest.fixture
def small_disk(tmp_path):
    """size -> a folder on a disk of so many bytes."""
    mounted = []

    def make(size: int) -> Path:
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=64", "tmpfs", str(disk)]
        if os.name == "nt" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            unavailable("a small disk needs root and mount")
        mounted.append(disk)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_was_saved_is_read_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert find_step(tmp_path) == 4
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


def test_whatever_a_state_holds_comes_back(tmp_path):
    state = TrainState(
        step=7, window=[0.5, float("nan"), float("inf")], loss_scale={"scale": 2.0**16, "_growth_tracker": 3},
        data={"shards/ü": "abc, 3 samples"},
    )  # fmt: skip
    saver = Saver(tmp_path, CheckpointConfig(asynchronous=False))
    saver.save(state, {})
    there = checkpoint.read_state(checkpoint.folder_of(tmp_path, 7))
    assert repr(there) == repr(state) and type(there.loss_scale["_growth_tracker"]) is int


def test_a_state_that_cannot_be_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    good, dice = json.loads((folder / "state.json").read_text()), random.Random(0)
    absurd = [None, True, -1, 2**63, 1e400, 1.5, "1", [], {}, [None], {"a": None}, [[1.0]], "x" * 10000]
    refused = {key: 0 for key in [*good, "unknown"]}
    for key in refused:
        for value in absurd:
            (folder / "state.json").write_text(json.dumps(good | {key: value}))
            try:
                checkpoint.read_state(folder)
            except ValueError as error:
                refused[key] += 1
                assert str(folder / "state.json") in str(error) and key in str(error) and "\n" not in str(error)
    assert min(refused.values()) > 8 and refused["unknown"] == len(absurd), refused
    text = json.dumps(good).encode()
    for _ in range(300):
        damaged = bytearray(text)
        damaged[dice.randrange(len(text))] = dice.randrange(256)
        for content in (damaged, damaged[: dice.randrange(len(text))], b"[" * 100_000):
            (folder / "state.json").write_bytes(content)
            try:
                checkpoint.read_state(folder)
            except ValueError as error:
                assert str(folder / "state.json") in str(error)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_is_found(tmp_path):
    """In any file, at a thousand places of the manifest and two hundred of each other."""
    folder, dice = save(tmp_path, 1), random.Random(0)
    for path in sorted(folder.iterdir()):
        bits = range(8 * path.stat().st_size)
        for bit in dice.sample(bits, 1000 if path.name == "manifest.json" else 200):
            flip(path, bit)
            problem = publish.problem_with(folder, threads=1)
            assert (problem is not None and path.name in problem) or (path.name == "manifest.json" and problem), (
                path,
                bit,
            )
            flip(path, bit)
    assert publish.problem_with(folder) is None


def test_a_flipped_bit_is_told_by_its_place(tmp_path):
    folder = save(tmp_path, 1)
    flip(folder / "optimizer.safetensors", 8 * 9000)
    problem = "optimizer.safetensors is damaged: the SHA-256 of its bytes 8192 to 12287 differs"
    assert publish.problem_with(folder) == problem


DAMAGES = {
    "flipped bit": lambda folder: flip(folder / "model.safetensors", 7777),
    "truncated": lambda folder: os.truncate(folder / "ema.safetensors", 100),
    "cut by one byte": lambda folder: os.truncate(folder / "state.json", (folder / "state.json").stat().st_size - 1),
    "missing file": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "missing state": lambda folder: (folder / "state.json").unlink(),
    "a folder for a file": lambda folder: [(folder / "state.json").unlink(), (folder / "state.json").mkdir()],
    "a pipe for a file": lambda folder: [(folder / "state.json").unlink(), os.mkfifo(folder / "state.json")],
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a pipe for a manifest": lambda folder: [(folder / "manifest.json").unlink(), os.mkfifo(folder / "manifest.json")],
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 60),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a pickle": lambda folder: torch.save({"w": torch.zeros(3)}, folder / "model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    folder, rejected = checkpoint.find(tmp_path)
    assert folder == checkpoint.folder_of(tmp_path, 1) and find_step(tmp_path) == 1
    assert len(rejected) == 1 and "step_00000002 is not whole for rank 0" in rejected[0]


def forge(folder: Path, **changes) -> None:
    """A manifest with these values whose own SHA-256 is right."""
    path = folder / "manifest.json"
    manifest = publish.Manifest.model_construct(**json.loads(path.read_text()) | changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's, of wrong types
        manifest.sha256 = manifest.digest()
        path.write_text(manifest.model_dump_json())


@pytest.mark.parametrize("version", [2, 4])
def test_a_checkpoint_of_another_format_is_not_damage(tmp_path, version):
    """The newest is not fallen back behind, whatever lies before it; none is removed, though newer ones come."""
    for step in (1, 2):
        save(tmp_path, step)
    older, newer = (checkpoint.folder_of(tmp_path, step) for step in (1, 2))
    (newer / "manifest.json").write_text(json.dumps({"format": version, "files": [], "more": 1}))
    said = rf"^{newer}: manifest.json is of format {version}, this code reads format {publish.FORMAT}; continue with "
    said += rf"the code that wrote it \({tmp_path}/code/\*\.zip and {tmp_path}/environment.jsonl .*another run\.dir$"
    with pytest.raises(ValueError, match=said):
        checkpoint.find(tmp_path)
    os.truncate(save(tmp_path, 3) / "ema.safetensors", 10)
    with pytest.raises(ValueError, match=r"step_00000003 is not whole .*; .*step_00000002: manifest.json is of format"):
        checkpoint.find(tmp_path)
    before = {path: path.read_bytes() for path in newer.iterdir()}
    for step in (4, 5):
        save(tmp_path, step)
    assert names(tmp_path) == ["latest", "step_00000002", "step_00000004", "step_00000005"] and not older.exists()
    assert find_step(tmp_path) == 5 and {path: path.read_bytes() for path in newer.iterdir()} == before


def test_only_folders_are_checkpoints(tmp_path):
    folder = save(tmp_path, 1)
    (tmp_path / "checkpoints/step_00000099").write_text("a note")
    assert checkpoint.find(tmp_path) == (folder, [])
    save(tmp_path, 2)
    assert names(tmp_path)[-1] == "step_00000099" and publish.newest_first(tmp_path / "checkpoints")[-1] == folder


def test_a_manifest_that_cannot_be_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    before = (folder / "manifest.json").read_bytes()
    (tmp_path / "secret.json").write_text("{}")
    files = json.loads(before)["files"]
    facts = files["state.json"]
    places = ["../../secret.json", str(tmp_path / "secret.json"), "a/b.json", "..", ".json", "a\\b.json", "x" * 300, ""]
    forgeries = [{"files": files | {place: facts}} for place in places]
    sizes = [-1, 2**70, 1.5, "1", None, True, [], 10**400]
    forgeries += [{"files": files | {"state.json": facts | {"size": size}}} for size in sizes]
    hashes = [None, "", [], ["zz"], facts["sha256"] * 2, {"a": 1}, [1], [facts["sha256"][0].upper()]]
    forgeries += [{"files": files | {"state.json": facts | {"sha256": each}}} for each in hashes]
    forgeries += [{"files": value} for value in (None, [], "model", {"state.json": None}, {"state.json": []})]
    forgeries += [{"piece": value} for value in (0, -1, 2**80, "4096", None, 1.5, True)]
    forgeries += [{"format": value} for value in (1, 2, 4, "3", None, 3.5, True)]
    forge(folder)
    assert publish.problem_with(folder) is None, "an honest forgery is taken"
    for changes in forgeries:
        forge(folder, **changes)
        problem = publish.problem_with(folder)
        assert problem and problem.startswith("manifest.json") and "\n" not in problem, (changes, problem)
    for text in (b"", b"null", b"[]", b"3", b'"x"', b"{}", b"[" * 100_000, b"\xff\xfe", before + b"}", b"\x80\x04."):
        (folder / "manifest.json").write_bytes(text)
        assert publish.problem_with(folder).startswith("manifest.json")


def test_a_pickle_with_a_manifest_of_its_own_is_never_loaded(tmp_path):
    """Both kinds that torch writes, with code in them; the manifest is in order."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for new in (True, False):
        folder = save(tmp_path / str(new), 1)
        path = folder / "model.safetensors"
        torch.save({"w": Trap()}, path, _use_new_zipfile_serialization=new)
        facts = {"size": path.stat().st_size, "sha256": [pieces.hash_of(path, 0, path.stat().st_size)]}
        forge(folder, files=json.loads((folder / "manifest.json").read_text())["files"] | {path.name: facts})
        assert "is a pickle, which is never loaded" in publish.problem_with(folder)
        with (
            pytest.raises(ValueError, match=r"model\.safetensors: a pickle, .*which is never loaded"),
            checkpoint.open_tensors(folder, "model", SHAPES),
        ):
            pass
    assert not (tmp_path / "sprung").exists()


def test_a_broken_one_counts_as_none_when_pruning(tmp_path):
    save(tmp_path, 1, keep=2)
    os.truncate(save(tmp_path, 2, keep=2) / "ema.safetensors", 10)
    later = checkpoint.folder_of(tmp_path, 9)
    shutil.copytree(checkpoint.folder_of(tmp_path, 2), later)
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000003"], "1 is the second whole one"
    assert find_step(tmp_path) == 3
    shutil.copytree(checkpoint.folder_of(tmp_path, 3), later)
    os.truncate(later / "ema.safetensors", 10)
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["latest", "step_00000005"] and find_step(tmp_path) == 5


def test_leftovers_of_a_kill_go_with_the_next_checkpoint(tmp_path):
    for name in ("step_00000007.partial", "step_00000001.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step_00000001"]


def test_a_checkpoint_of_another_architecture_is_named(tmp_path):
    folder = save(tmp_path, 1)
    for shapes, said in (
        ({"w": (64, 32), "step": ()}, r"model\.safetensors: w is \[64, 64\] there and \[64, 32\] in this model"),
        ({"w": (64, 64)}, r"step is \[\] there and nothing in this model: .*another run\.dir"),
        ({"w": (64, 64), "step": (), "b": (3,)}, r"b is nothing there and \[3\] in this model"),
    ):
        with pytest.raises(ValueError, match=said), checkpoint.open_tensors(folder, "model", shapes):
            pass


def test_a_full_disk_at_any_stage_leaves_a_whole_checkpoint(small_disk):
    """On a disk of 300 KiB, where a checkpoint takes 80 and two are kept: the next has n blocks, or n files, left."""
    disk, page = small_disk("300k"), 4096
    failures = {"blocks": [], "files": []}
    for n in range(30):
        for what in failures:
            shutil.rmtree(disk / "checkpoints", ignore_errors=True)
            save(disk, 1)
            fill(disk, n, page, what)
            try:
                save(disk, 2)
            except ValueError as error:
                failures[what].append(n)
                assert "step_00000002: the checkpoint could not be written" in str(error)
                assert "No space left" in str(error) and "Free space, lower checkpoint.keep" in str(error)
                assert not list(disk.glob("checkpoints/step*.partial"))
            for filler in disk.glob("filler*"):
                filler.unlink()
            found = find_step(disk)
            assert found == 2 or n in failures[what], (what, n)
            save(disk, 3)
            assert find_step(disk) == 3 and names(disk)[-1] == "step_00000003"
    # 5 pieces of 3 files, the state, the manifest and the pointer; a folder, 5 files and the pointer.
    assert failures["blocks"] == list(range(18)) and failures["files"] == list(range(7)), failures


def fill(disk: Path, left: int, page: int, what: str) -> None:
    if what == "blocks":
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left * page))
    for i in range(os.statvfs(disk).f_ffree - left if what == "files" else 0):
        (disk / f"filler{i}").touch()


def test_training_may_change_everything_while_its_copy_is_written(tmp_path, monkeypatch):
    write = pieces._write_hashed
    monkeypatch.setattr(pieces, "_write_hashed", lambda *args: (time.sleep(0.02), write(*args))[1])
    state, values = TrainState(step=5, window=[1.0]), {name: torch.full((64, 64), 5.0) for name in FILES}
    files = {n: pieces.Tensors({"w": (64, 64)}, lambda v=v: iter([v])) for n, v in values.items()}
    saver = Saver(tmp_path, CheckpointConfig(keep=2))
    saver.prepare(files)
    saver.warming.join()
    assert (saver.staging.num, saver.staging.length) == (16, 4096), "five pieces of each file, and the state"
    saver.save(state, files)
    saver.copied()
    for value in values.values():
        value.fill_(6.0)
    state.step, state.window[0] = 6, 2.0
    assert saver.pending and saver.busy() and checkpoint.find(tmp_path) == (None, [])
    saver.save(state, files)  # never overlaps: the first is published before the second begins
    folder, _ = checkpoint.find(tmp_path)
    assert folder == checkpoint.folder_of(tmp_path, 5) and checkpoint.read_state(folder).window == [1.0]
    for name in FILES:
        with checkpoint.open_tensors(folder, name, {"w": (64, 64)}) as get:
            assert (get("w") == 5.0).all()
    while saver.busy():
        time.sleep(0.01)
    assert saver.pending and checkpoint.find(tmp_path)[0] == folder
    saver.settle()
    assert not saver.pending and checkpoint.find(tmp_path)[0] == checkpoint.folder_of(tmp_path, 6)
    saver.settle()


def test_without_memory_for_a_copy_it_says_so_once_and_training_waits(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pieces, "STAGING_SHARE", 0.0)
    saver = Saver(tmp_path, CheckpointConfig())
    for step in (1, 2):
        saver.save(TrainState(step=step, samples=4 * step), tensors(step))
        assert not saver.pending and find_step(tmp_path) == step
    assert saver.staging.num == pieces.STREAMING
    assert capfd.readouterr().err.count("too little free memory for a copy of the checkpoint") == 1


def test_at_no_moment_is_there_no_whole_checkpoint(tmp_path, monkeypatch):
    """Also where only one is kept: after every rename of a folder there is one."""
    small_pieces(monkeypatch.setattr)
    save(tmp_path, 1, keep=1)
    found, replace = [], Path.replace

    def looked(self, target):
        result = replace(self, target)
        found.append(find_step(tmp_path))
        return result

    monkeypatch.setattr(Path, "replace", looked)
    save(tmp_path, 2, keep=1)
    assert set(found) == {2}, found

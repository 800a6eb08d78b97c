"""What a user got wrong ends every rank within seconds, with one message that names file or key, and the remedy.

Ranks run without torchrun here, which would end what hangs: each has to end by itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from data import prepare
from data.shard_index import write_index
from runs import (
    HOME,
    TORCHRUN,
    Script,
    damage,
    empty_config,
    finish,
    newest,
    output,
    ranks,
    start,
    train,
    unavailable,
    words,
)
from training import checkpoint

SECONDS = 30


@pytest.fixture
def arguments(shards, tmp_path):
    """changes -> the command line of a tiny run in tmp_path / 'run'."""

    def build(**changes) -> list[str]:
        return [str(empty_config(tmp_path)), *words(changes.pop("data__shards", shards), tmp_path / "run", **changes)]

    return build


def refusal(scripts: list[Script], *parts: str) -> str:
    """The one message, which holds all these parts, of processes that all failed in time and without a traceback."""
    statuses, text = finish(scripts, SECONDS)
    assert statuses == [1] * len(scripts), (statuses, text)
    assert "Traceback" not in text, text
    messages = re.findall(r"^error: .*", text, re.MULTILINE)
    own = [message for message in messages if "lost contact with another rank" not in message]
    assert len(own) == 1, text
    assert all(part in own[0] for part in parts), own[0]
    return own[0]


def test_an_empty_data_set(arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    changes = {"data__shards": tmp_path / "empty"}
    refusal(ranks(tmp_path, 2, arguments(**changes)), "data.shards", str(tmp_path / "empty"), "python -m data.shards")
    (tmp_path / "empty/dataset.json").write_text(
        json.dumps({"format": 1, "image_size": [32, 32], "fields": [], "shards": []})
    )
    refusal([Script(tmp_path, "train_single.py", arguments(**changes))], "dataset.json", "python -m data.shards")


def test_a_folder_that_is_not_there(arguments, tmp_path, shards):
    changes = {"data__shards": tmp_path / "none"}
    refusal(ranks(tmp_path, 2, arguments(**changes)), "data.shards", f"{tmp_path / 'none'}: no such", "data.prepare")
    changes = {"data__val_shards": tmp_path / "none"}
    refusal([Script(tmp_path, "train_single.py", arguments(**changes))], "data.val_shards", "no such folder")


def test_a_folder_that_only_one_rank_lacks(arguments, tmp_path, shards):
    local = tmp_path / "local"
    shutil.copytree(shards, local)
    each = [arguments(data__shards=local), arguments(data__shards=tmp_path / "elsewhere")]
    refusal(ranks(tmp_path, 2, each), f"{tmp_path / 'elsewhere'}: no such folder")


def test_fewer_samples_than_a_batch(arguments, tmp_path):
    said = ("data.shards=", "48 samples, fewer than train.global_batch=50", "train.global_batch=48 or less")
    refusal(ranks(tmp_path, 2, arguments(train__global_batch=50)), *said)


def test_a_world_that_does_not_divide_the_batch(arguments, tmp_path):
    said = ("train.global_batch=3 does not divide by 2 ranks", "train.global_batch=4 or 1, 3 ranks")
    refusal(ranks(tmp_path, 2, arguments(train__global_batch=3)), *said)
    wrong = arguments(train__global_batch=3, train__accumulation=2)
    message = refusal([Script(tmp_path, "train_single.py", wrong)], "train.accumulation=2", "use train.global_batch=4")
    assert message.endswith("train.global_batch=4"), "no number of ranks would help"


def test_torchrun_itself_ends_at_once(arguments):
    process = start(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", "train_ddp.py", *arguments(train__global_batch=3)]
    )
    text = output(process, SECONDS)
    assert process.returncode != 0 and len(re.findall("^error: .*does not divide", text, re.MULTILINE)) == 1, text


def test_images_of_another_size(arguments, tmp_path):
    changes = {"model__image_size": [64, 64]}
    said = ("data.shards=", "images of 32x32, but model.image_size=64x64", "--size 64x64", "model.image_size=[32,32]")
    refusal(ranks(tmp_path, 2, arguments(**changes)), *said)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_is_damaged_on_one_rank(arguments, tmp_path, shards, workers):
    bad = damage(shards, tmp_path)
    each = [arguments(data__shards=folder, data__num_workers=workers) for folder in (shards, bad)]
    refusal(ranks(tmp_path, 2, each), str(bad / "000002.tar"), "sample '", "is damaged", "data.prepare")


def test_a_held_out_sample_that_is_damaged_on_one_rank(arguments, tmp_path, shards):
    """It is left out of the mean and named; no rank waits for another."""
    bad = damage(shards, tmp_path)
    settings = {"log__validate_every": 2, "log__num_validation": 48, "train__num_steps": 2}
    each = [arguments(data__val_shards=folder, **settings) for folder in (shards, bad)]
    statuses, text = finish(ranks(tmp_path, 2, each), SECONDS)
    assert statuses == [0, 0], text
    assert "without 8 broken samples, named in the ranks' logs" in text
    (log,) = (tmp_path / "run").glob("logs/*/rank_1.log")
    assert f"left out of the held-out samples: {bad / '000002.tar'}: sample '" in log.read_text()


def test_a_shard_that_is_cut_off_or_gone(arguments, tmp_path, shards):
    bad = tmp_path / "bad"
    shutil.copytree(shards, bad)
    os.truncate(bad / "000001.tar", 2048)
    refusal(ranks(tmp_path, 2, arguments(data__shards=bad)), f"data.shards: {bad / '000001.tar'}", "data.prepare")
    (bad / "000001.tar").unlink()
    single = [Script(tmp_path, "train_single.py", arguments(data__shards=bad))]
    refusal(single, f"data.shards: {bad / '000001.tar'}", "missing")


def test_a_run_folder_of_another_run_stays_as_it_is(arguments, tmp_path, shards):
    train(tmp_path, arguments(train__num_steps=2))
    saved = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.suffix in (".yaml", ".jsonl")}
    said = ("model.channels was [8, 16], now [8, 24]", "choose another run.dir")
    refusal(ranks(tmp_path, 2, arguments(model__channels=[8, 24])), str(tmp_path / "run"), *said)
    refusal([Script(tmp_path, "train_single.py", arguments(seed=1))], "seed was 0, now 1", "another run.dir")
    other = tmp_path / "other"
    assert prepare.main(["synthetic", "--num", "8", "--seed", "9", "--size", "32", "--out", str(other)]) == 0
    single = [Script(tmp_path, "train_single.py", arguments(data__shards=other))]
    refusal(single, f"data.shards={other}", "not the data", "another run.dir")
    assert all(path.read_bytes() == content for path, content in saved.items())
    assert checkpoint.find(tmp_path / "run") == (checkpoint.folder_of(tmp_path / "run", 2), [])
    # Without the config.yaml that tells, the checkpoint itself does.
    (tmp_path / "run/config.yaml").unlink()
    said = ("model.safetensors", "another architecture", "another run.dir")
    refusal([Script(tmp_path, "train_single.py", arguments(model__channels=[8, 24]))], *said)
    refusal(ranks(tmp_path, 2, arguments(seed=1)), "seed=1", "was trained with seed=0")


def test_no_checkpoint_is_whole(arguments, tmp_path):
    train(tmp_path, arguments(train__num_steps=2))
    (newest(tmp_path / "run") / "model.safetensors").unlink()
    said = ("no checkpoint is whole", "model.safetensors", f"remove {tmp_path / 'run' / 'checkpoints'}")
    refusal(ranks(tmp_path, 2, arguments(train__num_steps=3)), *said)


def test_a_run_folder_that_cannot_be_written(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    refusal(ranks(tmp_path, 2, arguments(run__dir=place)), f"run.dir={place}", "cannot be written", "another run.dir")


def test_precision_that_the_device_lacks(arguments, tmp_path):
    refusal(ranks(tmp_path, 2, arguments(engine__precision="fp16")), "engine.precision=fp16", "use bf16 or fp32")


def test_a_temporary_folder_whose_name_is_too_long_for_sockets(arguments, tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    process = start([sys.executable, "train_single.py", *arguments(data__num_workers=1)], TMPDIR=str(folder))
    text = output(process, SECONDS)
    (message,) = re.findall(r"^error: .*", text, re.MULTILINE)
    assert process.returncode == 1 and f"TMPDIR={folder}" in message and "data.num_workers=0" in message, text


def test_a_wrong_key(arguments, tmp_path):
    refusal(ranks(tmp_path, 2, [*arguments(), "optim.lrr=1"]), "unknown key 'optim.lrr'", "'optim.lr'")


def test_without_torchrun_train_ddp_says_how():
    done = subprocess.run(
        [sys.executable, "train_ddp.py", "configs/demo.yaml"], cwd=HOME, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: train_ddp.py is started by torchrun: torchrun --nproc_per_node=")


@pytest.mark.parametrize("filled_by", ["checkpoint", "log"])
def test_a_full_disk_in_training(arguments, tmp_path, filled_by):
    """A disk on which the first checkpoints fit; what fills it is one more of them, or the log between them."""
    disk = tmp_path / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.name == "nt" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        unavailable("a small disk needs root and mount")
    try:
        every = 2 if filled_by == "checkpoint" else 100
        settings = {"checkpoint__every": every, "train__num_steps": 50, "checkpoint__keep": 50}
        settings |= {"checkpoint__asynchronous": False}  # else the log may be the first to find the disk full
        train(tmp_path, arguments(**settings | {"train__num_steps": 2}))
        free = shutil.disk_usage(disk).free
        room = free // 2 if filled_by == "checkpoint" else 4096
        (disk / "filler").write_bytes(bytes(free - room))
        said = "checkpoint could not be written" if filled_by == "checkpoint" else "the disk is full"
        refusal(ranks(tmp_path, 2, arguments(**settings)), str(disk), said, "ree space")
        folder, rejected = checkpoint.find(disk)
        assert rejected == [] and folder.name == (disk / "checkpoints/latest").read_text().strip()
        (disk / "filler").unlink()
        step = checkpoint.read_state(folder).step
        text = train(tmp_path, arguments(**settings | {"train__num_steps": step + 2}))
        assert f"continuing at step {step} " in text
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_folder_in_use(arguments, tmp_path):
    """The second is told who holds it; a kill of the first frees it at once."""
    first = Script(tmp_path, "train_single.py", arguments(train__num_steps=10_000))
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "run/stats.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    held_by = f"pid {first.process.pid}"
    refusal([Script(tmp_path, "train_single.py", arguments(train__num_steps=10_000))], "run.dir=", held_by, "another")
    first.kill()
    first.process.join()
    train(tmp_path, arguments(train__num_steps=1))


def test_unpaired_samples_are_not_trained_on(arguments, tmp_path, shards):
    unpaired = tmp_path / "unpaired"
    shutil.copytree(shards, unpaired)
    write_index(unpaired, paired=False)
    script = Script(tmp_path, "train_single.py", arguments(data__shards=unpaired))
    refusal([script], f"data.shards={unpaired}", "--pairing paired")

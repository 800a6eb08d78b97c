"""Broken samples in a real run: spares take their places on any number of ranks, and a list holds just them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data.dataset import ShardedDataset
from data.schema import JOINTS, Sample
from data.shards import write_shards
from runs import finish, losses, ranks, train, words


def write_set(folder: Path, num: int, samples_per_shard: int) -> ShardedDataset:
    """Small pictures of noise: JPEGs whose damage a checksum sees."""
    rng = np.random.default_rng(0)
    pose = np.zeros((len(JOINTS), 3), np.float32)
    images = rng.integers(0, 256, (7, 3, 16, 16, 3), dtype=np.uint8)
    write_shards((Sample(f"{i:05d}", *images[i % 7], pose, pose) for i in range(num)), folder,
                 samples_per_shard=samples_per_shard)  # fmt: skip
    return ShardedDataset(folder)


def damage(dataset: ShardedDataset, ids: list[int]) -> list[str]:
    """Flips a bit of one member of each; their keys."""
    keys = [dataset.key(i) for i in ids]
    for n, i in enumerate(ids):
        name, place = dataset.place(i)
        with (Path(dataset.folder) / name).open("r+b") as file:
            file.seek(place.start + place.members[n % 3][0] + 30)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 4]))
    return keys


def listed(run: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (run / "quarantine.jsonl").read_text().splitlines()]


SMALL = {"model__image_size": [16, 16]}


@pytest.mark.parametrize("num", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_hundredth_of_the_samples_is_broken(num, tmp_path):
    """An epoch on one rank and on two: both finish, list exactly the broken ones, and have the same curve."""
    folder = tmp_path / "set"
    ids = np.random.default_rng(1).choice(num, num // 100, replace=False)
    broken = damage(write_set(folder, num, num // 10), sorted(ids.tolist()))
    settings = SMALL | {"train__global_batch": num // 20, "data__num_workers": 1, "optim__warmup_steps": 100}
    train(tmp_path / "one", words(folder, tmp_path / "one", **settings))
    statuses, text = finish(ranks(tmp_path, 2, words(folder, tmp_path / "two", **settings)), 200)
    assert statuses == [0, 0], text
    for run in ("one", "two"):
        assert sorted(listed(tmp_path / run)) == broken
        log = (tmp_path / run / "training.log").read_text()
        assert log.count("a spare takes its place") == num // 100 and f"sample {broken[0]!r}" in log
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5)


def test_too_many_end_the_run_with_a_list(tmp_path):
    """On both ranks, with the same message, and the same command ends in the same way at once."""
    broken = damage(write_set(tmp_path / "set", 200, 50), list(range(0, 200, 40)))
    arguments = words(tmp_path / "set", tmp_path / "run", **SMALL, train__num_steps=50, checkpoint__every=1)
    statuses, text = finish(ranks(tmp_path, 2, arguments))
    assert statuses == [1, 1] and "Traceback" not in text
    assert "3 broken samples among the first" in text and "data.max_bad=0.01 allows" in text
    assert "python -m data.verify" in text and len(listed(tmp_path / "run")) == 3
    assert set(listed(tmp_path / "run")) < set(broken)
    train(tmp_path, [*arguments, "data.max_bad=0.05"])
    assert sorted(listed(tmp_path / "run")) == broken, "each once, over both starts"


def test_a_set_that_is_broken_throughout_ends_soon(tmp_path):
    """It does not take a hundredth of millions of samples to see that nothing can be read."""
    dataset = write_set(tmp_path / "set", 600, 600)
    damage(dataset, list(range(0, 600, 2)))
    arguments = words(tmp_path / "set", tmp_path / "run", **SMALL, data__max_bad=0.2, train__num_steps=500)
    statuses, text = finish(ranks(tmp_path, 1, arguments, "train_single.py"))
    assert statuses == [1] and re.search(r"5\d broken samples among the first \d+, of 600", text), text


def test_a_list_that_a_kill_cut_off(tmp_path):
    broken = damage(write_set(tmp_path / "set", 200, 50), [3])
    run = tmp_path / "run"
    arguments = words(tmp_path / "set", run, **SMALL, train__num_steps=50)
    run.mkdir()
    (run / "quarantine.jsonl").write_text('{"key": "000')
    train(tmp_path, arguments)
    assert listed(run) == broken

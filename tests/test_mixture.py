"""Several data sets by weight: each in its own epochs, deterministically, and samples of another size resized."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import ShardedDataset
from data.framing import fit
from data.mixture import DataConfig, open_training, shuffled
from data.order import MixedOrder, quotas
from data.schema import JOINTS, Sample
from data.shards import write_shards


@pytest.fixture
def places(tmp_path, random_sample) -> tuple[str, str]:
    for name, num in (("a", 30), ("b", 7)):
        write_shards((random_sample(f"{name}{i}", i) for i in range(num)), tmp_path / name, samples_per_shard=4)
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_ids_run_on(places):
    mixture = open_training(DataConfig(shards=places), None)
    assert [mixture.read(i).key for i in range(37)] == [f"a{i}" for i in range(30)] + [f"b{i}" for i in range(7)]


def test_without_weights_every_sample_comes_equally_often(places):
    config = DataConfig(shards=places)
    order = shuffled(open_training(config, None), config, seed=5)
    for epoch in range(3):
        assert sorted(order.sample_id(37 * epoch + i) for i in range(37)) == list(range(37))


def test_weights_are_shares_and_each_set_has_epochs_of_its_own(places):
    config = DataConfig(shards=places, weights=(3, 1))
    order = shuffled(open_training(config, None), config, seed=5)
    ids = [order.sample_id(p) for p in range(3000)]
    for start in range(0, 3000, 1000):
        assert sum(i < 30 for i in ids[start : start + 1000]) == 750
    for first, num in ((0, 30), (30, 7)):
        own = [i - first for i in ids if first <= i < first + num]
        for epoch in range(len(own) // num):
            assert sorted(own[epoch * num : (epoch + 1) * num]) == list(range(num))
    assert 20 < sum(a < 30 <= b for a, b in pairwise(ids[:1000])) < 250, "they take turns at random"
    jumps = np.random.default_rng(0).permutation(3000)
    again = MixedOrder(*order.arguments)
    assert [again.sample_id(int(p)) for p in jumps] == [ids[p] for p in jumps]
    other = shuffled(open_training(config, None), config, seed=6)
    assert sum(other.sample_id(p) == ids[p] for p in range(1000)) < 200


def test_sets_of_equal_size_have_orders_of_their_own():
    order = MixedOrder([[50], [50]], [1, 1], seed=0)
    ids = [order.sample_id(p) for p in range(100)]
    a, b = [i for i in ids if i < 50], [i - 50 for i in ids if i >= 50]
    assert sum(x == y for x, y in zip(a, b, strict=False)) < 10


def test_what_is_read_ahead_is_what_is_read(places):
    config = DataConfig(shards=places, weights=(3, 1), shuffle_block=2)
    mixture = open_training(config, None)
    order = shuffled(mixture, config, seed=5)
    ends = np.cumsum([size for part in mixture.parts for size in part.shard_sizes])
    for position in range(0, 4000, 1000):
        upcoming = set(order.upcoming(position))
        for p in range(position, position + 2):
            assert int(np.searchsorted(ends, order.sample_id(p), side="right")) in upcoming or p > position


@pytest.mark.parametrize(
    ("weights", "expected"), [((1, 1, 1), [334, 333, 333]), ((0, 2), [0, 1000]), ((1e-9, 1), [0, 1000])]
)
def test_quotas(weights, expected):
    assert quotas(list(weights), 1000) == expected
    assert Counter(MixedOrder([[3]] * len(weights), list(weights), 0)._cycle(7)[0].tolist()) == Counter(
        {i: n for i, n in enumerate(expected) if n}
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shards": ()}, "data.shards: an empty list"),
        ({"weights": (1,)}, "data.weights=.*need as many weights"),
        ({"weights": (0, 0)}, "not all may be 0"),
        ({"shards": ("x", "x")}, "names a folder twice"),
        ({"shards": ("missing",)}, "data.shards: missing: no such folder"),
    ],
)
def test_what_does_not_fit(places, change, told):
    with pytest.raises(ValueError, match=told):
        open_training(DataConfig(**({"shards": places} | change)), None)


def test_resized_as_preparing_does(tmp_path, real_data):
    """Samples of 128 read at 64 are those that data.framing makes of them, poses included."""
    with Image.open(next((real_data / "cotton/image").glob("*.jpg"))) as image:
        person = np.asarray(image.resize((96, 128)))
    pose = np.float32(np.random.default_rng(0).random((len(JOINTS), 3)))
    pose[:, 2] = 1
    write_shards([Sample("x", person, person[::-1].copy(), person[:, ::-1].copy(), pose, pose)], tmp_path / "set")
    whole = ShardedDataset(tmp_path / "set").read(0)
    small = ShardedDataset(tmp_path / "set", size=(64, 48), resize="lanczos").read(0)
    assert np.array_equal(small.person, fit(whole.person, (64, 48)))
    assert np.allclose(small.person_pose, whole.person_pose, atol=1e-6)
    out = tuple(np.empty((64, 48, 3), np.uint8) for _ in range(3))
    assert np.array_equal(
        ShardedDataset(tmp_path / "set", size=(64, 48), resize="lanczos").read(0, out).garment, out[2]
    )
    square = ShardedDataset(tmp_path / "set", size=(64, 64), resize="lanczos").read(0)
    assert square.person.shape == (64, 64, 3) and np.array_equal(square.person, fit(whole.person, (64, 64)))
    assert np.allclose(square.person_pose[:, 0], 0.125 + 0.75 * whole.person_pose[:, 0], atol=1e-6)
    scaled = ShardedDataset(tmp_path / "set", size=(64, 48), resize="dct").read(0)
    difference = np.abs(scaled.person.astype(int) - small.person)
    assert 0 < difference.mean() < 3, "slightly other pixels"
    assert Path(ShardedDataset(tmp_path / "set").folder) == tmp_path / "set"

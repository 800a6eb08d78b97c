"""Every epoch shows every sample once, in an order that is arithmetic: no state, no replay."""

import copy

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import FixedOrder, ShuffledOrder

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**63 - 1)


def epoch_of(order: ShuffledOrder, epoch: int) -> list[int]:
    return [order.sample_id(epoch * len(order) + i) for i in range(len(order))]


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS, st.integers(1, 14), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(sizes, seed, block, epoch):
    order = ShuffledOrder(sizes, seed, block)
    assert len(order) == sum(sizes)
    assert sorted(epoch_of(order, epoch)) == list(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_random_access_equals_sequential(sizes, seed, block, random):
    order = ShuffledOrder(sizes, seed, block)
    sequence = [order.sample_id(position) for position in range(3 * len(order))]
    jumps = list(range(len(sequence)))
    random.shuffle(jumps)
    for other in (order, ShuffledOrder(sizes, seed, block), copy.copy(order)):  # copied as a worker's is: by its state
        assert [other.sample_id(position) for position in jumps] == [sequence[position] for position in jumps]


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS, st.integers(1, 5))
def test_shuffling_stays_within_a_block_of_shards(sizes, seed, block):
    """At every place of an epoch, at most `block` shards are begun and not finished."""
    order = ShuffledOrder(sizes, seed, block)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_of[epoch_of(order, 1)]
    places = [np.flatnonzero(shards == shard) for shard in range(len(sizes))]
    for i in range(len(order)):
        assert sum(place[0] <= i <= place[-1] for place in places) <= block


def test_epochs_and_seeds_differ():
    sizes = [7] * 12
    sequences = [epoch_of(ShuffledOrder(sizes, seed, 4), epoch) for seed in (0, 1) for epoch in (0, 1, 2, 10**9)]
    assert len({tuple(sequence) for sequence in sequences}) == 8
    for i, one in enumerate(sequences):
        for other in sequences[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 12  # 1 of 84 expected


def test_a_block_mixes_its_shards_and_shards_change_company():
    sizes, shard_of = [50] * 8, np.repeat(np.arange(8), 50)
    order = ShuffledOrder(sizes, seed=3, block=2)
    companies = set()
    for epoch in range(6):
        shards = shard_of[epoch_of(order, epoch)]
        for i in range(0, 400, 100):
            members, counts = np.unique(shards[i : i + 50], return_counts=True)
            assert len(members) == 2 and counts.min() > 10
            companies.add(tuple(members))
    assert len(companies) > 10  # of 28 pairs


def test_every_sample_comes_early_and_late_alike():
    order = ShuffledOrder([5, 1, 9, 3], seed=0, block=2)
    ranks = np.mean([np.argsort(epoch_of(order, epoch)) for epoch in range(300)], axis=0)
    assert np.abs(ranks - 8.5).max() < 4 * 5.2 / np.sqrt(300)


def test_a_far_position_costs_no_walk():
    order = ShuffledOrder([1000] * 5000, seed=0)
    positions = range(10**15, 10**15 + 40)
    assert len({order.sample_id(position) for position in positions}) == 40


def test_fixed_order():
    assert [FixedOrder(3).sample_id(position) for position in range(7)] == [0, 1, 2, 0, 1, 2, 0]

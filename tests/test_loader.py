"""The stream is one sequence, however many ranks, workers and micro-batches share it, and wherever it is resumed."""

import hashlib
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from data import sources
from data.augment import AugmentConfig
from data.dataset import ShardedDataset
from data.loader import Batch, Layout, Stream, batches, rank_positions
from data.order import FixedOrder, ShuffledOrder
from data.shard_index import place_of
from data.shards import write_shards
from model.diffusion import DiffusionConfig
from training.draws import TrainingDraws

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the cores of CI
GLOBAL_BATCH, NUM_STEPS = 48, 2
DRAWS = TrainingDraws(7, (16, 12), 2, DiffusionConfig())


@pytest.fixture
def folder(tmp_path, random_sample) -> Path:
    """23 samples in 5 shards: the stream of 96 samples crosses epochs within a batch."""
    write_shards((random_sample(f"sample-{i}", i) for i in range(23)), tmp_path / "set", samples_per_shard=5)
    return tmp_path / "set"


def open_stream(folder: Path, flip_prob: float = 0.5, seed: int = 7) -> Stream:
    dataset = ShardedDataset(folder)
    return Stream(
        dataset, ShuffledOrder(dataset.shard_sizes, seed, block=2), DRAWS, seed, AugmentConfig(flip_prob=flip_prob)
    )


def digests(batch: Batch) -> dict[int, str]:
    """position -> hash of everything that the batch holds of it."""
    tensors = [*batch[1:-1], *batch.draws]
    assert {len(tensor) for tensor in tensors} == {len(batch.position)}
    return {
        position: hashlib.sha256(b"".join(tensor[i].numpy().tobytes() for tensor in tensors)).hexdigest()
        for i, position in enumerate(batch.position.tolist())
    }


def whole_stream(stream: Stream, num_ranks: int, num_workers: int, accumulation: int, start: int = 0) -> dict[int, str]:
    """position -> hash over all ranks; every step of every rank together is checked to be [p, p + G)."""
    seen, steps = {}, [set() for _ in range(NUM_STEPS)]
    for rank in range(num_ranks):
        layout = Layout(GLOBAL_BATCH, rank, num_ranks, accumulation)
        plan = list(rank_positions(layout, start, NUM_STEPS))
        read = batches(stream, iter(plan), num_workers=num_workers, borrow=True)
        for i, batch in enumerate(read):
            assert batch.position.tolist() == plan[i]
            found = digests(batch)
            assert len(found) == layout.micro_batch and not found.keys() & seen.keys()
            seen |= found
            steps[i // accumulation] |= found.keys()
        assert i == len(plan) - 1
    firsts = range(start, start + NUM_STEPS * GLOBAL_BATCH, GLOBAL_BATCH)
    assert steps == [set(range(first, first + GLOBAL_BATCH)) for first in firsts]
    return seen


@pytest.mark.slow
def test_one_stream_for_any_ranks_workers_and_accumulation(folder):
    stream = open_stream(folder)
    reference = whole_stream(stream, 1, 0, 1)
    assert len(set(reference.values())) == NUM_STEPS * GLOBAL_BATCH
    for num_ranks in (1, 2, 3, 4, 8, 16):
        for num_workers in (0, 1, 2, 5):
            assert whole_stream(stream, num_ranks, num_workers, 1) == reference
    for num_ranks, num_workers, accumulation in ((1, 0, 3), (1, 3, 2), (2, 3, 4), (4, 1, 2)):
        assert whole_stream(stream, num_ranks, num_workers, accumulation) == reference


def test_batches_keep_their_values(folder):
    """Unless they are borrowed, the memory of a batch is its own."""
    stream, plan = open_stream(folder), [[i, i + 1] for i in range(0, 60, 2)]
    expected = {}
    for batch in batches(stream, iter(plan), num_workers=0, borrow=True):
        expected |= digests(batch)
    for num_workers in (0, 2):
        kept = list(batches(stream, iter(plan), num_workers=num_workers))
        assert {p: digest for batch in kept for p, digest in digests(batch).items()} == expected


def test_a_borrowed_batch_lives_until_the_next(folder):
    """Even when workers are far ahead of a slow consumer."""
    stream, plan = open_stream(folder), [[i, i + 1] for i in range(0, 80, 2)]
    expected = [digests(batch) for batch in batches(stream, iter(plan), num_workers=0)]
    for i, batch in enumerate(batches(stream, iter(plan), num_workers=3, prefetch=1, borrow=True)):
        time.sleep(0.01)
        assert digests(batch) == expected[i]


def test_changing_ranks_and_batch_within_an_epoch_loses_and_repeats_nothing(folder):
    """8 ranks, then 3, then 1 with another global batch: two epochs, every sample twice, whatever the moments."""
    stream, dice = open_stream(folder), random.Random(3)
    for _ in range(5):
        seen, start = [], 0
        for num_ranks, global_batch in ((8, 8), (3, 6), (1, 5)):
            steps = dice.randint(1, 2)
            for rank in range(num_ranks):
                layout = Layout(global_batch, rank, num_ranks)
                seen += [p for positions in rank_positions(layout, start, steps) for p in positions]
            start += steps * global_batch
        assert sorted(seen) == list(range(start))
        ids = [stream.order.sample_id(p) for p in sorted(seen) + list(range(start, 46))]
        assert sorted(ids) == sorted([*range(23)] * 2)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_stream_starts_anywhere(folder, num_workers):
    """Also at a position that the new global batch does not divide: the run went on with other ranks."""
    stream = open_stream(folder)
    reference = whole_stream(stream, 1, 0, 1)
    for start in (16, 19, 48) if num_workers == 0 else (19,):
        tail = whole_stream(stream, 2, num_workers, 1, start)
        shared = reference.keys() & tail.keys()
        assert len(shared) == 96 - start and all(tail[position] == reference[position] for position in shared)


def test_resuming_reads_nothing_but_its_own_samples(folder, monkeypatch):
    stream, read = open_stream(folder), []
    monkeypatch.setattr(
        ShardedDataset, "read", lambda self, i, out, real=ShardedDataset.read: read.append(i) or real(self, i, out)
    )
    start = 10**10 + 5
    next(batches(stream, rank_positions(Layout(8), start, 1), num_workers=0))
    assert read == [stream.order.sample_id(position) for position in range(start, start + 8)]


def test_torch_and_numpy_state_play_no_part(folder):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(
            [digests(b) for b in batches(open_stream(folder), rank_positions(Layout(8), 0, 2), num_workers=1)]
        )
    assert results[0] == results[1]


def test_workers_do_not_share_a_file_position(folder):
    """Files that the parent has opened already are read by all its forked workers at once."""
    dataset = ShardedDataset(folder)
    for i in range(len(dataset)):
        dataset.read(i)
    stream = Stream(dataset, FixedOrder(len(dataset)), DRAWS)
    positions = [list(range(first, first + 30)) for first in range(0, 900, 30)]
    assert len(list(batches(stream, iter(positions), num_workers=3))) == 30


def test_batch_is_what_it_says(folder):
    stream = open_stream(folder, 1.0)
    (batch,) = batches(stream, iter([[5, 9, 30]]), num_workers=0)
    assert batch.position.tolist() == [5, 9, 30] and batch.position.dtype == torch.int64
    for field in ("person", "clothing_agnostic", "garment"):
        image = getattr(batch, field)
        assert image.shape == (3, 3, 16, 12) and image.dtype == torch.uint8
        assert image.is_contiguous(memory_format=torch.channels_last), "in memory as it was decoded"
        assert np.array_equal(image[1].permute(1, 2, 0), getattr(stream.sample(9), field))
    assert batch.person_pose.shape == batch.garment_pose.shape == (3, 18, 3)
    assert np.array_equal(batch.garment_pose[2], stream.sample(30).garment_pose)
    assert batch.draws.t.tolist() == [float(DRAWS(position).t) for position in (5, 9, 30)]
    assert torch.equal(batch.draws.noise[2], torch.from_numpy(DRAWS(30).noise))


def break_sample(folder: Path, shard: str, row: int, field: int = 2) -> None:
    """Flips a bit of one member."""
    place = place_of(np.load(folder / f"{shard}.npy", allow_pickle=False)[row])
    path = folder / f"{shard}.tar"
    data = bytearray(path.read_bytes())
    data[place.start + place.members[field][0] + 40] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_spare_takes_the_place_of_a_broken_sample(folder, num_workers):
    """The batch keeps its size; every rank would take the same spare; other samples stay as they were."""
    whole = open_stream(folder)
    plan = [list(range(first, first + 4)) for first in range(0, 48, 4)]
    before = {p: d for batch in batches(whole, iter(plan), num_workers=0) for p, d in digests(batch).items()}
    break_sample(folder, "000001", 2)
    bad_places = [p for p in range(48) if whole.order.sample_id(p) == 7]
    runs = []
    for ranks in (1, 2):
        told, seen = [], {}
        for rank in range(ranks):
            share = iter(plan[rank::ranks])
            for batch in batches(open_stream(folder), share, num_workers=num_workers, on_replaced=told.extend):
                assert len(batch.position) == 4
                seen |= digests(batch)
        assert [bad.position for bad in sorted(told, key=lambda bad: bad.position)] == bad_places
        assert {(bad.key, bad.shard) for bad in told} == {("sample-7", str(folder / "000001.tar"))}
        assert all("garment is damaged" in bad.reason for bad in told)
        assert {p for p in seen if seen[p] != before[p]} == set(bad_places)
        runs.append(seen)
    assert runs[0] == runs[1]


def test_when_all_are_broken_the_stream_ends(folder):
    dataset = ShardedDataset(folder)
    for shard in dataset.shards:
        for row in range(shard.samples):
            break_sample(folder, Path(shard.name).stem, row, 0)
    with pytest.raises(ValueError, match=r"person is damaged.*100 others in a row: run python -m data.verify"):
        next(batches(open_stream(folder), iter([[0, 1]]), num_workers=0))


def test_a_disk_that_fails_is_no_broken_sample(folder, monkeypatch):
    """A shard that vanishes under a running job ends the stream with its name; nothing is put in its place."""
    monkeypatch.setattr(sources, "WAITS_S", (0.01, 0.02, 0.04))
    stream, told = open_stream(folder), []
    (folder / "000001.tar").unlink()
    plan = [[p] for p in range(23)]
    with pytest.raises(ValueError) as caught:
        list(batches(stream, iter(plan), num_workers=0, on_replaced=told.extend))
    assert str(caught.value).startswith(f"{folder / '000001.tar'}: cannot be read (") and not told


def test_a_sample_is_augmented_anew_in_every_epoch(folder):
    stream, seen = open_stream(folder), defaultdict(set)
    for position in range(6 * 23):
        sample_id = stream.order.sample_id(position)
        plain = np.array_equal(stream.sample(position).person, stream.dataset.read(sample_id).person)
        seen[sample_id].add(plain)
    assert sum(len(each) == 2 for each in seen.values()) > 15, "of 23, mirrored in some epochs and not in others"


def test_ranks_with_accumulation_share_out_every_position_once():
    for num_ranks, num_micro_batches in ((2, 3), (3, 2), (4, 4)):
        layouts = [Layout(48, rank, num_ranks, num_micro_batches) for rank in range(num_ranks)]
        seen = [p for layout in layouts for positions in rank_positions(layout, 7, 2) for p in positions]
        assert sorted(seen) == list(range(7, 7 + 2 * 48)), (num_ranks, num_micro_batches)


def test_a_spare_does_not_depend_on_what_else_its_batch_holds(folder):
    break_sample(folder, "000001", 2)
    break_sample(folder, "000003", 1)
    stream, seen = open_stream(folder), []
    for size in (1, 23, 46):
        batches_of = [list(range(first, first + size)) for first in range(0, 46, size)]
        seen.append(
            {p: d for batch in batches(stream, iter(batches_of), num_workers=0) for p, d in digests(batch).items()}
        )
    assert seen[0] == seen[1] == seen[2]

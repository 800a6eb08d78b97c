"""The stream is one sequence, however many ranks, workers and micro-batches share it, and wherever it is resumed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import augment, mirror, mirror_pose
from data.dataset import ShardedDataset
from data.loader import Batch, Layout, Stream, batches, rank_positions
from data.order import FixedOrder, ShuffledOrder
from data.schema import JOINTS
from data.shards import write_shards
from model.diffusion import DiffusionConfig
from training.draws import TrainingDraws

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the cores of CI
GLOBAL_BATCH, NUM_STEPS = 16, 4
DRAWS = TrainingDraws(7, (16, 12), 2, DiffusionConfig())


@pytest.fixture
def folder(tmp_path, random_sample) -> Path:
    """23 samples in 5 shards: the stream of 64 samples crosses epochs within a batch."""
    write_shards((random_sample(f"sample-{i}", i) for i in range(23)), tmp_path / "set", samples_per_shard=5)
    return tmp_path / "set"


def open_stream(folder: Path, flip_prob: float = 0.5, seed: int = 7) -> Stream:
    dataset = ShardedDataset(folder)
    return Stream(dataset, ShuffledOrder(dataset.shard_sizes, seed, block=2), DRAWS, seed, flip_prob)


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
        read = list(batches(stream, iter(plan), num_workers=num_workers))
        assert [batch.position.tolist() for batch in read] == plan
        for i, batch in enumerate(read):
            found = digests(batch)
            assert len(found) == layout.micro_batch and not found.keys() & seen.keys()
            seen |= found
            steps[i // accumulation] |= found.keys()
    firsts = range(start, start + NUM_STEPS * GLOBAL_BATCH, GLOBAL_BATCH)
    assert steps == [set(range(first, first + GLOBAL_BATCH)) for first in firsts]
    return seen


def test_one_stream_for_any_ranks_workers_and_accumulation(folder):
    stream = open_stream(folder)
    reference = whole_stream(stream, 1, 0, 1)
    assert len(set(reference.values())) == NUM_STEPS * GLOBAL_BATCH
    for num_ranks in (1, 2, 4, 8, 16):
        for accumulation in (1, 2):
            if GLOBAL_BATCH % (num_ranks * accumulation) == 0:
                assert whole_stream(stream, num_ranks, 0, accumulation) == reference
    for num_ranks, num_workers, accumulation in ((1, 1, 1), (1, 3, 2), (2, 3, 1), (4, 1, 2)):
        assert whole_stream(stream, num_ranks, num_workers, accumulation) == reference


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_stream_starts_anywhere(folder, num_workers):
    """Also at a position that the new global batch does not divide: the run went on with other ranks."""
    stream = open_stream(folder)
    reference = whole_stream(stream, 1, 0, 1)
    for start in (16, 19, 48) if num_workers == 0 else (19,):
        tail = whole_stream(stream, 2, num_workers, 1, start)
        shared = reference.keys() & tail.keys()
        assert len(shared) == 64 - start and all(tail[position] == reference[position] for position in shared)


def test_resuming_reads_nothing_but_its_own_samples(folder, monkeypatch):
    stream, read = open_stream(folder), []
    monkeypatch.setattr(
        ShardedDataset, "read", lambda self, i, real=ShardedDataset.read: read.append(i) or real(self, i)
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


def test_flips_are_keyed_to_the_position(folder):
    plain, flipping = open_stream(folder, 0.0), open_stream(folder, 0.5)
    flipped = []
    for position in range(200):
        base, seen = plain.sample(position), flipping.sample(position)
        flipped.append(not np.array_equal(seen.person, base.person))
        for got, expected in zip(seen[1:], (mirror(base) if flipped[-1] else base)[1:], strict=True):
            assert np.array_equal(got, expected)
        again = augment(base, 7, position, 0.5)
        assert np.array_equal(again.person, seen.person)
    assert 70 < sum(flipped) < 130
    later = [not np.array_equal(flipping.sample(p).person, plain.sample(p).person) for p in range(23, 46)]
    assert later == flipped[23:46] != flipped[:23]
    other = open_stream(folder, 0.5)
    other.seed = 8
    assert [not np.array_equal(other.sample(p).person, plain.sample(p).person) for p in range(200)] != flipped
    always = open_stream(folder, 1.0)
    assert all(not np.array_equal(always.sample(p).person, plain.sample(p).person) for p in range(23))


def test_poses_follow_their_images(random_sample):
    """A mark painted on a visible joint is found under the mirrored joint's name; sides change, absence stays."""
    sample = random_sample("x", 3)
    mirrored = mirror(sample)
    for image, pose, image2, pose2 in (
        (sample.person, sample.person_pose, mirrored.person, mirrored.person_pose),
        (sample.garment, sample.garment_pose, mirrored.garment, mirrored.garment_pose),
    ):
        for i, name in enumerate(JOINTS):
            side, _, joint = name.partition("_")
            other = {"left": f"right_{joint}", "right": f"left_{joint}"}.get(side, name)
            x, y, visible = pose2[JOINTS.index(other)]
            assert visible == pose[i, 2]
            if not visible:
                assert x == y == 0
                continue
            assert x == pytest.approx(1 - pose[i, 0]) and y == pose[i, 1]
            row, column, column2 = (min(int(u * n), n - 1) for u, n in ((y, 16), (pose[i, 0], 12), (x, 12)))
            assert np.array_equal(image2[row, column2], image[row, column])
    assert np.array_equal(mirrored.clothing_agnostic, sample.clothing_agnostic[:, ::-1])
    assert np.allclose(mirror_pose(mirror_pose(sample.person_pose)), sample.person_pose, atol=1e-6)


def test_batch_is_what_it_says(folder):
    stream = open_stream(folder, 1.0)
    (batch,) = batches(stream, iter([[5, 9, 30]]), num_workers=0)
    assert batch.position.tolist() == [5, 9, 30] and batch.position.dtype == torch.int64
    for field in ("person", "clothing_agnostic", "garment"):
        image = getattr(batch, field)
        assert image.shape == (3, 3, 16, 12) and image.dtype == torch.uint8 and image.is_contiguous()
        assert np.array_equal(image[1].permute(1, 2, 0), getattr(stream.sample(9), field))
    assert batch.person_pose.shape == batch.garment_pose.shape == (3, 18, 3)
    assert np.array_equal(batch.garment_pose[2], stream.sample(30).garment_pose)
    assert batch.draws.t.tolist() == [float(DRAWS(position).t) for position in (5, 9, 30)]
    assert torch.equal(batch.draws.noise[2], torch.from_numpy(DRAWS(30).noise))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_sample_is_one_value_error(folder, num_workers):
    dataset = ShardedDataset(folder)
    row = np.load(folder / "000001.npy", allow_pickle=False)[2]
    path = folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[int(row["offset"][2]) + 40] ^= 1
    path.write_bytes(data)
    stream, delivered = Stream(dataset, FixedOrder(len(dataset)), DRAWS), 0
    with pytest.raises(ValueError) as caught:
        for _ in batches(stream, iter([[0, 1], [2, 3], [6, 7], [8, 9]]), num_workers=num_workers):
            delivered += 1
    message = str(caught.value)
    assert delivered == 2
    assert message.startswith(f"{path}: sample 'sample-7': garment is damaged") and "\n" not in message
    assert caught.value.__cause__ is None

"""Streams of plain webdataset: every sample of an epoch comes, on any ranks and workers, without a promise of order."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data.augment import NO_AUGMENTATION
from data.loader import Layout, rank_positions
from data.pipes import PipedStream, Pipes, piped_batches
from data.shards import write_shards
from model.diffusion import DiffusionConfig
from runs import train, words
from training.draws import TrainingDraws

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
DRAWS = TrainingDraws(7, (16, 12), 2, DiffusionConfig())


@pytest.fixture
def folder(tmp_path, random_sample) -> Path:
    write_shards((random_sample(f"sample-{i}", i) for i in range(24)), tmp_path / "set", samples_per_shard=4)
    return tmp_path / "set"


def read(pipes: Pipes, num_ranks: int, num_workers: int, num_steps: int, start: int = 0) -> tuple[list, list]:
    """(position, checksum of its person) of every sample over all ranks, and what was broken."""
    seen, broken = [], []
    for rank in range(num_ranks):
        plan = partial(rank_positions, Layout(12, rank, num_ranks), start, num_steps)
        stream = PipedStream(pipes, plan, DRAWS, 7, NO_AUGMENTATION, start, rank, num_ranks)
        for batch in piped_batches(stream, num_workers=num_workers, prefetch=2, on_replaced=broken.extend):
            assert np.array_equal(batch.draws.t, [DRAWS(p).t for p in batch.position.tolist()])
            seen += zip(batch.position.tolist(), batch.person.sum((1, 2, 3)).tolist(), strict=True)
    return seen, broken


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 0), (1, 2), (2, 1), (3, 2)])
def test_every_sample_of_an_epoch_comes(folder, random_sample, num_ranks, num_workers):
    pipes = Pipes((f"pipe:cat {folder}/{{000000..000005}}.tar",), (16, 12))
    seen, broken = read(pipes, num_ranks, num_workers, 2)
    assert sorted(position for position, _ in seen) == list(range(24)) and not broken
    assert len(Counter(total for _, total in seen)) == 24


def test_broken_samples_and_streams(folder):
    """A stream that ends within a sample, a command that fails: what can be read is, and the rest is told."""
    tar = folder / "000002.tar"
    data = bytearray(tar.read_bytes())
    data[512:530] = bytes(18)
    tar.write_bytes(data)
    pipes = Pipes((f"pipe:cat {folder}/{{000000..000003}}.tar", "pipe:exit 3"), (16, 12))
    seen, broken = read(pipes, 1, 1, 3)
    assert len(seen) == 36 and {bad.key for bad in broken} == {"sample-8", "(the rest of it)"}
    assert {bad.shard for bad in broken} == {f"pipe:cat {tar}", "pipe:exit 3"}
    with pytest.raises(ValueError, match=r"gave no sample .*person cannot be decoded .16x12 pixels, not 32x32"):
        read(Pipes((f"pipe:cat {tar}",), (32, 32)), 1, 1, 1)
    with pytest.raises(ValueError, match=r"the streams gave no sample .*exit 3.*; run the command by itself"):
        read(Pipes(("pipe:exit 3",), (16, 12)), 1, 1, 1)


def test_a_run_on_a_pipe_says_that_it_is_inexact(shards, tmp_path):
    place = f"pipe:cat {shards}/{{000000..000002}}.tar"
    changes = {"train__num_steps": 4, "checkpoint__every": 2, "log__eval_every": 2}
    text = train(tmp_path, words(place, tmp_path / "run", **changes))
    assert "their order depends on ranks, workers and restarts" in text
    assert "warning: log.eval_every: a pipe has no pairs to come back to" in text
    text = train(tmp_path, words(place, tmp_path / "run", train__num_steps=8, data__num_workers=1))
    assert "continuing at step 4" in text and "finished: 8 steps" in text

"""Crops depend on (seed, position) alone: any ranks, workers and restarts train on the same ones."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from data.augment import AugmentConfig
from data.crops import crop
from data.dataset import ShardedDataset
from data.loader import Layout, Stream, batches, rank_positions
from data.order import ShuffledOrder
from data.pipes import PipedStream, Pipes, piped_batches
from data.shard_index import write_index
from model.diffusion import DiffusionConfig, lowres_of, to_unit_range
from model.efficient_unet import EfficientUNetConfig
from model.sampler import SamplerConfig
from runs import deviation, empty_config, finish, losses, ranks, train, words
from tars import members_of, refusal, rewrite
from training.batch import clean_conditions
from training.config import load_config
from training.draws import TrainingDraws
from training.held_out import preview, validation_loss
from training.start import check_run

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
MODEL = EfficientUNetConfig(image_size=(32, 32), channels=(8, 16), num_blocks=(1, 1), emb_dim=16)
DRAWS = TrainingDraws(7, (16, 8), 1, DiffusionConfig())


def open_stream(folder, augment: AugmentConfig) -> Stream:
    dataset = ShardedDataset(folder, num_images=1)
    return Stream(dataset, ShuffledOrder(dataset.shard_sizes, 7, block=2), DRAWS, 7, augment, (16, 8))


def persons(stream: Stream, num_ranks: int = 1, num_workers: int = 0) -> dict[int, np.ndarray]:
    """position -> person (3, H, W) of two steps of 24."""
    seen = {}
    for rank in range(num_ranks):
        plan = rank_positions(Layout(24, rank, num_ranks), 0, 2)
        for batch in batches(stream, plan, num_workers=num_workers):
            seen |= zip(batch.position.tolist(), batch.person.numpy(), strict=True)
    return seen


def test_every_place_is_as_likely(random_sample):
    sample = random_sample("a")
    corner = [np.argwhere((sample.person == crop(sample, 3, i, (15, 10)).person[0, 0]).all(2))[0] for i in range(600)]
    places, counts = np.unique(corner, axis=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in (0, 1) for x in (0, 1, 2)] and counts.min() > 70


def test_a_crop_is_drawn_from_seed_and_position(random_sample):
    sample = random_sample("a")
    one, again, other, seeded = (crop(sample, *key, (4, 4)).person for key in ((3, 5), (3, 5), (3, 6), (4, 5)))
    assert (one == again).all() and (one != other).any() and (one != seeded).any()
    assert crop(sample, 3, 5, None) is sample
    assert (crop(sample, 3, 5, (16, 12)).person == sample.person).all()


def test_any_ranks_and_workers_train_on_the_same_crops(shards):
    stream = open_stream(shards, AugmentConfig())
    alone = persons(stream)
    for layout in ((2, 0), (1, 2)):
        again = persons(stream, *layout)
        assert alone.keys() == again.keys() and all((alone[p] == again[p]).all() for p in alone)
    for position, person in alone.items():
        whole = stream.dataset.read(stream.order.sample_id(position))
        assert (crop(whole, 7, position, (16, 8)).person == person.transpose(1, 2, 0)).all()


def test_crops_are_mirrored_and_coloured(shards):
    plain, mirrored = (persons(open_stream(shards, AugmentConfig(flip_prob=prob))) for prob in (0, 1))
    assert all((mirrored[p] == plain[p][:, :, ::-1]).all() for p in plain)
    colored = persons(open_stream(shards, AugmentConfig(color={"prob": 1})))
    assert sum((colored[p] != plain[p]).any() for p in plain) == len(plain)


def test_only_the_person_is_decoded(shard):
    """The garment is no picture here, though its checksum is right."""
    rewrite(shard, [(n, b"no picture" if n == "b.garment.jpg" else d) for n, d in members_of(shard)])
    write_index(shard.parent)
    assert "garment cannot be decoded" in refusal(ShardedDataset(shard.parent).read, 1)
    sample = ShardedDataset(shard.parent, num_images=1).read(1)
    assert sample.person.shape == (16, 12, 3) and sample.garment.shape == sample.clothing_agnostic.shape == (0, 0, 3)


def test_a_pipe_is_cropped_too(shards):
    plan = partial(rank_positions, Layout(4), 0, 1)
    pipes = Pipes((f"pipe:cat {shards}/{{000000..000002}}.tar",), (32, 32), 1)
    stream = PipedStream(pipes, plan, DRAWS, 7, AugmentConfig(flip_prob=0.5), 0, 0, 1, (16, 8))
    (batch,) = piped_batches(stream, num_workers=0, prefetch=2, on_replaced=lambda replaced: None)
    assert batch.person.shape == (4, 3, 16, 8) and batch.garment.shape == (4, 3, 0, 0)


def test_the_input_is_the_downsampled_crop(shards):
    batch = next(batches(open_stream(shards, AugmentConfig()), iter([[0, 1]]), num_workers=0))
    x0 = to_unit_range(batch.person)
    cond = clean_conditions(batch, x0, MODEL)
    assert torch.equal(cond.lowres, lowres_of(x0, 4)) and cond.garment is None
    blocks = x0.unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1))
    small = cond.lowres.unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1))
    assert (small - blocks).abs().mean() < 0.1 and (cond.lowres - x0).abs().max() > 0.1


def test_held_out_loss_and_preview_are_of_crops_that_stay(shards):
    net, dataset = MODEL.build(), ShardedDataset(shards, num_images=1)
    shapes = []
    net.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape[1:])))
    values = [validation_loss(net, MODEL, dataset, DRAWS, 6, 4, torch.device("cpu"), even) for even in (False, True)]
    assert values[0] == values[1] and values[0][1] == 0 and set(shapes) == {(3, 16, 8)}
    sampler = SamplerConfig(method="ddim", num_steps=1, guidance_scale=1)
    samples, results = preview(
        net, dataset, 3, size=(16, 8), seed=7, model=MODEL, diffusion=DRAWS.config, sampler=sampler,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert [result.shape for result in results] == [(16, 8, 3)] * 3
    for i, sample in enumerate(samples):
        assert (sample.person == crop(dataset.read(i), 7, i, (16, 8)).person).all()


def test_two_ranks_draw_the_same_curve(shards, tmp_path):
    """Crops, augmentation and held-out loss included."""
    told = {
        "model.network": "efficient_unet", "model.image_size": [32, 32], "model.channels": [8, 16],
        "model.num_blocks": [1, 1], "model.emb_dim": 16, "sampler.guidance_scale": 1.0, "data.crop_size": [16, 16],
        "data.augment.flip_prob": 0.5, "data.val_shards": str(shards), "train.num_steps": 8, "log.validate_every": 8,
        "diffusion.prediction": "v",
    }  # fmt: skip
    one, two = (
        [word for word in words(shards, tmp_path / name) if not word.startswith("model.")] for name in ("one", "two")
    )
    last = [str(empty_config(tmp_path)), *(f"{key}={value}" for key, value in told.items())]
    train(tmp_path, one + last)
    statuses, said = finish(ranks(tmp_path, 2, two + last))
    assert statuses == [0, 0], said
    assert deviation(losses(tmp_path / "one"), losses(tmp_path / "two")) < 1e-5
    logs = [(tmp_path / name / "training.log").read_text() for name in ("one", "two")]
    held_out = [re.search(r"step 8: validation loss [0-9.]+", log).group() for log in logs]
    assert held_out[0] == held_out[1]
    with pytest.raises(ValueError, match=r"another kind \(data\.crop_size was \[16, 16\], now \[8, 8\]\)"):
        check_run(tmp_path / "one", load_config([*last, *one, "data.crop_size=[8, 8]"]))

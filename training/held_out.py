"""Looking at a model on held-out samples: the loss on fixed noise, and sampled try-on images.

Every rank takes every num_ranks-th sample and calls only its own network, so that uneven shares hang nobody; where
ranks share the weights, `even` gives those without a sample a blank one, for all must call as often.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from data.crops import crop
from data.dataset import EMPTY, BadSample, ShardedDataset
from data.loader import collate
from data.schema import IMAGES, JOINTS, POSES, Sample
from model.conditions import Conditions
from model.diffusion import MSE, DiffusionConfig, Net, diffusion_loss, to_uint8, to_unit_range
from model.losses import Objective
from model.network import NetworkConfig
from model.sampler import SamplerConfig, sample
from training.batch import clean_conditions, to_device
from training.distributed import all_gather, all_reduce_sum, get_rank, num_ranks
from training.draws import SamplingNoise, TrainingDraws


@torch.no_grad()
def validation_loss(
    net: Net, model: NetworkConfig, dataset: ShardedDataset, draws: TrainingDraws, num: int, batch_size: int,
    device: torch.device, even: bool = False, objective: Objective = MSE,
) -> tuple[float, int]:  # fmt: skip
    """The mean loss of the first `num` held-out samples, whose crops, noise, t and drops never change; and how many of
    them are broken and left out."""
    num = min(num, len(dataset))
    total = torch.zeros(2, device=device)
    chunks = _chunks(range(get_rank(), num, num_ranks()), batch_size)
    if even:
        chunks += [[]] * (len(_chunks(range(0, num, num_ranks()), batch_size)) - len(chunks))
    for positions in chunks:
        positions, samples = _whole(_reader(dataset, draws.seed, draws.image_size), positions)
        counted = len(samples)
        if not samples:
            if not even:
                continue
            positions, samples = [0], [_blank(draws.image_size, dataset.num_images)]
        batch = to_device(collate(positions, samples, [draws(i) for i in positions]), device)
        x0 = to_unit_range(batch.person)
        cond = clean_conditions(batch, x0, model)
        loss = diffusion_loss(net, x0, cond, batch.draws, draws.config, objective)[:counted]
        total += torch.stack([loss.sum(), torch.tensor(float(len(loss)), device=device)])
    loss_sum, count = all_reduce_sum(total).tolist()
    return loss_sum / count if count else math.nan, num - int(count)


def try_on(
    net: Net, samples: list[Sample], positions: list[int], *, model: NetworkConfig, diffusion: DiffusionConfig,
    sampler: SamplerConfig, seed: int, device: torch.device,
) -> list[np.ndarray]:  # fmt: skip
    """A sampled image (H, W, 3) uint8 for each sample; sample i is drawn from the stream (seed, positions[i])."""
    cond = conditions_of(samples, positions, model, device)
    noise = SamplingNoise(seed, positions, samples[0].person.shape[:2], device)
    images = to_uint8(sample(net, cond, noise, diffusion, sampler))
    return list(images.permute(0, 2, 3, 1).cpu().numpy())


def conditions_of(
    samples: list[Sample], positions: list[int], model: NetworkConfig, device: torch.device
) -> Conditions:
    """The conditions of samples that are only sampled, without noise augmentation; lowres is of the person."""
    batch = to_device(collate(positions, samples, [_Nothing()] * len(samples)), device)
    return clean_conditions(batch, to_unit_range(batch.person), model)


def preview(
    net: Net, dataset: ShardedDataset, num: int, *, size: tuple[int, int], seed: int, even: bool = False, **how
) -> tuple[list[Sample], list[np.ndarray]]:
    """`num` samples of a set, cropped to this (height, width), and a sampled image of each, on every rank."""
    mine = own_preview(net, dataset, range(num), size=size, seed=seed, even=even, **how)
    whole = {i: pair for share in all_gather(mine) for i, pair in share.items()}
    return [whole[i][0] for i in sorted(whole)], [whole[i][1] for i in sorted(whole)]


def own_preview(
    net: Net, dataset: ShardedDataset, numbers: range, *, size: tuple[int, int], seed: int, even: bool = False, **how
) -> dict[int, tuple[Sample, np.ndarray]]:
    """This rank's share of a preview, by number."""
    if even:
        net = partial(net)  # forward passes alone: shared weights are gathered in those, not in remember()
    mine = [i for i in numbers[get_rank() :: num_ranks()] if i < len(dataset)]
    mine, samples = _whole(_reader(dataset, seed, size), mine)
    results = try_on(net, samples, mine, seed=seed, **how) if mine else []
    if even and not mine:
        try_on(net, [_blank(size, dataset.num_images)], [0], seed=seed, **how)
    return dict(zip(mine, zip(samples, results, strict=True), strict=True))


def _reader(dataset: ShardedDataset, seed: int, size: tuple[int, int]) -> Callable[[int], Sample]:
    """A held-out sample, or its crop of this (height, width), the same one each time."""
    return lambda i: crop(dataset.read(i), seed, i, size)


def _blank(size: tuple[int, int], num_images: int) -> Sample:
    images = [np.zeros((*size, 3), np.uint8)] * num_images + [EMPTY] * (len(IMAGES) - num_images)
    return Sample("", *images, *[np.zeros((len(JOINTS), 3), np.float32)] * len(POSES))


class _Nothing(tuple):
    """The draws of a batch that is only sampled."""

    __slots__ = ()


def _chunks(positions: range, size: int) -> list[list[int]]:
    return [list(positions[i : i + size]) for i in range(0, len(positions), size)]


def _whole(read: Callable[[int], Sample], ids: Iterable[int]) -> tuple[list[int], list[Sample]]:
    """Those of the held-out samples that can be read; a broken one is left out and named."""
    samples = {}
    for i in ids:
        try:
            samples[i] = read(i)
        except BadSample as error:
            print(f"left out of the held-out samples: {error}", flush=True)
    return list(samples), list(samples.values())

"""What a trained network answers: its loss at each noise level, and what becomes of it under other conditions.

B batch, N samples, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.agnostic import drawn_region
from data.loader import Batch
from model.conditions import Conditions
from model.diffusion import Draws, Net, Schedule, diffusion_loss, q_sample, target_of, to_uint8, x0_of
from model.losses import Objective
from training.diagnosis.subject import Subject
from training.meter import T_BINS

LOG_SNRS = (0.0, -2.0, -4.0)  # noise levels at which more and more of the image must come from the conditions
SHOWN = -2.0  # of them, in the picture


@dataclass(frozen=True)
class Losses:
    """Mean losses of the same samples with the same noise, without LPIPS; by_t: of T_BINS equal intervals of t."""

    num: int
    mean: float
    by_t: list[float | None]


@dataclass(frozen=True)
class Change:
    """What becomes of the predicted x0, in [-1, 1], when a condition is replaced: the mean absolute change."""

    condition: str  # 'garment swapped', 'person pose gone', ...
    inside: float  # the region that the network draws
    outside: float
    ratio: float  # of inside to outside


@torch.no_grad()
def losses(subject: Subject, net: Net | None, batches: Iterable[Batch], device: torch.device) -> Losses:
    """net: None: of an answer that is the best multiple of zt for each sample, which needs no conditions."""
    objective, config = Objective(subject.config.loss), subject.config.diffusion
    ts, values = [], []
    for batch in batches:
        x0, cond, batch = subject.inputs(batch, device)
        answer = _multiple_of_zt(subject, x0, batch.draws) if net is None else net
        values.append(diffusion_loss(answer, x0, cond, batch.draws, config, objective).cpu())
        ts.append(batch.draws.t.cpu())
    t, loss = torch.cat(ts), torch.cat(values).double()
    bins = (t * T_BINS).long().clamp(max=T_BINS - 1)
    by_t = [float(loss[bins == i].mean()) if (bins == i).any() else None for i in range(T_BINS)]
    return Losses(len(loss), float(loss.mean()), by_t)


def _multiple_of_zt(subject: Subject, x0: Tensor, draws: Draws) -> Net:
    config = subject.config.diffusion
    target = target_of(config.prediction, x0, draws.t, draws.noise, Schedule(config.log_snr_shift))

    def answer(zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        share = (zt * target).sum((1, 2, 3), keepdim=True) / zt.square().sum((1, 2, 3), keepdim=True)
        return share * zt

    return answer


@torch.no_grad()
def sensitivity(subject: Subject, net: Net, batch: Batch, device: torch.device) -> tuple[list[Change], float]:
    """How the predicted x0 changes with each condition; and how much the truths of a swap differ in the region drawn,
    which is what a swap of all conditions would ideally change there."""
    x0, cond, batch = subject.inputs(batch, device)
    region = _region(x0, cond)
    totals: dict[str, list[tuple[float, float]]] = {}
    for log_snr in LOG_SNRS:
        own = predicted(subject, net, x0, cond, batch, log_snr)
        for name, other in replaced(cond).items():
            change = (predicted(subject, net, x0, other, batch, log_snr) - own).abs()
            totals.setdefault(name, []).append((_mean_in(change, region), _mean_in(change, ~region)))
    changes = []
    for name, each in totals.items():
        inside, outside = (float(np.mean(part)) for part in zip(*each, strict=True))
        changes.append(Change(name, inside, outside, inside / max(outside, 1e-9)))
    return changes, _mean_in((x0 - x0.roll(1, 0)).abs(), region)


def replaced(cond: Conditions) -> dict[str, Conditions]:
    """The conditions with one of them exchanged between samples, or taken away.  The garment comes with its pose."""

    def swapped(*fields: str) -> Conditions:
        return cond._replace(**{field: getattr(cond, field).roll(1, 0) for field in fields})

    def gone(*fields: str) -> Conditions:
        return cond._replace(**{field: torch.zeros_like(getattr(cond, field)) for field in fields})

    others = {}
    if cond.garment is not None:
        dropped = torch.zeros_like(cond.noise_aug_level[:, 0])
        others |= {
            "garment swapped": swapped("garment", "garment_pose"),
            "garment gone": gone("garment", "garment_pose")._replace(keep=dropped),
            "person pose swapped": swapped("person_pose"),
            "person pose gone": gone("person_pose"),
            "clothing-agnostic image swapped": swapped("clothing_agnostic"),
            "clothing-agnostic image gone": gone("clothing_agnostic"),
            "everything gone": cond.null(),
        }
    if cond.lowres is not None:
        others |= {"low resolution swapped": swapped("lowres"), "low resolution gone": gone("lowres")}
    return others


def predicted(subject: Subject, net: Net, x0: Tensor, cond: Conditions, batch: Batch, log_snr: float) -> Tensor:
    """The predicted x0 (B, 3, H, W), cut to [-1, 1], at this noise level, with the noise of the batch."""
    config = subject.config.diffusion
    schedule = Schedule(config.log_snr_shift)
    t = schedule.t_of(torch.full((len(x0),), log_snr, device=x0.device))
    zt = q_sample(x0, t, batch.draws.noise, schedule)
    return x0_of(config.prediction, net(zt, t, cond).float(), zt, t, schedule).clamp(-1, 1)


def _region(x0: Tensor, cond: Conditions) -> Tensor:
    """(B, H, W) bool: what the network draws; of a network without try-on, everything."""
    if cond.clothing_agnostic is None:
        return torch.ones_like(x0[:, 0], dtype=torch.bool)
    person, agnostic = (to_uint8(x).permute(0, 2, 3, 1).cpu().numpy() for x in (x0, cond.clothing_agnostic))
    return torch.from_numpy(drawn_region(person, agnostic)).to(x0.device)


def _mean_in(change: Tensor, region: Tensor) -> float:
    """The mean of (B, 3, H, W) over the pixels of (B, H, W); 0 where there are none."""
    each = change.mean(1)[region]
    return float(each.mean()) if len(each) else 0.0

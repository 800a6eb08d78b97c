"""From a loader's batch to what the diffusion loss and the sampler take."""

import torch
from torch import Tensor

from data.loader import Batch
from model.conditions import Conditions
from model.diffusion import lowres_of, to_unit_range


def to_device(batch: Batch, device: torch.device) -> Batch:
    draws = type(batch.draws)(*(value.to(device, non_blocking=True) for value in batch.draws))
    moved = (value.to(device, non_blocking=True) for value in batch[:-1])
    return Batch(*moved, draws)


def clean_conditions(batch: Batch, x0: Tensor, lowres: bool) -> Conditions:
    """The conditions of a batch without noise augmentation; lowres is the truth as the previous stage would give it."""
    return Conditions(
        clothing_agnostic=to_unit_range(batch.clothing_agnostic),
        garment=to_unit_range(batch.garment),
        person_pose=batch.person_pose,
        garment_pose=batch.garment_pose,
        noise_aug_level=torch.zeros(len(x0), 3 if lowres else 2, device=x0.device),
        lowres=lowres_of(x0) if lowres else None,
    )

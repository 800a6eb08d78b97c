"""From a loader's batch to what the diffusion loss and the sampler take."""

import torch
from torch import Tensor

from data.loader import Batch
from model.conditions import Conditions
from model.diffusion import lowres_of, to_unit_range
from model.network import NetworkConfig


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on this device, a copy in any case: the loader uses its memory again.

    On a GPU images stay channels_last, as they were decoded; a CPU is faster, and safer, with contiguous ones.
    """

    def moved(value: Tensor) -> Tensor:
        if device.type == "cuda":
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device, copy=True, memory_format=torch.contiguous_format)

    return Batch(*map(moved, batch[:-1]), type(batch.draws)(*map(moved, batch.draws)))


def clean_conditions(batch: Batch, x0: Tensor, model: NetworkConfig) -> Conditions:
    """The conditions of a batch without noise augmentation; lowres is the truth as the previous stage would give it."""
    level = torch.zeros(len(x0), model.num_aug_levels, device=x0.device)
    lowres = lowres_of(x0, model.lowres_factor) if model.lowres else None
    if not model.tries_on:
        return Conditions(None, None, None, None, level, lowres)
    return Conditions(
        clothing_agnostic=to_unit_range(batch.clothing_agnostic),
        garment=to_unit_range(batch.garment),
        person_pose=batch.person_pose,
        garment_pose=batch.garment_pose,
        noise_aug_level=level,
        lowres=lowres,
    )

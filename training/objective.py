"""The loss of a config, with the weights that it needs."""

import torch

from model.losses import LossConfig, Objective
from training.lpips_weights import load_lpips


def make_objective(config: LossConfig, device: torch.device) -> Objective:
    """Every rank calls.  Raises ValueError on all of them when LPIPS's weights cannot be had."""
    return Objective(config, load_lpips(config.lpips_net, device) if config.lpips_weight else None)

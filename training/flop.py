"""The work of a network, counted on the meta device: floating-point operations, a multiply-add as two.

What is computed again by activation checkpointing, the optimizer, and losses beside the network's are not counted.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.config import Config
from training.fit import blank_inputs


def forward_flop(config: Config) -> int:
    """FLOP of a forward pass of one image."""
    return _flop(config.model_copy(update={"data": config.data.model_copy(update={"crop_size": None})}), backward=False)


def training_flop(config: Config) -> int:
    """FLOP of training a sample: forward and backward pass, of a crop where the run trains on those."""
    return _flop(config, backward=True)


def num_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.model.build().parameters())


def _flop(config: Config, backward: bool) -> int:
    with torch.device("meta"), torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        x0, cond, draws = blank_inputs(config, 1)
        predicted = config.model.build()(x0, draws.t, cond)
        if backward:
            predicted.sum().backward()
    return counter.get_total_flops()

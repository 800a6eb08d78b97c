"""What a wrong answer costs: how errors count, and how different the implied image looks.

B batch, C channels, H W pixels.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from model.lpips import SMALLEST, LpipsNet

Distance = Callable[[Tensor, Tensor], Tensor]  # (B, 3, H, W) twice in [-1, 1] -> (B,), differentiable


class LossConfig(BaseModel, extra="forbid", frozen=True):
    kind: Literal["mse", "l1", "huber"] = Field("mse", description="how errors count; the paper squares them")
    huber_delta: float = Field(
        0.1, gt=0, description="errors count squared up to here, linearly beyond; of huber alone"
    )
    lpips_weight: float = Field(
        0.0, ge=0, description="of the LPIPS between the predicted x0 and the truth, added to the loss; 0: none"
    )
    lpips_net: LpipsNet = Field("vgg", description="LPIPS's network; alex is smaller and coarser")
    lpips_max_t: float = Field(
        0.5, gt=0, le=1, description="LPIPS counts up to this t alone: at more noise a predicted x0 is rightly blurred"
    )

    def wrong_size(self, size: tuple[int, int]) -> str | None:
        """Why LPIPS takes no images of this (height, width), with the remedy; None: it does, or is off."""
        smallest = SMALLEST[self.lpips_net]
        if self.lpips_weight and min(size) < smallest:
            return (
                f"loss.lpips_weight={self.lpips_weight}: LPIPS-{self.lpips_net} needs {smallest} pixels a side, and "
                f"training sees {size[0]}x{size[1]}; use loss.lpips_weight=0, or larger images"
            )
        return None


class Objective(NamedTuple):
    """A loss with the trained network that it needs."""

    config: LossConfig = LossConfig()
    distance: Distance | None = None  # LPIPS, if config.lpips_weight is not 0


def error_of(output: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """The mean error of each sample, (B,): squared, absolute, or Huber's (Huber 1964).

    Huber's is doubled, so that it equals the squared error wherever that is below huber_delta^2.
    """
    if config.kind == "mse":
        each = (output - target).square()
    elif config.kind == "l1":
        each = (output - target).abs()
    else:
        each = 2 * F.huber_loss(output, target, reduction="none", delta=config.huber_delta)
    return each.flatten(1).mean(1)


def perceptual(objective: Objective, t: Tensor, truth: Tensor, x0_of: Callable[[Tensor], Tensor]) -> Tensor:
    """lpips_weight times the distance of the predicted x0 from the truth, (B,); 0 where t > lpips_max_t.

    x0_of(rows): the predicted x0 of these samples; those with too much noise are never computed.
    """
    config = objective.config
    rows = (t <= config.lpips_max_t).nonzero().flatten()
    costs = torch.zeros_like(t)
    if not len(rows):
        return costs
    return costs.index_add(0, rows, config.lpips_weight * objective.distance(x0_of(rows), truth[rows]).to(costs.dtype))

"""Adam: which one, its learning rate, and its moments in and out as fp32."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


class OptimConfig(BaseModel, extra="forbid", frozen=True):
    name: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit: moments of 8 bits, a quarter of the memory; needs pip install bitsandbytes"
    )
    lr: float = Field(1e-4, gt=0, description="learning rate after warmup (Zhu et al. 2023, Sec. 4)")
    warmup_steps: int = Field(10_000, ge=0, description="steps of the linear rise from 0 to lr")
    decay_after: int | None = Field(
        None, ge=1, description="steps after which lr falls with the square root of the step; null: never"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates; the paper does not state them")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    clip_grad_norm: float = Field(1.0, gt=0, description="largest norm of the whole gradient")

    @model_validator(mode="after")
    def _consistent(self) -> "OptimConfig":
        if self.decay_after is not None and self.decay_after < self.warmup_steps:
            raise ValueError(
                f"decay_after={self.decay_after}: lr would fall before it has risen, in {self.warmup_steps} steps "
                "(warmup_steps); use as many or more, or null"
            )
        return self


def lr_at(step: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0: linear warmup, then constant (Zhu et al. 2023).

    With decay_after it falls as 1 / sqrt(step) from there on (Karras et al. 2024, EDM2, Eq. 67): no last step is known.
    """
    lr = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
    return lr if config.decay_after is None else lr / math.sqrt(max(1.0, (step + 1) / config.decay_after))


def make_optimizer(parameters: list[Tensor], config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over these parameters.  Raises ValueError when its package is not there."""
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "adamw8bit":
        from training.adam8bit import AdamW8bit  # seconds, and a package that few need

        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, **options, fused=device.type == "cuda")


def moment_of(optimizer: torch.optim.Optimizer, parameter: Tensor, slot: str) -> Tensor:
    """'exp_avg' or 'exp_avg_sq' of a parameter that has taken a step, fp32, shaped like it."""
    if isinstance(optimizer, torch.optim.AdamW):
        return optimizer.state[parameter][slot]
    return optimizer.moment(parameter, slot)


@torch.no_grad()
def load_moments(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, Tensor]], get: Callable[[str], Tensor], steps: int
) -> None:
    """The state after so many steps; get('exp_avg.NAME'): that moment, whole, fp32.

    Moments are laid out like their parameters: fused Adam refuses a channels_last weight with a contiguous moment.
    """
    for name, p in named:
        if isinstance(optimizer, torch.optim.AdamW):
            moments = {slot: torch.empty_like(p).copy_(get(f"{slot}.{name}")) for slot in MOMENTS}
            device = p.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[p] = {"step": torch.tensor(float(steps), device=device)} | moments
        else:
            optimizer.begin(p)["step"] = steps
            for slot in MOMENTS:
                optimizer.set_moment(p, slot, get(f"{slot}.{name}"))


def reserved_moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors that take the memory of the moments which Adam has not made yet; no tensors once it has."""
    waiting = [p for group in optimizer.param_groups for p in group["params"] if not optimizer.state.get(p)]
    if isinstance(optimizer, torch.optim.AdamW):
        return [torch.empty_like(p) for p in waiting for _ in MOMENTS]
    return [value for p in waiting for value in optimizer.blank(p).values() if isinstance(value, Tensor)]

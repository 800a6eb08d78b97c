"""Adam and its learning rate."""

from pydantic import BaseModel, Field


class OptimConfig(BaseModel, extra="forbid", frozen=True):
    lr: float = Field(1e-4, gt=0, description="learning rate after warmup (Zhu et al. 2023, Sec. 4)")
    warmup_steps: int = Field(10_000, ge=0, description="steps of the linear rise from 0 to lr")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates; the paper does not state them")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    clip_grad_norm: float = Field(1.0, gt=0, description="largest norm of the whole gradient")


def lr_at(step: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0: linear warmup, then constant."""
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))

"""Exponential moving average of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from training.checkpoint import Tensors
from training.engine import SingleDevice


class EMAConfig(BaseModel, extra="forbid", frozen=True):
    decay: float = Field(
        0.9999, ge=0, lt=1, description="per optimizer step; reached slowly: (1 + n) / (10 + n) at first"
    )


class EMA:
    """ema <- decay ema + (1 - decay) weights, after every optimizer step, in fp32 on the weights' device."""

    def __init__(self, engine: SingleDevice, config: EMAConfig):
        self.engine, self.decay = engine, config.decay
        self.num_updates = 0
        self.shadow = {name: stored.clone() for name, stored in engine.weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.engine.weights().values()), 1 - decay)
        self.num_updates += 1

    def files(self) -> dict[str, Tensors]:
        """The averages as files of a checkpoint, by name."""
        whole = self.engine.whole
        return {"ema": Tensors(self.engine.shapes, lambda: (whole(name, s) for name, s in self.shadow.items()))}

    @torch.no_grad()
    def load(self, file: str, get: Callable[[str], Tensor]) -> None:
        """get(name): the whole average of that parameter."""
        for name, shadow in self.shadow.items():
            shadow.copy_(self.engine.part(name, get(name)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averaged weights inside this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, stored in self.engine.weights().items():
            average = self.shadow[name].clone()
            self.shadow[name].copy_(stored)
            stored.copy_(average)

"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn


class EMAConfig(BaseModel, extra="forbid", frozen=True):
    decay: float = Field(
        0.9999, ge=0, lt=1, description="per optimizer step; reached slowly: (1 + n) / (10 + n) at first"
    )


class EMA:
    """ema <- decay ema + (1 - decay) weights, after every optimizer step, in fp32 on the weights' device."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.parameters = dict(model.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.parameters.values()), 1 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], num_updates: int) -> None:
        for name, tensor in self.shadow.items():
            tensor.copy_(tensors[name])
        self.num_updates = num_updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averaged weights inside this block; storage is swapped, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.shadow[name] = self.shadow[name], parameter.data

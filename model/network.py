"""What training and sampling know of a stage's network, whichever it is.

B batch, C channels, H W pixels, A conditioning images, D width of the conditioning.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Annotated

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.conditions import Conditions
from model.layers import GroupNorm

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=4)]


class NetworkConfig(BaseModel, ABC, extra="forbid", frozen=True):
    """The keys of every network."""

    image_size: tuple[Count, Count] | None = Field(
        (128, 128), description="(height, width) in pixels; null: that of the training shards"
    )
    lowres: bool = Field(False, description="a low-resolution image is concatenated to zt (super-resolution stages)")
    lowres_factor: int = Field(2, ge=2, description="how many times smaller the previous stage's image is")
    channels: tuple[Width, ...] = Field((128, 256, 512, 1024), min_length=1, description="features, finest level first")
    num_blocks: tuple[Count, ...] = Field((3, 4, 6, 7), description="residual blocks a level, on the way down and up")

    @property
    @abstractmethod
    def tries_on(self) -> bool:
        """Whether the network is told of person and garment; if not, of a low-resolution image alone."""

    @property
    def num_aug_levels(self) -> int:
        """A: noise augmentation levels of agnostic, garment and lowres, as many as there are."""
        return 2 * self.tries_on + self.lowres

    @property
    @abstractmethod
    def stride(self) -> int:
        """Image sides are multiples of it."""

    @abstractmethod
    def build(self) -> "Network":
        """A network of this config, its weights drawn from torch's generator."""

    def wrong_size(self, size: tuple[int, int]) -> str | None:
        """Why the network takes no images of this (height, width), with the remedy; None: it does."""
        if any(side % self.stride for side in size):
            halved = self.stride.bit_length() - 1
            return f"{size} is halved {halved} times; use multiples of {self.stride}, or fewer levels"
        if self.lowres and any(side % self.lowres_factor for side in size):
            return f"{size} does not divide by lowres_factor={self.lowres_factor}; use multiples of it"
        return None

    @model_validator(mode="after")
    def _fits_together(self) -> "NetworkConfig":
        if len(self.num_blocks) != len(self.channels):
            raise ValueError(
                f"num_blocks: {self.num_blocks} has {len(self.num_blocks)} entries, channels has {len(self.channels)}; "
                "give one a level"
            )
        if self.image_size and (wrong := self.wrong_size(self.image_size)):
            raise ValueError(f"image_size: {wrong}")
        return self


class Network(nn.Module, ABC):
    """Predicts noise, v or x0 of zt.  Its last convolution starts at 0: the first prediction is 0."""

    config: NetworkConfig

    @abstractmethod
    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """The prediction, (B, 3, H, W), or (B, 2, 3, H, W) with cond.with_null.  zt (B, 3, H, W); t (B,) in [0, 1]."""

    def remember(self, cond: Conditions) -> Conditions:
        """The conditions with what does not change from step to step computed once."""
        return cond

    def set_tile_rows(self, rows: int | None) -> None:
        """How many rows of a feature map sampling computes at a time; None: all.

        Raises ValueError where the network cannot be cut.
        """
        if rows is not None:
            raise ValueError(
                f"sampler.tile_rows={rows}: attention sees the whole image, only a network without it is computed in "
                "strips; use sampler.tile_rows=null"
            )

    def set_activation_checkpointing(self, levels: bool | Collection[int]) -> None:
        """Keeps only the inputs of these levels' blocks for the backward pass and computes the rest again.

        0 is the finest level; true: all of them.
        """
        there = range(len(self.config.channels))
        levels = (there if levels else ()) if isinstance(levels, bool) else levels
        assert set(levels) <= set(there), levels
        for part in self.modules():
            if isinstance(part, Levels):
                part.checkpointed = levels

    def set_lean_norms(self, lean: bool) -> None:
        """Whether group norms read and write the precision of computation instead of fp32 (see GroupNorm)."""
        for module in self.modules():
            if isinstance(module, GroupNorm):
                module.lean = lean


class Block(nn.Module):
    """What a network repeats: ZeRO stage 3 shares it out once it is drawn."""


class Levels(nn.Module):
    """Blocks in levels, 0 the finest, some of which are recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpointed: Collection[int] = ()

    def run(self, block: nn.Module, x: Tensor, context: object, level: int) -> Tensor:
        """block(x, context), recomputed in the backward pass if its level is (Chen et al. 2016)."""
        if level in self.checkpointed and torch.is_grad_enabled():
            return checkpoint(block, x, context, use_reentrant=False, preserve_rng_state=False)
        return block(x, context)

"""The paper's first ablation: the garment is concatenated to zt, in place of a garment UNet and cross-attention.

Zhu et al. 2023, Sec. 4 ("Cross attention vs concatenation for implicit warping").
B batch, C channels, H W pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.conditions import Conditions
from model.parallel_unet import Decoder, Encoder, PoseBlock, TryOnUNet, TryOnUNetConfig


class ConcatUNetConfig(TryOnUNetConfig):
    """The defaults are the paper's 128 network without its garment UNet and its cross-attention."""

    network: Literal["concat_unet"] = Field("concat_unet", description="which network")

    def build(self) -> "ConcatUNet":
        return ConcatUNet(self)


class ConcatUNet(TryOnUNet):
    """Predicts noise, v or x0 of zt from the try-on conditions, with the garment among the input's channels.

    The poses are told as to the Parallel-UNet.  A garment pixel reaches its place on the person by convolutions and
    self-attention alone: what the Parallel-UNet gains by cross-attention is the difference between the two.
    The last convolution starts at 0: the first prediction is 0.
    """

    def __init__(self, config: ConcatUNetConfig):
        super().__init__(config)
        images = 4 if config.lowres else 3  # zt, clothing_agnostic, garment, lowres
        self.stem = nn.Conv2d(3 * images + 2 * config.num_pose_maps, config.channels[0], 3, padding=1)
        self.encoder = Encoder(PoseBlock, config.num_blocks, config)
        self.decoder = Decoder(PoseBlock, config.num_blocks, 0, config)
        self._end()

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """The prediction, (B, 3, H, W), or (B, 2, 3, H, W) with cond.with_null.  zt (B, 3, H, W); t (B,) in [0, 1].

        ValueError if cond has a lowres image and the config none, or the reverse.
        """
        self.check(cond)
        if cond.with_null:
            return torch.stack([self._predicted(zt, t, each) for each in (cond, cond.null())], 1)
        return self._predicted(zt, t, cond)

    def _predicted(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """(B, 3, H, W)"""
        context = self.embed(t, cond)
        images = [zt, cond.clothing_agnostic, cond.garment] + ([cond.lowres] if self.config.lowres else [])
        x = self.with_pose(self.with_pose(torch.cat(images, 1), cond.person_pose), cond.garment_pose)
        x = self.stem(x)  # (B, C0, H, W)
        features = self.encoder(x, context)  # [level][block]
        x = self.decoder(features, context)[0]  # (B, C0, H, W)
        return self.head(F.silu(self.norm(x))).to(zt.dtype)  # (B, 3, H, W)

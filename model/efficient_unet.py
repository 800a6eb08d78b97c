"""The Efficient-UNet: the last stage, 256 to 1024, without try-on conditions and without attention.

Saharia et al. 2022 (Imagen, arXiv 2205.11487), App. B.1 and F.1; Zhu et al. 2023, Sec. 3.1.
B batch, C channels, H W pixels, D width of the conditioning.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model import tiled
from model.conditions import Conditions
from model.layers import Downsample, LevelEmbedding, ResBlock, Upsample, group_norm
from model.network import Block, Count, Levels, Network, NetworkConfig, Width

SQRT_HALF = 2**-0.5  # keeps the variance of a sum of two


class EfficientUNetConfig(NetworkConfig):
    """The defaults are Imagen's network for 256 to 1024, its text and its attention left out."""

    network: Literal["efficient_unet"] = Field("efficient_unet", description="which network")
    image_size: tuple[Count, Count] | None = Field(
        (1024, 1024), description="(height, width) in pixels; null: that of the training shards"
    )
    lowres: Literal[True] = Field(True, description="a low-resolution image is all that this network is told")
    lowres_factor: int = Field(4, ge=2, description="how many times smaller the previous stage's image is")
    num_blocks: tuple[Count, ...] = Field((2, 4, 8, 8), description="residual blocks a level, on the way down and up")
    emb_dim: Width = Field(512, description="width of the embedding of t and of the noise augmentation level")

    @property
    def tries_on(self) -> bool:
        return False

    @property
    def stride(self) -> int:
        return 2 ** len(self.channels)

    def build(self) -> "EfficientUNet":
        return EfficientUNet(self)


EFFICIENT_UNET = EfficientUNetConfig()  # 1024x1024: 0.43 B parameters


class ConvBlock(Block):
    """A residual block; the first of a level begins with FiLM."""

    def __init__(self, channels: int, emb_dim: int | None):
        super().__init__()
        self.res = ResBlock(channels, channels, emb_dim)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return self.res(x, emb)


def levels_of(config: EfficientUNetConfig) -> nn.ModuleList:
    """The residual blocks of all DBlocks, or of all UBlocks, the finest level first."""
    return nn.ModuleList(
        nn.ModuleList(ConvBlock(channels, None if i else config.emb_dim) for i in range(num))
        for channels, num in zip(config.channels, config.num_blocks, strict=True)
    )


class Encoder(Levels):
    """DBlocks (Fig. A.28): a strided convolution, then residual blocks."""

    def __init__(self, config: EfficientUNetConfig):
        super().__init__()
        channels = config.channels
        self.down = nn.ModuleList(Downsample(c, c_next) for c, c_next in pairwise((channels[0], *channels)))
        self.levels = levels_of(config)

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """(B, C0, H, W) -> each level's output, [level]: (B, C, H / 2^(level + 1), W / 2^(level + 1))"""
        features = []
        for level, (down, blocks) in enumerate(zip(self.down, self.levels, strict=True)):
            x = down(x)
            for block in blocks:
                x = self.run(block, x, emb, level)
            features.append(x)
        return features


class Decoder(Levels):
    """UBlocks (Fig. A.29): the encoder's feature is added, residual blocks follow, then a convolution doubles the size.

    Modules are in the order of the encoder's, the finest level first.
    """

    def __init__(self, config: EfficientUNetConfig):
        super().__init__()
        channels = config.channels
        self.up = nn.ModuleList(Upsample(c, c_next) for c_next, c in pairwise((channels[0], *channels)))
        self.levels = levels_of(config)

    def forward(self, features: list[Tensor], emb: Tensor) -> Tensor:
        """The encoder's features -> (B, C0, H, W)"""
        *skips, x = features
        for level in reversed(range(len(self.levels))):
            x = (x + skips[level]) * SQRT_HALF if level < len(skips) else x
            for block in self.levels[level]:
                x = self.run(block, x, emb, level)
            x = self.up[level](x)
        return x


class EfficientUNet(Network):
    """Predicts noise, v or x0 of zt from the low-resolution image.

    The reading of Imagen's 256 to 1024 network (400 M parameters with its cross-attention to text): 128, 256, 512 and
    1024 channels with 2, 4, 8 and 8 residual blocks, down and up; every level halves before its blocks and doubles
    after them; one skip a level, added and scaled by 1 / sqrt(2); the embedding enters at the start of a level; a 1x1
    convolution on every residual block's skip path.  427 M without attention; docs/models.md has the other readings.
    Ours is one more skip, of the stem to the head: what an answer needs of every single pixel, as v and noise do, need
    not pass through half the pixels.
    """

    def __init__(self, config: EfficientUNetConfig):
        super().__init__()
        self.config = config
        self.tile_rows: int | None = None
        self.level_embedding = LevelEmbedding(1 + config.num_aug_levels, config.emb_dim)
        self.stem = nn.Conv2d(6, config.channels[0], 3, padding=1)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.norm = group_norm(config.channels[0])
        self.head = nn.Conv2d(config.channels[0], 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """The prediction, (B, 3, H, W).  zt (B, 3, H, W); t (B,) in [0, 1].

        H and W are multiples of config.stride, and need not be those of training.  ValueError without a lowres image,
        and for guidance, which has nothing to drop.
        """
        if cond.lowres is None:
            raise ValueError("Conditions.lowres is missing: give the previous stage's image")
        if cond.with_null:
            raise ValueError("sampler.guidance_scale: this network is told nothing that guidance could drop; use 1")
        assert cond.noise_aug_level.shape[1] == self.config.num_aug_levels, cond.noise_aug_level.shape
        levels = torch.cat([t[:, None].float(), cond.noise_aug_level.float()], 1)  # (B, 2)
        emb = F.silu(self.level_embedding(levels))  # (B, D)
        images = torch.cat([zt, cond.lowres], 1).to(self.stem.weight.dtype)  # (B, 6, H, W)
        if self.tile_rows and not torch.is_grad_enabled():
            return self._in_strips(images, emb, self.tile_rows).to(zt.dtype)
        stem = self.stem(images)  # (B, C0, H, W)
        features = self.encoder(stem, emb)  # [level]: (B, C, H / 2^(level + 1), W / 2^(level + 1))
        x = (self.decoder(features, emb) + stem) * SQRT_HALF  # (B, C0, H, W)
        return self.head(F.silu(self.norm(x))).to(zt.dtype)  # (B, 3, H, W)

    def set_tile_rows(self, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"sampler.tile_rows={rows}: use 1 or more, or null for the whole image at once")
        self.tile_rows = rows

    def _in_strips(self, images: Tensor, emb: Tensor, num: int) -> Tensor:
        """forward, `num` rows of a map at a time.  No map of the image's own size is ever whole."""
        rows = stem = tiled.convolved(self.stem, tiled.rows_of(images))
        skips = []
        for down, blocks in zip(self.encoder.down, self.encoder.levels, strict=True):
            x = tiled.whole(tiled.convolved(down, rows), num)
            for block in blocks:
                x = tiled.res_block(block.res, x, emb, num)
            rows = tiled.rows_of(x)
            skips.append(x)
        x = skips.pop()
        for level in reversed(range(len(self.decoder.levels))):
            if level < len(skips):
                x = x.add_(skips.pop()).mul_(SQRT_HALF)
            for block in self.decoder.levels[level]:
                x = tiled.res_block(block.res, x, emb, num)
            rows = tiled.convolved(self.decoder.up[level], tiled.doubled(tiled.rows_of(x)))
            x = tiled.whole(rows, num) if level else x
        rows = tiled.mixed(rows, stem, SQRT_HALF)
        return tiled.whole(tiled.convolved(self.head, tiled.activated(self.norm, rows, num)), num)

"""The Parallel-UNet: a garment UNet whose features a person UNet fetches by cross-attention.

Zhu et al. 2023 (arXiv 2306.08276), Sec. 3.2, Fig. 2 (128) and Fig. 8 (256).
B batch, C channels, H W pixels, L tokens, D width of the conditioning, K keypoints, A conditioning images.
"""

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from model.conditions import Conditions, GarmentFeatures
from model.layers import (
    POOL_HEADS,
    POSE_MAP_WIDTHS,
    AttentionPool,
    CrossAttention,
    Downsample,
    LevelEmbedding,
    PoseTokens,
    ResBlock,
    SelfAttention,
    Upsample,
    group_norm,
    pose_maps,
    to_tokens,
)
from model.network import Block, Count, Levels, Network, NetworkConfig

Level = Annotated[int, Field(ge=0)]


class TryOnUNetConfig(NetworkConfig):
    """The keys of a UNet that attends to the poses on its coarse levels."""

    attention_levels: tuple[Level, ...] = Field(
        (2, 3), min_length=1, description="levels with attention: indices into channels, a run that ends at the last"
    )
    head_dim: int = Field(64, ge=1, description="features of one attention head")
    emb_dim: int = Field(512, ge=POOL_HEADS, description="width of the pose tokens and of the FiLM embedding")
    num_keypoints: int = Field(18, ge=1, description="joints of a pose")
    pose_maps: bool = Field(
        False, description="the poses are drawn into the input, too; the paper's network is told them as numbers alone"
    )

    @property
    def tries_on(self) -> bool:
        return True

    @property
    def num_pose_maps(self) -> int:
        """Channels in which one pose is drawn."""
        return len(POSE_MAP_WIDTHS) * self.num_keypoints if self.pose_maps else 0

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _attends(self) -> "TryOnUNetConfig":
        depth = len(self.channels)
        run = tuple(range(depth - len(self.attention_levels), depth))
        if self.attention_levels != run:
            raise ValueError(
                f"attention_levels: {self.attention_levels} must count up without gaps to the last level, "
                f"{depth - 1}, because the garment decoder stops after the finest attended level; for example {run}"
            )
        for level in self.attention_levels:
            if self.channels[level] % self.head_dim:
                raise ValueError(
                    f"head_dim: {self.head_dim} does not divide the {self.channels[level]} channels of attended level "
                    f"{level}; use a divisor of every attended level's channels"
                )
        if self.emb_dim % POOL_HEADS:
            raise ValueError(f"emb_dim: {self.emb_dim} must be a multiple of {POOL_HEADS}, the heads of the pooling")
        return self


class ParallelUNetConfig(TryOnUNetConfig):
    """The defaults are the paper's 128 network; SR_UNET is its 256 network."""

    network: Literal["parallel_unet"] = Field(
        "parallel_unet",
        description="which network; efficient_unet makes 1024 of 256 without try-on conditions, concat_unet is the "
        "paper's ablation",
    )
    garment_num_blocks: tuple[Count, ...] | None = Field(
        None, description="blocks a level of the garment UNet, down and, where attended, up; null: as num_blocks"
    )
    garment_time: bool = Field(
        True, description="the garment UNet is told t; false: it ignores t, and sampling evaluates it once an image"
    )

    @property
    def garment_blocks(self) -> tuple[int, ...]:
        return self.garment_num_blocks or self.num_blocks

    def build(self) -> "ParallelUNet":
        return ParallelUNet(self)

    @model_validator(mode="after")
    def _consistent(self) -> "ParallelUNetConfig":
        depth, garment = len(self.channels), self.garment_num_blocks
        if garment is not None and len(garment) != depth:
            raise ValueError(
                f"garment_num_blocks: {garment} has {len(garment)} entries, channels has {depth}; give one a level"
            )
        return self


BASE_UNET = ParallelUNetConfig()  # 128x128, Fig. 2: 1.13 B parameters
SR_UNET = ParallelUNetConfig(  # 256x256, Fig. 8: 1.06 B parameters
    image_size=(256, 256),
    lowres=True,
    channels=(128, 128, 256, 512, 1024),
    num_blocks=(2, 3, 4, 7, 7),
    garment_num_blocks=(2, 3, 4, 6, 7),
    attention_levels=(4,),
)


class Context(NamedTuple):
    """What the blocks are told besides their features."""

    emb: Tensor  # (B, D), swish of the summed embedding, for FiLM
    pose: Tensor | None = None  # (B, 2K, D), for self-attention
    garment: dict[int, Tensor] | None = None  # level -> (B, HW, C) normalised tokens, for cross-attention


class GarmentBlock(Block):
    """FiLM and a residual block."""

    def __init__(self, c_in: int, c_out: int, level: int, config: ParallelUNetConfig):
        super().__init__()
        self.res = ResBlock(c_in, c_out, config.emb_dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)"""
        return self.res(x, context.emb)


class PoseBlock(Block):
    """FiLM and a residual block; on attended levels self-attention with the poses follows."""

    def __init__(self, c_in: int, c_out: int, level: int, config: TryOnUNetConfig):
        super().__init__()
        self.attended = level in config.attention_levels
        self.res = ResBlock(c_in, c_out, config.emb_dim)
        if self.attended:
            self.self_attention = SelfAttention(c_out, c_out // config.head_dim, config.emb_dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)"""
        x = self.res(x, context.emb)
        return self.self_attention(x, context.pose) if self.attended else x


class PersonBlock(PoseBlock):
    """A pose block; on attended levels cross-attention to the garment follows."""

    def __init__(self, c_in: int, c_out: int, level: int, config: ParallelUNetConfig):
        super().__init__(c_in, c_out, level, config)
        self.level = level
        if self.attended:
            self.cross_attention = CrossAttention(c_out, c_out // config.head_dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)"""
        x = super().forward(x, context)
        return self.cross_attention(x, context.garment[self.level]) if self.attended else x


class Encoder(Levels):
    """Levels from the finest to the coarsest: blocks, with a strided convolution in between."""

    def __init__(self, block: type[nn.Module], num_blocks: tuple[int, ...], config: TryOnUNetConfig):
        super().__init__()
        self.down = nn.ModuleList(Downsample(c, c_next) for c, c_next in pairwise(config.channels))
        self.levels = nn.ModuleList(
            nn.ModuleList(block(c, c, level, config) for _ in range(num_blocks[level]))
            for level, c in enumerate(config.channels)
        )

    def forward(self, x: Tensor, context: Context) -> list[list[Tensor]]:
        """(B, C0, H, W) -> every block's output, [level][block]: (B, C, H / 2^level, W / 2^level)"""
        features = []
        for level, blocks in enumerate(self.levels):
            x = self.down[level - 1](x) if level else x
            features.append([])
            for block in blocks:
                x = self.run(block, x, context, level)
                features[-1].append(x)
        return features


class Decoder(Levels):
    """Levels from the coarsest to `last`: every block is given the output of its own mirror block in the encoder."""

    def __init__(self, block: type[nn.Module], num_blocks: tuple[int, ...], last: int, config: TryOnUNetConfig):
        super().__init__()
        channels = config.channels
        self.order = tuple(reversed(range(last, len(channels))))
        self.levels = nn.ModuleList(
            nn.ModuleList(block(2 * channels[level], channels[level], level, config) for _ in range(num_blocks[level]))
            for level in self.order
        )
        self.up = nn.ModuleList(Upsample(channels[level + 1], channels[level]) for level in self.order[1:])

    def forward(self, features: list[list[Tensor]], context: Context) -> list[Tensor | None]:
        """The encoder's features -> each level's output, [level]: (B, C, H / 2^level, W / 2^level)"""
        x, outputs = features[-1][-1], [None] * len(features)
        for i, (level, blocks) in enumerate(zip(self.order, self.levels, strict=True)):
            x = self.up[i - 1](x) if i else x
            for block, skip in zip(blocks, reversed(features[level]), strict=True):
                x = self.run(block, torch.cat([x, skip], 1), context, level)
            outputs[level] = x
        return outputs


class GarmentUNet(nn.Module):
    """The garment's features at the attended levels.  It stops after the finest of them (Sec. 3.2)."""

    def __init__(self, config: ParallelUNetConfig):
        super().__init__()
        self.stem = nn.Conv2d(3 + config.num_pose_maps, config.channels[0], 3, padding=1)
        self.encoder = Encoder(GarmentBlock, config.garment_blocks, config)
        self.decoder = Decoder(GarmentBlock, config.garment_blocks, min(config.attention_levels), config)
        self.norms_down = nn.ModuleDict({str(i): group_norm(config.channels[i]) for i in config.attention_levels})
        self.norms_up = nn.ModuleDict({str(i): group_norm(config.channels[i]) for i in config.attention_levels})

    def forward(self, garment: Tensor, context: Context) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """(B, 3 + P, H, W), P the pose's maps -> {level: tokens (B, HW, C)} of the encoder, and of the decoder"""
        features = self.encoder(self.stem(garment), context)
        outputs = self.decoder(features, context)
        down = {int(i): to_tokens(norm(features[int(i)][-1])) for i, norm in self.norms_down.items()}
        up = {int(i): to_tokens(norm(outputs[int(i)])) for i, norm in self.norms_up.items()}
        return down, up


class TryOnUNet(Network):
    """What is told to a UNet in numbers: both poses, t and the noise augmentation levels (Sec. 3.2)."""

    config: TryOnUNetConfig

    def __init__(self, config: TryOnUNetConfig):
        super().__init__()
        self.config = config
        self.person_tokens = PoseTokens(config.num_keypoints, config.emb_dim)
        self.garment_tokens = PoseTokens(config.num_keypoints, config.emb_dim)
        self.pool = AttentionPool(config.emb_dim)  # for both poses
        self.level_embedding = LevelEmbedding(1 + config.num_aug_levels, config.emb_dim)

    def _end(self) -> None:
        """The last norm and convolution, which starts at 0; drawn after all that comes before them."""
        self.norm = group_norm(self.config.channels[0])
        self.head = nn.Conv2d(self.config.channels[0], 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def embed(self, t: Tensor, cond: Conditions) -> Context:
        """emb (B, D) = swish(pooled poses + encodings of t and of the augmentation levels); pose (B, 2K, D)"""
        person, garment = self.person_tokens(cond.person_pose), self.garment_tokens(cond.garment_pose)
        levels = torch.cat([t[:, None].float(), cond.noise_aug_level.float()], 1)  # (B, 1 + A)
        emb = self.level_embedding(levels) + self.pool(person) + self.pool(garment)
        return Context(F.silu(emb), torch.cat([person, garment], 1))

    def with_pose(self, images: Tensor, pose: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + P, H, W): images with their pose's maps, if the config has any; for a stem."""
        if self.config.pose_maps:
            images = torch.cat([images, pose_maps(pose, images.shape[-2:]).to(images.dtype)], 1)
        return images.to(self.stem.weight.dtype)

    def check(self, cond: Conditions) -> None:
        """ValueError if cond has a lowres image and the config none, or the reverse."""
        if self.config.lowres and cond.lowres is None:
            raise ValueError("Conditions.lowres is missing: give the previous stage's image, or set lowres: false")
        if cond.lowres is not None and not self.config.lowres:
            raise ValueError("Conditions.lowres is given, but the network has lowres: false; set it to true")
        assert cond.noise_aug_level.shape[1] == self.config.num_aug_levels, cond.noise_aug_level.shape


class ParallelUNet(TryOnUNet):
    """Predicts noise, v or x0 of zt from the try-on conditions (Zhu et al. 2023, Eq. 2).

    The reading of the paper that meets its parameter counts (1.13 B and 1.06 B): every up block has its own encoder
    skip; FiLM at the entry of a block; a 1x1 convolution on every skip path; attention as wide as its level; 3x3
    convolutions for resampling, which also change the width.  Of the garment's features, the person's down blocks
    attend to the garment encoder's at their level, its up blocks to the garment decoder's.
    The last convolution starts at 0: the first prediction is 0.
    """

    def __init__(self, config: ParallelUNetConfig):
        super().__init__(config)
        images = 3 if config.lowres else 2  # zt, clothing_agnostic, lowres
        self.garment_unet = GarmentUNet(config)
        self.stem = nn.Conv2d(3 * images + config.num_pose_maps, config.channels[0], 3, padding=1)
        self.encoder = Encoder(PersonBlock, config.num_blocks, config)
        self.decoder = Decoder(PersonBlock, config.num_blocks, 0, config)
        self._end()

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """The prediction, (B, 3, H, W), or (B, 2, 3, H, W) with cond.with_null.  zt (B, 3, H, W); t (B,) in [0, 1].

        ValueError if cond has a lowres image and the config none, or the reverse.
        """
        self.check(cond)
        garment_down, garment_up = cond.garment_features or self.garment_features_of(t, cond)  # {level: (B, L, C)}
        both = cond.with_null
        if both:  # B is twice as many from here on; the garment's tokens stay B / 2
            zt, t, cond = torch.cat([zt, zt]), torch.cat([t, t]), cond.followed_by_null()
        context = self.embed(t, cond)
        images = [zt, cond.clothing_agnostic] + ([cond.lowres] if self.config.lowres else [])
        x = self.stem(self.with_pose(torch.cat(images, 1), cond.person_pose))  # (B, C0, H, W)
        features = self.encoder(x, context._replace(garment=garment_down))  # [level][block]
        x = self.decoder(features, context._replace(garment=garment_up))[0]  # (B, C0, H, W)
        x = self.head(F.silu(self.norm(x))).to(zt.dtype)  # (B, 3, H, W)
        return torch.stack(x.chunk(2), 1) if both else x

    def garment_features_of(self, t: Tensor, cond: Conditions) -> GarmentFeatures:
        """What the person's blocks attend to, 0 where cond drops the garment."""
        if not self.config.garment_time:
            t = torch.zeros_like(t)
        tokens = self.garment_unet(self.with_pose(cond.garment, cond.garment_pose), self.embed(t, cond))
        if cond.keep is None:
            return tokens
        keep = cond.keep.view(-1, 1, 1)
        return tuple({level: value * keep.to(value.dtype) for level, value in part.items()} for part in tokens)

    def remember(self, cond: Conditions) -> Conditions:
        """With the garment's tokens, where they do not depend on t."""
        if self.config.garment_time:
            return cond
        return cond._replace(garment_features=self.garment_features_of(cond.noise_aug_level[:, 0], cond))

"""The parts of the UNets: FiLM residual block, attentions, resampling, encodings, pose tokens.

B batch, C channels, H W pixels, L tokens, D width of the conditioning, K keypoints, N levels of noise (t first).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

POOL_HEADS = 8
GRID_FREQUENCY = 32.0
KEYPOINT_FREQUENCIES = 8  # periods 2 ... 1/64 of the image: a 128 image's joint is placed to the pixel


class GroupNorm(nn.GroupNorm):
    """A group norm that, lean, reads and writes its input's precision.

    CUDA's autocast runs a group norm in fp32: a copy of its input, its output and what follows it are kept twice as
    wide.  The kernels themselves sum in fp32 whatever they read, but want scale and shift in the input's type; mean and
    deviation are kept for the backward pass in that type too.
    """

    lean = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)"""
        if not self.lean:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def group_norm(channels: int) -> GroupNorm:
    """min(32, floor(C / 4)) groups (Zhu et al. 2023, A.1), or the next smaller number that divides C."""
    groups = min(32, channels // 4)
    return GroupNorm(next(g for g in range(groups, 0, -1) if channels % g == 0), channels)


def folded_identity(c_out: int, c_in: int) -> Tensor:
    """A matrix (c_out, c_in) that is the identity where c_in = c_out.

    Output o reads every input i with i = o modulo min(c_in, c_out): more outputs repeat inputs, fewer outputs sum
    them, divided by sqrt(count), which preserves the variance of independent inputs.
    """
    out, into = torch.arange(c_out)[:, None], torch.arange(c_in)[None]
    hit = ((out - into) % min(c_in, c_out) == 0).float()
    return hit / hit.sum(1, keepdim=True).sqrt()


def positional_encoding(level: Tensor, width: int) -> Tensor:
    """cos and sin of 1000 level / 10000^(2i/width), in float32 (Vaswani et al. 2017, Sec. 3.5).  (...) -> (..., width)

    level in [0, 1] is t or a noise augmentation level; the factor 1000 puts it on DDPM's scale of timesteps.
    """
    half = width // 2
    rate = torch.exp(torch.arange(half, device=level.device, dtype=torch.float32) * (-math.log(10_000) / half))
    angle = 1000 * level.float()[..., None] * rate
    return torch.cat([angle.cos(), angle.sin()], -1)


def keypoint_encoding(xy: Tensor) -> Tensor:
    """Fourier features sin, cos(2^f pi x) of coordinates, float32.  (B, K, 2) -> (B, K, 4 * KEYPOINT_FREQUENCIES)"""
    rate = math.pi * 2.0 ** torch.arange(KEYPOINT_FREQUENCIES, device=xy.device, dtype=torch.float32)
    angle = (xy.float()[..., None] * rate).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, multi-head (Zhu et al. 2023, Eq. 3).  q (B, L, C); k, v (B, M, C) -> (B, L, C)"""
    q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def grid_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Fourier features of every pixel's place: sin, cos(pi f x), sin, cos(pi f y), f from 1 to 32.  -> (HW, C)"""
    rate = math.pi * GRID_FREQUENCY ** torch.linspace(0, 1, channels // 4, device=device)
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    along_y = (y[:, None, None] * rate).expand(height, width, -1)
    along_x = (x[None, :, None] * rate).expand(height, width, -1)
    encoding = torch.cat([along_x.sin(), along_x.cos(), along_y.sin(), along_y.cos()], -1).flatten(0, 1)
    return F.pad(encoding, (0, channels % 4))


def to_tokens(x: Tensor) -> Tensor:
    """Each pixel a token that knows its place.  (B, C, H, W) -> (B, HW, C)

    Ours, where the paper is silent: attention alone cannot tell where a feature lies, and a warp is about places.
    """
    place = grid_encoding(x.shape[2], x.shape[3], x.shape[1], x.device)
    return rearrange(x, "b c h w -> b (h w) c") + place.to(x.dtype)


class ResBlock(nn.Module):
    """FiLM, then conv1(x) + conv3(swish(norm(conv3(swish(norm(x))))) (Zhu et al. 2023, Fig. 2 and A.1).

    FiLM starts as the identity (its weights at 0), the skip path's own convolution as the (folded) identity and the
    main path's last convolution at 0, so that a network of 40 blocks passes images and gradients from the first step.
    Without an emb_dim there is no FiLM.
    """

    def __init__(self, c_in: int, c_out: int, emb_dim: int | None):
        super().__init__()
        self.film = nn.Linear(emb_dim, 2 * c_in) if emb_dim else None
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1)
        for layer in filter(None, (self.film, self.conv2)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.skip.weight.copy_(folded_identity(c_out, c_in)[:, :, None, None])
            self.skip.bias.zero_()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C_in, H, W), emb (B, D) -> (B, C_out, H, W)"""
        x = self.modulated(x, emb)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h

    def modulated(self, x: Tensor, emb: Tensor) -> Tensor:
        """FiLM: x (1 + scale) + shift (Dumoulin et al. 2018).  (B, C_in, H, W) -> (B, C_in, H, W)"""
        if self.film is None:
            return x
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)  # (B, C_in, 1, 1) each
        return torch.addcmul(x + shift, x, scale)


def projection(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer that keeps the variance of its input (Glorot & Bengio 2010): PyTorch's own start keeps a third,
    and a garment that arrives through two of them arrives too faintly to be learnt from."""
    layer = nn.Linear(c_in, c_out)
    nn.init.normal_(layer.weight, std=c_in**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class SelfAttention(nn.Module):
    """x + attention of the image's features to themselves and to the pose tokens (Zhu et al. 2023, Sec. 3.2)."""

    def __init__(self, channels: int, heads: int, pose_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = projection(channels, 3 * channels)
        self.pose_kv = projection(pose_dim, 2 * channels)
        self.out = projection(channels, channels)

    def forward(self, x: Tensor, pose: Tensor) -> Tensor:
        """x (B, C, H, W), pose (B, L, D) -> (B, C, H, W)"""
        q, k, v = self.qkv(to_tokens(self.norm(x))).chunk(3, -1)  # (B, HW, C) each
        pose_k, pose_v = self.pose_kv(pose).chunk(2, -1)  # (B, L, C) each
        h = attend(q, torch.cat([k, pose_k], 1), torch.cat([v, pose_v], 1), self.heads)
        return x + rearrange(self.out(h), "b (h w) c -> b c h w", h=x.shape[2])


class CrossAttention(nn.Module):
    """x + the garment's features, fetched to where the person wears them: the implicit warp (Zhu et al. 2023, Eq. 3).

    The garment tokens arrive normalised: they are the same for all blocks of a level.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.q = projection(channels, channels)
        self.kv = projection(channels, 2 * channels)
        self.out = projection(channels, channels)

    def forward(self, x: Tensor, garment: Tensor) -> Tensor:
        """x (B, C, H, W), garment (N, L, C), N = B or B / 2 -> (B, C, H, W)

        The samples beyond N have no garment.  Attention to tokens that are 0 answers the bias of v, whatever is asked.
        """
        num = len(garment)
        k, v = self.kv(garment).chunk(2, -1)  # (N, L, C) each
        h = attend(self.q(to_tokens(self.norm(x[:num]))), k, v, self.heads)
        attended = x[:num] + rearrange(self.out(h), "b (h w) c -> b c h w", h=x.shape[2])
        if num == len(x):
            return attended
        nothing = self.out(self.kv(torch.zeros_like(garment[:1, :1])).chunk(2, -1)[1])  # (1, 1, C)
        return torch.cat([attended, x[num:] + rearrange(nothing, "b l c -> b c l 1")])


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2.  (B, C_in, H, W) -> (B, C_out, H/2, W/2)"""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Each pixel doubled, then a 3x3 convolution.  (B, C_in, H, W) -> (B, C_out, 2H, 2W)"""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class AttentionPool(nn.Module):
    """CLIP's attention pooling in one dimension: the mean token asks all tokens (Radford et al. 2021, Sec. 2.4)."""

    def __init__(self, width: int):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, D)"""
        mean = tokens.mean(1, keepdim=True)
        k, v = self.kv(torch.cat([mean, tokens], 1)).chunk(2, -1)
        return self.out(attend(self.q(mean), k, v, POOL_HEADS)).squeeze(1)


class PoseTokens(nn.Module):
    """One token a joint: a linear layer of where it is, plus which it is (Zhu et al. 2023, Sec. 3.2).

    A joint that is not visible is the learned null token, wherever its coordinates point; so is every joint of a
    dropped condition.
    """

    def __init__(self, num_keypoints: int, width: int):
        super().__init__()
        self.place = nn.Linear(4 * KEYPOINT_FREQUENCIES, width)
        self.null = nn.Parameter(torch.randn(width) * width**-0.5)
        self.joint = nn.Parameter(torch.randn(num_keypoints, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, pose: Tensor) -> Tensor:
        """(B, K, 3): x, y, visible -> (B, K, D)"""
        visible = pose[..., 2:] > 0.5  # (B, K, 1)
        xy = torch.where(visible, pose[..., :2], 0.0)  # so that not even a NaN passes, forward or backward
        place = self.place(keypoint_encoding(xy).to(self.place.weight.dtype))
        return self.norm(torch.where(visible, place, self.null.to(place.dtype)) + self.joint)


POSE_MAP_WIDTHS = (0.06, 0.2)  # standard deviations, of the image's height


def pose_maps(pose: Tensor, size: tuple[int, int]) -> Tensor:
    """Gaussians around every joint, one of each of POSE_MAP_WIDTHS: where on the body a pixel lies.  -> (B, 2K, H, W)

    pose (B, K, 3): x, y in [0, 1] of width and height, visible; size (H, W).  A joint that is not visible is 0
    everywhere, wherever its coordinates point.
    """
    height, width = size
    x = (torch.arange(width, device=pose.device) + 0.5) / width
    y = (torch.arange(height, device=pose.device) + 0.5) / height
    visible = pose[..., 2:] > 0.5  # (B, K, 1)
    at = torch.where(visible, pose[..., :2], 0.0).float()
    dx, dy = (x - at[..., :1]) * (width / height), y - at[..., 1:]  # (B, K, W), (B, K, H)
    maps = [
        torch.exp(-(dy**2) / (2 * sigma**2))[..., :, None] * torch.exp(-(dx**2) / (2 * sigma**2))[..., None, :]
        for sigma in POSE_MAP_WIDTHS
    ]
    return torch.cat([each * visible[..., None] for each in maps], 1)


class LevelEmbedding(nn.Module):
    """The sum of one learned map of each level's positional encoding, then swish and a linear layer.

    Levels are t and the noise augmentation levels of the conditions (Ho et al. 2022, Cascaded Diffusion Models).
    One linear layer of the concatenated encodings is the sum of one linear layer each.
    """

    def __init__(self, num_levels: int, width: int):
        super().__init__()
        self.width = width
        self.inner = nn.Linear(num_levels * width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, levels: Tensor) -> Tensor:
        """(B, N) in [0, 1] -> (B, D)"""
        encoding = positional_encoding(levels, self.width).flatten(1)
        return self.outer(F.silu(self.inner(encoding.to(self.inner.weight.dtype))))

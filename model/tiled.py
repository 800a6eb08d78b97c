"""Feature maps in strips of rows: what a network without attention needs to compute an image piece by piece, exactly.

A convolution is given the rows that it reads beyond its strip, and a group norm takes mean and variance of the whole
map.  So a strip is what it is in the whole image, to rounding, and there are no seams.  For sampling: maps are
overwritten, nothing is kept for a backward pass.

B batch, C channels, H W pixels.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from model.layers import ResBlock


class Rows(NamedTuple):
    """A feature map whose rows are made when they are asked for."""

    height: int
    read: Callable[[int, int], Tensor]  # top, bottom -> (B, C, bottom - top, W)


def rows_of(x: Tensor) -> Rows:
    """Those of a map that is there."""
    return Rows(x.shape[2], lambda top, bottom: x[:, :, top:bottom])


def strips(height: int, num_rows: int) -> Iterator[tuple[int, int]]:
    """(top, bottom) of each strip."""
    for top in range(0, height, num_rows):
        yield top, min(top + num_rows, height)


def whole(rows: Rows, num_rows: int, out: Tensor | None = None) -> Tensor:
    """The map, (B, C, H, W), made in strips; in `out`, where that is given."""
    for top, bottom in strips(rows.height, num_rows):
        part = rows.read(top, bottom)
        if out is None:
            out = part.new_empty(*part.shape[:2], rows.height, part.shape[3])
        out[:, :, top:bottom] = part
    return out


def convolved(conv: nn.Conv2d, rows: Rows) -> Rows:
    """conv(map), from the rows that each strip of it reads; beyond the map lies the padding's 0."""
    kernel, stride, (padding, padding_x) = conv.kernel_size[0], conv.stride[0], conv.padding

    def read(top: int, bottom: int) -> Tensor:
        first, last = top * stride - padding, (bottom - 1) * stride - padding + kernel
        x = rows.read(max(first, 0), min(last, rows.height))
        x = F.pad(x, (0, 0, max(-first, 0), max(last - rows.height, 0)))
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, (0, padding_x))

    return Rows((rows.height + 2 * padding - kernel) // stride + 1, read)


def mixed(one: Rows, other: Rows, scale: float) -> Rows:
    """The sum of two maps, scaled."""
    return Rows(one.height, lambda top, bottom: (one.read(top, bottom) + other.read(top, bottom)) * scale)


def doubled(rows: Rows) -> Rows:
    """Each pixel doubled in height and width."""

    def read(top: int, bottom: int) -> Tensor:
        first = top // 2
        x = F.interpolate(rows.read(first, (bottom + 1) // 2), scale_factor=2, mode="nearest")
        return x[:, :, top - 2 * first : bottom - 2 * first]

    return Rows(2 * rows.height, read)


def activated(norm: nn.GroupNorm, rows: Rows, num_rows: int) -> Rows:
    """swish(norm(map)) with mean and variance over the whole map, whose rows are made once more for them."""
    scale, shift = normalisation(norm, rows, num_rows)

    def read(top: int, bottom: int) -> Tensor:
        x = rows.read(top, bottom)
        return F.silu(torch.addcmul(shift, x.float(), scale)).to(x.dtype)

    return Rows(rows.height, read)


def normalisation(norm: nn.GroupNorm, rows: Rows, num_rows: int) -> tuple[Tensor, Tensor]:
    """scale and shift, each (B, C, 1, 1) float32, with which a group norm is x scale + shift.

    The strips' means and variances are joined pair by pair (Chan et al. 1979): no large sums are subtracted.
    """
    count, mean, spread = 0, 0.0, 0.0  # spread: summed squares of what is off the mean
    for top, bottom in strips(rows.height, num_rows):
        part = rearrange(rows.read(top, bottom).float(), "b (g c) h w -> b g (c h w)", g=norm.num_groups)
        num, (variance, own_mean) = part.shape[-1], torch.var_mean(part, -1, correction=0)  # (B, G) each
        off = own_mean - mean
        spread = spread + num * variance + off.square() * (count * num / (count + num))
        mean, count = mean + off * (num / (count + num)), count + num
    deviation = (spread / count + norm.eps).sqrt()
    mean, deviation = (repeat(value, "b g -> b (g c)", c=norm.num_channels // norm.num_groups)
                       for value in (mean, deviation))  # fmt: skip
    scale = norm.weight.float() / deviation
    shift = norm.bias.float() - mean * scale
    return scale[:, :, None, None], shift[:, :, None, None]


def res_block(block: ResBlock, x: Tensor, emb: Tensor, num_rows: int) -> Tensor:
    """block(x, emb), written over x: its input and its output have as many channels.  (B, C, H, W) -> (B, C, H, W)"""
    modulated = Rows(x.shape[2], lambda top, bottom: block.modulated(x[:, :, top:bottom], emb))
    h = whole(convolved(block.conv1, activated(block.norm1, modulated, num_rows)), num_rows)
    h = convolved(block.conv2, activated(block.norm2, rows_of(h), num_rows))
    added = Rows(x.shape[2], lambda top, bottom: block.skip(modulated.read(top, bottom)) + h.read(top, bottom))
    return whole(added, num_rows, out=x)

"""What a network says of the image, sharpened by what it would say without the try-on conditions, and kept in range.

B batch, H W pixels.  Guidance works on the images that the network's outputs imply: they are affine in the outputs, so
that it is the same whatever the network predicts.
"""

from collections.abc import Callable

from torch import Tensor

from model.conditions import Conditions
from model.diffusion import Net

RECOLORINGS = 4


def guided(
    net: Net, zt: Tensor, t: Tensor, cond: Conditions, x0_of: Callable[[Tensor], Tensor], scale: float,
    rescale: float = 0.0,
) -> Tensor:  # fmt: skip
    """uncond + scale (cond - uncond) with both in one evaluation (Ho & Salimans 2022, Eq. 6).  -> x0 (B, 3, H, W)

    The scale is Imagen's: 1 is the conditional prediction alone, and then nothing else is computed.  x0_of: the image
    that an output (B, 3, H, W) implies.
    """
    if scale == 1:
        return x0_of(net(zt, t, cond).float())
    conditional, unconditional = map(x0_of, net(zt, t, cond._replace(with_null=True)).float().unbind(1))
    return rescaled(unconditional + scale * (conditional - unconditional), conditional, rescale)


def rescaled(x0: Tensor, conditional: Tensor, share: float) -> Tensor:
    """x0 with the standard deviation of the conditional one, in this share (Lin et al. 2023, Eqs. 14 to 16).

    Guidance raises the contrast with its scale; this gives it back.
    """
    if share == 0:
        return x0
    wanted, there = (image.std((1, 2, 3), keepdim=True) for image in (conditional, x0))
    return x0 * (share * wanted / there.clamp(min=1e-6) + 1 - share)


def threshold(x0: Tensor, percentile: float | None) -> Tensor:
    """x0 back in [-1, 1]: clipped, or divided by its own percentile of |x0| (Saharia et al. 2022, Sec. 2.3)."""
    if percentile is None:
        return x0.clamp(-1, 1)
    limit = x0.abs().flatten(1).quantile(percentile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return x0.clamp(-limit, limit) / limit


def recolored(x0: Tensor, color: Tensor | None) -> Tensor:
    """x0, shifted so that its mean colour is this (B, 3, 1, 1) when it is cut to [-1, 1]; itself for None.

    An image and its low-resolution version have one mean: what is known is put in the place of what is predicted (Wang
    et al. 2023, DDNM, Eq. 11, for the mean alone).  Newton's method: only pixels that are not cut follow the shift.
    """
    if color is None:
        return x0
    shift = color - x0.mean((2, 3), keepdim=True)
    for _ in range(RECOLORINGS):
        shifted = x0 + shift
        free = (shifted.abs() < 1).float().mean((2, 3), keepdim=True).clamp(min=0.01)
        shift = shift + (color - shifted.clamp(-1, 1).mean((2, 3), keepdim=True)) / free
    return (x0 + shift).clamp(-1, 1)

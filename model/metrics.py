"""What numbers say of images: structural similarity pair by pair, and how far two crowds of features are apart.

B batch, C channels, H W pixels; N images, D features.  Torch up to the maps, which are differentiable; numpy in float64
where statistics are made.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of Wang et al. 2004
BORDER = WINDOW // 2  # pixels whose window would leave the image


def ssim_maps(a: Tensor, b: Tensor) -> Tensor:
    """Local structural similarity, the mean over channels (Wang et al. 2004, Eq. 13).  -> (B, H, W)

    a, b (B, C, H, W) in [0, 1].  Windows are Gaussian; at the border images are mirrored, and `ssim` leaves these
    pixels out.  Pair by pair: of many channels at once, a CPU would need gigabytes.  Raises ValueError for images
    smaller than a window.
    """
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM: images of {a.shape[-2]}x{a.shape[-1]} pixels; its window is {WINDOW} wide")
    return torch.stack([_ssim_map(x, y) for x, y in zip(a, b, strict=True)])


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """a, b (C, H, W).  -> (H, W)"""
    c1, c2 = 0.01**2, 0.03**2
    planes = torch.cat([a, b, a * a, b * b, a * b])  # (5 C, H, W)
    steps = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - BORDER
    line = torch.exp(-(steps**2) / (2 * SIGMA**2))
    window = (line / line.sum()).expand(len(planes), 1, 1, WINDOW)
    means = F.pad(planes, (BORDER,) * 4, mode="reflect")[None]
    for each in (window.mT, window):  # down, then across
        means = F.conv2d(means, each, groups=len(planes))
    mean_a, mean_b, aa, bb, ab = means[0].unflatten(0, (5, len(a)))
    var_a, var_b = (aa - mean_a**2).clamp(min=0), (bb - mean_b**2).clamp(min=0)
    cov = ab - mean_a * mean_b
    found = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return found.mean(0)


def ssim(maps: Tensor) -> Tensor:
    """Structural similarity of each pair from its map, over all pixels whose window lies within the image.  -> (B,)

    As scikit-image takes the mean, and torchmetrics did up to 1.4; 1.9 takes the mirrored border in.
    """
    return mean_in(maps[:, BORDER:-BORDER, BORDER:-BORDER], None)


def mean_in(maps: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each map, where the mask says so.  maps, mask (B, H, W); NaN where a mask is empty.  -> (B,)"""
    if mask is None:
        return maps.mean((1, 2))
    weights = mask.to(maps.dtype)
    return (maps * weights).sum((1, 2)) / weights.sum((1, 2))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features, (N, D) (Heusel et al. 2017, Eq. 6).

    In float64.  tr (A B)^(1/2) is the sum of the roots of A^(1/2) B A^(1/2)'s eigenvalues, of which none is negative.
    Raises ValueError for sets of one, which have no covariance.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Frechet distance of {len(a)} and {len(b)} images: one image has no covariance; give more")
    (cov_a, cov_b), way = (np.cov(x, rowvar=False) for x in (a, b)), a.mean(0) - b.mean(0)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return max(0.0, float(way @ way + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))  # below 0 by rounding alone


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """(mean, standard deviation) over random subsets of the squared MMD of features, (N, D) (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3 and the estimate unbiased, so that it may be below 0.  Subsets are drawn without
    replacement, from the seed alone; a set that is smaller than subset_size gives subsets of its own size.  Where each
    would be a whole set there is one value, and no deviation: None.  Raises ValueError for sets of one.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = min(len(a), len(b), subset_size)
    if size < 2:
        raise ValueError(f"a kernel distance of {len(a)} and {len(b)} images: one image has no pair; give more")
    if size == max(len(a), len(b)):
        return _mmd(a, b), None
    rng = np.random.default_rng(seed)
    found = [_mmd(*(x[rng.permutation(len(x))[:size]] for x in (a, b))) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of one size, (N, D) (Gretton et al. 2012, Eq. 4)."""
    num, width = x.shape
    xx, yy, xy = ((p @ q.T / width + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = sum(k.sum() - np.trace(k) for k in (xx, yy)) / (num * (num - 1))
    return float(within - 2 * xy.mean())

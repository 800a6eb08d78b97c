"""How much sampled images are like true ones: pair by pair, and as a crowd.

Images are (N, H, W, 3) uint8.  There are no weights here but fixed filters: the Frechet distance is one of theirs, and
compares samplers of one network on one set of pairs, not papers.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

SCALES, ANGLES, CELLS, COLOUR_CELLS = 3, 4, 4, 8
DIMENSIONS = 64
FEATURES = (
    f"means of {COLOUR_CELLS}x{COLOUR_CELLS} cells in luma and two colour differences, and mean strengths in "
    f"{CELLS}x{CELLS} cells of Gabor filters in {ANGLES} directions on the luma at {SCALES} scales; each divided by "
    f"its standard deviation over the truth, then the {DIMENSIONS} main components of the truth"
)


def mean_ssim(truth: np.ndarray, images: np.ndarray) -> float:
    """Mean structural similarity of the pairs, with the Gaussian window of Wang et al. 2004."""
    how = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(np.mean([structural_similarity(a, b, **how) for a, b in zip(truth, images, strict=True)]))


class Space(NamedTuple):
    """A linear map of the filters' responses, which the truth decides."""

    mean: np.ndarray  # (F,)
    axes: np.ndarray  # (F, DIMENSIONS)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, DIMENSIONS)"""
        return (responses(images) - self.mean) @ self.axes


def space_of(truth: np.ndarray) -> Space:
    """The space that FEATURES describes.  Raises ValueError for too few images to span it."""
    if len(truth) <= DIMENSIONS:
        raise ValueError(f"{len(truth)} images do not span {DIMENSIONS} dimensions; give more pairs")
    found = responses(truth)
    scale = 1 / found.std(0).clip(1e-6)
    _, _, axes = np.linalg.svd((found - found.mean(0)) * scale, full_matrices=False)
    return Space(found.mean(0), axes[:DIMENSIONS].T * scale[:, None])


def responses(images: np.ndarray) -> np.ndarray:
    """(N, F) float64, what FEATURES calls means and mean strengths."""
    red, green, blue = (torch.from_numpy(images).permute(3, 0, 1, 2).double() / 255).unbind()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = torch.stack([luma, red - luma, blue - luma], 1)  # (N, 3, H, W)
    found = [F.adaptive_avg_pool2d(colours, COLOUR_CELLS).flatten(1)]
    level = luma[:, None]
    for _ in range(SCALES):
        even, odd = (F.conv2d(F.pad(level, (4,) * 4, mode="reflect"), bank) for bank in _gabor())
        found.append(F.adaptive_avg_pool2d((even**2 + odd**2).sqrt(), CELLS).flatten(1))
        level = F.avg_pool2d(level, 2)
    return torch.cat(found, 1).numpy()


def _gabor() -> tuple[Tensor, Tensor]:
    """Cosine and sine waves of 5 pixels under a Gaussian of 2, (ANGLES, 1, 9, 9) each; the mean of each filter is 0."""
    y, x = torch.meshgrid(*[torch.arange(-4, 5).double()] * 2, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * 2.0**2))
    angles = torch.arange(ANGLES) * (math.pi / ANGLES)
    phase = 2 * math.pi / 5 * (x * angles.cos().view(-1, 1, 1) + y * angles.sin().view(-1, 1, 1))
    even = window * phase.cos()
    even = even - window * (even.sum((1, 2), keepdim=True) / window.sum())
    return tuple(bank[:, None] / window.sum() for bank in (even, window * phase.sin()))

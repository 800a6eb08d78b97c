"""Where a garment is in its image: from a mask, or by the plain background that it lies on."""

from pathlib import Path

import numpy as np

from data.images import read_image

TOLERANCE = 5  # of 255: how far JPEG takes a plain background off its colour; more of it eats into white shirts
PALE = 16  # most of a garment must be farther from it than this to be told apart safely
UNSURE = "garment and background are alike: its outline is unsure"
NO_BACKDROP = "the garment's background is not plain: nothing was cut away"


def read_cloth_mask(path: Path, image: np.ndarray, place: str) -> np.ndarray:
    """The garment's pixels, (H, W) bool: 128 or more.  Raises ValueError naming file and place when all or none are."""
    mask = read_image(path)[..., 0] >= 128
    if mask.shape != image.shape[:2]:
        raise ValueError(f"{path}: not of the size of the garment's image ({place}); copy both again")
    if not mask.any():
        raise ValueError(f"{path}: no pixel is 128 or more ({place}): it shows no garment; make the mask again")
    if mask.all():
        raise ValueError(
            f"{path}: every pixel is 128 or more ({place}): it covers the whole picture; make the mask again"
        )
    return mask


def find_cloth(image: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels (H, W) bool that the background does not reach from the frame's edge, and notes about them.

    image (H, W, 3) uint8.  The background is what has the colour of the edge's median.
    """
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    distance = np.abs(image.astype(np.int16) - np.median(edge, axis=0).astype(np.int16)).max(-1)
    plain = distance <= TOLERANCE
    outside = np.zeros_like(plain)
    outside[[0, -1]], outside[:, [0, -1]] = plain[[0, -1]], plain[:, [0, -1]]
    before = -1
    while before != (before := int(outside.sum())):
        outside = _along_rows(plain, outside)
        outside = _along_rows(plain.T, outside.T).T
    mask = ~outside
    if outside.mean() < 0.02:
        return np.ones_like(mask), (NO_BACKDROP,)
    unsure = mask.any() and (distance[mask] <= PALE).mean() > 0.5
    return mask, (UNSURE,) if unsure else ()


def _along_rows(plain: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Every run of plain pixels in a row, as a whole, that is reached somewhere."""
    runs = np.cumsum(~plain, axis=1) + np.arange(len(plain))[:, None] * (plain.shape[1] + 1)
    hit = np.bincount(runs[reached], minlength=int(runs.max()) + 1) > 0
    return plain & hit[runs]

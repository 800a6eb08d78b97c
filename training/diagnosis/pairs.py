"""Whether a set's images belong together: the garment to the person, the clothing-agnostic image to both.

N samples, H W pixels.  No network is asked: what is wrong here no training mends.
"""

from dataclasses import dataclass

import numpy as np

from data.agnostic import CHANGED, GRAY, differs, drawn_region
from data.schema import Sample

LEVELS = 8  # of each colour channel in a histogram
WORN = 0.25  # of the region that the network draws, at least, is garment
LEAST = 16  # samples that a judgement needs
ALIKE = 0.9  # overlap of colours from which garments cannot be told apart


@dataclass(frozen=True)
class Pairs:
    """place: of the own garment among all of them, by how much of its colours the person wears: 0 the best, 0.5 as by
    chance; None where the samples are too few or their garments too much alike to tell."""

    num: int
    place: float | None
    drawn: float  # mean share of the pixels in which person and clothing-agnostic image differ: what is to be drawn
    garment: float  # mean share of the garment's image that is not background


def examine(samples: list[Sample]) -> Pairs:
    regions = [drawn_region(sample.person, sample.clothing_agnostic) for sample in samples]
    cutouts = [differs(sample.garment, np.full_like(sample.garment, GRAY), CHANGED // 2) for sample in samples]
    place = None
    if len(samples) >= LEAST:
        garments = np.stack([_colours(sample.garment, mask) for sample, mask in zip(samples, cutouts, strict=True)])
        worn = np.stack([_colours(sample.person, mask) for sample, mask in zip(samples, regions, strict=True)])
        place = _place(garments, worn)
    drawn, shown = (float(np.mean([mask.mean() for mask in masks])) for masks in (regions, cutouts))
    return Pairs(len(samples), place, drawn, shown)


def _colours(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The histogram of an image's colours where mask is, each spread over its neighbours: of light and JPEG."""
    pixels = image[mask] if mask.any() else image.reshape(-1, 3)
    cells = (pixels.astype(np.int64) * LEVELS // 256) @ [LEVELS * LEVELS, LEVELS, 1]
    counts = np.bincount(cells, minlength=LEVELS**3).reshape((LEVELS,) * 3) / len(pixels)
    for axis in range(3):
        padded = np.pad(counts, [(int(i == axis),) * 2 for i in range(3)])
        counts = sum(
            weight * padded.take(range(shift, shift + LEVELS), axis)
            for shift, weight in enumerate((0.25, 0.5, 0.25))
        )  # fmt: skip
    return counts.ravel() / counts.sum()


def _place(garments: np.ndarray, worn: np.ndarray) -> float | None:
    """The own one's place in its row and in its column of all garments against all persons, 0 to 1."""
    overlap = np.stack([np.minimum(each, worn / WORN).sum(1) for each in garments])  # [garment, person]
    alike = np.stack([np.minimum(each, garments).sum(1) for each in garments])
    np.fill_diagonal(alike, 0)
    if np.median(alike) > ALIKE:
        return None
    own = np.diag(overlap)
    places = []
    for axis, mine in ((0, own[None, :]), (1, own[:, None])):
        better, same = (overlap > mine).sum(axis), (overlap == mine).sum(axis) - 1
        places.append((better + same / 2) / (len(own) - 1))
    return float(np.mean(places))

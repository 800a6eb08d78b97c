"""Windows on a photograph: what a network sees of it, and where its answer lies in the photograph.

Places are (x, y) in pixels from the top left corner of the first pixel, so that its middle is (0.5, 0.5).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image


class Window(NamedTuple):
    matrix: np.ndarray  # (2, 3) float64: photograph = matrix @ (x, y, 1) of the window
    size: tuple[int, int]  # (height, width)


def window(middle: tuple[float, float], extent: tuple[float, float], size: tuple[int, int], angle: float = 0) -> Window:
    """The part of a photograph around middle (x, y), extent (height, width) pixels large, as an image of this size.

    The angle, in radians, is how far its upright stands turned clockwise in the photograph.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * [extent[1] / size[1], extent[0] / size[0]]
    corner = np.asarray(middle) - turn @ [size[1] / 2, size[0] / 2]
    return Window(np.hstack([turn, corner[:, None]]), size)


def whole(size: tuple[int, int]) -> Window:
    """The photograph of size (height, width) itself."""
    return Window(np.eye(2, 3), size)


def look(image: np.ndarray, through: Window) -> np.ndarray:
    """What the window shows of the image (H, W, 3) uint8, antialiased; black beyond its edges.  -> (h, w, 3) uint8"""
    steps = np.hypot(*through.matrix[:, :2])
    factors = tuple(max(1, int(step)) for step in steps)
    reduced = Image.fromarray(image).reduce(factors)
    matrix = through.matrix / np.array(factors)[:, None]
    return np.asarray(_transform(reduced, matrix, through.size))


def carry(values: np.ndarray, source: Window, target: Window) -> np.ndarray:
    """Values (h, w) float32 of one window's pixels in another's, bilinear; 0 beyond its edges.  -> (h', w') float32"""
    return np.asarray(
        _transform(Image.fromarray(values), _compose(_inverse(source.matrix), target.matrix), target.size)
    )


def to_photograph(points: np.ndarray, source: Window) -> np.ndarray:
    """Places (n, 2) of a window as places of the photograph."""
    return points @ source.matrix[:, :2].T + source.matrix[:, 2]


def to_window(points: np.ndarray, target: Window) -> np.ndarray:
    """Places (n, 2) of the photograph as places of a window."""
    inverse = _inverse(target.matrix)
    return points @ inverse[:, :2].T + inverse[:, 2]


def _transform(image: Image.Image, matrix: np.ndarray, size: tuple[int, int]) -> Image.Image:
    affine = Image.Transform.AFFINE
    return image.transform((size[1], size[0]), affine, tuple(matrix.ravel()), Image.Resampling.BILINEAR)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(matrix[:, :2])
    return np.hstack([inverse, -inverse @ matrix[:, 2:]])


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The matrix (2, 3) of the inner mapping followed by the outer."""
    return outer @ np.vstack([inner, [0, 0, 1]])

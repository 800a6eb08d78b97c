"""Poses, (K, 3) float32 rows (x, y, visible), carried along when an image is resized."""

import numpy as np

from data.schema import JOINTS

NUM_JOINTS = len(JOINTS)


def move(pose: np.ndarray, scale: tuple[float, float], offset: tuple[float, float] = (0, 0)) -> np.ndarray:
    """The pose (K, 3) in an image resized by scale (y, x), then placed at offset (y, x); invisible joints stay 0."""
    moved = pose.copy()
    moved[:, :2] = (pose[:, :2] * scale[::-1] + offset[::-1]) * pose[:, 2:]
    return moved


def normalise(pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pose (K, 3) of pixels as fractions of width and height.  -> (K, 3) float32

    A joint outside the frame of size (height, width) is invisible: x = y = visible = 0.
    """
    height, width = size
    normal = pose.astype(np.float32) / np.float32([width, height, 1])
    inside = ((normal[:, :2] >= 0) & (normal[:, :2] <= 1)).all(1, keepdims=True)
    return normal * inside

"""A pose as coloured limbs over an image."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from data.schema import JOINTS

LIMBS = tuple(
    (JOINTS.index(a), JOINTS.index(b))
    for a, b in (
        ("neck", "right_shoulder"), ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"),
        ("neck", "left_shoulder"), ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"),
        ("neck", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
        ("neck", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
        ("neck", "nose"), ("nose", "right_eye"), ("right_eye", "right_ear"),
        ("nose", "left_eye"), ("left_eye", "left_ear"),
    )
)  # fmt: skip
COLORS = tuple(
    tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / len(LIMBS), 1, 1)) for i in range(len(LIMBS))
)  # from red at the right shoulder, as OpenPose does


def draw_pose(image: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 with the limbs between visible joints drawn on a copy of it.

    pose (K, 3): x, y in [0, 1] of width and height, visible.  Lines and dots scale with the image.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(min(height, width) / 100))
    points = [tuple(row[:2] * (width, height)) if row[2] else None for row in np.asarray(pose, np.float64)]
    for (a, b), color in zip(LIMBS, COLORS, strict=True):
        if points[a] and points[b]:
            draw.line([points[a], points[b]], fill=color, width=stroke)
    for point in filter(None, points):
        draw.circle(point, stroke, fill=(255, 255, 255), outline=(0, 0, 0))
    return np.asarray(picture)

"""Where a picture is cut, and how it and its pose come to lie in a stage's frame.

H, W pixels; K keypoints.  A box is (rows, columns), two slices of a picture.
"""

import numpy as np
from PIL import Image

from data.pose import move, normalise
from data.schema import Part

MASK_MARGIN = 0.04  # of the box of a person or a garment
# Joints end at ankles, wrists and eyes.  Of the longer side of their box, on 13 photographs the head reached 0.06 to
# 0.16 beyond it, feet 0.03 to 0.15, and hands and hips 0.01 to 0.11.
POSE_MARGIN = 0.18

Box = tuple[slice, slice]


def person_box(size: tuple[int, int], pose: np.ndarray, parts: np.ndarray | None, frame: tuple[int, int]) -> Box:
    """The part of a photograph of this size that shows the whole person, in the proportions of the frame.

    pose (K, 3) in pixels; parts (H, W) the parse map, where there is one: its person is in the box too.  See widen for
    what happens at the photograph's edges.  Without a joint and without a person it is all of the photograph.
    """
    found = [] if parts is None else [bounding_box(parts != Part.BACKGROUND, 0)]
    x, y = pose[normalise(pose, size)[:, 2] > 0, :2].T  # those in the picture
    if len(x):
        found.append((slice(int(y.min()), int(y.max()) + 1), slice(int(x.min()), int(x.max()) + 1)))
    found = [box for box in found if box[0].stop and box[1].stop]
    if not found:
        return whole(size)
    rows, columns = (
        slice(min(box[axis].start for box in found), max(box[axis].stop for box in found)) for axis in (0, 1)
    )
    return widen((rows, columns), MASK_MARGIN if parts is not None else POSE_MARGIN, size, frame)


def widen(box: Box, margin: float, size: tuple[int, int], frame: tuple[int, int]) -> Box:
    """The box with a margin, a fraction of its longer side, widened to the proportions of frame (height, width).

    It stays within a picture of this size: where the box would pass an edge it is moved, and where the picture is
    too small it ends, so that fit has to fill the rest.
    """
    sides = [part.stop - part.start for part in box]
    wanted = [side + 2 * margin * max(sides) for side in sides]
    scale = max(side / room for side, room in zip(wanted, frame, strict=True))
    cut = []
    for part, room, limit in zip(box, frame, size, strict=True):
        length = min(round(scale * room), limit)
        start = min(max(0, round((part.start + part.stop - length) / 2)), limit - length)
        cut.append(slice(start, start + length))
    return cut[0], cut[1]


def whole(size: tuple[int, int]) -> Box:
    """All of a picture of size (height, width)."""
    return slice(0, size[0]), slice(0, size[1])


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns that hold the mask and a margin around it, within the frame; empty for an empty mask."""
    box = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        box.append(slice(max(0, places[0] - margin), places[-1] + 1 + margin) if len(places) else slice(0, 0))
    return box[0], box[1]


def placement(source: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """How an image of source (height, width) lies in the middle of a frame: its size there, its offset there (y, x)."""
    scale = min(size[0] / source[0], size[1] / source[1])
    inner = tuple(min(max(1, round(side * scale)), room) for side, room in zip(source, size, strict=True))
    return inner, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)


def fit(image: np.ndarray, size: tuple[int, int], fill: int | None = None) -> np.ndarray:
    """The whole image in a frame of size (height, width), its proportions kept.

    (H, W, 3) uint8 is resized by Lanczos' filter, labels (H, W) uint8 by the nearest.  What is left of the frame is
    fill, or without one repeats the image's edge.
    """
    (height, width), (top, left) = placement(image.shape[:2], size)
    resample = Image.Resampling.LANCZOS if image.ndim == 3 else Image.Resampling.NEAREST
    resized = np.asarray(Image.fromarray(image).resize((width, height), resample))
    room = [(top, size[0] - height - top), (left, size[1] - width - left), (0, 0)][: image.ndim]
    return np.pad(resized, room, mode="edge") if fill is None else np.pad(resized, room, constant_values=fill)


def fit_pose(pose: np.ndarray, source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The pose (K, 3), in pixels of an image of source (height, width), as fractions of the frame that fit makes.

    A joint outside the photograph is invisible.
    """
    inner, offset = placement(source, size)
    scale = (inner[0] / source[0], inner[1] / source[1])
    inside = pose * (normalise(pose, source)[:, 2:] > 0)
    return normalise(move(inside, scale, offset), size)


def crop_pose(pose: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The pose (K, 3), in pixels of a picture, as fractions of the frame that fit makes of the picture's box.

    A joint outside the box is invisible.
    """
    rows, columns = box
    moved = move(pose, (1, 1), (-rows.start, -columns.start))
    return fit_pose(moved, (rows.stop - rows.start, columns.stop - columns.start), size)

"""From photographs to samples: who is left without the garment, the garment by itself, both at a stage's size.

H, W pixels; K keypoints.  Masking and cutting out happen at the photograph's resolution, before the antialiased
resize.  Every length is a fraction of the body's, never a number of pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.pose import NUM_JOINTS, move, normalise
from data.schema import JOINTS, Part, Photo, Sample

GRAY = 128
PASTED = (Part.HEAD, Part.LOWER, Part.LEGS, Part.FEET)  # and the hands
MARGIN = 0.015  # of body_size: how far the garment's colours may bleed over its edge in photograph and parse map
# A hand is 0.7 of the forearm; these are fractions of the forearm's length, measured beyond the wrist.
HAND_START, HAND_CENTER, HAND_RADIUS = 0.1, 0.4, 0.45
SOFT_EDGE = 0.003  # of the garment's size


def read_image(path: Path) -> np.ndarray:
    """The photograph as a viewer shows it, EXIF orientation applied.  -> (H, W, 3) uint8 RGB

    Raises ValueError naming file and remedy when it is missing, broken, cut off, or has 16 or 32 bits a channel.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: this image is missing; put it there, or remove its row or photo") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error}); copy it again, or --skip-bad") from error
    if upright.mode[0] in "IF":
        raise ValueError(f"{path}: has {upright.mode} pixels; save it with 8 bits a channel")
    return np.array(upright.convert("RGB"))


def clothing_agnostic(photo: Photo) -> np.ndarray:
    """The person without the garment and without its outline.  -> (H, W, 3) uint8

    Zhu et al. 2023, Sec. 3: the person's whole bounding box is gray; head, hands and lower body are pasted back.
    The neck is not: the neckline is the garment's.  What is pasted ends a MARGIN before anything that is hidden, so
    that no rim of the garment remains; islands of wrong labels inside the garment go with it.
    """
    person = photo.parts != Part.BACKGROUND
    margin = max(1, round(MARGIN * body_size(photo.parts)))
    pasted = np.isin(photo.parts, PASTED) | hand(photo, "left") | hand(photo, "right")
    pasted &= ~grow(person & ~pasted, margin)
    agnostic = photo.image.copy()
    agnostic[bounding_box(person, margin)] = GRAY
    agnostic[pasted] = photo.image[pasted]
    return agnostic


def hand(photo: Photo, side: str) -> np.ndarray:
    """The pixels of the 'left' or 'right' arm that belong to its hand.  -> (H, W) bool

    They lie beyond the wrist, seen from the elbow, within a hand's length; none when elbow or wrist is invisible.
    So a sleeve that the parse map takes for an arm can leak no more than what it covers of the hand.  Forearms are
    equally long, so that the longer one tells the size of a hand whose forearm points at the camera.
    """
    forearms = {}
    for name in ("left", "right"):
        elbow, wrist = (photo.pose[JOINTS.index(f"{name}_{joint}")] for joint in ("elbow", "wrist"))
        if elbow[2] and wrist[2]:
            forearms[name] = wrist[:2] - elbow[:2]
    if side not in forearms or not forearms[side].any():
        return np.zeros(photo.parts.shape, bool)
    length = max(np.linalg.norm(forearm) for forearm in forearms.values())
    ux, uy = forearms[side] / np.linalg.norm(forearms[side])
    wrist_x, wrist_y, _ = photo.pose[JOINTS.index(f"{side}_wrist")]
    height, width = photo.parts.shape
    x, y = np.arange(width) - wrist_x, (np.arange(height) - wrist_y)[:, None]
    near = np.hypot(x - HAND_CENTER * length * ux, y - HAND_CENTER * length * uy) < HAND_RADIUS * length
    beyond = x * ux + y * uy > HAND_START * length
    return near & beyond & (photo.parts == (Part.LEFT_ARM if side == "left" else Part.RIGHT_ARM))


def body_size(parts: np.ndarray) -> float:
    """How large the person is, in pixels: the root of the area, about two shoulder widths."""
    return float(np.sqrt((parts != Part.BACKGROUND).sum()))


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns that hold the mask and a margin around it, within the frame; empty for an empty mask."""
    box = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        box.append(slice(max(0, places[0] - margin), places[-1] + 1 + margin) if len(places) else slice(0, 0))
    return box[0], box[1]


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask (H, W) and everything within a square of this radius around it."""
    return box_mean(mask, radius) > 0


def box_mean(mask: np.ndarray, radius: int) -> np.ndarray:
    """The share of the mask (H, W) in the square of 2 radius + 1 pixels around each pixel.

    Beyond the frame the mask goes on as it is at the frame's edge.
    """
    counts, width = np.pad(mask.astype(np.int32), radius, mode="edge"), 2 * radius + 1
    for axis in (0, 1):
        sums = np.cumsum(np.insert(counts, 0, 0, axis), axis)
        counts = np.delete(sums, slice(width), axis) - np.delete(sums, slice(-width, None), axis)
    return counts / width**2


def soft_alpha(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool as alpha in [0, 1], fading out inside its edge: no background shines through."""
    radius = round(SOFT_EDGE * np.sqrt(mask.sum()))
    return np.clip(2 * box_mean(mask, radius) - 1, 0, 1)


def cut_out(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 where alpha (H, W) is 1, gray where it is 0, mixed between."""
    return np.uint8(GRAY + alpha[..., None] * (image - np.float64(GRAY)) + 0.5)


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


def check_photo(photo: Photo, where: str) -> None:
    """Raises ValueError, beginning with where it comes from, when a photo's parse map cannot be used."""
    if photo.parts.shape != photo.image.shape[:2]:
        raise ValueError(
            f"{where}: {photo.parts.shape[0]}x{photo.parts.shape[1]} pixels, but its photograph has "
            f"{photo.image.shape[0]}x{photo.image.shape[1]}; both must be the same picture: copy both again"
        )
    if not (photo.parts == Part.UPPER).any():
        raise ValueError(f"{where}: no pixel is labelled upper garment; check --label-map, or leave this photo out")


def make_sample(key: str, person: Photo, garment: Photo, size: tuple[int, int]) -> Sample:
    """The sample of a garment that somebody wears in its photo; size (height, width).

    The garment keeps its place and its wearer's pose.  Raises ValueError when a photo shows no upper garment.
    """
    check_photo(garment, f"sample {key!r}, garment photo")
    worn = cut_out(garment.image, soft_alpha(garment.parts == Part.UPPER))
    pose = fit_pose(garment.pose, garment.parts.shape, size)
    return _sample(key, person, worn, pose, size)


def make_flat_sample(key: str, person: Photo, cloth: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> Sample:
    """The sample of a garment that lies flat: cloth (H, W, 3) uint8, mask (H, W) bool; size (height, width).

    It has no pose: every joint is invisible.  Raises ValueError when the mask is empty or of another size, or the
    person's photo shows no upper garment.
    """
    if mask.shape != cloth.shape[:2] or not mask.any():
        raise ValueError(f"sample {key!r}: the cloth mask is empty or not of the cloth's size; copy both again")
    flat = cut_out(cloth, soft_alpha(mask))
    return _sample(key, person, flat, np.zeros((NUM_JOINTS, 3), np.float32), size)


def _sample(key: str, person: Photo, garment: np.ndarray, garment_pose: np.ndarray, size: tuple[int, int]) -> Sample:
    check_photo(person, f"sample {key!r}, person photo")
    return Sample(
        key=key,
        person=fit(person.image, size),
        clothing_agnostic=fit(clothing_agnostic(person), size),
        garment=fit(garment, size, fill=GRAY),
        person_pose=fit_pose(person.pose, person.parts.shape, size),
        garment_pose=garment_pose,
    )

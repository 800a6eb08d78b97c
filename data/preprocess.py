"""From photographs to samples: who is left without the garment, the garment by itself, both at a stage's size.

H, W pixels; K keypoints.  Masking and cutting out happen at the photograph's resolution, before the antialiased
resize.
"""

from typing import NamedTuple

import numpy as np

from data.agnostic import GRAY, box_mean, clothing_agnostic
from data.framing import MASK_MARGIN, Box, bounding_box, crop_pose, fit, person_box, whole, widen
from data.pose import NUM_JOINTS
from data.schema import JOINTS, Part, Photo, Sample

SOFT_EDGE = 0.003  # of the garment's size


class Preparation(NamedTuple):
    """How photographs become samples."""

    size: tuple[int, int]  # (height, width)
    rule: str = "paper"  # of the clothing-agnostic image, one of data.agnostic.RULES
    crop: bool = False  # to the person, and to the garment or its wearer; otherwise the whole photograph is fitted in


def soft_alpha(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool as alpha in [0, 1], fading out inside its edge: no background shines through."""
    radius = round(SOFT_EDGE * np.sqrt(mask.sum()))
    return np.clip(2 * box_mean(mask, radius) - 1, 0, 1) * mask  # outside, a corner may be half surrounded


def cut_out(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 where alpha (H, W) is 1, gray where it is 0, mixed between."""
    return np.uint8(GRAY + alpha[..., None] * (image - np.float64(GRAY)) + 0.5)


def check_photo(photo: Photo, where: str) -> None:
    """Raises ValueError, beginning with where it comes from, when a photo's parse map cannot be used."""
    if photo.parts.shape != photo.image.shape[:2]:
        raise ValueError(
            f"{where}: {photo.parts.shape[0]}x{photo.parts.shape[1]} pixels, but its photograph has "
            f"{photo.image.shape[0]}x{photo.image.shape[1]}; both must be the same picture: copy both again"
        )
    if not (photo.parts == Part.UPPER).any():
        raise ValueError(f"{where}: no pixel is labelled upper garment; check --label-map, or leave this photo out")
    if wrong := _wrong_torso(photo):
        raise ValueError(
            f"{where}: most of the torso is labelled {wrong}, so that the garment would show in the agnostic picture; "
            "check --label-map, or leave this photo out"
        )


def _wrong_torso(photo: Photo) -> str:
    """What most of the box between shoulders and hips is labelled, if that cannot be, as with another label map."""
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    corners = photo.pose[[JOINTS.index(name) for name in names]]
    if not corners[:, 2].all():
        return ""
    left, top = np.maximum(corners[:, :2].min(0), 0).astype(int)
    right, bottom = corners[:, :2].max(0).astype(int)
    torso = photo.parts[top : bottom + 1, left : right + 1]
    wrong = {part.name.lower(): float((torso == part).mean()) for part in (Part.HEAD, Part.LEGS, Part.FEET)}
    return max(wrong, key=wrong.get) if torso.size and max(wrong.values()) > 0.5 else ""


def make_sample(key: str, person: Photo, garment: Photo, how: Preparation) -> Sample:
    """The sample of a garment that somebody wears in its photo.

    The garment keeps its place and its wearer's pose, and is framed as its wearer is.  Raises ValueError when a photo
    shows no upper garment.
    """
    check_photo(person, f"sample {key!r}, person photo")
    check_photo(garment, f"sample {key!r}, garment photo")
    worn = cut_out(garment.image, soft_alpha(garment.parts == Part.UPPER))
    box = _person_box(garment.image, garment.pose, garment.parts, how)
    return _sample(
        key,
        (person.image, clothing_agnostic(person, how.rule), worn),
        (person.pose, garment.pose),
        (_person_box(person.image, person.pose, person.parts, how), box),
        how.size,
        fill=GRAY,
    )


def make_flat_sample(key: str, person: Photo, cloth: np.ndarray, mask: np.ndarray, how: Preparation) -> Sample:
    """The sample of a garment that lies flat: cloth (H, W, 3) uint8, mask (H, W) bool.

    It has no pose: every joint is invisible, and its mask frames it.  Raises ValueError when the mask is empty or of
    another size, or the person's photo shows no upper garment.
    """
    check_photo(person, f"sample {key!r}, person photo")
    if mask.shape != cloth.shape[:2] or not mask.any():
        raise ValueError(f"sample {key!r}: the cloth mask is empty or not of the cloth's size; copy both again")
    box = widen(bounding_box(mask, 0), MASK_MARGIN, mask.shape, how.size) if how.crop else whole(mask.shape)
    return _sample(
        key,
        (person.image, clothing_agnostic(person, how.rule), cut_out(cloth, soft_alpha(mask))),
        (person.pose, None),
        (_person_box(person.image, person.pose, person.parts, how), box),
        how.size,
        fill=GRAY,
    )


def make_ready_sample(
    key: str,
    person: np.ndarray,
    agnostic: np.ndarray,
    garment: np.ndarray,
    person_pose: np.ndarray,
    garment_pose: np.ndarray | None,
    how: Preparation,
) -> Sample:
    """The sample of images (H, W, 3) uint8 that were all given; poses (K, 3) in pixels of their images.

    A garment without pose lies flat, and is not cropped: nothing says where it is.  Raises ValueError when the
    clothing-agnostic image is not of the person's size.
    """
    if agnostic.shape != person.shape:
        raise ValueError(
            f"sample {key!r}: the clothing-agnostic image has {agnostic.shape[0]}x{agnostic.shape[1]} pixels, but the "
            f"person {person.shape[0]}x{person.shape[1]}; both must be the same picture: make one of them again"
        )
    flat = garment_pose is None
    return _sample(
        key,
        (person, agnostic, garment),
        (person_pose, garment_pose),
        (
            _person_box(person, person_pose, None, how),
            whole(garment.shape[:2]) if flat else _person_box(garment, garment_pose, None, how),
        ),
        how.size,
        fill=None,
    )


def _person_box(image: np.ndarray, pose: np.ndarray, parts: np.ndarray | None, how: Preparation) -> Box:
    size = image.shape[:2]
    return person_box(size, pose, parts, how.size) if how.crop else whole(size)


def _sample(
    key: str,
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    poses: tuple[np.ndarray, np.ndarray | None],
    boxes: tuple[Box, Box],
    size: tuple[int, int],
    fill: int | None,
) -> Sample:
    """The sample of person, clothing-agnostic and garment image, the former two cut to the same box.

    fill is the ground on which the garment lies.
    """
    person, agnostic, garment = images
    no_pose = np.zeros((NUM_JOINTS, 3), np.float32)
    return Sample(
        key=key,
        person=fit(person[boxes[0]], size),
        clothing_agnostic=fit(agnostic[boxes[0]], size),
        garment=fit(garment[boxes[1]], size, fill),
        person_pose=crop_pose(poses[0], boxes[0], size),
        garment_pose=no_pose if poses[1] is None else crop_pose(poses[1], boxes[1], size),
    )

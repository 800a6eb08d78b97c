"""Samples of which some images and poses are given as files and the others are made."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.agnostic import clothing_agnostic
from data.estimators import Estimators, estimate
from data.estimators.weights import Unusable
from data.framing import fit
from data.images import read_image
from data.importers.cloth_mask import find_cloth, read_cloth_mask
from data.importers.job import Made
from data.pose_formats import read_pose
from data.preprocess import Preparation, check_photo, cut_out, make_ready_sample, soft_alpha
from data.schema import Part, Photo

GARMENTS = ("cut", "worn", "flat")


class Given(NamedTuple):
    """The files of a sample; None stands for what is to be made."""

    person: Path
    garment: Path
    kind: str  # of the garment's image: cut out already, worn by somebody, or flat on a plain background
    clothing_agnostic: Path | None = None
    garment_mask: Path | None = None
    person_pose: Path | None = None
    garment_pose: Path | None = None


def load(key: str, given: Given, how: Preparation, estimators: Estimators) -> Made:
    """The sample of these files.  Raises ValueError naming the file and the remedy."""
    person, notes = read_image(given.person), []
    size = person.shape[:2]
    pose = read_pose(given.person_pose, size=size) if given.person_pose else None
    agnostic = _read_agnostic(given, size) if given.clothing_agnostic else None
    if pose is None or agnostic is None:
        photo, told = estimate_photo(given.person, person, estimators)
        notes += told
        pose = photo.pose if pose is None else pose
        if agnostic is None:
            check_photo(photo, str(given.person))
            agnostic = clothing_agnostic(photo._replace(pose=pose), how.rule)
    garment, garment_pose, told = _garment(given, estimators)
    sample = make_ready_sample(key, person, agnostic, garment, pose, garment_pose, how)
    return Made(sample, size, (*notes, *told))


def estimate_photo(path: Path, image: np.ndarray, estimators: Estimators) -> tuple[Photo, tuple[str, ...]]:
    """What the estimators see in a photograph, and what they cannot tell.

    Raises ValueError naming the file, Unusable when the estimators are to blame.
    """
    try:
        return estimate(image, estimators)
    except Unusable:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_agnostic(given: Given, size: tuple[int, int]) -> np.ndarray:
    """The clothing-agnostic image at the size (height, width) of the person's photograph."""
    image = read_image(given.clothing_agnostic)
    height, width = image.shape[:2]
    if abs(height * size[1] / (width * size[0]) - 1) > 0.01:
        raise ValueError(
            f"{given.clothing_agnostic}: {height}x{width} pixels, but {given.person} has {size[0]}x{size[1]}; both "
            "must show the same frame"
        )
    return image if image.shape[:2] == size else fit(image, size)


def _garment(given: Given, estimators: Estimators) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The garment's image, (H, W, 3) uint8, its wearer's pose in pixels or None, and notes."""
    image = read_image(given.garment)
    pose = read_pose(given.garment_pose, size=image.shape[:2]) if given.garment_pose else None
    mask = read_cloth_mask(given.garment_mask, image, given.garment.name) if given.garment_mask else None
    notes: tuple[str, ...] = ()
    if given.kind == "worn" and (mask is None or pose is None):
        photo, notes = estimate_photo(given.garment, image, estimators)
        pose = photo.pose if pose is None else pose
        if mask is None:
            check_photo(photo, str(given.garment))
            mask = photo.parts == Part.UPPER
    elif given.kind == "flat" and mask is None:
        mask, notes = find_cloth(image)
    return image if mask is None else cut_out(image, soft_alpha(mask)), pose, notes

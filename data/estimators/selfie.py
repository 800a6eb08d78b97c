"""Parts of a dressed person, by MediaPipe's selfie multiclass segmenter: hair, skin of body and face, clothes, things.

It knows one class of clothes and one of skin: regions.py divides the skin by the pose, garment_cut.py the clothes.
"""

from typing import NamedTuple

import numpy as np

from data.estimators.blazepose import Joints, Person, around
from data.estimators.garment_cut import upper_clothes
from data.estimators.regions import skin, things
from data.estimators.tflite import load
from data.estimators.weights import SELFIE_MULTICLASS
from data.estimators.windows import Window, carry, look, to_window
from data.schema import Part

SIZE = (256, 256)
BACKGROUND, HAIR, BODY_SKIN, FACE_SKIN, CLOTHES, OTHERS = range(6)
FAINT, BODY = 0.1, 0.5  # of BlazePose's silhouette: below the first is surely no body, from the second on there is
NOTEWORTHY = 0.01  # of the person's pixels
BESIDE = "something carried or loose beside the body"


class PartScores(NamedTuple):
    scores: np.ndarray  # (h, w, number of Parts) float32: how likely each Part is
    view: Window  # where in the photograph
    notes: tuple[str, ...]  # what could not be told


def find_parts(image: np.ndarray, person: Person, joints: Joints, pose: np.ndarray) -> PartScores:
    """The Parts of a person in a photograph (H, W, 3) uint8, whose pose (18, 3) is in its pixels.

    What lies beyond the body's silhouette is a bag or the like, or, when there are rivals, another person.
    """
    view = around(person, SIZE, shape=image.shape[:2])
    seen = look(image, view)
    scores = softmax(load(SELFIE_MULTICLASS)(seen / 127.5 - 1)[0])
    pose = np.hstack([to_window(pose[:, :2], view), pose[:, 2:]])
    beyond = np.zeros(SIZE, bool)
    if joints.silhouette is not None:
        beyond = carry(joints.silhouette, joints.seen_through, view) < (BODY if person.rivals else FAINT)
    if person.rivals:
        scores[beyond] = np.eye(scores.shape[-1])[BACKGROUND]
    best = scores.argmax(-1)
    carried = beyond & (best == CLOTHES)
    if carried.sum() < NOTEWORTHY * (best != BACKGROUND).sum():
        carried[:] = False
    upper, notes = upper_clothes((best == CLOTHES) & ~carried, seen, pose)
    parts = np.zeros((*SIZE, len(Part)), np.float32)
    for kind, regions in (
        (BACKGROUND, Part.BACKGROUND),
        (HAIR, Part.HEAD),
        (FACE_SKIN, Part.HEAD),
        (BODY_SKIN, skin(SIZE, pose)),
        (CLOTHES, np.where(carried, Part.OTHER, np.where(upper, Part.UPPER, Part.LOWER))),
        (OTHERS, things(SIZE, pose)),
    ):
        for part in np.unique(regions):
            parts[..., part] += scores[..., kind] * (regions == part)
    return PartScores(parts, view, notes + (BESIDE,) * bool(carried.any()))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)

"""What is in a raw photograph: the person's pose and parts, and what could not be told.

By default BlazePose and MediaPipe's selfie segmenter tell, whose weights `python -m data.estimators.fetch` brings; a
user may name ONNX files of stronger networks instead.  docs/photos.md says how good they are.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.estimators import blazepose, onnx_models, selfie
from data.estimators.windows import carry, whole
from data.schema import JOINTS, Part, Photo

SEEN = 0.5  # BlazePose's visibility from which on a joint counts as seen
ONNX_SEEN = 0.3  # the scores of RTMPose and of heatmaps are lower
TINY = 256  # pixels of the circle around the body: below, the networks see fewer than they could
RIVALS = "several people: the most prominent one was taken"
TINY_PERSON = "tiny person: joints and edges are rough"
BODY = tuple(name for name in JOINTS if not name.endswith(("eye", "ear", "nose", "neck")))


class Estimators(NamedTuple):
    """Which networks tell; None stands for the default weights."""

    pose_model: Path | None = None  # ONNX: RTMPose, or heatmaps
    parts_model: Path | None = None  # ONNX: a human parser such as SCHP
    parts_labels: str = "lip"  # label map of parts_model
    parts_channels: str = "bgr"  # what parts_model takes: bgr as SCHP, or rgb


DEFAULT = Estimators()


class Estimate(NamedTuple):
    photo: Photo
    notes: tuple[str, ...]  # what could not be told, e.g. "left wrist unsure"


def estimate(image: np.ndarray, estimators: Estimators = DEFAULT) -> Estimate:
    """The photo of an image (H, W, 3) uint8 RGB with the most prominent person's parts and pose.

    A joint that is not seen, or lies outside of the photograph, is invisible; inside, it is noted.  Raises ValueError
    when no person is found, and Unusable, naming the command or file, when a package, weights or a model are missing or
    wrong.
    """
    size = image.shape[:2]
    person = blazepose.find_person(image)
    if estimators.pose_model:
        joints, least = onnx_models.find_joints(Path(estimators.pose_model), image, person), ONNX_SEEN
    else:
        joints, least = blazepose.find_joints(image, person), SEEN
    pose, notes = _visible(joints, least, size)
    if estimators.parts_model:
        path, labels, channels = Path(estimators.parts_model), estimators.parts_labels, estimators.parts_channels
        found = onnx_models.find_parts(path, labels, channels, image, person)
    else:
        found = selfie.find_parts(image, person, joints, pose)
    about = [RIVALS] * bool(person.rivals) + [TINY_PERSON] * (2 * person.radius < TINY)
    return Estimate(Photo(image, _most_likely(found, size), pose), (*about, *found.notes, *notes))


def _visible(joints: blazepose.Joints, least: float, size: tuple[int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pose (18, 3) float32 of the joints that are seen in a photograph of size (height, width), and notes."""
    inside = ((joints.places >= 0) & (joints.places <= size[::-1])).all(1)
    seen = inside & (joints.scores >= least)
    pose = np.where(seen[:, None], np.insert(joints.places, 2, 1, axis=1), 0).astype(np.float32)
    unsure = [name for name in BODY if inside[JOINTS.index(name)] and not seen[JOINTS.index(name)]]
    return pose, tuple(f"{name.replace('_', ' ')} unsure" for name in unsure)


def _most_likely(found: selfie.PartScores, size: tuple[int, int]) -> np.ndarray:
    """The likeliest Part of each pixel of a photograph of size (height, width), background beyond the view.

    Likelihoods, not labels, are enlarged, so that edges come out smooth.  -> (H, W) uint8
    """
    best, parts = np.zeros(size, np.float32), np.zeros(size, np.uint8)
    for part in Part:
        score = carry(np.ascontiguousarray(found.scores[..., part], np.float32), found.view, whole(size))
        parts[score > best] = part
        np.maximum(best, score, out=best)
    return parts

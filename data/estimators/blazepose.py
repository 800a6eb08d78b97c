"""Who is in a photograph, and that person's joints, by BlazePose (Bazarevsky et al. 2020, arXiv 2006.10204).

Its detector answers at each anchor of a grid, as MediaPipe documents them (pose_detection_cpu.pbtxt): a score, a
box around the face, the middle of the hips, and a point on the circle around the whole body, straight above the hips
when the person stands upright.  A window on that circle shows the person upright to the landmark network.
"""

from typing import NamedTuple

import numpy as np

from data.estimators.tflite import load
from data.estimators.weights import POSE_DETECTION, POSE_LANDMARKS
from data.estimators.windows import Window, look, to_photograph, window
from data.schema import JOINTS

DETECTOR_SIZE, LANDMARK_SIZE = 224, 256
GRIDS = ((8, 2), (16, 2), (32, 6))  # stride in pixels, anchors at each place
POINTS = [0, 2, 3, 4, 5]  # of an answer: places, where 1 is a size
CLOSER = [
    (2, 2),
    (1, 1),
    (3, 1),
    (1, 3),
    (3, 3),
]  # quarters of the photograph's square: middles of windows half as large
SURE = 0.5  # from this score on somebody is there
SAME = 0.3  # detections whose boxes overlap more (intersection over union) are one person
RIVAL = 0.5  # of the chosen person's size: somebody as large as this is no bystander
ROOM = 1.25  # MediaPipe widens the body's circle by this

# Which of the 33 landmarks each joint is; the neck is the middle of the shoulders.
LANDMARKS = {
    "nose": 0, "right_shoulder": 12, "right_elbow": 14, "right_wrist": 16, "left_shoulder": 11, "left_elbow": 13,
    "left_wrist": 15, "right_hip": 24, "right_knee": 26, "right_ankle": 28, "left_hip": 23, "left_knee": 25,
    "left_ankle": 27, "right_eye": 5, "left_eye": 2, "right_ear": 8, "left_ear": 7,
}  # fmt: skip


class Person(NamedTuple):
    """Somebody in a photograph."""

    middle: np.ndarray  # (x, y) of the hips' middle, in pixels
    radius: float  # of the circle around the whole body, in pixels
    angle: float  # radians clockwise from upright
    rivals: int  # how many others are about as prominent


def around(person: Person, size: tuple[int, int], angle: float = 0, shape: tuple[int, int] | None = None) -> Window:
    """A window of this size (height, width) on the whole person: their circle and some room.

    It keeps proportions, turned by angle; or, with the photograph's shape (height, width), it ends at the
    photograph's edges and stretches what it shows.
    """
    radius = ROOM * person.radius
    if shape is None:
        scale = 2 * radius / min(size)
        return window(person.middle, (scale * size[0], scale * size[1]), size, angle)
    low, high = (np.clip(person.middle + side * radius, 0, shape[::-1]) for side in (-1, 1))
    return window((low + high) / 2, tuple((high - low)[::-1]), size)


class Joints(NamedTuple):
    places: np.ndarray  # (K, 2) in pixels of the photograph, wherever the network believes them
    scores: np.ndarray  # (K,) in [0, 1]: whether they are seen
    silhouette: np.ndarray | None = None  # (h, w) float32 in [0, 1]: the body without what it carries
    seen_through: Window | None = None  # where the silhouette lies


def find_person(image: np.ndarray) -> Person:
    """The most prominent person of a photograph (H, W, 3) uint8: the largest times the surest.

    Raises ValueError when nobody is there.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    scores, answers = _detect(image, [(width / 2, height / 2)], side)
    if not len(scores):  # closer: the detector misses whom it sees smaller than a third of its input
        middles = [(x * side / 4 + (width - side) / 2, y * side / 4 + (height - side) / 2) for x, y in CLOSER]
        scores, answers = _detect(image, middles, side / 2)
    if not len(scores):
        raise ValueError("no person was found; crop the photo around the person, or leave it out")
    middles, sizes, hips, above = answers[:, 0], answers[:, 1], answers[:, 2], answers[:, 3]
    radii = np.hypot(*(above - hips).T)
    chosen = _suppress(middles, sizes, scores * radii)
    first = chosen[0]
    dx, dy = above[first] - hips[first]
    rivals = int((radii[chosen[1:]] > RIVAL * radii[first]).sum())
    return Person(hips[first], float(radii[first]), float(np.arctan2(dx, -dy)), rivals)


def _detect(image: np.ndarray, middles: list[tuple[float, float]], side: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) of all detections in square windows, and (n, 6, 2): middle and size of the box, four points.

    Lengths are in pixels of the photograph.
    """
    found = []
    for middle in middles:
        view = window(middle, (side, side), (DETECTOR_SIZE, DETECTOR_SIZE))
        answers, logits = load(POSE_DETECTION)(look(image, view) / 127.5 - 1)
        scores = sigmoid(logits[:, 0])
        sure = scores >= SURE
        answers = answers[sure].reshape(-1, 6, 2).astype(np.float64)
        answers[:, POINTS] += DETECTOR_SIZE * _anchors()[sure, None]
        answers[:, POINTS] = to_photograph(answers[:, POINTS], view)
        answers[:, 1] *= side / DETECTOR_SIZE
        found.append((scores[sure], answers))
    return np.concatenate([scores for scores, _ in found]), np.concatenate([answers for _, answers in found])


def find_joints(image: np.ndarray, person: Person) -> Joints:
    """The joints of a person, by BlazePose's landmark network.  Raises ValueError when it sees no body there."""
    view = around(person, (LANDMARK_SIZE, LANDMARK_SIZE), angle=person.angle)
    landmarks, presence, silhouette, *_ = load(POSE_LANDMARKS)(look(image, view) / 255)
    if presence[0] < SURE:
        raise ValueError("a person was found but no body's joints; leave this photo out, or bring its pose")
    rows = landmarks.reshape(-1, 5)  # x, y, z, logits of visible and of present
    places, scores = to_photograph(rows[:, :2], view), sigmoid(rows[:, 3])
    return in_order(LANDMARKS, places, scores)._replace(silhouette=sigmoid(silhouette[..., 0]), seen_through=view)


def in_order(rows: dict[str, int], places: np.ndarray, scores: np.ndarray) -> Joints:
    """The joints from the row of each in what a network gives; the neck, which none knows, is between the shoulders."""
    names = [name for name in JOINTS if name != "neck"]
    order, shoulders = [rows[name] for name in names], [rows["left_shoulder"], rows["right_shoulder"]]
    neck = JOINTS.index("neck")
    return Joints(
        np.insert(places[order], neck, places[shoulders].mean(0), axis=0),
        np.insert(scores[order], neck, scores[shoulders].min()),
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def _anchors() -> np.ndarray:
    """The middle of each anchor, (2254, 2) in [0, 1]."""
    middles = []
    for stride, num in GRIDS:
        places = (np.arange(DETECTOR_SIZE // stride) + 0.5) * stride / DETECTOR_SIZE
        grid = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
        middles.append(np.repeat(grid, num, axis=0))
    return np.concatenate(middles)


def _suppress(middles: np.ndarray, sizes: np.ndarray, prominence: np.ndarray) -> list[int]:
    """One index for each person, the most prominent first."""
    chosen: list[int] = []
    low, high = middles - sizes / 2, middles + sizes / 2
    for i in np.argsort(-prominence, kind="stable"):
        shared = np.clip(np.minimum(high[i], high[chosen]) - np.maximum(low[i], low[chosen]), 0, None).prod(1)
        if (shared <= SAME * (sizes[i].prod() + sizes[chosen].prod(1) - shared)).all():
            chosen.append(int(i))
    return chosen

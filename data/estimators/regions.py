"""Which part of the body a piece of skin or a thing that is worn belongs to, told by the pose.

h, w pixels of a window; poses are (18, 3) rows (x, y, visible) in its pixels.
"""

import numpy as np

from data.schema import JOINTS, Part

FOOT = 0.7  # of the shin: how far a foot reaches from the ankle
HAND_CENTER, HAND_RADIUS = 0.4, 0.45  # of the forearm, measured beyond the wrist
SHOULDER, HIP = 0.25, 0.1  # of the upper arm and the thigh: skin nearer to the trunk is the trunk's
HEAD_SIZE = 1.6  # a hat ends within so many distances from head to neck around the head's middle
ARMS = (("left", Part.LEFT_ARM), ("right", Part.RIGHT_ARM))
Line = tuple[np.ndarray, np.ndarray]


def joint(pose: np.ndarray, name: str) -> np.ndarray | None:
    """Place (2,) of a joint; None when it is invisible."""
    x, y, visible = pose[JOINTS.index(name)]
    return np.array([x, y], np.float64) if visible else None


def middle_of(pose: np.ndarray, *names: str) -> np.ndarray | None:
    """Mean place (2,) of those joints that are visible, or None."""
    places = [place for place in (joint(pose, name) for name in names) if place is not None]
    return np.mean(places, axis=0) if places else None


def distance(size: tuple[int, int], start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of each pixel to the line from start to end.  -> (h, w)"""
    x, y = np.arange(size[1]) + 0.5 - start[0], (np.arange(size[0]) + 0.5 - start[1])[:, None]
    dx, dy = end - start
    share = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
    return np.hypot(x - share * dx, y - share * dy)


def skin(size: tuple[int, int], pose: np.ndarray) -> np.ndarray:
    """The Part that skin at each pixel belongs to, by the nearest bone.  -> (h, w) uint8

    The trunk's skin is the NECK's, as in the label maps of data sets.
    """
    nearest = [(np.full(size, np.inf), Part.NECK)]
    for part, lines in _bones(pose).items():
        nearest += [(distance(size, *line), part) for line in lines]
    for side, part in ARMS:
        elbow, wrist = joint(pose, f"{side}_elbow"), joint(pose, f"{side}_wrist")
        if elbow is not None and wrist is not None:
            hand = wrist + HAND_CENTER * (wrist - elbow)
            away = distance(size, hand, hand) - HAND_RADIUS * np.linalg.norm(wrist - elbow)
            nearest.append((np.where(away < 0, away, np.inf), part))  # before anything behind the hand
    which = np.argmin([away for away, _ in nearest], axis=0)
    return np.uint8([part for _, part in nearest])[which]


def _bones(pose: np.ndarray) -> dict[Part, list[Line]]:
    bones: dict[Part, list[Line]] = {Part.NECK: [], Part.LEFT_ARM: [], Part.RIGHT_ARM: [], Part.LEGS: []}

    def add(part: Part, start: np.ndarray | None, end: np.ndarray | None, low: float = 0, high: float = 1) -> None:
        if start is not None and end is not None:
            bones[part].append((start + low * (end - start), start + high * (end - start)))

    neck, hips = joint(pose, "neck"), middle_of(pose, "left_hip", "right_hip")
    add(Part.NECK, joint(pose, "left_shoulder"), joint(pose, "right_shoulder"))
    add(Part.NECK, joint(pose, "nose"), neck)
    add(Part.NECK, neck, hips)
    for side, part in ARMS:
        shoulder, elbow, wrist, hip, knee, ankle = (
            joint(pose, f"{side}_{name}") for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        )
        add(part, shoulder, elbow, low=SHOULDER)
        add(part, elbow, wrist)
        if knee is None and hip is not None and neck is not None:
            knee = hip + hips - neck  # a thigh is about as long as the trunk; good enough to tell it from a hand
        add(Part.LEGS, hip, knee, low=HIP)
        add(Part.LEGS, knee, ankle, high=1 + FOOT)
    return bones


def things(size: tuple[int, int], pose: np.ndarray) -> np.ndarray:
    """The Part of things worn that are no clothes: hats and glasses HEAD, shoes FEET, others OTHER.  (h, w) uint8"""
    parts = np.full(size, Part.OTHER, np.uint8)
    head, neck = middle_of(pose, "nose", "left_eye", "right_eye", "left_ear", "right_ear"), joint(pose, "neck")
    if head is not None and neck is not None:
        parts[distance(size, head, head) < HEAD_SIZE * np.linalg.norm(head - neck)] = Part.HEAD
    for side in ("left", "right"):
        knee, ankle = joint(pose, f"{side}_knee"), joint(pose, f"{side}_ankle")
        if knee is not None and ankle is not None:
            parts[distance(size, ankle, ankle) < FOOT * np.linalg.norm(ankle - knee)] = Part.FEET
    return parts

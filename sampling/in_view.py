"""What of a person a photograph shows.  The parts are asked too: pose networks guess joints that are not there."""

import numpy as np

from data.schema import JOINTS, Part, Photo

FACE = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")
SHOULDERS, HIPS = ("right_shoulder", "left_shoulder"), ("right_hip", "left_hip")
IN_VIEW = {"face": FACE, "shoulders": SHOULDERS, "hips": HIPS}  # of each, one joint at least must be seen
TRUNK = (Part.UPPER, Part.NECK, Part.LEFT_ARM, Part.RIGHT_ARM, Part.OTHER)  # what lies between shoulders and hips
REMEDY = "take a photograph that shows the person from head to hips"

# Of 13 whole persons the head above the shoulders has 0.11 to 0.25 of the trunk's length squared; without a head,
# hair that is left has up to 0.07.
NO_HEAD, SMALL_HEAD, HUGE_HEAD = 0.04, 0.08, 2.0
AT_JOINT = 0.1  # of the trunk's length: how far a joint of the face may be from the head
LEAST_TRUNK = 0.3  # of the line from shoulders to hips that is clothed or skin; of whole persons 0.6 to 1
WEARER = 0.01  # of the person's pixels that are the head's; whole persons 0.05 and more, flat clothes 0.001 and less
HARDLY_SEEN = "the head is hardly seen: look whether it is in the picture"


def look_at_person(photo: Photo) -> tuple[str, ...]:
    """Notes about a photo of a whole person.  Raises ValueError when head, shoulders, trunk or hips are not in view."""
    for region, joints in IN_VIEW.items():
        if not len(_places(photo, joints)):
            raise ValueError(f"no {region} in view; {REMEDY}")
    shoulders, hips = (_places(photo, joints).mean(0) for joints in (SHOULDERS, HIPS))
    length = max(float(np.linalg.norm(hips - shoulders)), 1.0)
    head = (photo.parts[: max(0, int(shoulders[1]))] == Part.HEAD).sum() / length**2
    on_head = [_is_head_near(photo.parts, place, AT_JOINT * length) for place in _places(photo, FACE)]
    if not any(on_head) or head < NO_HEAD:
        raise ValueError(f"no head in view, neither face nor hair where it should be; {REMEDY}")
    x, y = (shoulders + np.linspace(0, 1, 33)[:, None] * (hips - shoulders)).astype(int).T
    height, width = photo.parts.shape
    trunk = np.isin(photo.parts[y.clip(0, height - 1), x.clip(0, width - 1)], TRUNK).mean()
    if trunk < LEAST_TRUNK or head > HUGE_HEAD:
        raise ValueError(f"no torso in view, neither clothes nor skin between shoulders and hips; {REMEDY}")
    return (HARDLY_SEEN,) if head < SMALL_HEAD or np.mean(on_head) < 0.5 else ()


def shows_head(photo: Photo) -> bool:
    """Whether a person's head is in the picture of a garment, who then wears it."""
    return bool((photo.parts == Part.HEAD).sum() > WEARER * (photo.parts != Part.BACKGROUND).sum())


def _places(photo: Photo, joints: tuple[str, ...]) -> np.ndarray:
    """(x, y) of those joints that are visible, (n, 2)."""
    pose = photo.pose[[JOINTS.index(joint) for joint in joints]]
    return pose[pose[:, 2] > 0, :2]


def _is_head_near(parts: np.ndarray, place: np.ndarray, radius: float) -> bool:
    (left, top), (right, bottom) = np.maximum(place - radius, 0).astype(int), (place + radius).astype(int)
    return bool((parts[top : bottom + 1, left : right + 1] == Part.HEAD).any())

"""Poses: read from OpenPose's JSON, and carried along when an image is resized."""

import json
from pathlib import Path

import numpy as np

from data.schema import JOINTS

NUM_JOINTS = len(JOINTS)
NECK, RIGHT_SHOULDER, LEFT_SHOULDER = (JOINTS.index(name) for name in ("neck", "right_shoulder", "left_shoulder"))
KEYS = ("pose_keypoints_2d", "pose_keypoints")
BODY_25_TO_18 = [*range(8), *range(9, 19)]  # BODY_25 has a mid-hip at 8, and feet from 19 on
OTHER_FORMATS = {51: "COCO-17", 34: "COCO-17 without confidence", 50: "25 (x, y) pairs, as garment landmarks have"}


def read_pose(path: Path) -> np.ndarray:
    """The person's joints in pixels, (18, 3) float32 rows (x, y, visible), from OpenPose's JSON.

    75 numbers are BODY_25, 54 are COCO-18 (x, y, confidence each; 0, 0 is missing).  The joints' confidence only
    says whether they are visible.  Of several people the one with the largest box times mean confidence is taken:
    the subject of a shop photograph, not a bystander.  A missing neck is put between visible shoulders.

    Raises ValueError naming file, key and remedy when there is no person, or the numbers are not such a pose.
    """
    try:
        people = json.loads(path.read_text(encoding="utf-8"))["people"]
    except FileNotFoundError:
        raise ValueError(f"{path}: this pose is missing; put it there, or remove its row or photo") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); write it again with OpenPose") from error
    except (KeyError, TypeError):
        raise ValueError(f"{path}: has no list 'people'; expected the JSON that OpenPose --write_json writes") from None
    if not isinstance(people, list):
        raise ValueError(f"{path}: 'people' is not a list; expected the JSON that OpenPose --write_json writes")
    if not people:
        raise ValueError(f"{path}: 'people' is empty: no person was found; use another photo, or --skip-bad")
    return _subject([_joints(person, f"{path}: people[{i}]") for i, person in enumerate(people)], path)


def _joints(person: dict, where: str) -> np.ndarray:
    """(18, 3) float32 rows (x, y, confidence) of one entry of 'people'."""
    key = next((key for key in KEYS if isinstance(person, dict) and key in person), None)
    if key is None:
        raise ValueError(f"{where}: has neither {' nor '.join(KEYS)}; expected the JSON that OpenPose writes")
    try:
        numbers = np.asarray(person[key], dtype=np.float32).ravel()
    except (TypeError, ValueError):
        raise ValueError(f"{where}.{key}: not a list of numbers; write it again with OpenPose") from None
    if numbers.size not in (75, 54):
        guess = f" ({OTHER_FORMATS[numbers.size]})" if numbers.size in OTHER_FORMATS else ""
        raise ValueError(
            f"{where}.{key}: {numbers.size} numbers{guess}; expected 75 (BODY_25) or 54 (COCO-18): convert the pose, "
            "or run OpenPose with --model_pose BODY_25"
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"{where}.{key}: holds NaN or infinity; write it again, with 0, 0, 0 for a missing joint")
    joints = numbers.reshape(-1, 3)
    if len(joints) == 25:
        joints = joints[BODY_25_TO_18]
    joints = np.where(joints[:, 2:] > 0, joints, 0)
    joints[~joints[:, :2].any(1)] = 0
    if joints.any() and np.abs(joints[:, :2]).max() <= 1:
        raise ValueError(f"{where}.{key}: coordinates within [-1, 1]; pixels are expected: OpenPose --keypoint_scale 0")
    return joints


def _subject(people: list[np.ndarray], path: Path) -> np.ndarray:
    def prominence(joints: np.ndarray) -> float:
        seen = joints[joints[:, 2] > 0]
        return float((np.ptp(seen[:, :2], axis=0) + 1).prod() * seen[:, 2].mean()) if len(seen) else 0.0

    pose = max(people, key=prominence).copy()
    if not pose.any():
        raise ValueError(f"{path}: 'people' has no visible joint; use another photo, or --skip-bad")
    pose[:, 2] = pose[:, 2] > 0
    if not pose[NECK, 2] and pose[RIGHT_SHOULDER, 2] and pose[LEFT_SHOULDER, 2]:
        pose[NECK] = (pose[RIGHT_SHOULDER] + pose[LEFT_SHOULDER]) / 2
    return pose


def move(pose: np.ndarray, scale: tuple[float, float], offset: tuple[float, float] = (0, 0)) -> np.ndarray:
    """The pose (K, 3) in an image resized by scale (y, x), then placed at offset (y, x); invisible joints stay 0."""
    moved = pose.copy()
    moved[:, :2] = (pose[:, :2] * scale[::-1] + offset[::-1]) * pose[:, 2:]
    return moved


def normalise(pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pose (K, 3) of pixels as fractions of width and height.  -> (K, 3) float32

    A joint outside the frame of size (height, width) is invisible: x = y = visible = 0.
    """
    height, width = size
    normal = pose.astype(np.float32) / np.float32([width, height, 1])
    inside = ((normal[:, :2] >= 0) & (normal[:, :2] <= 1)).all(1, keepdims=True)
    return normal * inside

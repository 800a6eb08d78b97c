"""Poses from the files that pose estimators and data sets write, whatever their format."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from data.json_files import read_bytes, read_json
from data.schema import JOINTS, Part

NECK, RIGHT_SHOULDER, LEFT_SHOULDER = (JOINTS.index(name) for name in ("neck", "right_shoulder", "left_shoulder"))
KEYS = ("pose_keypoints_2d", "pose_keypoints", "keypoints")  # OpenPose, older OpenPose, COCO and DressCode
BODY_25 = (*range(8), *range(9, 19))  # it has a mid-hip at 8, and feet from 19 on
COCO_17 = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # it has no neck
# (rows, columns): where each of the 18 joints stands.  Columns are x, y, maybe confidence, or DressCode's x, y, _, _.
ORDERS = {
    (25, 3): BODY_25,
    (18, 3): range(18),
    (18, 2): range(18),
    (18, 4): range(18),
    (17, 3): COCO_17,
    (17, 2): COCO_17,
}
SHAPES = {rows * columns: (rows, columns) for rows, columns in ORDERS}  # of flat lists
EXPECTED = "expected 75 (BODY_25), 54 or 36 (COCO-18), 51 or 34 (COCO-17): convert the pose to one of them"
DRESS_CODE_FRAME = (512, 384)
FRACTIONS = 2  # pixels: no body is that small
FAR = 1e6  # pixels: no photograph is that large
MAX_BYTES = 4_000_000


def read_pose(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    frame: tuple[int, int] | None = None,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """The person's joints in pixels of the photograph, (18, 3) float32 rows (x, y, visible).

    Read are OpenPose's BODY_25 and COCO-18 ({"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}]}, also
    "pose_keypoints"), COCO-17 and COCO-18 under "keypoints" or as a plain list, flat or in rows, with or without
    confidence, and DressCode's rows of four; as JSON, in a .txt also as mere numbers.  Confidence only says whether a
    joint is visible; 0, 0 is missing, in DressCode whatever is at most 1.  A missing neck is put between visible
    shoulders.

    size is (height, width) of the photograph, or the parse map's; without one nothing is scaled or known to lie
    outside.  frame is what the coordinates refer to where that is another size: (1, 1) for fractions; rows of four
    are in 512x384 unless it is given.  Joints outside the photograph are invisible: estimators guess on beyond its
    edge, and -1 is a common mark of what is missing.

    Of several people the one is taken most of whose joints lie on the person of parts, (H, W) values of Part.  Without
    it the one with the largest box times mean confidence: the subject of a shop photograph, not a bystander.

    Raises ValueError naming file, key and remedy when there is no person, the numbers are not such a pose, or the
    pose is of another photograph or size: most of its joints lie outside, or beside the person of parts.
    """
    if parts is not None and size in (None, parts.shape):
        size = parts.shape
    else:
        parts = None  # of another size, it is not of this photograph: check_photo says so
    people = [_joints(numbers, f"{path}{where}", size, frame) for where, numbers in _people(_document(path), path)]
    pose = max(people, key=_prominence if parts is None else lambda pose: _on_person(pose, parts))
    if not pose.any():
        raise ValueError(f"{path}: has no visible joint; use another photo")
    if parts is not None and _on_person(pose, parts) < 0:
        raise ValueError(
            f"{path}: most of the joints do not lie on the person of the parse map; the pose is of another photo or "
            "of another size: make it of this very image"
        )
    pose[:, 2] = pose[:, 2] > 0
    if not pose[NECK, 2] and pose[RIGHT_SHOULDER, 2] and pose[LEFT_SHOULDER, 2]:
        pose[NECK] = (pose[RIGHT_SHOULDER] + pose[LEFT_SHOULDER]) / 2
    return pose.astype(np.float32)


def _document(path: Path) -> Any:
    """What the JSON says; of a .txt, the flat list of its numbers where it holds nothing else."""
    if Path(path).suffix.lower() == ".txt":
        text = read_bytes(path, "pose", MAX_BYTES).decode(errors="replace")
        try:
            return [float(word) for word in re.split(r"[\s,;]+", text.strip())]
        except ValueError:
            pass
    return read_json(path, "pose", MAX_BYTES)


def _people(document: Any, path: Path) -> list[tuple[str, Any]]:
    """(the key, for messages; the numbers) of each person."""
    if isinstance(document, dict) and "people" in document:
        people, prefix = document["people"], ": people"
        if not isinstance(people, list):
            raise ValueError(f"{path}: 'people' is not a list; expected the JSON that OpenPose --write_json writes")
    elif isinstance(document, list) and document and all(isinstance(person, dict) for person in document):
        people, prefix = document, ": "
    elif isinstance(document, dict):
        people, prefix = [document], None
    else:
        return [("", document)]
    if not people:
        raise ValueError(f"{path}: 'people' is empty: no person was found; use another photo")
    found = []
    for i, person in enumerate(people):
        where = "" if prefix is None else f"{prefix}[{i}]"
        key = next((key for key in KEYS if isinstance(person, dict) and key in person), None)
        if key is None:
            raise ValueError(
                f"{path}{where}: has none of {', '.join(KEYS)}; expected a pose as OpenPose or COCO have it"
            )
        found.append((f"{where}.{key}" if where else f": {key}", person[key]))
    return found


def _joints(value: Any, where: str, size: tuple[int, int] | None, frame: tuple[int, int] | None) -> np.ndarray:
    """(18, 3) float64 rows (x, y, confidence) in pixels of the photograph; 0, 0, 0 for a joint that is not in it."""
    try:
        numbers = np.asarray(value, dtype=np.float64).squeeze()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: not a list of numbers; write the pose again") from None
    shape = SHAPES.get(numbers.size) if numbers.ndim == 1 else numbers.shape[-2:]
    if shape not in ORDERS or numbers.size != shape[0] * shape[1]:
        guess = " (25 (x, y) pairs, as garment landmarks have)" if numbers.size == 50 else ""
        raise ValueError(f"{where}: {numbers.size} numbers{guess} are no pose; {EXPECTED}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{where}: holds NaN or infinity; write the pose again, with 0, 0 for a missing joint")
    if np.abs(numbers).max() > FAR:
        raise ValueError(f"{where}: coordinates of more than {FAR:.0f} pixels are none; write the pose again")
    columns = shape[1]
    numbers = np.vstack([numbers.reshape(shape), np.zeros(columns)])[list(ORDERS[shape])]
    xy, confidence = numbers[:, :2], numbers[:, 2] if columns == 3 else np.ones(len(JOINTS))
    if columns == 4:
        frame = frame or DRESS_CODE_FRAME
        present = (xy > 1).all(1)
    else:
        present = xy.any(1) & (confidence > 0)
    if frame is None and present.any() and np.abs(xy[present]).max() <= FRACTIONS:
        raise ValueError(
            f"{where}: coordinates within [-1, 1] are no pixels; multiply x by the width and y by the height of the "
            "photograph (OpenPose: --keypoint_scale 0)"
        )
    if frame and size:
        xy = xy * (size[1] / frame[1], size[0] / frame[0])
    inside = present & (xy >= 0).all(1)
    if size:
        beyond = (xy > size[::-1]).any(1) & present
        if beyond.sum() * 2 > present.sum():
            raise ValueError(
                f"{where}: {beyond.sum()} of {present.sum()} joints lie outside the photograph of {size[0]}x{size[1]}; "
                "the pose is of another photo or of another size: make it of this very image"
            )
        inside &= ~beyond
    return np.column_stack([xy, confidence]) * inside[:, None]


def _prominence(pose: np.ndarray) -> float:
    """The box of the visible joints times their mean confidence."""
    seen = pose[pose[:, 2] > 0]
    return float((np.ptp(seen[:, :2], axis=0) + 1).prod() * seen[:, 2].mean()) if len(seen) else 0.0


def _on_person(pose: np.ndarray, parts: np.ndarray) -> int:
    """How many more joints lie on the person than beside."""
    x, y = pose[pose[:, 2] > 0, :2].astype(int).T
    height, width = parts.shape
    on = parts[np.minimum(y, height - 1), np.minimum(x, width - 1)] != Part.BACKGROUND
    return int(on.sum() - (~on).sum())

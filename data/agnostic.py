"""The person without the garment: the paper's rule, and a milder one that leaves the background.

H, W pixels.  Every length is a fraction of the body's, never a number of pixels.
"""

import numpy as np
from PIL import Image, ImageDraw

from data.framing import bounding_box
from data.schema import JOINTS, Part, Photo

GRAY = 128
CHANGED = 24  # of 255, in one channel at least: more than JPEG does to flat colours
FILLED = 8  # of 255, from GRAY in every channel: what JPEG leaves of the fill
RULES = ("paper", "viton_hd")
PASTED = (Part.HEAD, Part.LOWER, Part.LEGS, Part.FEET)  # and the hands
# Of body_size: how far the garment's colours may bleed over its edge.  On 13 photographs of 1024x768 it is 10 pixels or
# more, so that at 256 not even the filter's reach takes any from two pixels around the garment's label.
MARGIN = 0.025
# A hand is 0.7 of the forearm; these are fractions of the forearm's length, measured beyond the wrist.
HAND_START, HAND_CENTER, HAND_RADIUS = 0.1, 0.4, 0.45


def clothing_agnostic(photo: Photo, rule: str = "paper") -> np.ndarray:
    """The person without the garment.  -> (H, W, 3) uint8

    rule is one of RULES.  paper (Zhu et al. 2023, Sec. 3): the person's whole bounding box is gray; head, hands and
    lower body are pasted back.  The neck is not: the neckline is the garment's.  Its hem shows, as where the lower body
    begins.  viton_hd (Choi et al. 2021): gray are the garment, and shapes drawn along the pose over torso, arms and
    neck; head, hands, lower body and what lies outside the shapes stay.  So the background is kept, but also the
    outline of a garment wider than the shapes, and what of it the parse map takes for skin or background out there.

    What stays of the person ends a MARGIN before anything that is hidden, so that no rim of the garment remains;
    islands of wrong labels inside the garment go with it.
    """
    assert rule in RULES, rule
    person = photo.parts != Part.BACKGROUND
    margin = max(1, round(MARGIN * body_size(photo.parts)))
    if rule == "paper":
        hidden = np.zeros(person.shape, bool)
        hidden[bounding_box(person, margin)] = True
    else:
        hidden = pose_shapes(photo) | grow(photo.parts == Part.UPPER, margin)
    pasted = np.isin(photo.parts, PASTED) | hand(photo, "left") | hand(photo, "right")
    pasted &= ~grow(hidden & person & ~pasted, margin)
    agnostic = photo.image.copy()
    agnostic[hidden & ~pasted] = GRAY
    return agnostic


def drawn_region(person: np.ndarray, clothing_agnostic: np.ndarray) -> np.ndarray:
    """Where a network has to draw: where the clothing-agnostic image is not the person, and where it is gray within
    the box around that, since the garment may be gray itself.  (..., H, W, 3) uint8 each -> (..., H, W) bool"""
    changed = differs(person, clothing_agnostic, CHANGED)
    filled = ~differs(clothing_agnostic, GRAY, FILLED)
    return changed | (filled & _spanned(changed, -1) & _spanned(changed, -2))


def _spanned(mask: np.ndarray, axis: int) -> np.ndarray:
    """Rows (axis -1) or columns (-2) from the first to the last in which the mask (..., H, W) has a pixel."""
    along, any_in = -3 - axis, mask.any(axis, keepdims=True)
    before = np.logical_or.accumulate(any_in, along)
    return before & np.flip(np.logical_or.accumulate(np.flip(any_in, along), along), along)


def differs(a: np.ndarray, b: np.ndarray | int, least: int) -> np.ndarray:
    """Where an image (..., H, W, 3) uint8 differs from another, or from a level of gray, by more than this in some
    channel.  -> (..., H, W) bool"""
    return (np.abs(a.astype(np.int16) - b) > least).any(-1)


def pose_shapes(photo: Photo) -> np.ndarray:
    """Torso, arms and neck where the pose has them, as thick as they are in clothes.  -> (H, W) bool

    After VITON-HD's get_img_agnostic (Choi et al. 2021): all widths are fractions of the shoulders' distance, which
    is at least a quarter of body_size where a turned body foreshortens it.  Hips that are not seen are taken to be
    where the garment ends; without both shoulders the garment's bounding box is all.
    """
    joints = {name: row[:2] for name, row in zip(JOINTS, photo.pose.astype(float), strict=True) if row[2]}
    rows, columns = bounding_box(photo.parts == Part.UPPER, 0)
    if not {"left_shoulder", "right_shoulder"} <= joints.keys():
        box = np.zeros(photo.parts.shape, bool)
        box[rows, columns] = True
        return box
    shoulders = np.stack([joints["right_shoulder"], joints["left_shoulder"]])  # (2, 2) rows (x, y)
    across = shoulders[1] - shoulders[0]
    distance = max(float(np.linalg.norm(across)), body_size(photo.parts) / 4)
    unit = distance / 16
    seen = [joints[name] for name in ("right_hip", "left_hip") if name in joints]
    middle = np.mean(seen, axis=0) if seen else np.array([shoulders[:, 0].mean(), rows.stop])
    if len(seen) == 2 and (seen[1] != seen[0]).any():
        across = seen[1] - seen[0]
    half = across / max(float(np.linalg.norm(across)), 1e-6) * distance / 2
    hips = np.stack([middle - half, middle + half])  # as far apart as the shoulders

    mask = Image.new("1", photo.parts.shape[::-1])
    draw = ImageDraw.Draw(mask)

    def blob(center: np.ndarray, *radii: float) -> None:
        draw.ellipse([*(center - radii), *(center + radii)], fill=1)

    def line(a: np.ndarray, b: np.ndarray, width: float) -> None:
        draw.line([*a, *b], fill=1, width=max(1, round(width)))

    line(*shoulders, 10 * unit)
    for side, shoulder, hip in zip(("right", "left"), shoulders, hips, strict=True):
        blob(shoulder, 5 * unit, 5 * unit)
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist")):
            if f"{side}_{a}" in joints and f"{side}_{b}" in joints:
                line(joints[f"{side}_{a}"], joints[f"{side}_{b}"], 10 * unit)
                blob(joints[f"{side}_{b}"], 5 * unit, 5 * unit)
        blob(hip, 3 * unit, 6 * unit)
        line(shoulder, hip, 6 * unit)
    line(*hips, 12 * unit)
    draw.polygon([*shoulders[0], *shoulders[1], *hips[1], *hips[0]], fill=1)
    if "neck" in joints:
        draw.rectangle([*(joints["neck"] - 7 * unit), *(joints["neck"] + 7 * unit)], fill=1)
    return np.array(mask)


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

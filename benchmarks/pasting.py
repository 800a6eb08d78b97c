"""Try-on without learning: the garment, or its mean colour, is moved by the keypoints and pasted onto a picture.

H, W pixels; K joints.  A geometric reference: it knows both poses exactly, and nothing of cloth, light or what hides
what.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data.schema import JOINTS, Sample

TRUNK = ("neck", "right_shoulder", "left_shoulder", "right_hip", "left_hip")
LIMBS = [(f"{side}_{a}", f"{side}_{b}") for side in ("right", "left") for a, b in
         (("shoulder", "elbow"), ("elbow", "wrist"))]  # fmt: skip
ACROSS, ABOVE, BELOW = 0.62, 0.3, 1.35  # of the trunk: in shoulder widths from the spine, torso lengths from the neck
THICK = 0.2  # of a limb, in its length


def warped(sample: Sample, garment_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The garment on the person's keypoints, (H, W, 3) uint8, and where it lies, (H, W) bool.

    An affine map of the trunk by neck, shoulders and hips, and one similarity for each part of an arm over it.
    """
    height, width = garment_mask.shape
    scale = np.array([width, height])
    to, source = (pose[:, :2] * scale for pose in (sample.person_pose, sample.garment_pose))
    seen = (sample.person_pose[:, 2] > 0.5) & (sample.garment_pose[:, 2] > 0.5)
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([x, y], -1)  # (H, W, 2)
    cloth = np.concatenate([sample.garment, 255.0 * garment_mask[..., None]], 2)
    image, mask = np.zeros((height, width, 3), np.float32), np.zeros((height, width), bool)
    for part in (TRUNK, *LIMBS):
        ids = [JOINTS.index(name) for name in part]
        if not seen[ids].all():
            continue
        back = _trunk_map(to[ids], source[ids]) if part is TRUNK else _limb_map(to[ids], source[ids])
        inside = _on_trunk(pixels, to[ids]) if part is TRUNK else _on_limb(pixels, to[ids])
        found = _looked_up(cloth, pixels @ back[:2] + back[2])
        where = inside & (found[..., 3] > 127)
        image[where], mask[where] = found[where][:, :3], True
    return image.round().clip(0, 255).astype(np.uint8), mask


def mean_color(sample: Sample, garment_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `warped`, in the garment's mean colour."""
    _, mask = warped(sample, garment_mask)
    return np.broadcast_to(sample.garment[garment_mask].mean(0), sample.garment.shape).astype(np.uint8), mask


def pasted(onto: np.ndarray, garment: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], garment, onto)


def _trunk_map(to: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(3, 2): [x, y, 1] of the person to the garment's photograph, by least squares."""
    return np.linalg.lstsq(np.concatenate([to, np.ones((len(to), 1))], 1), source, rcond=None)[0]


def _limb_map(to: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(3, 2): the similarity that takes both ends of a limb to where they are in the garment's photograph."""
    a, b = (complex(*(pose[1] - pose[0])) for pose in (to, source))
    turn = b / a if abs(a) > 1e-6 else 1 + 0j
    linear = np.array([[turn.real, turn.imag], [-turn.imag, turn.real]])
    return np.concatenate([linear, (source[0] - to[0] @ linear)[None]])


def _on_trunk(pixels: np.ndarray, trunk: np.ndarray) -> np.ndarray:
    neck, right, left, *hips = trunk
    down, across = np.mean(hips, 0) - neck, left - right
    v, u = ((pixels - neck) @ axis / (axis @ axis) for axis in (down, across))
    return (np.abs(u) < ACROSS) & (v > -ABOVE) & (v < BELOW)


def _on_limb(pixels: np.ndarray, limb: np.ndarray) -> np.ndarray:
    axis = limb[1] - limb[0]
    length = max(axis @ axis, 1e-6)
    t = ((pixels - limb[0]) @ axis / length).clip(0, 1)
    beside = pixels - limb[0] - t[..., None] * axis
    return (beside**2).sum(-1) < THICK**2 * length


def _looked_up(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(H, W, C) read at places (H, W, 2) in pixels, bilinearly; 0 outside."""
    height, width = image.shape[:2]
    grid = torch.from_numpy(places * 2 / [width, height] - 1).float()[None]
    planes = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    return F.grid_sample(planes, grid, align_corners=False)[0].permute(1, 2, 0).numpy()

"""Augmentation, drawn from (seed, position) alone."""

import numpy as np

from data.randomness import Purpose, keyed_rng
from data.schema import JOINTS, Sample

# Mirrored, a left elbow is a right elbow.
MIRRORED_JOINTS = np.array(
    [
        JOINTS.index(name.replace("left", "?").replace("right", "left").replace("?", "right"))
        for name in JOINTS
    ]
)  # fmt: skip


def mirror_pose(pose: np.ndarray) -> np.ndarray:
    """The pose (K, 3), x in [0, 1], in the mirrored image; invisible joints stay at 0."""
    mirrored = pose[MIRRORED_JOINTS].copy()
    mirrored[:, 0] = (1 - mirrored[:, 0]) * mirrored[:, 2]
    return mirrored


def mirror(sample: Sample) -> Sample:
    """The mirror image of a whole sample: images, poses and the names of joints."""
    return Sample(
        key=sample.key,
        person=sample.person[:, ::-1],
        clothing_agnostic=sample.clothing_agnostic[:, ::-1],
        garment=sample.garment[:, ::-1],
        person_pose=mirror_pose(sample.person_pose),
        garment_pose=mirror_pose(sample.garment_pose),
    )


def augment(sample: Sample, seed: int, position: int, flip_prob: float) -> Sample:
    """The sample as training sees it at this position of the stream."""
    if flip_prob and keyed_rng(seed, position, Purpose.AUGMENT).random() < flip_prob:
        return mirror(sample)
    return sample

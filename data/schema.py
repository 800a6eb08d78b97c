"""What a photograph is before it becomes a sample, and what a sample is.

H, W pixels; K keypoints.  Images are uint8 RGB.  Poses are (K, 3) float32 rows (x, y, visible) in the order
of JOINTS: x to the right, y down, visible 1 or 0.  An invisible joint has x = y = 0, never a guessed place.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

# COCO-18 in the order of OpenPose.
JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip


class Part(IntEnum):
    """Regions of a dressed person, as the try-on preprocessing needs them.  Left is the person's left."""

    BACKGROUND = 0
    HEAD = 1  # face, hair, hat, glasses
    NECK = 2  # skin between head and garment: neck, shoulders, decollete
    UPPER = 3  # the garment: upper clothes, coat, dress, jumpsuit
    LOWER = 4  # trousers, skirt
    LEFT_ARM = 5  # skin of arm and hand
    RIGHT_ARM = 6
    LEGS = 7
    FEET = 8  # socks, shoes
    OTHER = 9  # bag, scarf, belt, gloves: neither garment nor body


class Photo(NamedTuple):
    """One photograph of a dressed person with what is known about it."""

    image: np.ndarray  # (H, W, 3) uint8
    parts: np.ndarray  # (H, W) uint8, values of Part
    pose: np.ndarray  # (K, 3) float32, in pixels


class Sample(NamedTuple):
    """One training sample at a stage's size: what the network sees and what it must draw.

    An image that a stage has no use for is empty, (0, 0, 3), where it is not decoded.
    """

    key: str
    person: np.ndarray  # (H, W, 3) uint8, the truth
    clothing_agnostic: np.ndarray  # (H, W, 3) uint8, the person without the garment
    garment: np.ndarray  # (H, W, 3) uint8, the garment cut out of its photograph
    person_pose: np.ndarray  # (K, 3) float32, x and y in [0, 1] of width and height
    garment_pose: np.ndarray  # (K, 3) float32; all invisible where the garment lies flat


# A sample's members in a shard, in the order of Sample.
IMAGES = ("person", "clothing_agnostic", "garment")
POSES = ("person_pose", "garment_pose")
FIELDS = IMAGES + POSES

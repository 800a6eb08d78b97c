"""The synthetic people: who they are, how they stand, and where that puts their joints.

Geometry is in units of the frame's height: x to the right from the middle of the person's frame, y down from its top.
The camera faces the person, so that the person's right is at the left of the photograph.
"""

import math
from typing import NamedTuple

import numpy as np

from data.synthetic_garments import HALF_WIDTH, Color, draw_color

HAIRSTYLES = ("bald", "short", "bob", "long", "bun")
BOTTOMS = ("trousers", "shorts", "skirt", "miniskirt")
SHOULDER_Y, TORSO, UPPER_ARM, FOREARM = 0.375, 0.40, 0.27, 0.22
SKINS = ((0.98, 0.86, 0.77), (0.93, 0.76, 0.63), (0.85, 0.65, 0.49), (0.70, 0.49, 0.34), (0.50, 0.33, 0.23))
HAIRS = ((0.10, 0.08, 0.08), (0.28, 0.17, 0.10), (0.50, 0.30, 0.15), (0.88, 0.72, 0.42), (0.62, 0.24, 0.12))
GESTURES = (  # probability; upper arm, forearm: degrees from straight down, outwards; behind the torso?
    (0.26, (6, 18), (-4, 14), False),  # down
    (0.16, (36, 52), (-66, -52), False),  # hand on the hip
    (0.12, (2, 16), (-116, -92), False),  # across the chest
    (0.10, (4, 18), (-78, -52), False),  # across the belly
    (0.10, (100, 138), (165, 222), False),  # raised
    (0.08, (108, 126), (244, 260), True),  # behind the head
    (0.08, (45, 80), (20, 75), False),  # to the side
    (0.06, (22, 42), (140, 170), False),  # greeting
    (0.04, (14, 24), (-44, -30), True),  # behind the back
)


class Person(NamedTuple):
    """Who is photographed: body, head, what is worn below, and the studio."""

    width: float  # of the body, about 1
    height: float  # of torso and limbs, about 1
    waist: float  # how far the waist is drawn in
    skin: Color
    hair: Color
    hairstyle: str  # of HAIRSTYLES
    bottom: str  # of BOTTOMS
    bottom_color: Color
    backdrop: Color

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Person":
        """A person drawn from rng."""
        tone = rng.uniform(0, len(SKINS) - 1)
        low = min(int(tone), len(SKINS) - 2)
        grey, tint = rng.uniform(0.84, 0.97), rng.uniform(-0.025, 0.025)
        return cls(
            width=rng.uniform(0.86, 1.14),
            height=rng.uniform(0.95, 1.05),
            waist=rng.uniform(0.008, 0.04),
            skin=mix(SKINS[low], SKINS[low + 1], tone - low),
            hair=mix(HAIRS[rng.integers(len(HAIRS))], (0.3, 0.25, 0.22), rng.uniform(0, 0.3)),
            hairstyle=str(rng.choice(HAIRSTYLES, p=(0.06, 0.28, 0.22, 0.26, 0.18))),
            bottom=BOTTOMS[rng.integers(len(BOTTOMS))],
            bottom_color=mix(draw_color(rng), (0.2, 0.24, 0.35), rng.uniform(0.3, 0.9)),
            backdrop=(grey + tint, grey, grey - tint),
        )


class Arm(NamedTuple):
    """One arm: directions in radians from straight down, outwards."""

    upper: float
    fore: float
    reach: float  # visible length of the upper arm: under 1 where it points at the camera
    behind: bool  # behind the torso


class Pose(NamedTuple):
    """How the person stands before the camera."""

    right: Arm
    left: Arm
    turn: float  # of the body, radians, towards the person's left
    yaw: float  # of the head, radians, like turn
    roll: float  # of the head, radians
    lean: float  # sideways, in torso lengths
    shoulders: float  # slope of the shoulder line
    hips: float  # slope of the hip line
    shift: float  # of the whole person to the right
    zoom: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Pose":
        """A pose drawn from rng, frontal to slightly turned."""
        turn = rng.uniform(-0.55, 0.55)
        lean = rng.uniform(-0.12, 0.12)
        return cls(
            right=draw_arm(rng),
            left=draw_arm(rng),
            turn=turn,
            yaw=0.6 * turn + rng.uniform(-0.3, 0.3),
            roll=0.4 * lean + rng.uniform(-0.1, 0.1),
            lean=lean,
            shoulders=0.5 * lean + rng.uniform(-0.07, 0.07),
            hips=-0.5 * lean + rng.uniform(-0.04, 0.04),
            shift=rng.uniform(-0.04, 0.04),
            zoom=rng.uniform(0.93, 1.03),
        )


def draw_arm(rng: np.random.Generator) -> Arm:
    """An arm drawn from rng, in one of GESTURES."""
    probability, *_ = zip(*GESTURES, strict=True)
    _, upper, fore, behind = GESTURES[rng.choice(len(GESTURES), p=probability)]
    return Arm(math.radians(rng.uniform(*upper)), math.radians(rng.uniform(*fore)), rng.uniform(0.9, 1), behind)


def joints(person: Person, pose: Pose) -> dict[str, tuple[float, float]]:
    """Where each of JOINTS is, visible or not, in the units and the origin of the person's own frame."""
    length, cos = TORSO * person.height, math.cos(pose.turn)
    chest, pelvis = (pose.lean * length, SHOULDER_Y), (0.0, SHOULDER_Y + length)
    j = {"neck": chest}
    for name, side, arm in (("right", -1, pose.right), ("left", 1, pose.left)):
        x = side * HALF_WIDTH * person.width * cos
        j[f"{name}_shoulder"] = (chest[0] + x, chest[1] + x * pose.shoulders)
        reach = UPPER_ARM * person.height * arm.reach
        j[f"{name}_elbow"] = along(j[f"{name}_shoulder"], side * arm.upper, reach)
        j[f"{name}_wrist"] = along(j[f"{name}_elbow"], side * arm.fore, FOREARM * person.height)
        x = side * 0.073 * person.width * cos
        j[f"{name}_hip"] = (pelvis[0] + x, pelvis[1] + x * pose.hips)
        j[f"{name}_knee"] = along(j[f"{name}_hip"], side * 0.06, 0.37 * person.height)
        j[f"{name}_ankle"] = along(j[f"{name}_knee"], 0.0, 0.36 * person.height)
    center = head_center(pose, chest)
    for name, azimuth, y, radius in (
        ("nose", 0.0, 0.018, 0.078),
        ("right_eye", -0.45, -0.008, 0.07),
        ("left_eye", 0.45, -0.008, 0.07),
        ("right_ear", -1.5, 0.005, 0.074),
        ("left_ear", 1.5, 0.005, 0.074),
    ):
        x = radius * math.sin(azimuth + pose.yaw)
        j[name] = (
            center[0] + x * math.cos(pose.roll) - y * math.sin(pose.roll),
            center[1] + x * math.sin(pose.roll) + y * math.cos(pose.roll),
        )
    return j


def head_center(pose: Pose, chest: tuple[float, float]) -> tuple[float, float]:
    return (chest[0] + 0.2 * math.sin(pose.roll) + 0.02 * math.sin(pose.turn), chest[1] - 0.2 * math.cos(pose.roll))


def along(start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
    """The point at length from start, angle in radians from straight down to the right."""
    return start[0] + length * math.sin(angle), start[1] + length * math.cos(angle)


def mix(a: Color, b: Color, t: float) -> Color:
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))

"""Drawn people with known truth: pairs to train on and to test on, and what else each test person might have worn.

Persons, garments and poses are drawn from (seed, index): another seed shares none of them.  Every garment has a print,
and the two photographs of a pair differ strongly in pose.
"""

from typing import NamedTuple

import numpy as np

from data.framing import fit
from data.importers.drawn import OVERSAMPLING
from data.preprocess import Preparation, make_sample
from data.schema import Part, Photo, Sample
from data.synthetic import render
from data.synthetic_garments import Garment
from data.synthetic_people import Person, Pose, joints

PRINT = ("pattern", "emblem", "letter", "base", "second", "period", "phase")  # of a garment; the rest is its cut
SIDES = ("right", "left")
LEAST_ARMS, LEAST_TURN = 1.5, 0.3  # radians between the poses of a pair: all four arm angles together, and the body's


class Scene(NamedTuple):
    """One person in one garment, in the pose of the photograph that is drawn and in that of the garment's."""

    person: Person
    garment: Garment
    pose: Pose
    other: Pose


def scene(seed: int, index: int) -> Scene:
    """A pure function of both."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    person, garment = Person.sample(rng), Garment.sample(rng)
    while garment.pattern == "plain":
        garment = Garment.sample(rng)
    pose, other = Pose.sample(rng), Pose.sample(rng)
    while not _far_apart(pose, other):
        pose, other = Pose.sample(rng), Pose.sample(rng)
    return Scene(person, garment, pose, other)


def _far_apart(a: Pose, b: Pose) -> bool:
    arms = sum(abs(getattr(a, s).upper - getattr(b, s).upper) + abs(getattr(a, s).fore - getattr(b, s).fore)
               for s in SIDES)  # fmt: skip
    return arms > LEAST_ARMS and abs(a.turn - b.turn) > LEAST_TURN


def pair(seed: int, index: int, size: tuple[int, int]) -> Sample:
    """The sample of a scene, (height, width)."""
    return _sample(scene(seed, index), f"{seed}-{index:07d}", size)[0]


def _sample(one: Scene, key: str, size: tuple[int, int]) -> tuple[Sample, Photo, Photo]:
    large = (OVERSAMPLING * size[0], OVERSAMPLING * size[1])
    worn, given = (render(one.person, one.garment, pose, large) for pose in (one.pose, one.other))
    return make_sample(key, worn, given, Preparation(size, "paper", False)), worn, given


class Known(NamedTuple):
    """A test pair and its alternatives; the truth is the first of each."""

    sample: Sample
    mask: np.ndarray  # (H, W) bool, where the person's photograph shows the garment
    either: np.ndarray  # (H, W) bool, where it shows the garment, or would show the next pair's
    garment_mask: np.ndarray  # (H, W) bool, where the garment's photograph does
    prints: np.ndarray  # (P, H, W, 3) uint8, the person in this cut with the prints of P garments
    arms: tuple[np.ndarray, np.ndarray]  # right and left: (P, H, W, 3), with this arm posed as P people do
    joints: tuple[np.ndarray, np.ndarray]  # right and left: (P, 2, 2), elbow and wrist of that, in torso lengths


def known(seed: int, index: int, num: int, alternatives: int, size: tuple[int, int]) -> Known:
    """Test pair `index` of `num`, whose successors lend it their prints and arms."""
    scenes = [scene(seed, (index + i) % num) for i in range(alternatives)]
    one = scenes[0]
    sample, worn, given = _sample(one, f"{seed}-{index:07d}", size)
    large = worn.parts.shape

    def shown(garment: Garment, pose: Pose) -> np.ndarray:
        return fit(render(one.person, garment, pose, large).image, size)

    garments = [one.garment._replace(**{name: getattr(s.garment, name) for name in PRINT}) for s in scenes]
    swapped = render(one.person, scenes[1].garment, one.pose, large)
    poses = [[one.pose._replace(**{side: getattr(s.pose, side)}) for s in scenes] for side in SIDES]
    return Known(
        sample,
        _where(worn, size),
        _where(worn, size) | _where(swapped, size),
        _where(given, size),
        np.stack([shown(garment, one.pose) for garment in garments]),
        tuple(np.stack([shown(one.garment, pose) for pose in each]) for each in poses),
        tuple(
            np.stack([_arm(one.person, pose, side) for pose in each]) for side, each in zip(SIDES, poses, strict=True)
        ),
    )


def _where(photo: Photo, size: tuple[int, int]) -> np.ndarray:
    mask = np.repeat((photo.parts == Part.UPPER)[..., None] * np.uint8(255), 3, 2)
    return fit(mask, size)[..., 0] > 127


def _arm(person: Person, pose: Pose, side: str) -> np.ndarray:
    """Elbow and wrist, (2, 2), in torso lengths."""
    j = joints(person, pose)
    torso = np.hypot(*np.subtract(np.add(j["right_hip"], j["left_hip"]) / 2, j["neck"]))
    return np.array([j[f"{side}_elbow"], j[f"{side}_wrist"]]) / torso

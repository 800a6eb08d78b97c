"""The synthetic people are a pure function of (seed, index), and what is said about them is true."""

import itertools

import numpy as np
import pytest

from data.schema import JOINTS, Part
from data.synthetic import draw_pair, render
from data.synthetic_garments import EMBLEMS, LETTERS, NECKLINES, PATTERNS, SLEEVES, Garment
from data.synthetic_people import Arm, Person, Pose

SIZE = (96, 72)


def rng(index: int) -> np.random.Generator:
    return np.random.default_rng(index)


def standing(**changes) -> Pose:
    """Straight before the camera, arms a little out."""
    arm = Arm(upper=0.3, fore=0.2, reach=1.0, behind=False)
    still = dict.fromkeys(("turn", "yaw", "roll", "lean", "shoulders", "hips", "shift"), 0.0)
    return Pose(**{"right": arm, "left": arm, **still, "zoom": 1.0, **changes})


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_a_pair_is_a_function_of_seed_and_index_alone():
    first = draw_pair(3, 5, SIZE)
    draw_pair(0, 0, (32, 32))
    assert same(first, draw_pair(3, 5, SIZE))
    for other in ((3, 6), (4, 5), (5, 3)):
        assert not np.array_equal(first[0].image, draw_pair(*other, SIZE)[0].image)


def test_a_photo_has_the_types_and_shapes_of_the_schema():
    for photo in draw_pair(0, 0, SIZE):
        assert photo.image.shape == (*SIZE, 3) and photo.image.dtype == np.uint8
        assert photo.parts.shape == SIZE and photo.parts.dtype == np.uint8
        assert photo.pose.shape == (len(JOINTS), 3) and photo.pose.dtype == np.float32
        assert set(np.unique(photo.parts)) <= {int(part) for part in Part}


@pytest.mark.parametrize("index", range(25))
def test_visible_joints_lie_on_the_person_and_invisible_ones_nowhere(index):
    for photo in draw_pair(1, index, (128, 128)):
        assert (photo.pose[photo.pose[:, 2] == 0] == 0).all()
        body = np.argwhere(photo.parts != Part.BACKGROUND) + 0.5
        for x, y, visible in photo.pose:
            if visible:
                assert 0 <= x < 128 and 0 <= y < 128
                assert np.abs(body - (y, x)).max(1).min() <= 2


def test_the_persons_right_is_at_the_left_of_the_photo():
    photo = render(Person.sample(rng(0)), Garment.sample(rng(0)), standing(), (128, 128))
    joint = dict(zip(JOINTS, photo.pose, strict=True))
    for name in ("shoulder", "elbow", "wrist", "hip", "eye"):
        assert joint[f"right_{name}"][0] < 64 < joint[f"left_{name}"][0]
    columns = {part: np.argwhere(photo.parts == part)[:, 1].mean() for part in (Part.RIGHT_ARM, Part.LEFT_ARM)}
    assert columns[Part.RIGHT_ARM] < 64 < columns[Part.LEFT_ARM]


@pytest.mark.parametrize("index", range(8))
def test_upper_is_exactly_where_the_garment_is_seen(index):
    """Another colour of cloth changes the pixels of UPPER, and no pixel beyond its antialiased edge."""
    person, garment, pose = Person.sample(rng(index)), Garment.sample(rng(index)), Pose.sample(rng(index))
    garment = garment._replace(pattern="plain", base=(1.0, 0.1, 0.1))
    red = render(person, garment, pose, (128, 128))
    green = render(person, garment._replace(base=(0.1, 1.0, 0.1)), pose, (128, 128))
    assert np.array_equal(red.parts, green.parts)
    changed = np.abs(red.image.astype(int) - green.image).sum(2)
    upper = red.parts == Part.UPPER
    assert upper.any() and (changed[upper] > 60).mean() > 0.995
    near = upper.copy()
    near[1:] |= upper[:-1]
    near[:-1] |= upper[1:]
    near[:, 1:] |= upper[:, :-1]
    near[:, :-1] |= upper[:, 1:]
    assert (changed[~near] > 60).mean() < 0.001


def test_both_views_show_one_person_in_one_garment_in_two_poses():
    for index in range(30):
        first, second = draw_pair(2, index, (96, 96))
        assert not np.array_equal(first.pose, second.pose)
        tops = [photo.image[photo.parts == Part.HEAD] for photo in (first, second)]
        assert np.abs(np.median(tops[0], 0) - np.median(tops[1], 0)).max() < 40
    for index in range(10):
        garment = Garment.sample(rng(index))._replace(pattern="plain")
        person = Person.sample(rng(index))
        photos = [render(person, garment, Pose.sample(rng(seed)), (96, 96)) for seed in (index, index + 100)]
        medians = [np.median(photo.image[photo.parts == Part.UPPER], 0) for photo in photos]
        assert np.abs(medians[0] - medians[1]).max() < 20


@pytest.mark.parametrize("index", range(6))
def test_size_changes_resolution_only(index):
    for small, large in zip(draw_pair(7, index, (64, 64)), draw_pair(7, index, (128, 128)), strict=True):
        shrunk = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 3
        assert (large.parts[::2, ::2] == small.parts).mean() > 0.95
        assert np.array_equal(large.pose[:, 2], small.pose[:, 2])
        np.testing.assert_allclose(large.pose[:, :2], 2 * small.pose[:, :2], atol=1e-3)


def test_the_texture_moves_with_the_body():
    """An emblem on the chest follows the turn of the torso, and its place in the garment does not change."""
    person = Person.sample(rng(0))._replace(hairstyle="short")
    garment = Garment.sample(rng(0))._replace(
        pattern="emblem", emblem="circle", base=(0.1, 0.1, 0.9), second=(1.0, 1.0, 0.1), neckline="crew", sleeves="none"
    )
    centers = []
    for turn in (-0.5, 0.0, 0.5):
        photo = render(person, garment, standing(turn=turn), (128, 128))
        yellow = (photo.image[..., 0] > photo.image[..., 2]) & (photo.parts == Part.UPPER)
        centers.append(np.argwhere(yellow)[:, 1].mean())
    assert centers[0] < centers[1] - 4 and abs(centers[1] - 63.5) < 1 and centers[2] > centers[1] + 4


def test_a_front_arm_hides_the_torso_and_a_hidden_one_does_not():
    person, garment = Person.sample(rng(1)), Garment.sample(rng(1))._replace(sleeves="none", hem=1.0)
    across = Arm(upper=0.1, fore=-1.5, reach=1.0, behind=False)
    front = render(person, garment, standing(left=across), (128, 128))
    behind = render(person, garment, standing(left=across._replace(behind=True)), (128, 128))
    x, y, _ = front.pose[JOINTS.index("left_wrist")].astype(int)
    assert front.parts[y, x] == Part.LEFT_ARM and behind.parts[y, x] == Part.UPPER


def test_two_hundred_draws_show_every_kind_and_span_the_colours():
    garments = [Garment.sample(rng(index)) for index in range(200)]
    for field, kinds in (
        ("pattern", PATTERNS),
        ("sleeves", SLEEVES),
        ("neckline", NECKLINES),
        ("emblem", EMBLEMS),
        ("letter", LETTERS),
    ):
        assert {getattr(garment, field) for garment in garments} == set(kinds), field
    colors = np.array([garment.base for garment in garments])
    assert (colors.min(0) < 0.1).all() and (colors.max(0) > 0.9).all()
    saturation = colors.max(1) - colors.min(1)
    assert (saturation > 0.7).mean() > 0.1 and (saturation < 0.2).mean() > 0.1


def test_every_pattern_and_neckline_renders_at_every_shape():
    person, garment = Person.sample(rng(0)), Garment.sample(rng(0))
    for pattern, neckline in itertools.product(PATTERNS, NECKLINES):
        render(person, garment._replace(pattern=pattern, neckline=neckline), standing(), (24, 32))
    for size in ((1, 1), (64, 16), (16, 64)):
        assert render(person, garment, standing(), size).parts.shape == size
    with pytest.raises(ValueError, match="at least 1"):
        render(person, garment, standing(), (0, 16))
    with pytest.raises(ValueError, match="tartan"):
        render(person, garment._replace(pattern="tartan"), standing(), (16, 16))

"""Augmentation is a function of (seed, position), keeps apart what must differ, and together what must agree."""

import io
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data.agnostic import GRAY
from data.augment import (
    NO_AUGMENTATION,
    AugmentConfig,
    ColorConfig,
    GeometryConfig,
    OcclusionConfig,
    affine_matrix,
    augment,
    color_matrix,
    mirror,
    mirror_pose,
    recolor,
    warp,
    warp_pose,
)
from data.images import read_image
from data.parts import COTTON, read_parse
from data.pose_formats import read_pose
from data.preprocess import Preparation, make_flat_sample
from data.schema import IMAGES, JOINTS, POSES, Photo, Sample

SIZE = (64, 48)
KINDS = {
    "flip_prob": 0.5,
    "person": GeometryConfig(prob=0.6, scale=0.3, rotation=30, shift=0.2),
    "garment": GeometryConfig(prob=0.6, scale=0.3, rotation=30, shift=0.2),
    "color": ColorConfig(prob=0.6),
    "occlusion": OcclusionConfig(prob=0.6),
}
ALL = AugmentConfig(**KINDS)


def same(one: Sample, other: Sample, *fields: str) -> bool:
    return all(np.array_equal(getattr(one, field), getattr(other, field)) for field in fields or IMAGES + POSES)


def joint_places(pose: np.ndarray) -> np.ndarray:
    """(K, 2) in pixels of SIZE."""
    return pose[:, :2] * (SIZE[1], SIZE[0])


def dot(place: np.ndarray) -> np.ndarray:
    """A soft bright dot on black at (x, y) pixels, (H, W, 3) uint8."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    bright = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 8)
    return np.repeat(bright[..., None], 3, 2).astype(np.uint8)


def center(image: np.ndarray) -> tuple[float, float]:
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


@pytest.fixture
def posed() -> Sample:
    """Black images; every joint well inside the frame, but for two that are invisible."""
    rng = np.random.default_rng(3)
    poses = []
    for gone in (4, 9):
        pose = np.float32(np.hstack([rng.uniform(0.35, 0.65, (len(JOINTS), 2)), np.ones((len(JOINTS), 1))]))
        pose[gone] = 0
        poses.append(pose)
    return Sample("posed", *np.zeros((3, *SIZE, 3), np.uint8), *poses)


@pytest.fixture
def cotton(real_data):
    """number -> (the real sample at 128, and as it comes out of a shard's JPEGs)."""

    def make(number: int) -> tuple[Sample, Sample]:
        folder = real_data / "cotton"
        photo = Photo(
            read_image(folder / f"image/{number}.jpg"),
            read_parse(folder / f"image-parse/{number}.png", COTTON),
            read_pose(folder / f"openpose_json/{number}_keypoints.json"),
        )
        mask = read_image(folder / f"cloth-mask/{number}.png")[..., 0] >= 128
        cloth = read_image(folder / f"cloth/{number}.jpg")
        sample = make_flat_sample(str(number), photo, cloth, mask, Preparation((128, 128)))
        return sample, sample._replace(**{field: through_jpeg(getattr(sample, field)) for field in IMAGES})

    return make


def through_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.asarray(Image.open(buffer))


def test_without_a_probability_the_sample_stays_itself(random_sample):
    sample = random_sample("x")
    assert all(augment(sample, 7, position, NO_AUGMENTATION) is sample for position in range(5))
    seldom = AugmentConfig(
        **{k: v if k == "flip_prob" else v.model_copy(update={"prob": 1e-9}) for k, v in KINDS.items()}
    )
    seldom = seldom.model_copy(update={"flip_prob": 1e-9})
    assert all(augment(sample, 7, position, seldom) is sample for position in range(50))


def test_what_is_drawn_belongs_to_seed_and_position(random_sample):
    sample = random_sample("x")
    seen = [augment(sample, 7, position, ALL) for position in range(40)]
    assert all(same(augment(sample, 7, position, ALL), seen[position]) for position in reversed(range(40)))
    assert sum(not same(one, other) for one, other in pairwise(seen)) > 35
    assert sum(not same(augment(sample, 8, position, ALL), seen[position]) for position in range(40)) > 35


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_as_often_as_it_says(kind, random_sample):
    sample, config = random_sample("x"), AugmentConfig(**{kind: KINDS[kind]})
    changed = sum(not same(augment(sample, 7, position, config), sample) for position in range(400))
    assert abs(changed / 400 - (0.5 if kind == "flip_prob" else 0.6)) < 0.07


@pytest.mark.parametrize(
    "kind, fields",
    {
        "person": ("person", "clothing_agnostic", "person_pose"),
        "garment": ("garment", "garment_pose"),
        "color": IMAGES,
        "occlusion": ("garment",),
    }.items(),
)
def test_no_kind_touches_or_moves_another(kind, fields, random_sample):
    """Alone it changes its own fields only; beside the others it still draws what it draws alone."""
    sample = random_sample("x")
    alone = AugmentConfig(**{kind: KINDS[kind]})
    others = [name for name in KINDS if name != kind]
    for position in range(30):
        mine = augment(sample, 7, position, alone)
        assert same(mine, sample, *(field for field in IMAGES + POSES if field not in fields))
        for other in others:
            both = augment(sample, 7, position, AugmentConfig(**{kind: KINDS[kind], other: KINDS[other]}))
            start = augment(sample, 7, position, AugmentConfig(**{other: KINDS[other]}))
            assert same(both, start) == same(mine, sample)  # drawn at the same positions
            for pose in POSES:
                if other != "flip_prob" and pose in fields:
                    assert np.array_equal(getattr(both, pose), getattr(mine, pose))


def test_poses_follow_mirrored_images(random_sample):
    """A mark on a visible joint is found under the mirrored joint's name; sides change, absence stays."""
    sample = random_sample("x", 3)
    mirrored = mirror(sample)
    for image, pose, image2, pose2 in (
        (sample.person, sample.person_pose, mirrored.person, mirrored.person_pose),
        (sample.garment, sample.garment_pose, mirrored.garment, mirrored.garment_pose),
    ):
        for i, name in enumerate(JOINTS):
            side, _, joint = name.partition("_")
            other = {"left": f"right_{joint}", "right": f"left_{joint}"}.get(side, name)
            x, y, visible = pose2[JOINTS.index(other)]
            assert visible == pose[i, 2]
            if not visible:
                assert x == y == 0
                continue
            assert x == pytest.approx(1 - pose[i, 0]) and y == pose[i, 1]
            row, column, column2 = (min(int(u * n), n - 1) for u, n in ((y, 16), (pose[i, 0], 12), (x, 12)))
            assert np.array_equal(image2[row, column2], image[row, column])
    assert np.array_equal(mirrored.clothing_agnostic, sample.clothing_agnostic[:, ::-1])
    assert np.allclose(mirror_pose(mirror_pose(sample.person_pose)), sample.person_pose, atol=1e-6)


@pytest.mark.parametrize("field, pose", [("person", "person_pose"), ("garment", "garment_pose")])
def test_a_mark_on_a_joint_is_found_at_the_moved_joint(posed, field, pose):
    strong = GeometryConfig(prob=1, scale=0.2, rotation=25, shift=0.05)
    config, moved = AugmentConfig(**{field: strong}), []
    for joint in (0, 2, 7, 12):
        places = joint_places(getattr(posed, pose))
        marked = posed._replace(**{field: dot(places[joint])})
        for position in range(8):
            seen = augment(marked, 1, position, config)
            image = getattr(seen, field)
            if field == "garment":  # what comes in from outside is gray
                image = np.where(image == GRAY, 0, image)
            found = joint_places(getattr(seen, pose))[joint]
            assert np.abs(np.subtract(center(image), found)).max() < 0.35
            moved.append(np.abs(found - places[joint]).max())
            assert getattr(seen, pose)[joint, 2] == 1
            assert not getattr(seen, pose)[4 if field == "person" else 9].any()
    assert np.mean(moved) > 1.5


def test_joints_that_leave_the_frame_become_invisible(posed):
    pose = posed.person_pose
    far = affine_matrix(GeometryConfig(shift=0.5), SIZE, 0, 0, -1, 0)  # half the height up
    seen = warp_pose(pose, far, SIZE)
    inside = (pose[:, 1] >= 0.5) & (pose[:, 2] == 1)
    assert inside.any() and not inside.all()
    assert np.allclose(seen[inside], pose[inside] - (0, 0.5, 0), atol=1e-6) and not seen[~inside].any()
    assert seen.dtype == np.float32 and seen.shape == pose.shape


def test_scale_turn_and_shift_are_what_they_are_called(posed):
    pose = posed.person_pose[:1]
    x, y = joint_places(pose)[0] - (24, 32)
    for config, draws, expected in (
        (GeometryConfig(scale=0.25), (1, 0, 0, 0), (1.25 * x, 1.25 * y)),
        (GeometryConfig(scale=0.25), (-1, 0, 0, 0), (x / 1.25, y / 1.25)),
        (GeometryConfig(rotation=90), (0, 1, 0, 0), (-y, x)),  # clockwise, as y points down
        (GeometryConfig(shift=0.1), (0, 0, 1, 0), (x, y + 6.4)),
        (GeometryConfig(shift=0.1), (0, 0, 0, 1), (x + 4.8, y)),
    ):
        moved = warp_pose(pose, affine_matrix(config, SIZE, *draws), SIZE)
        assert np.allclose(joint_places(moved)[0] - (24, 32), expected, atol=1e-4)


def test_person_and_agnostic_stay_one_picture(cotton):
    """What was the same in both is so afterwards, to the bit."""
    _, sample = cotton(4)
    sample = sample._replace(person=sample.clothing_agnostic)
    config = AugmentConfig(flip_prob=0.5, person=GeometryConfig(prob=1), garment=GeometryConfig(prob=1))
    for position in range(6):
        seen = augment(sample, 7, position, config)
        assert np.array_equal(seen.person, seen.clothing_agnostic) and not same(seen, sample, "person")


def test_the_person_s_border_goes_on_and_the_garment_s_is_gray(cotton):
    _, sample = cotton(3)
    strong = GeometryConfig(prob=1, scale=0.5, rotation=40, shift=0.2)
    for position in range(6):
        seen = augment(sample, 7, position, AugmentConfig(person=strong, garment=strong))
        person, _, garment = (np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]) for x in seen[1:4])
        assert (person > 200).mean() > 0.8 and (person != 0).all()  # white but where head or feet leave the frame
        assert (garment == GRAY).mean() > 0.8
        white = augment(sample._replace(garment=sample.person), 7, position, AugmentConfig(garment=strong)).garment
        assert (white == GRAY).all(-1).any() and (sample.person != GRAY).any(-1).all()
    far = affine_matrix(GeometryConfig(shift=0.5), (128, 128), 0, 0, 1, 1)
    shifted = warp(sample.garment, far, fill=GRAY)
    assert (shifted[:64] == GRAY).all() and (shifted[:, :64] == GRAY).all()
    assert np.array_equal(shifted[70:, 70:], sample.garment[6:64, 6:64])  # whole pixels are copied
    repeated = warp(sample.person, far)
    assert (repeated[:60, 70:] == repeated[:1, 70:]).all() and np.array_equal(
        repeated[70:, 70:], sample.person[6:64, 6:64]
    )


@pytest.mark.parametrize("number", [0, 3, 6, 9])  # a gray sweater among them
def test_gray_stays_gray_and_the_rest_changes(cotton, number):
    """Gray areas of real samples, as JPEG leaves them, survive strong changes of colours to the bit."""
    made, read = cotton(number)
    config = AugmentConfig(color=ColorConfig(prob=1, brightness=0.6, contrast=0.5, hue=30))
    for field in ("clothing_agnostic", "garment"):
        before = getattr(read, field)
        seen = augment(read._replace(person=before), 7, 6, config)  # darker; as a person it changes everywhere
        after, plain = getattr(seen, field), seen.person
        code = (getattr(made, field) == GRAY).all(-1)
        kept = (after == before).all(-1)
        assert code.mean() > 0.05 and kept[code].mean() > 0.99
        assert (plain == before).all(-1).mean() < 0.05 and plain.mean() < before.mean()
        assert kept[~code].mean() < 0.2
        assert (after == plain).all(-1)[~code].mean() > 0.65  # but where it fades into gray


def test_garment_and_person_change_colour_alike(cotton):
    """One garment in both photos is one garment afterwards."""
    _, sample = cotton(4)
    same_garment = sample._replace(garment=sample.person)
    for position in range(5):
        seen = augment(same_garment, 7, position, AugmentConfig(color=ColorConfig(prob=1)))
        differs = (seen.garment != seen.person).any(-1)
        assert not same(seen, same_garment, "person") and differs.mean() < 0.02


def test_colours_do_what_they_are_called():
    patches = np.array([[[128, 128, 128], [60, 60, 60], [200, 200, 200], [180, 60, 40]]], np.uint8)

    def changed(*draws: float, **amounts: float) -> list:
        return recolor(patches, color_matrix(ColorConfig(**amounts), *draws))[0].astype(int).tolist()

    assert changed(0, 0, 0, 0) == patches[0].tolist()
    assert changed(0.5, 0, 0, 0, brightness=0.5)[:3] == [[160] * 3, [75] * 3, [250] * 3]
    assert changed(0, 1, 0, 0, contrast=0.5)[:3] == [[128] * 3, [26] * 3, [236] * 3]
    assert changed(0, 0, -1, 0, saturation=1)[:3] == patches[0, :3].tolist()
    assert np.ptp(changed(0, 0, -1, 0, saturation=1)[3]) <= 1  # no colour left
    assert changed(0, 0, 0, 1, hue=180)[:3] == patches[0, :3].tolist()
    red, green, blue = changed(0, 0, 0, 1, hue=120)[3]
    assert max(red, green, blue) != red  # red has become another colour


def test_an_occlusion_is_a_gray_bar_on_the_garment(cotton):
    _, sample = cotton(4)
    config = AugmentConfig(occlusion=OcclusionConfig(prob=1, size=0.5))
    garment = np.abs(sample.garment.astype(int) - GRAY).max(-1) > 8
    rows, columns = np.flatnonzero(garment.any(1)), np.flatnonzero(garment.any(0))
    length = 0.5 * max(np.ptp(rows), np.ptp(columns))
    hidden = []
    for position in range(40):
        seen = augment(sample, 7, position, config)
        changed = (seen.garment != sample.garment).any(-1)
        assert (seen.garment[changed] == GRAY).all()
        hidden.append((changed & garment).sum())
        if changed.any():
            extent = [np.ptp(np.flatnonzero(changed.any(axis))) for axis in (0, 1)]
            assert max(extent) < 1.2 * length + 2
    assert max(hidden) > 0.05 * garment.sum() and np.mean(np.array(hidden) > 0) > 0.9
    blank = sample._replace(garment=np.full_like(sample.garment, GRAY))
    assert same(augment(blank, 7, 0, config), blank)


def test_keys_and_numbers_that_cannot_be_are_refused():
    refused = partial(pytest.raises, ValueError)
    for values, key in (
        ({"flip": 0.5}, "flip"),
        ({"flip_prob": 1.5}, "flip_prob"),
        ({"person": {"scale": -0.1}}, "person.scale"),
        ({"garment": {"rotation": 400}}, "garment.rotation"),
        ({"color": {"brightness": 1}}, "color.brightness"),
        ({"occlusion": {"size": 0}}, "occlusion.size"),
    ):
        with refused(match=key.replace(".", r"\.")):
            AugmentConfig.model_validate(values)

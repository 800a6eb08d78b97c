import numpy as np
import pytest

from data.agnostic import GRAY, RULES, body_size, box_mean, clothing_agnostic, drawn_region, grow, hand, pose_shapes
from data.framing import fit
from data.schema import JOINTS, Part, Photo
from data.synthetic import draw_pair, render
from data.synthetic_garments import Garment
from data.synthetic_people import Person, Pose
from tests.real_photos import cotton, viton_hd

SIZE = (256, 192)
ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM)


def joint(name):
    return JOINTS.index(name)


def long_sleeves(index):
    """Person, garment with long sleeves, and a pose whose arms are seen."""
    rng = np.random.default_rng(index)
    person, garment, pose = Person.sample(rng), Garment.sample(rng), Pose.sample(rng)
    return person, garment._replace(sleeves="long", sleeve_length=0.95), pose


def test_box_mean_is_the_mean_of_the_square():
    mask = np.random.default_rng(0).random((20, 15)) > 0.7
    padded = np.pad(mask.astype(float), 3, mode="edge")
    expected = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).mean((2, 3))
    np.testing.assert_allclose(box_mean(mask, 3), expected)
    assert (box_mean(mask, 0) == mask).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("index", range(8))
def test_the_garments_colour_never_reaches_the_agnostic_image(index, rule):
    """Not even by the antialiased rim: two garments that differ in colour alone leave the same picture."""
    rng = np.random.default_rng(index)
    person, garment, pose = Person.sample(rng), Garment.sample(rng), Pose.sample(rng)
    red, blue = (
        render(person, garment._replace(base=color, second=color[::-1]), pose, SIZE)
        for color in ((1.0, 0.0, 0.2), (0.0, 1.0, 0.9))
    )
    assert (red.image[red.parts == Part.UPPER] != blue.image[red.parts == Part.UPPER]).any()
    assert (clothing_agnostic(red, rule) == clothing_agnostic(blue, rule)).all()


VITON_HD = ("00891_00", "03615_00", "07445_00")


def real_photo(folder, name):
    return viton_hd(folder, name) if name in VITON_HD else cotton(folder, name)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*range(10), *VITON_HD])
def test_no_garment_pixel_survives_on_real_photographs(real_data, name, rule):
    """Nor one within 8 pixels of it, which are 2 at 256; there, not even the filter carries one over."""
    photo = real_photo(real_data, name)
    agnostic = clothing_agnostic(photo, rule)
    assert (agnostic[grow(photo.parts == Part.UPPER, 8)] == GRAY).all()
    near = grow(fit(photo.parts, (256, 256)) == Part.UPPER, 2)
    seen = np.abs(fit(agnostic, (256, 256)).astype(int) - GRAY).max(-1) > 24
    assert (seen & near).sum() == 0
    kept = [(agnostic[photo.parts == part] == photo.image[photo.parts == part]).all(-1).mean() for part in (1, 4)]
    assert min(kept) > 0.85, f"head and trousers are pasted back, but {kept} of their pixels are"
    if rule == "paper":
        assert (agnostic[photo.parts == Part.NECK] == GRAY).all()


def test_the_whole_box_is_gray_but_nothing_beyond():
    photo = draw_pair(0, 4, SIZE)[0]
    agnostic, person = clothing_agnostic(photo), photo.parts != Part.BACKGROUND
    rows, columns = np.flatnonzero(person.any(1)), np.flatnonzero(person.any(0))
    inside = np.zeros(SIZE, bool)
    inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert (inside & ~person).any() and (agnostic[inside & ~person] == GRAY).all()
    margin = 1 + round(0.03 * body_size(photo.parts))
    assert (agnostic[~grow(inside, margin)] == photo.image[~grow(inside, margin)]).all()


def test_hands_are_where_hands_are(real_data):
    photo = cotton(real_data, 9)
    right = hand(photo, "right")
    wrist = photo.pose[joint("right_wrist"), :2]
    y, x = np.argwhere(right).mean(0)
    assert right.sum() > 500 and (photo.parts[right] == Part.RIGHT_ARM).all()
    assert wrist[1] < y < wrist[1] + 100 and abs(x - wrist[0]) < 40
    agnostic = clothing_agnostic(photo)
    assert (agnostic[right] == photo.image[right]).all(-1).mean() > 0.6
    upper_arm = np.isin(photo.parts, ARMS) & ~right & ~hand(photo, "left")
    assert upper_arm.sum() > 5000 and (agnostic[upper_arm] == GRAY).all()


@pytest.mark.parametrize("lost", ["right_elbow", "right_wrist"])
def test_without_elbow_or_wrist_there_is_no_hand(real_data, lost):
    photo = cotton(real_data, 9)
    pose = photo.pose.copy()
    pose[joint(lost)] = 0
    blind = photo._replace(pose=pose)
    assert hand(photo, "right").any() and not hand(blind, "right").any() and hand(blind, "left").any()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_hand_is_at_most_as_long_as_hands_are(scale):
    """Even where everything is labelled arm: from 0.1 to 0.85 of the forearm beyond the wrist."""
    parts = np.full((200 * scale, 200 * scale), Part.RIGHT_ARM, np.uint8)
    pose = np.zeros((18, 3), np.float32)
    pose[joint("right_elbow")], pose[joint("right_wrist")] = (100 * scale, 20 * scale, 1), (100 * scale, 80 * scale, 1)
    region = hand(Photo(np.zeros((*parts.shape, 3), np.uint8), parts, pose), "right")
    rows, columns = np.flatnonzero(region.any(1)) / scale, np.flatnonzero(region.any(0)) / scale
    np.testing.assert_allclose([rows[0], rows[-1], columns[0], columns[-1]], [86, 131, 73, 127], atol=1.1)


def test_wrist_on_the_elbow_is_no_hand(real_data):
    photo = cotton(real_data, 9)
    pose = photo.pose.copy()
    pose[joint("right_wrist")] = pose[joint("right_elbow")]
    assert not hand(photo._replace(pose=pose), "right").any()


def test_sleeves_labelled_as_arms_do_not_leak():
    leaked, sleeve_pixels = 0, 0
    for index in range(12):
        photo = render(*long_sleeves(index), SIZE)
        bare = render(
            *(part._replace(sleeves="none") if i == 1 else part for i, part in enumerate(long_sleeves(index))), SIZE
        )
        sleeve = (photo.parts == Part.UPPER) & np.isin(bare.parts, ARMS)
        mislabelled = photo._replace(parts=np.where(sleeve, bare.parts, photo.parts))
        leaked += (clothing_agnostic(mislabelled)[sleeve] != GRAY).any(-1).sum()
        sleeve_pixels += sleeve.sum()
    assert sleeve_pixels > 10_000 and leaked < 0.01 * sleeve_pixels, f"{leaked} of {sleeve_pixels}"


@pytest.mark.parametrize("rule", RULES)
def test_real_sleeves_labelled_as_arms_do_not_leak(real_data, rule):
    """Person 07445_00 of VITON-HD: burgundy sleeves, which the parse map takes for bare arms."""
    photo = viton_hd(real_data, "07445_00")
    cloth = np.median(photo.image[photo.parts == Part.UPPER], axis=0)
    sleeves = np.isin(photo.parts, ARMS) & (np.abs(photo.image - cloth).max(-1) < 30)
    sleeves[808:] = False  # below both cuffs there is only the shadow of the skirt, of the same colour
    agnostic = clothing_agnostic(photo, rule)
    assert sleeves.sum() > 20_000 and (agnostic[sleeves] == GRAY).all()
    assert (agnostic[hand(photo, "right")] != GRAY).any(-1).mean() > 0.8, "the hands are still there"


@pytest.mark.parametrize("rule", RULES)
def test_sizes_scale_with_the_photograph(real_data, rule):
    photo = cotton(real_data, 6)
    double = Photo(photo.image.repeat(2, 0).repeat(2, 1), photo.parts.repeat(2, 0).repeat(2, 1), photo.pose * [2, 2, 1])
    small, large = clothing_agnostic(photo, rule), clothing_agnostic(double, rule)[::2, ::2]
    person = photo.parts != Part.BACKGROUND
    differs = (small != large).any(-1)[person].mean()
    assert differs < 0.01, f"{differs:.3%} of the person"


def test_the_milder_rule_keeps_background_skin_and_what_is_far(real_data):
    photo = cotton(real_data, 9)
    agnostic = clothing_agnostic(photo, "viton_hd")
    same = (agnostic == photo.image).all(-1)
    shapes = grow(pose_shapes(photo), 1) | grow(photo.parts == Part.UPPER, 20)
    assert same[~shapes].all() and 0.6 < (~shapes).mean() < 0.95
    assert same[photo.parts == Part.FEET].all()


def test_the_shapes_cover_arms_neck_and_torso_whatever_is_worn(real_data):
    """So that bare arms and long sleeves leave the same picture."""
    for name in (6, 8, 9):
        photo = cotton(real_data, name)
        shapes = pose_shapes(photo)
        worn = np.isin(photo.parts, (*ARMS, Part.NECK, Part.UPPER)) & ~hand(photo, "left") & ~hand(photo, "right")
        below = [photo.pose[joint(f"{side}_wrist"), 1] for side in ("left", "right")]
        worn[int(min(below)) :] = False
        assert (worn & ~shapes).sum() < 0.02 * worn.sum(), name


def body(**places):
    """A photo of 200x200 with a garment from (60, 50) to (139, 149), and the joints given as (x, y)."""
    parts, pose = np.zeros((200, 200), np.uint8), np.zeros((18, 3), np.float32)
    parts[50:150, 60:140] = Part.UPPER
    for name, place in places.items():
        pose[joint(name)] = (*place, 1)
    return Photo(np.full((200, 200, 3), 7, np.uint8), parts, pose)


SHOULDERS = {"right_shoulder": (68, 60), "left_shoulder": (132, 60)}


def extent(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(place) for place in (rows[0], rows[-1], columns[0], columns[-1])]


def test_the_shapes_are_measured_by_the_shoulders():
    """64 pixels apart: a unit is 4."""
    hips = {"right_hip": (80, 140), "left_hip": (120, 140)}
    shapes = pose_shapes(body(**SHOULDERS, **hips))
    np.testing.assert_allclose(extent(shapes), [40, 164, 48, 152], atol=2)  # hips as far apart as the shoulders
    assert shapes[158, 60:140].all(), "also between the hips"
    tilted = pose_shapes(body(**SHOULDERS, right_hip=(90, 150), left_hip=(110, 130)))
    np.testing.assert_allclose(extent(tilted), [40, 187, 48, 152], atol=2)
    together = pose_shapes(body(**SHOULDERS, right_hip=(100, 140), left_hip=(100, 140)))
    assert (together == shapes).all(), "as far apart as the shoulders, and in their direction"
    arm = pose_shapes(body(**SHOULDERS, **hips, right_elbow=(30, 90), right_wrist=(30, 130)))
    np.testing.assert_allclose(extent(arm), [40, 164, 10, 152], atol=2)
    neck = pose_shapes(body(**SHOULDERS, **hips, neck=(100, 60)))
    np.testing.assert_allclose(extent(neck), [32, 164, 48, 152], atol=2)


@pytest.mark.parametrize(
    ("joints", "expected"),
    [
        ({}, [50, 149, 60, 139]),
        ({"right_shoulder": (68, 60), "right_elbow": (40, 90)}, [50, 149, 60, 139]),
        (SHOULDERS, [40, 174, 48, 152]),
        (SHOULDERS | {"left_hip": (100, 120)}, [40, 144, 48, 152]),
        (SHOULDERS | {"left_hip": (100, 140), "right_hip": (100, 140)}, [40, 164, 48, 152]),
        ({"right_shoulder": (100, 60), "left_shoulder": (100, 60)}, [50, 155, 95, 105]),
    ],
    ids=["nobody", "one shoulder", "no hip", "one hip", "one place for both hips", "one place for both shoulders"],
)
def test_shapes_without_some_joints(joints, expected):
    photo = body(**joints)
    np.testing.assert_allclose(extent(pose_shapes(photo)), expected, atol=8)
    for rule in RULES:
        assert (clothing_agnostic(photo, rule)[photo.parts == Part.UPPER] == GRAY).all()


def test_joints_far_outside_the_picture_do_no_harm():
    photo = body(**SHOULDERS, left_elbow=(1e6, -1e6), left_wrist=(5e5, 1e6), neck=(-1e6, 60))
    assert pose_shapes(photo)[60, 100]


def test_the_drawn_region():
    person = np.full((2, 4, 4, 3), 200, np.uint8)
    agnostic = person.copy()
    agnostic[:, :2, 1:] = 128
    agnostic[:, 3] -= 5  # what JPEG does
    region = drawn_region(person, agnostic)
    assert region.sum() == 12 and region[:, :2, 1:].all() and np.array_equal(region, drawn_region(agnostic, person))


def test_a_gray_garment_is_drawn_too_and_gray_elsewhere_is_not():
    person = np.full((8, 8, 3), 200, np.uint8)
    person[3:5, 3:5] = person[0] = 130  # a garment as gray as the fill, and a wall
    agnostic = person.copy()
    agnostic[2:6, 1:7] = GRAY
    agnostic[2, 4] = GRAY + 3  # what JPEG leaves of it
    region = np.zeros((8, 8), bool)
    region[2:6, 1:7] = True
    assert np.array_equal(drawn_region(person, agnostic), region)


def test_the_drawn_region_is_what_was_masked():
    """Of drawn people in gray: all but a few pixels at the edges of what is hidden."""
    for index in range(6):
        rng = np.random.default_rng(index)
        garment = Garment.sample(rng)._replace(pattern="plain", base=(0.5, 0.5, 0.5), emblem=None, letter=None)
        photo = render(Person.sample(rng), garment, Pose.sample(rng), SIZE)
        agnostic = clothing_agnostic(photo)
        hidden = (agnostic == GRAY).all(-1)
        assert (drawn_region(photo.image, agnostic) & hidden).sum() > 0.99 * hidden.sum()

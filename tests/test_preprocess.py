import numpy as np
import pytest
from PIL import Image

from data.parts import CIHP, COTTON, read_parse
from data.pose import read_pose
from data.preprocess import (
    GRAY,
    body_size,
    box_mean,
    clothing_agnostic,
    cut_out,
    fit,
    fit_pose,
    grow,
    hand,
    make_flat_sample,
    make_sample,
    read_image,
)  # fmt: skip
from data.schema import JOINTS, Part, Photo
from data.synthetic import draw_pair, render
from data.synthetic_garments import Garment
from data.synthetic_people import Person, Pose

SIZE = (256, 192)
ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM)


def joint(name):
    return JOINTS.index(name)


def cotton(folder, number):
    cotton = folder / "cotton"
    return Photo(
        read_image(cotton / f"image/{number}.jpg"),
        read_parse(cotton / f"image-parse/{number}.png", COTTON),
        read_pose(cotton / f"openpose_json/{number}_keypoints.json"),
    )


def long_sleeves(index):
    """Person, garment with long sleeves, and a pose whose arms are seen."""
    rng = np.random.default_rng(index)
    person, garment, pose = Person.sample(rng), Garment.sample(rng), Pose.sample(rng)
    return person, garment._replace(sleeves="long", sleeve_length=0.95), pose


def test_read_image_is_rgb_and_upright(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :15] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png")
    assert read.shape == (30, 20, 3) and read.dtype == np.uint8
    assert (read[:15] == (255, 0, 0)).all() and not read[15:].any()


def test_read_image_names_what_is_missing_broken_or_cut_off(tmp_path):
    with pytest.raises(ValueError, match=r"none.jpg.*missing"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "a.jpg").write_text("not found")
    with pytest.raises(ValueError, match=r"a.jpg: not a readable image.*copy it again"):
        read_image(tmp_path / "a.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("b.jpg", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            read_image(tmp_path / name)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png.*8 bits"):
        read_image(tmp_path / "deep.png")


def test_box_mean_is_the_mean_of_the_square():
    mask = np.random.default_rng(0).random((20, 15)) > 0.7
    padded = np.pad(mask.astype(float), 3, mode="edge")
    expected = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).mean((2, 3))
    np.testing.assert_allclose(box_mean(mask, 3), expected)
    assert (box_mean(mask, 0) == mask).all()


@pytest.mark.parametrize("index", range(8))
def test_the_garments_colour_never_reaches_the_agnostic_image(index):
    """Not even by the antialiased rim: two garments that differ in colour alone leave the same picture."""
    rng = np.random.default_rng(index)
    person, garment, pose = Person.sample(rng), Garment.sample(rng), Pose.sample(rng)
    red, blue = (
        render(person, garment._replace(base=color, second=color[::-1]), pose, SIZE)
        for color in ((1.0, 0.0, 0.2), (0.0, 1.0, 0.9))
    )
    assert (red.image[red.parts == Part.UPPER] != blue.image[red.parts == Part.UPPER]).any()
    assert (clothing_agnostic(red) == clothing_agnostic(blue)).all()


@pytest.mark.parametrize("number", range(10))
def test_no_garment_pixel_survives_on_real_photographs(real_data, number):
    photo = cotton(real_data, number)
    agnostic = clothing_agnostic(photo)
    assert (agnostic[grow(photo.parts == Part.UPPER, 4)] == GRAY).all()
    assert (agnostic[photo.parts == Part.NECK] == GRAY).all()
    kept = [(agnostic[photo.parts == part] == photo.image[photo.parts == part]).all(-1).mean() for part in (1, 4)]
    assert min(kept) > 0.85, f"head and trousers are pasted back, but {kept} of their pixels are"


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


def test_real_sleeves_labelled_as_arms_do_not_leak(real_data):
    """Person 07445_00 of VITON-HD: burgundy sleeves, which the parse map takes for bare arms."""
    folder = real_data / "viton_hd/test"
    photo = Photo(
        read_image(folder / "image/07445_00.jpg"),
        read_parse(folder / "image-parse/07445_00.png", CIHP),
        read_pose(folder / "openpose-json/07445_00_keypoints.json"),
    )
    cloth = np.median(photo.image[photo.parts == Part.UPPER], axis=0)
    sleeves = np.isin(photo.parts, ARMS) & (np.abs(photo.image - cloth).max(-1) < 30)
    sleeves[808:] = False  # below both cuffs there is only the shadow of the skirt, of the same colour
    agnostic = clothing_agnostic(photo)
    assert sleeves.sum() > 20_000 and (agnostic[sleeves] == GRAY).all()
    assert (agnostic[hand(photo, "right")] != GRAY).any(-1).mean() > 0.8, "the hands are still there"


def test_sizes_scale_with_the_photograph(real_data):
    photo = cotton(real_data, 6)
    double = Photo(photo.image.repeat(2, 0).repeat(2, 1), photo.parts.repeat(2, 0).repeat(2, 1), photo.pose * [2, 2, 1])
    small, large = clothing_agnostic(photo), clothing_agnostic(double)[::2, ::2]
    person = photo.parts != Part.BACKGROUND
    differs = (small != large).any(-1)[person].mean()
    assert differs < 0.01, f"{differs:.3%} of the person"


def test_cut_out_is_gray_outside_and_mixed_at_the_edge():
    image = np.full((1, 3, 3), (200, 0, 128), np.uint8)
    assert cut_out(image, np.array([[0, 0.5, 1]])).tolist() == [[[128, 128, 128], [164, 64, 128], [200, 0, 128]]]


def test_garment_is_whole_and_alone():
    person, garment = draw_pair(0, 4, SIZE)
    sample = make_sample("a", person, garment, SIZE)
    worn = garment.parts == Part.UPPER
    core = ~grow(~worn, 2)
    assert (sample.garment[core] == garment.image[core]).all() and (sample.garment[~worn] == GRAY).all()
    np.testing.assert_allclose(sample.garment_pose[:, :2] * (192, 256), garment.pose[:, :2], atol=1e-3)
    assert (sample.person == person.image).all() and (sample.garment_pose != sample.person_pose).any()


def test_fit_keeps_proportions_and_repeats_the_edge():
    tall = np.zeros((400, 300, 3), np.uint8)
    tall[150:250, 100:200] = 255  # a square
    tall[:, 0] = (9, 99, 199)
    square = fit(tall, (128, 128))
    bright = square[..., 0] > 127
    assert square.shape == (128, 128, 3)
    assert bright.any(0).sum() == bright.any(1).sum() == 32
    assert (square[64, :16] == square[64, 16]).all() and square[64, 16, 2] > 50
    assert (fit(tall, (128, 128), fill=GRAY)[:, :16] == GRAY).all()
    assert fit(tall, (64, 128)).shape == (64, 128, 3)


def test_fit_is_antialiased_but_never_mixes_labels():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 254
    assert np.abs(fit(stripes, (64, 64))[8:-8].astype(int) - 127).max() <= 2
    labels = np.uint8([[0, 9]]).repeat(100, 0).repeat(50, 1)
    assert np.unique(fit(labels, (33, 33))).tolist() == [0, 9]


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (128, 96), (37, 61)])
def test_pose_follows_its_image(size):
    image, pose = np.zeros((400, 300, 3), np.uint8), np.zeros((18, 3), np.float32)
    image[290:310, 190:210] = 255
    pose[4], pose[7] = (200, 300, 1), (310, 20, 1)
    fitted = fit_pose(pose, (400, 300), size)
    spot = fit(image, size)[..., 0].astype(float)
    y, x = (np.arange(n) + 0.5 for n in size)
    center = ((spot.sum(0) * x).sum() / spot.sum(), (spot.sum(1) * y).sum() / spot.sum())
    np.testing.assert_allclose(fitted[4, :2] * size[::-1], center, atol=0.2)
    assert fitted[4, 2] == 1 and not fitted[7].any(), "outside the photograph, though inside the padded frame"


def test_flat_garment_has_no_pose(real_data):
    photo = cotton(real_data, 3)
    cloth = read_image(real_data / "cotton/cloth/3.jpg")
    mask = read_image(real_data / "cotton/cloth-mask/3.png")[..., 0] >= 128
    sample = make_flat_sample("3", photo, cloth, mask, (128, 128))
    assert sample.garment_pose.shape == (18, 3) and not sample.garment_pose.any()
    assert sample.person_pose[:, 2].sum() == 18
    assert (sample.garment[0] == GRAY).all() and (sample.garment[:, :20] == GRAY).all()
    olive = sample.garment[64, 64].astype(int)
    assert olive[0] > olive[2] + 10, f"RGB, not BGR: {olive}"
    with pytest.raises(ValueError, match=r"'3': the cloth mask is empty"):
        make_flat_sample("3", photo, cloth, mask & False, (128, 128))


def test_a_photo_without_garment_is_refused():
    person, garment = draw_pair(0, 0, (64, 64))
    bare = garment._replace(parts=np.where(garment.parts == Part.UPPER, 0, garment.parts).astype(np.uint8))
    with pytest.raises(ValueError, match=r"'k', garment photo: no pixel is labelled upper garment; check --label-map"):
        make_sample("k", person, bare, (64, 64))
    with pytest.raises(ValueError, match=r"'k', person photo: no pixel"):
        make_sample("k", bare, garment, (64, 64))
    with pytest.raises(ValueError, match=r"64x32 pixels, but its photograph has 64x64"):
        make_sample("k", person._replace(parts=person.parts[:, ::2]), garment, (64, 64))

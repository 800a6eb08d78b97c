"""Photographs become the samples that data.prepare makes of them; what is none, or shows too little, is named."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data.agnostic import GRAY
from data.estimators import Estimators
from data.importers.given import Given, load
from data.importers.photos import Known, read_photo
from data.preprocess import Preparation, make_sample
from data.schema import JOINTS, Part, Photo
from sampling.in_view import HARDLY_SEEN, look_at_person
from sampling.photos import (
    MAYBE_FLAT,
    MAYBE_WORN,
    MIN_SIDE,
    Shot,
    pairs_of_photos,
    read_garment,
    read_person,
    read_photograph,
)

SIZE = (64, 64)
DRAWN = np.arange(160 * 200 * 3).reshape(160, 200, 3).astype(np.uint8)


@pytest.fixture
def cotton(real_data, estimator_weights) -> Path:
    return real_data / "cotton"


def one_pair(person, garment, kind: str = "worn", **how):
    return pairs_of_photos([Shot(person)], [Shot(garment)], kind, **how)[0].sample(0, SIZE)


def same(one, two) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))


@pytest.mark.parametrize("crop", [False, True])
def test_a_pair_is_what_data_prepare_makes_of_it(cotton, crop):
    how, known = Preparation(SIZE, crop=crop), Known(cotton / "image")
    (person, _), (garment, _) = read_photo(known, "4.jpg"), read_photo(known, "6.jpg")
    assert same(
        one_pair(cotton / "image/4.jpg", cotton / "image/6.jpg", crop=crop), make_sample("", person, garment, how)
    )
    flat = one_pair(cotton / "image/4.jpg", cotton / "cloth/6.jpg", "flat")
    given = Given(person=cotton / "image/4.jpg", garment=cotton / "cloth/6.jpg", kind="flat")
    assert not flat.garment_pose.any()
    assert np.abs(flat.garment.astype(int) - load("", given, Preparation(SIZE), Estimators()).sample.garment).mean() < 1


def test_landscape_and_rotated_photographs(cotton, tmp_path):
    upright = Image.open(cotton / "image/4.jpg")
    wide = Image.new("RGB", (1600, 1024), (230, 230, 230))
    wide.paste(upright, (416, 0))
    sample = one_pair(wide, cotton / "image/6.jpg")
    assert (
        sample.person_pose[:, 2].all() and 0.3 < sample.person_pose[:, 0].min() < sample.person_pose[:, 0].max() < 0.7
    )
    cropped = one_pair(wide, cotton / "image/6.jpg", crop=True).person_pose
    assert np.ptp(cropped[:, 1]) > 1.3 * np.ptp(sample.person_pose[:, 1]), "and larger with --crop"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    upright.rotate(90, expand=True).save(tmp_path / "side.png", exif=exif)
    assert np.array_equal(read_photograph(tmp_path / "side.png"), np.asarray(upright))


def test_a_transparent_garment_is_cut_out_already(cotton, tmp_path):
    cloth = Image.open(cotton / "cloth/6.jpg").convert("RGB")
    mask = Image.open(cotton / "cloth-mask/6.png").convert("L").point(lambda value: 255 * (value >= 128))
    cut = cloth.copy()
    cut.putalpha(mask)
    cut.save(tmp_path / "cut.png")
    garment = read_garment(Shot(tmp_path / "cut.png"), "worn").content  # as a garment that lies flat, all the same
    assert garment.photo is None and np.array_equal(garment.mask, np.asarray(mask) >= 128)
    assert (garment.cloth[~garment.mask] == GRAY).all()
    cut.putalpha(mask.point(lambda value: 140 if value else 120))
    assert np.array_equal(read_garment(Shot(cut), "worn").content.mask, garment.mask), "half of 255 is the outline"
    given, _ = pairs_of_photos([Shot(cotton / "image/4.jpg")], [Shot(cloth, mask=cotton / "cloth-mask/6.png")], "flat")
    sample = one_pair(cotton / "image/4.jpg", tmp_path / "cut.png")
    assert np.abs(sample.garment.astype(int) - given.sample(0, SIZE).garment).max() <= 2
    opaque = cloth.convert("RGBA")
    assert read_garment(Shot(opaque), "flat").content.mask.mean() < 0.9, "found by its background"
    with pytest.raises(ValueError, match="image in memory: is transparent everywhere; save it with the garment opaque"):
        read_garment(Shot(Image.new("RGBA", (200, 200))), "flat")


def refusal(source, read=read_person) -> str:
    with pytest.raises(ValueError) as error:
        read(Shot(source), *(["worn"] if read is read_garment else []))
    assert "\n" not in str(error.value) and "skip-bad" not in str(error.value)
    return str(error.value)


def test_too_little_of_a_person(cotton, tmp_path):
    photo = Image.open(cotton / "image/4.jpg")
    pose = read_person(Shot(photo)).content.pose
    shoulders, hips = pose[[2, 5], 1].mean(), pose[[8, 11], 1].mean()
    photo.crop((0, 0, photo.width, int((shoulders + hips) / 2))).save(tmp_path / "bust.png")
    assert refusal(tmp_path / "bust.png") == (
        f"{tmp_path / 'bust.png'}: no hips in view; take a photograph that shows the person from head to hips"
    )
    headless = photo.crop((0, int(shoulders), photo.width, photo.height))
    assert "no face in view" in refusal(headless) or "no person" in refusal(headless)
    empty = Image.fromarray(np.full((256, 256, 3), 200, np.uint8))
    for read in (read_person, read_garment):
        assert "an image in memory: no person was found; crop the photo around the person" in refusal(empty, read)


def test_a_head_that_the_pose_only_guesses(cotton, real_data):
    """Poses of these have a face, and of the second, hair is left."""
    viton = real_data / "viton_hd/test"
    for folder, name, face in ((cotton, "4", 2), (viton, "07445_00", 13)):
        photo = Image.open(folder / f"image/{name}.jpg")
        rows = np.flatnonzero((np.asarray(Image.open(folder / f"image-parse/{name}.png")) == face).any(1))
        chin = int(rows.max() * photo.height / 1024) + 10
        assert HARDLY_SEEN not in read_person(Shot(photo)).notes
        photo.paste("white", (0, 0, photo.width, chin))
        assert "in memory: no head in view, neither face nor hair where it should be; take" in refusal(photo.copy())


def drawn(head: int, trunk: Part = Part.UPPER) -> Photo:
    """Somebody whose trunk is 40 pixels long, with a head of so many rows of 10 pixels."""
    parts, pose = np.zeros((100, 60), np.uint8), np.zeros((18, 3), np.float32)
    parts[30:70, 20:40], parts[30 - head : 30, 25:35] = trunk, Part.HEAD
    places = {"nose": (30, 28), "right_shoulder": (22, 30), "left_shoulder": (38, 30), "right_hip": (25, 70)}
    for name, place in places.items():
        pose[JOINTS.index(name)] = (*place, 1)
    return Photo(np.zeros((100, 60, 3), np.uint8), parts, pose)


def test_parts_say_what_is_in_view():
    assert look_at_person(drawn(20)) == () and look_at_person(drawn(20, Part.NECK)) == ()
    assert look_at_person(drawn(10)) == (HARDLY_SEEN,)
    for photo, missing in (
        (drawn(5), "head"), (drawn(20, Part.LEGS), "torso"), (drawn(20, Part.BACKGROUND), "torso"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"no {missing} in view"):
            look_at_person(photo)
    beside = drawn(20)
    beside.pose[JOINTS.index("nose"), :2] = 55, 28
    with pytest.raises(ValueError, match="no head in view"):
        look_at_person(beside)


def test_a_garment_of_the_other_kind(cotton):
    """A person's head, or none, tells that the kind is wrong."""
    flat, worn = cotton / "cloth/6.jpg", cotton / "image/4.jpg"
    assert MAYBE_FLAT in read_garment(Shot(flat), "worn").notes and not read_garment(Shot(flat), "flat").notes
    assert MAYBE_WORN in read_garment(Shot(worn), "flat").notes and not read_garment(Shot(worn), "worn").notes
    assert "if the garment lies flat, say so with --garment-kind flat" in refusal(cotton / "cloth/3.jpg", read_garment)


def test_a_picture_of_background_alone():
    with pytest.raises(ValueError, match="in memory: nothing in it stands out from its background; take the garment"):
        read_garment(Shot(Image.new("RGB", (200, 200), "white")), "flat")


def test_a_transparent_garment_s_colours_are_turned_to_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    pixels = np.zeros((200, 200, 4), np.uint8)
    pixels[..., 0], pixels[50:150, 50:150, 3] = 200, 255  # red, which this profile calls green
    Image.fromarray(pixels).save(tmp_path / "cut.png", icc_profile=swapped)
    cloth = read_garment(Shot(tmp_path / "cut.png"), "worn").content.cloth
    assert cloth[100, 100, 1] > cloth[100, 100, 0] + 60 and (cloth[0, 0] == GRAY).all()
    with pytest.raises(ValueError, match=r"cut.png: is transparent, so .* has no pose; leave out --garment-pose"):
        read_garment(Shot(tmp_path / "cut.png", pose=tmp_path / "pose.json"), "worn")


def png_of_16_bits(path: Path) -> Path:
    """RGB, which Pillow neither writes nor reads as such."""
    rows = b"".join(b"\0" + bytes(200 * 6) for _ in range(200))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 200, 200, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    data = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    return path


def test_what_is_no_photograph(tmp_path):
    """None of these comes as far as an estimate."""
    small = Image.fromarray(DRAWN).resize((50, 50))
    for read in (read_person, read_garment):
        assert f"50x50 pixels; both sides must have {MIN_SIDE} or more: bring a larger" in refusal(small, read)
    frames = [Image.fromarray(np.roll(DRAWN, i, 0)) for i in range(3)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        for source in (tmp_path / name, Image.open(tmp_path / name)):
            assert f"{name}: has 3 frames; save one of them as JPEG or PNG" in refusal(source)
    deep = png_of_16_bits(tmp_path / "rgb.png")
    for source in (deep, Image.open(deep)):
        assert "has 16-bit pixels; save it with 8 bits a channel" in refusal(source)
    Image.fromarray(DRAWN[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    assert "deep.png: has I;16 pixels; save it with 8 bits a channel" in refusal(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no image")
    assert "text.jpg: not a readable image" in refusal(tmp_path / "text.jpg")
    assert "none.jpg: this image is missing; put it there, or name another" in refusal(tmp_path / "none.jpg")
    Image.fromarray(DRAWN).convert("CMYK").save(tmp_path / "press.jpg", quality=95)
    assert read_photograph(tmp_path / "press.jpg").shape == DRAWN.shape


def test_names_that_come_twice(cotton):
    shots = [Shot(cotton / "image/4.jpg"), Shot(cotton / "image/4.jpg")]
    pairs, notes = pairs_of_photos(shots, [Shot(cotton / "cloth/6.jpg")], "flat")
    assert [pairs.key(i) for i in range(pairs.num)] == ["4__6", "4-2__6"] and notes == []

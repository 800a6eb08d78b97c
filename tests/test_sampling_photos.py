"""Photographs become the samples that data.prepare makes of them; what is none, or shows too little, is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.agnostic import GRAY
from data.estimators import Estimators
from data.importers.given import Given, load
from data.importers.photos import Known, read_photo
from data.preprocess import Preparation, make_sample
from sampling.photos import MIN_SIDE, Shot, pairs_of_photos, read_garment, read_person, read_photograph

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


def test_what_is_no_photograph(tmp_path):
    """None of these comes as far as an estimate."""
    small = Image.fromarray(DRAWN).resize((50, 50))
    for read in (read_person, read_garment):
        assert f"50x50 pixels; both sides must have {MIN_SIDE} or more: bring a larger" in refusal(small, read)
    frames = [Image.fromarray(np.roll(DRAWN, i, 0)) for i in range(3)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert f"{name}: has 3 frames; save one of them as JPEG or PNG" in refusal(tmp_path / name)
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

import numpy as np
import pytest

from data.agnostic import GRAY
from data.framing import bounding_box, crop_pose, fit, fit_pose, person_box, whole, widen
from data.pose import move
from data.schema import Part
from tests.real_photos import cotton, viton_hd

WHOLE = whole((400, 300))
NO_POSE = np.zeros((18, 3), np.float32)


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


def sides(box):
    return tuple(part.stop - part.start for part in box)


def test_bounding_box():
    mask = np.zeros((20, 30), bool)
    assert bounding_box(mask, 2) == (slice(0, 0), slice(0, 0))
    mask[5:8, 10], mask[6, 27] = True, True
    assert bounding_box(mask, 0) == (slice(5, 8), slice(10, 28))
    assert mask[bounding_box(mask, 9)].shape == (17, 29)


@pytest.mark.parametrize("frame", [(128, 128), (128, 96), (96, 128)])
def test_a_box_takes_the_proportions_of_the_frame_around_what_it_holds(frame):
    rows, columns = widen((slice(400, 500), slice(300, 350)), 0.1, (1000, 1000), frame)
    assert rows.start <= 390 and rows.stop >= 510 and columns.start <= 290 and columns.stop >= 360
    assert abs(sides((rows, columns))[0] / sides((rows, columns))[1] - frame[0] / frame[1]) < 0.02
    assert (rows.start + rows.stop, columns.start + columns.stop) == pytest.approx((900, 650), abs=2)
    assert rows.start == 390 or columns.start == 290, "no larger than it must be"


def test_a_box_stays_in_its_picture():
    assert widen((slice(0, 50), slice(60, 100)), 0.1, (300, 100), (64, 64)) == (slice(0, 60), slice(40, 100))
    assert widen((slice(10, 290), slice(40, 60)), 0.1, (300, 100), (64, 64)) == (slice(0, 300), slice(0, 100))


def test_without_anybody_the_picture_is_whole():
    empty = np.zeros((40, 30), np.uint8)
    assert (
        person_box((40, 30), NO_POSE, empty, (8, 8)) == person_box((40, 30), NO_POSE, None, (8, 8)) == whole((40, 30))
    )
    outside = NO_POSE.copy()
    outside[3] = (-5, 80, 1)
    assert person_box((40, 30), outside, None, (8, 8)) == whole((40, 30))


def placed(photo, y, x, size):
    """The photo's parts and pose in a larger picture."""
    parts = np.zeros(size, np.uint8)
    parts[y : y + 1024, x : x + 768] = photo.parts
    return parts, move(photo.pose, (1, 1), (y, x))


@pytest.mark.parametrize("frame", [(256, 256), (256, 192)])
@pytest.mark.parametrize("photo", [(cotton, 3), (cotton, 9), (viton_hd, "03615_00"), (viton_hd, "07445_00")])
def test_the_whole_real_person_is_in_the_box(real_data, photo, frame):
    """By the parse map, by the mask alone and, of a person who stands free, by the pose alone."""
    read, name = photo
    size = (2500, 3000)
    parts, pose = placed(read(real_data, name), 700, 900, size)
    person = parts != Part.BACKGROUND
    for known in ((pose, parts), (NO_POSE, parts), (pose, None)):
        box = person_box(size, *known, frame)
        height, width = sides(box)
        assert abs(height / width - frame[0] / frame[1]) < 0.01 and height < 1500
        assert person[box].sum() == person.sum() or (known[1] is None and person[box].sum() > 0.97 * person.sum())
        inside = crop_pose(pose, box, frame)
        assert inside[:, 2].sum() == pose[:, 2].sum()


def test_a_bystander_without_a_label_does_not_count(real_data):
    parts, pose = placed(cotton(real_data, 3), 700, 900, (2500, 3000))
    alone = person_box(parts.shape, pose, parts, (64, 64))
    assert sides(alone)[0] < 1200 and abs((alone[1].start + alone[1].stop) / 2 - 1284) < 40


@pytest.mark.parametrize(
    "box", [(slice(100, 300), slice(50, 250)), (slice(0, 400), slice(100, 220)), whole((400, 300))]
)
def test_a_pose_follows_its_crop(box):
    image, pose = np.zeros((400, 300, 3), np.uint8), np.zeros((18, 3), np.float32)
    image[190:210, 150:170] = 255
    pose[4], pose[7], pose[2] = (160, 200, 1), (310, 20, 1), (60, 20, 1)
    cropped = crop_pose(pose, box, (96, 128))
    spot = fit(image[box], (96, 128))[..., 0].astype(float)
    y, x = (np.arange(n) + 0.5 for n in (96, 128))
    center = ((spot.sum(0) * x).sum() / spot.sum(), (spot.sum(1) * y).sum() / spot.sum())
    np.testing.assert_allclose(cropped[4, :2] * (128, 96), center, atol=0.2)
    assert cropped[4, 2] == 1 and not cropped[7].any()
    assert cropped[2, 2] == (box == WHOLE), "cut off, and so invisible"

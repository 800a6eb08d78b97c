"""Windows, regions and the cut between garments, on drawn people whose parts are known exactly."""

import numpy as np
import pytest

from data.estimators.garment_cut import HIP_CUT, NO_HIPS, TILTED, upper_clothes
from data.estimators.regions import skin, things
from data.estimators.windows import carry, look, to_photograph, to_window, whole, window
from data.schema import JOINTS, Part, Photo
from data.synthetic import draw_pair

CLOTHES = (Part.UPPER, Part.LOWER)


@pytest.fixture(scope="module")
def people() -> list[Photo]:
    return [photo for i in range(12) for photo in draw_pair(3, i, (256, 192))]


def without(pose: np.ndarray, *names: str) -> np.ndarray:
    pose = pose.copy()
    pose[[JOINTS.index(name) for name in names]] = 0
    return pose


def test_window_shows_what_lies_there():
    image = np.zeros((200, 300, 3), np.uint8)
    image[40:60, 100:120] = 255
    view = window((110, 50), (80, 40), (40, 20))
    shown = look(image, view)
    assert shown.shape == (40, 20, 3)
    assert (shown[15:25, 5:15] == 255).all() and shown.astype(int).sum() == 10 * 10 * 3 * 255
    back = carry(np.float32(shown[..., 0]), view, whole((200, 300)))
    assert abs(back - image[..., 0]).mean() < 1 and back[:10].max() == back[:, 200:].max() == 0


def test_window_turns_with_the_person():
    points = np.array([[10.0, 20.0], [35.0, 5.0]])
    view = window((30, 40), (50, 50), (100, 100), angle=0.5)
    assert np.allclose(to_window(to_photograph(points, view), view), points)
    up = to_photograph(np.array([[50.0, 0.0]]), view)[0] - [30, 40]  # straight up in the window
    assert np.allclose(up, [25 * np.sin(0.5), -25 * np.cos(0.5)])


def test_black_beyond_the_photograph():
    shown = look(np.full((10, 10, 3), 200, np.uint8), window((0, 0), (20, 20), (20, 20)))
    assert (shown[10:, 10:] == 200).all() and not shown[:9].any() and not shown[:, :9].any()


def test_skin_belongs_to_the_nearest_bone(people):
    right, total = 0, 0
    for photo in people:
        region = skin(photo.parts.shape, photo.pose)
        for part in (Part.LEFT_ARM, Part.RIGHT_ARM, Part.LEGS, Part.NECK):
            right += ((photo.parts == part) & (region == part)).sum()
            total += (photo.parts == part).sum()
    assert right / total > 0.9


def test_skin_without_joints_is_the_trunks():
    assert (skin((8, 8), np.zeros((18, 3))) == Part.NECK).all()


def test_shoes_hats_and_bags(people):
    for photo in people:
        worn = things(photo.parts.shape, photo.pose)
        assert (worn[photo.parts == Part.HEAD] == Part.HEAD).mean() > 0.9
        hips = photo.pose[[JOINTS.index("left_hip"), JOINTS.index("right_hip")], :2].mean(0).astype(int)
        assert worn[hips[1], hips[0]] == Part.OTHER
    pose = np.zeros((18, 3))
    pose[[JOINTS.index("left_knee"), JOINTS.index("left_ankle")]] = (20, 40, 1), (20, 80, 1)
    worn = things((120, 40), pose)
    assert worn[100, 25] == Part.FEET and worn[40, 20] == Part.OTHER


def test_the_cut_follows_the_garments(people):
    overlaps = []
    for photo in people:
        upper, notes = upper_clothes(np.isin(photo.parts, CLOTHES), photo.image, photo.pose)
        truth = photo.parts == Part.UPPER
        if not notes:
            overlaps.append((upper & truth).sum() / (upper | truth).sum())
    assert len(overlaps) > len(people) / 2
    assert np.median(overlaps) > 0.97 and np.mean(overlaps) > 0.93, np.round(sorted(overlaps), 2)


def figure(upper, lower, hem: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clothes, colours and pose of a figure of 256x100 with its neck at y = 50, hips at 130, and a hem."""
    colors = np.zeros((256, 100, 3), np.uint8)
    colors[:hem], colors[hem:] = upper, lower
    colors += np.random.default_rng(0).integers(0, 20, colors.shape, dtype=np.uint8)
    clothes = np.zeros((256, 100), bool)
    clothes[50:230, 30:70] = True
    pose = np.zeros((18, 3))
    for name, place in {"neck": (50, 50), "left_hip": (60, 130), "right_hip": (40, 130)}.items():
        pose[JOINTS.index(name)] = (*place, 1)
    return clothes, colors, pose


@pytest.mark.parametrize("hem", [105, 130, 150, 165])
def test_long_and_short_garments(hem):
    clothes, colors, pose = figure((200, 30, 30), (30, 30, 200), hem)
    upper, notes = upper_clothes(clothes, colors, pose)
    assert notes == () and (upper == (clothes & (np.arange(256)[:, None] < hem))).all()


def test_the_hips_when_colours_are_alike():
    clothes, colors, pose = figure((60, 60, 60), (60, 60, 60))
    upper, notes = upper_clothes(clothes, colors, pose)
    assert notes == (HIP_CUT,) and (upper == (clothes & (np.arange(256)[:, None] < 130))).all()


def test_all_is_upper_without_hips():
    clothes, colors, pose = figure((200, 30, 30), (30, 30, 200))
    upper, notes = upper_clothes(clothes, colors, without(pose, "left_hip", "right_hip"))
    assert notes == (NO_HIPS,) and (upper == clothes).all()
    clothes[140:] = False  # the photograph ends below the hips
    upper, notes = upper_clothes(clothes, colors, pose)
    assert notes == (NO_HIPS,) and upper[129, 50] and not upper[130:].any()


def test_a_lying_figure_is_cut_across():
    clothes, colors, pose = figure((200, 30, 30), (30, 30, 200))
    clothes, colors = clothes.T, colors.swapaxes(0, 1)
    upper, notes = upper_clothes(clothes, colors, pose[:, [1, 0, 2]])
    assert notes == (TILTED,) and (upper == (clothes & (np.arange(256) + 0.5 < 130))).all()

import json

import numpy as np
import pytest

from data.pose import move, normalise, read_pose
from data.pose_drawing import draw_pose
from data.schema import JOINTS


def write(path, *people, key="pose_keypoints_2d"):
    path.write_text(json.dumps({"version": 1.3, "people": [{key: np.ravel(p).tolist()} for p in people]}))
    return path


def numbered(count):
    """Joint i at (10 i + 10, 5 i + 5), confidence 0.5."""
    return [[10 * i + 10, 5 * i + 5, 0.5] for i in range(count)]


@pytest.mark.parametrize("key", ["pose_keypoints_2d", "pose_keypoints"])
def test_body_25_leaves_out_the_mid_hip_and_the_feet(tmp_path, key):
    pose = read_pose(write(tmp_path / "a.json", numbered(25), key=key))
    assert pose.shape == (18, 3) and pose.dtype == np.float32
    source = [*range(8), *range(9, 19)]
    assert pose.tolist() == [[10 * i + 10, 5 * i + 5, 1] for i in source]
    assert pose[JOINTS.index("right_hip"), 0] == 100 and pose[JOINTS.index("left_ear"), 0] == 190


def test_coco_18_is_taken_as_it_is(tmp_path):
    pose = read_pose(write(tmp_path / "a.json", numbered(18)))
    assert pose.tolist() == [[10 * i + 10, 5 * i + 5, 1] for i in range(18)]


def test_missing_joints_are_zero_and_invisible(tmp_path):
    joints = numbered(18)
    joints[3], joints[4] = [0, 0, 0], [70, 80, 0]
    joints[7] = [0, 0, 0.9]
    pose = read_pose(write(tmp_path / "a.json", joints))
    assert not pose[[3, 4, 7]].any() and pose[:, 2].sum() == 15


def test_neck_comes_from_both_shoulders_or_not_at_all(tmp_path):
    joints = numbered(18)
    joints[1], joints[2], joints[5] = [0, 0, 0], [100, 50, 0.9], [200, 70, 0.1]
    assert read_pose(write(tmp_path / "a.json", joints))[1].tolist() == [150, 60, 1]
    joints[5] = [0, 0, 0]
    assert not read_pose(write(tmp_path / "b.json", joints))[1].any()


def test_of_several_people_the_largest_is_taken(tmp_path):
    large = np.array(numbered(18))
    small = large * [0.2, 0.2, 1.9]
    for people in ((small, large), (large, small)):
        assert read_pose(write(tmp_path / "a.json", *people))[5, 0] == 60


@pytest.mark.parametrize(
    ("count", "hint"),
    [(51, "COCO-17"), (34, "COCO-17 without"), (50, "landmarks"), (53, "expected 75"), (0, "0 numbers")],
)
def test_wrong_number_of_values(tmp_path, count, hint):
    with pytest.raises(ValueError, match=rf"a.json: people\[0\].pose_keypoints_2d: {count} numbers.*75") as error:
        read_pose(write(tmp_path / "a.json", [1.0] * count))
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"people": []}', "'people' is empty"),
        ('{"people": [{"hand": []}]}', "neither pose_keypoints_2d"),
        ('{"people": [5]}', "neither pose_keypoints_2d"),
        ('{"people": {}}', "not a list"),
        ("[1, 2]", "no list 'people'"),
        ("{} rubbish", "not readable as JSON"),
        ('{"people": [{"pose_keypoints_2d": ["x"]}]}', "not a list of numbers"),
    ],
)
def test_rubbish_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        read_pose(tmp_path / "a.json")


def test_nan_fractions_and_nobody_are_refused(tmp_path):
    joints = numbered(18)
    joints[2][0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN"):
        read_pose(write(tmp_path / "a.json", joints))
    with pytest.raises(ValueError, match=r"pixels are expected"):
        read_pose(write(tmp_path / "a.json", np.array(numbered(18)) / [200, 200, 1]))
    with pytest.raises(ValueError, match=r"no visible joint"):
        read_pose(write(tmp_path / "a.json", np.zeros(54)))
    with pytest.raises(ValueError, match=r"none.json: this pose is missing"):
        read_pose(tmp_path / "none.json")


def test_normalised_pose_hides_what_is_outside():
    pose = np.float32([[50, 20, 1], [-1, 20, 1], [101, 20, 1], [100, 40, 1], [0, 0, 0]])
    assert normalise(pose, (40, 100)).tolist() == [[0.5, 0.5, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_moved_pose_leaves_the_invisible_at_zero():
    pose = np.float32([[50, 20, 1], [0, 0, 0]])
    assert move(pose, (2, 0.5), (10, 3)).tolist() == [[28, 50, 1], [0, 0, 0]]


def test_drawing_shows_visible_limbs_only():
    image, pose = np.zeros((100, 50, 3), np.uint8), np.zeros((18, 3), np.float32)
    assert (draw_pose(image, pose) == image).all()
    pose[JOINTS.index("right_elbow")], pose[JOINTS.index("right_wrist")] = (0.5, 0.2, 1), (0.5, 0.8, 1)
    drawn = draw_pose(image, pose)
    assert drawn[50, 25].any() and not drawn[:15].any() and not drawn[:, :20].any() and not image.any()


def test_real_pose_lies_on_the_real_person(real_data):
    pose = read_pose(real_data / "cotton/openpose_json/0_keypoints.json")
    assert pose[JOINTS.index("nose")].round().tolist() == [340, 113, 1]
    assert pose[JOINTS.index("right_wrist")].round().tolist() == [249, 528, 1]
    right, left = pose[JOINTS.index("right_hip")], pose[JOINTS.index("left_hip")]
    assert left[0] - right[0] > 0.02 * 768 and abs(left[1] - right[1]) < 0.03 * 1024

import json

import numpy as np
import pytest

from data.parts import COTTON, read_parse
from data.pose_formats import read_pose
from data.schema import JOINTS, Part

COCO_17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def people(*poses, key="pose_keypoints_2d"):
    return {"version": 1.3, "people": [{key: np.ravel(pose).tolist()} for pose in poses]}


def numbered(count, columns=3):
    """Joint i at (10 i + 10, 5 i + 5), confidence 0.5."""
    return [[10 * i + 10, 5 * i + 5, 0.5][:columns] for i in range(count)]


def joint(name):
    return JOINTS.index(name)


@pytest.mark.parametrize("key", ["pose_keypoints_2d", "pose_keypoints"])
def test_body_25_leaves_out_the_mid_hip_and_the_feet(tmp_path, key):
    pose = read_pose(write(tmp_path / "a.json", people(numbered(25), key=key)))
    assert pose.shape == (18, 3) and pose.dtype == np.float32
    source = [*range(8), *range(9, 19)]
    assert pose.tolist() == [[10 * i + 10, 5 * i + 5, 1] for i in source]
    assert pose[joint("right_hip"), 0] == 100 and pose[joint("left_ear"), 0] == 190


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("wrap", [people, lambda rows: rows, lambda rows: {"keypoints": rows}, np.ravel])
def test_coco_18_is_taken_as_it_is(tmp_path, columns, wrap):
    document = wrap(numbered(18, columns))
    pose = read_pose(
        write(tmp_path / "a.json", document if isinstance(document, dict) else np.array(document).tolist())
    )
    assert pose.tolist() == [[10 * i + 10, 5 * i + 5, 1] for i in range(18)]


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("wrap", [people, np.ravel, lambda rows: [{"keypoints": rows}], lambda rows: rows])
def test_coco_17_goes_by_the_names_of_its_joints(tmp_path, columns, wrap):
    document = wrap(numbered(17, columns))
    pose = read_pose(write(tmp_path / "a.json", document.tolist() if isinstance(document, np.ndarray) else document))
    for i, name in enumerate(COCO_17):
        assert pose[joint(name)].tolist() == [10 * i + 10, 5 * i + 5, 1], name
    assert pose[joint("neck")].tolist() == [65, 32.5, 1], "between the shoulders"


def test_a_text_file_holds_json_or_mere_numbers(tmp_path):
    expected = [[10 * i + 10, 5 * i + 5, 1] for i in range(18)]
    for text in (
        json.dumps(numbered(18, 2)),
        "\n".join(f"{x}, {y}" for x, y in numbered(18, 2)),
        " ".join(f"{x} {y}" for x, y in numbered(18, 2)) + "\n",
    ):
        (tmp_path / "a.txt").write_text(text)
        assert read_pose(tmp_path / "a.txt").tolist() == expected
    with pytest.raises(ValueError, match=r"a.json: not readable as JSON"):
        (tmp_path / "a.json").write_text("10 5 20 10")
        read_pose(tmp_path / "a.json")


def test_dress_code_is_scaled_from_its_own_frame(tmp_path):
    rows = [[10 * i + 10, 5 * i + 5, 0.9, i] for i in range(18)]
    rows[3], rows[4], rows[7] = [1, 300, 0.9, 3], [-1, -1, 0, 4], [200, 1, 0.9, 7]
    path = write(tmp_path / "a.json", {"keypoints": rows})
    pose = read_pose(path, size=(1024, 768))
    assert pose[0].tolist() == [20, 10, 1] and pose[17].tolist() == [360, 180, 1]
    assert not pose[[3, 4, 7]].any(), "values of at most 1 are missing"
    assert read_pose(path, size=(512, 768), frame=(1024, 768))[0].tolist() == [10, 2.5, 1], "a frame of one's own"


def test_fractions_are_refused_unless_the_frame_says_so(tmp_path):
    rows = np.array(numbered(18, 2)) / 200
    path = write(tmp_path / "a.json", rows.tolist())
    with pytest.raises(ValueError, match=r"a.json: coordinates within \[-1, 1\].*multiply x by the width"):
        read_pose(path, size=(1024, 768))
    pose = read_pose(path, size=(1024, 768), frame=(1, 1))
    np.testing.assert_allclose(pose[:, :2], rows * (768, 1024), rtol=1e-6)


def test_missing_joints_are_zero_and_invisible(tmp_path):
    joints = numbered(18)
    joints[3], joints[4] = [0, 0, 0], [70, 80, 0]
    joints[7] = [0, 0, 0.9]
    pose = read_pose(write(tmp_path / "a.json", people(joints)))
    assert not pose[[3, 4, 7]].any() and pose[:, 2].sum() == 15


def test_joints_outside_the_photograph_are_invisible(tmp_path):
    """An estimator guesses on beyond the edge, and -1 marks what is missing: neither makes the pose a bad one."""
    joints = numbered(18, 2)
    joints[10], joints[13], joints[9], joints[12] = [-1, -1], [-5, 300], [300, 20], [20, 401]
    joints[0] = [0, 30]
    path = write(tmp_path / "a.json", joints)
    pose = read_pose(path, size=(400, 250))
    assert not pose[[9, 10, 12, 13]].any() and pose[:, 2].sum() == 14 and pose[0].tolist() == [0, 30, 1]
    assert read_pose(path)[9].tolist() == [300, 20, 1], "nobody said how large the photograph is"


def test_a_pose_of_another_size_is_refused(tmp_path, real_data):
    path = real_data / "cotton/openpose_json/0_keypoints.json"
    with pytest.raises(ValueError, match=r"people\[0\].pose_keypoints_2d: 1\d of 18 joints lie outside the.*256x192"):
        read_pose(path, size=(256, 192))
    parts = read_parse(real_data / "cotton/image-parse/0.png", COTTON)
    pose = np.column_stack([read_pose(path, parts=parts)[:, :2] / 2, np.ones(18)])
    half = write(tmp_path / "half.json", people(pose))
    assert read_pose(half, size=parts.shape)[:, 2].all(), "all within the photograph"
    with pytest.raises(ValueError, match=r"half.json: most of the joints do not lie on the person of the parse map"):
        read_pose(half, parts=parts)
    assert read_pose(half, frame=(512, 384), parts=parts)[:, 2].all()
    shrunk = parts[::2, ::2]  # the fault of the parse map, and not of the pose
    assert read_pose(path, size=parts.shape, parts=shrunk)[:, 2].all()


def test_neck_comes_from_both_shoulders_or_not_at_all(tmp_path):
    joints = numbered(18)
    joints[1], joints[2], joints[5] = [0, 0, 0], [100, 50, 0.9], [200, 70, 0.1]
    assert read_pose(write(tmp_path / "a.json", people(joints)))[1].tolist() == [150, 60, 1]
    joints[5] = [0, 0, 0]
    assert not read_pose(write(tmp_path / "b.json", people(joints)))[1].any()


def test_of_several_people_the_largest_is_taken(tmp_path):
    large = np.array(numbered(18))
    small = large * [0.2, 0.2, 1.9]
    for several in ((small, large), (large, small)):
        assert read_pose(write(tmp_path / "a.json", people(*several)))[5, 0] == 60


def test_of_several_people_the_one_of_the_parse_map_is_taken(tmp_path):
    """Even beside somebody larger, and beside a ghost that has two joints on the person and no other."""
    person, bystander = np.array(numbered(18)), np.array(numbered(18)) * [2, 4, 1] + [200, 0, 0]
    ghost = np.where(np.arange(18)[:, None] < 2, person, 0)
    parts = np.zeros((500, 700), np.uint8)
    parts[:120, :200] = Part.UPPER
    for several in ((person, bystander, ghost), (ghost, bystander, person)):
        path = write(tmp_path / "a.json", people(*several))
        assert read_pose(path, parts=parts)[5, 0] == 60
        assert read_pose(path)[5, 0] == 320


@pytest.mark.parametrize(
    ("count", "hint"), [(50, "landmarks"), (53, "expected 75"), (0, "0 numbers"), (1, "1 numbers")]
)
def test_wrong_number_of_values(tmp_path, count, hint):
    with pytest.raises(ValueError, match=rf"a.json: people\[0\].pose_keypoints_2d: {count} numbers.*75") as error:
        read_pose(write(tmp_path / "a.json", people([1.0] * count)))
    assert hint in str(error.value)


def test_rows_count_and_not_only_their_product(tmp_path):
    with pytest.raises(ValueError, match=r"54 numbers are no pose"):
        read_pose(write(tmp_path / "a.json", np.ones((27, 2)).tolist()))
    with pytest.raises(ValueError, match=r"102 numbers are no pose"):
        read_pose(write(tmp_path / "a.json", np.ones((2, 17, 3)).tolist()))
    for shape in ((1, 54), (1, 18, 3)):
        document = np.reshape(numbered(18), shape).tolist()
        assert read_pose(write(tmp_path / "a.json", document))[2].tolist() == [30, 15, 1]


def test_real_garment_landmarks_are_no_pose(real_data):
    with pytest.raises(
        ValueError, match=r"0_keypoints.json.*50 numbers \(25 \(x, y\) pairs, as garment landmarks have\)"
    ):
        read_pose(real_data / "cotton/cloth_keypoints/0_keypoints.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ('{"people": []}', "'people' is empty"),
        ('{"people": [{"hand": []}]}', "has none of pose_keypoints_2d"),
        ('{"people": [5]}', "has none of pose_keypoints_2d"),
        ('{"people": {}}', "not a list"),
        ('{"joints": []}', "has none of pose_keypoints_2d"),
        ("[1, 2]", "2 numbers are no pose"),
        ("5", "1 numbers are no pose"),
        ("null", "1 numbers are no pose"),
        ("{} rubbish", "not readable as JSON"),
        ('{"people": [{"pose_keypoints_2d": ["x"]}]}', "not a list of numbers"),
        ('{"people": [{"pose_keypoints_2d": [[1, 2], [3]]}]}', "not a list of numbers"),
        ('{"keypoints": {"nose": [1, 2]}}', "not a list of numbers"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "1e999]"), "NaN or infinity"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "NaN]"), "NaN or infinity"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "null]"), "NaN or infinity"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "1" * 400 + "]"), "not a list of numbers"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "1" * 5000 + "]"), "not (readable as JSON|a list of numbers)"),
        (json.dumps([5.0] * 53 + [0]).replace("0]", "1e30]"), "more than 1000000 pixels"),
        (json.dumps([0] * 54), "no visible joint"),
        (json.dumps([-1] * 36), r"within \[-1, 1\]"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_rubbish_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{message}") as error:
        read_pose(tmp_path / "a.json", size=(1024, 768))
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: this pose is missing"):
        read_pose(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"this pose is missing"):
        read_pose(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match=r"huge.json: more than 4 MB, too large for a pose"):
        read_pose(tmp_path / "huge.json")


def test_real_pose_lies_on_the_real_person(real_data):
    pose = read_pose(real_data / "cotton/openpose_json/0_keypoints.json", size=(1024, 768))
    assert pose[joint("nose")].round().tolist() == [340, 113, 1]
    assert pose[joint("right_wrist")].round().tolist() == [249, 528, 1]
    right, left = pose[joint("right_hip")], pose[joint("left_hip")]
    assert left[0] - right[0] > 0.02 * 768 and abs(left[1] - right[1]) < 0.03 * 1024

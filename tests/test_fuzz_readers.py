"""Documents that somebody else wrote, spoilt in every way: read, or refused by a ValueError of one line."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.parts import label_map
from data.polygons import read_mask
from data.pose_formats import read_pose
from data.schema import Part
from fuzzing import fuzz

SIZE = (48, 64)
PARTS = np.zeros(SIZE, np.uint8)
PARTS[4:44, 4:60] = Part.UPPER

JOINTS = [[8 + 2.5 * i, 6 + 2 * i] for i in range(18)]
POSES = [
    {"version": 1.3, "people": [{"pose_keypoints_2d": [n for x, y in JOINTS for n in (x, y, 0.9)]}] * 2},
    {"people": [{"pose_keypoints": [5.0] * 75, "hand_left_keypoints_2d": []}, {"pose_keypoints": [9.0] * 51}]},
    {"keypoints": [[x, y, 0.9, i] for i, (x, y) in enumerate(JOINTS)]},
    [{"keypoints": [n for row in JOINTS[:17] for n in (*row, 2)], "score": 0.9}],
    [n for row in JOINTS for n in row],
    JOINTS[:17],
]
SQUARE = [[10, 10], [30.5, 10], [30, 20], [10, 20]]
ANNOTATIONS = [
    {
        "version": "5.2",
        "shapes": [
            {"label": "shirt", "points": SQUARE, "shape_type": "polygon", "group_id": None},
            {"label": "neck", "points": SQUARE[::2], "shape_type": "rectangle"},
            {"label": "_background_", "points": SQUARE[:3]},
        ],
        "imageHeight": 48,
        "imageWidth": 64,
        "imageData": None,
    },
    {
        "info": {"description": "ISAT", "width": 64, "height": 48},
        "objects": [
            {"category": "shirt", "segmentation": SQUARE, "layer": 1.0, "bbox": [1, 2, 3, 4]},
            {"category": "bag", "segmentation": SQUARE[1:], "layer": 2},
            {"category": "__background__", "segmentation": SQUARE[:3], "layer": 3.0},
        ],
    },
]
LABEL_MAPS = [{"0": "background", "5": "upper", "9": "lower"}, {"0,0,0": "background", "255,85,0": "upper"}]

NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(-3, 100),
    st.sampled_from([1e999, -1e999, 1e308, 10**400, -0.0, 2**63, 65536]),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.sampled_from(["shirt", "upper", "5", "NaN"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


def places(document, path=()):
    """Every place in a document, as the keys that lead there."""
    yield path
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield from places(document[key], (*path, key))


@st.composite
def spoilt(draw, documents):
    """The bytes of a document of which some values are replaced, left out, doubled or nested, or some bytes changed."""
    document = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 4]))):
        *path, key = draw(st.sampled_from([path for path in places(document) if path]))
        parent = document
        for step in path:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "number", "drop", "double", "nest", "repeat"]))
        if how == "replace":
            parent[key] = draw(VALUES)
        elif how == "number":
            parent[key] = draw(NUMBERS)
        elif how == "drop" and path:
            del parent[key]
        elif how == "double" and isinstance(parent[key], list):
            parent[key] = parent[key] * 2
        elif how == "nest":
            for _ in range(draw(st.sampled_from([1, 3, 40]))):
                parent[key] = [parent[key]]
        elif how == "repeat" and isinstance(parent, list) and path:
            parent.insert(key, copy.deepcopy(parent[key]))
    data = bytearray(json.dumps(document[0], ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    damage = draw(st.sampled_from([*["none"] * 8, "bytes", "cut", "tail"]))
    if damage == "bytes":
        for _ in range(draw(st.integers(1, 5))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    elif damage == "cut":
        del data[draw(st.integers(0, len(data))) :]
    elif damage == "tail":
        data += draw(st.sampled_from([b"\x00", b"]", b"\xff\xfe", b" 1"]))
    return bytes(data)


def inputs(documents):
    return st.integers(0, 7).flatmap(lambda kind: spoilt(documents) if kind else st.binary(max_size=200))


def reads(path, data, read):
    """What is read, or None after a proper refusal."""
    path.write_bytes(data)
    try:
        return read(path)
    except ValueError as error:
        assert type(error) is ValueError and str(error).startswith(str(path)), error
        assert "\n" not in str(error) and len(str(error)) < 600 + len(str(path))
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("suffix", ["json", "txt"])
@fuzz
@given(data=inputs(POSES), known=st.sampled_from(["nothing", "size", "frame", "parts"]))
def test_poses(folder, suffix, data, known):
    given = {"nothing": {}, "size": {"size": SIZE}, "frame": {"size": SIZE, "frame": (1, 1)}, "parts": {"parts": PARTS}}
    pose = reads(folder / f"a.{suffix}", data, lambda path: read_pose(path, **given[known]))
    if pose is not None:
        assert pose.shape == (18, 3) and pose.dtype == np.float32 and np.isfinite(pose).all()
        assert pose[:, 2].any() and np.isin(pose[:, 2], (0, 1)).all() and not pose[pose[:, 2] == 0].any()
        assert (pose >= 0).all() and (known == "nothing" or (pose[:, :2] <= SIZE[::-1]).all())


@fuzz
@given(data=inputs(ANNOTATIONS), labels=st.sampled_from([None, ["shirt"], ["shirt", "neck"], []]))
def test_polygons(folder, data, labels):
    mask = reads(folder / "b.json", data, lambda path: read_mask(path, SIZE, labels))
    assert mask is None or (mask.shape == SIZE and mask.dtype == bool and mask.any())


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@fuzz
@given(data=inputs(LABEL_MAPS))
def test_label_maps(folder, suffix, data):
    lut = reads(folder / f"c.{suffix}", data, lambda path: label_map(str(path)))
    assert lut is None or (lut.dtype == np.uint8 and (lut.shape == (256,) or lut.shape[1:] == (4,)))


@pytest.mark.parametrize("documents", [POSES, ANNOTATIONS, LABEL_MAPS])
def test_unspoilt_documents_are_read(folder, documents):
    """So that the others are spoilt from something that is good."""
    readers = (read_pose, lambda path: read_mask(path, SIZE), lambda path: label_map(str(path)))
    read = readers[(POSES, ANNOTATIONS, LABEL_MAPS).index(documents)]
    for document in documents:
        assert reads(folder / "d.json", json.dumps(document).encode(), read) is not None

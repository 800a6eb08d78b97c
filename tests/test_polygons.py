import json
import time

import numpy as np
import pytest

from data.polygons import MAX_POINTS, read_mask

SQUARE = [[10, 10], [30, 10], [30, 20], [10, 20]]
INNER = [[15, 12], [20, 12], [20, 17], [15, 17]]
SIZE = (40, 60)


def labelme(*shapes, size=SIZE, **extra):
    """shapes: (label, points) or (label, points, shape_type)."""
    keys = ("label", "points", "shape_type")
    document = {"version": "5.2", "shapes": [dict(zip(keys, shape, strict=False)) for shape in shapes]}
    return document | ({"imageHeight": size[0], "imageWidth": size[1]} if size else {}) | extra


def isat(*objects, size=SIZE):
    """objects: (category, segmentation, layer)."""
    keys = ("category", "segmentation", "layer")
    info = {"description": "ISAT", "height": size[0], "width": size[1]}
    return {"info": info, "objects": [dict(zip(keys, thing, strict=False)) for thing in objects]}


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def box(mask):
    """(top, bottom, left, right) of the pixels inside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return tuple(int(place) for place in (rows[0], rows[-1], columns[0], columns[-1]))


@pytest.mark.parametrize("tool", [labelme, isat])
def test_the_inside_of_a_polygon(tmp_path, tool):
    mask = read_mask(write(tmp_path / "a.json", tool(("shirt", SQUARE))), SIZE)
    assert mask.shape == SIZE and mask.dtype == bool
    assert box(mask) == (10, 20, 10, 30) and mask.sum() == 11 * 21


def test_labels_choose(tmp_path):
    far = [[40, 30], [50, 30], [50, 38]]
    path = write(tmp_path / "a.json", labelme(("shirt", SQUARE), ("sleeve", far)))
    assert box(read_mask(path, SIZE)) == (10, 38, 10, 50)
    assert box(read_mask(path, SIZE, ["sleeve"])) == (30, 38, 40, 50)
    assert box(read_mask(path, SIZE, ["sleeve", "shirt"])) == (10, 38, 10, 50)
    with pytest.raises(ValueError, match=r"a.json: no outline is labelled 'Shirt'; found: 'shirt', 'sleeve'; name one"):
        read_mask(path, SIZE, ["Shirt"])


@pytest.mark.parametrize("hole", ["_background_", "__background__"])
def test_background_makes_holes(tmp_path, hole):
    path = write(tmp_path / "a.json", labelme(("shirt", SQUARE), (hole, INNER)))
    assert not read_mask(path, SIZE)[13:17, 16:20].any() and read_mask(path, SIZE)[19, 29]
    assert (read_mask(path, SIZE) == read_mask(path, SIZE, ["shirt"])).all()


def test_a_higher_layer_of_isat_hides_what_is_below(tmp_path):
    path = write(tmp_path / "a.json", isat(("bag", INNER, 2.0), ("shirt", SQUARE, 1)))
    assert not read_mask(path, SIZE, ["shirt"])[14, 17] and read_mask(path, SIZE, ["shirt"])[19, 29]
    assert read_mask(path, SIZE)[14, 17]
    path = write(tmp_path / "b.json", isat(("bag", INNER, 0.5), ("shirt", SQUARE, 1)))
    assert read_mask(path, SIZE, ["shirt"])[14, 17]


def test_a_rectangle_of_labelme_is_two_corners_in_any_order(tmp_path):
    path = write(tmp_path / "a.json", labelme(("shirt", [[30, 20], [10, 10]], "rectangle")))
    assert box(read_mask(path, SIZE)) == (10, 20, 10, 30)


def test_a_polygon_may_leave_the_picture_and_cross_itself(tmp_path):
    beyond = [[-20, -10], [70, -10], [70, 20], [-20, 20]]
    mask = read_mask(write(tmp_path / "a.json", labelme(("shirt", beyond))), SIZE)
    assert mask[:21].all() and not mask[21:].any()
    bow_tie = [[10, 10], [30, 30], [30, 10], [10, 30]]
    mask = read_mask(write(tmp_path / "a.json", labelme(("shirt", bow_tie))), SIZE)
    assert mask[20, 12] and mask[20, 28] and not mask[12, 20] and not mask[28, 20]
    star = [[30 + 18 * np.sin(4 * np.pi * i / 5), 20 - 18 * np.cos(4 * np.pi * i / 5)] for i in range(5)]
    mask = read_mask(write(tmp_path / "a.json", labelme(("shirt", star))), SIZE)
    assert mask[4, 30] and not mask[20, 30], "its middle is wound around twice"


def test_an_annotation_without_a_size_is_taken_as_of_this_photograph(tmp_path):
    for size in ({}, {"imageHeight": None, "imageWidth": "60"}):
        assert read_mask(write(tmp_path / "a.json", labelme(("shirt", SQUARE), size=None, **size)), SIZE).any()


@pytest.mark.parametrize("tool", [labelme, isat])
@pytest.mark.parametrize("size", [(60, 40), (80, 120), (40, -60), (float("nan"), 60)])
def test_an_annotation_of_another_photograph_is_refused(tmp_path, tool, size):
    path = write(tmp_path / "a.json", tool(("shirt", SQUARE), size=size))
    with pytest.raises(ValueError, match=r"a.json: outlines a picture of .*but the photograph has 40x60"):
        read_mask(path, SIZE)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (labelme(("shirt", SQUARE[:2])), r"shapes\[0\] \('shirt'\).points: 2 points have no inside; draw at least 3"),
        (isat(("bag", SQUARE), ("shirt", SQUARE[:2])), r"objects\[1\] \('shirt'\).segmentation: 2 points"),
        (labelme(("shirt", [])), "not a list of"),
        (labelme(("shirt", [1, 2, 3, 4, 5, 6])), "not a list of"),
        (labelme(("shirt", [[1, 2], [3, 4], [5]])), "not a list of"),
        (labelme(("shirt", [[1, 2, 3]] * 4)), "not a list of"),
        (labelme(("shirt", [["a", "b"]] * 4)), "not a list of"),
        (labelme(("shirt", {"x": 1})), "not a list of"),
        (labelme(("shirt", None)), "not a list of"),
        (labelme(("shirt", [[10**400, 0]] * 4)), "not a list of"),
        (labelme(("shirt", [[1, 2]], "point")), "'a point' has no inside"),
        (labelme(("shirt", [[1, 2], 3], "rectangle")), r"not two corners"),
        (labelme(("shirt", [[1e6, 5], *SQUARE])), "points far outside the photograph of 40x60"),
        (labelme(("shirt", [[float("nan"), 5], *SQUARE])), "points far outside the photograph of 40x60, NaN"),
        (json.dumps(labelme(("shirt", SQUARE))).replace("[10, 10]", "[1e999, 10]"), "infinity"),
        (labelme(("shirt", [[-9, -9], [-5, -9], [-5, -5]])), "no pixel of the photograph lies inside"),
        (labelme(), "no outline is labelled anything; found: none"),
        (labelme(("_background_", SQUARE)), "no outline is labelled anything; found: '_background_'"),
        ({"shapes": [5]}, r"shapes\[0\] is no object"),
        ({"objects": [5]}, r"objects\[0\] is no object"),
        ({"shapes": {}}, "has no list 'shapes'"),
        ([], "has no list 'shapes'"),
        ("", "not readable as JSON"),
        ('{"shapes": [' + "[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: None if isinstance(value, dict | str) else "",
)
def test_rubbish_is_named(tmp_path, document, message):
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}") as error:
        read_mask(write(tmp_path / "a.json", document), SIZE)
    assert "\n" not in str(error.value)


def test_missing_and_huge_files(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: this annotation is missing"):
        read_mask(tmp_path / "none.json", SIZE)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(ValueError, match=r"huge.json: more than 32 MB"):
        read_mask(tmp_path / "huge.json", SIZE)


def test_no_number_of_points_makes_it_hang(tmp_path):
    points = (np.random.default_rng(0).random((MAX_POINTS // 2 + 1, 2)) * SIZE[::-1]).tolist()
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"shapes\[1\].*more than {MAX_POINTS} points; simplify"):
        read_mask(write(tmp_path / "a.json", labelme(("shirt", points), ("shirt", points))), SIZE)
    assert time.monotonic() - start < 10


def test_an_unrelated_shape_may_be_anything(tmp_path):
    """Only what is asked for has to be a polygon."""
    path = write(tmp_path / "a.json", labelme(("neck", [[1, 2]], "point"), ("shirt", SQUARE)))
    assert read_mask(path, SIZE, ["shirt"]).sum() == 11 * 21

"""Networks that a user brings, as small ONNX files whose answers follow from the picture: they look for colours."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model
from PIL import Image, ImageDraw

from data.estimators import Estimators, estimate, onnx_models
from data.estimators.blazepose import Person
from data.estimators.onnx_models import COCO_17, MEAN, STD, find_joints, find_parts
from data.estimators.weights import Unusable
from data.estimators.windows import carry, whole
from data.parts import CIHP
from data.schema import JOINTS, Part

# Colours far from each other and from black: corners and edges of the cube.
COLORS = np.array([(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)][1:])
PERSON = Person(np.array([210.0, 150.0]), 120.0, 0.3, 0)


def coloured(count: int, order: int = 1) -> np.ndarray:
    """The first colours as networks see them, (count, 3) float32; order -1 for blue, green, red."""
    return ((np.float32(COLORS[:count]) - MEAN) / STD).astype(np.float32)[:, ::order]


def model(path: Path, colors: np.ndarray, size: tuple, tail: list, outputs: list, kind=TensorProto.FLOAT) -> Path:
    """A network (1, 3, H, W) -> 'match' (1, K, H, W), minus the squared distance of each pixel from each colour.

    tail: nodes from 'match' to the outputs.
    """
    type_ = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}[kind]
    constants = {
        "two": 2 * colors.reshape(-1, 3, 1, 1),
        "ones": -np.ones((len(colors), 3, 1, 1)),
        "far": -(colors**2).sum(1).reshape(1, -1, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["image", "two"], ["product"]),
        helper.make_node("Mul", ["image", "image"], ["square"]),
        helper.make_node("Conv", ["square", "ones"], ["minus"]),
        helper.make_node("Add", ["product", "minus"], ["sum"]),
        helper.make_node("Add", ["sum", "far"], ["match"]),
        *tail,
    ]
    graph = helper.make_graph(
        nodes, "colours",
        [helper.make_tensor_value_info("image", kind, ["batch", 3, *size])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value.astype(type_), name) for name, value in constants.items()],
    )  # fmt: skip
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


EXP = helper.make_node("Exp", ["match"], ["heatmaps"])
SIMCC = [
    EXP,
    helper.make_node("ReduceMax", ["heatmaps"], ["simcc_x"], axes=[2], keepdims=0),
    helper.make_node("ReduceMax", ["heatmaps"], ["simcc_y"], axes=[3], keepdims=0),
]
DOUBLE = [  # as RTMPose: two scores for each pixel
    *(helper.make_node("Unsqueeze", [name, "last"], [f"{name}_1"]) for name in ("simcc_x", "simcc_y")),
    *(helper.make_node("Tile", [f"{name}_1", "twice"], [f"{name}_2"]) for name in ("simcc_x", "simcc_y")),
    *(helper.make_node("Reshape", [f"{name}_2", "flat"], [f"{name}_double"]) for name in ("simcc_x", "simcc_y")),
]
NUMBERS = [
    helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.int64(value)))
    for name, value in (("last", [3]), ("twice", [1, 1, 1, 2]), ("flat", [0, 0, -1]))
]
SMALLER = helper.make_node("AveragePool", ["match"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])


@pytest.fixture
def dots() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A black picture with a dot of its own colour for each keypoint, and their places within the person's window."""
    angle = 2.4 * np.arange(len(COCO_17))  # a spiral
    radius = np.linspace(15, 115, len(COCO_17))
    places = PERSON.middle + np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    picture = Image.new("RGB", (420, 300))
    for place, color in zip(places, COLORS, strict=False):
        ImageDraw.Draw(picture).circle(tuple(place - 0.5), 2.5, tuple(int(c) for c in color))
    return np.asarray(picture), dict(zip(COCO_17, places, strict=True))


@pytest.mark.parametrize(
    ("tail", "outputs", "size"),
    [
        ([EXP], ["heatmaps"], (256, 192)),
        (SIMCC, ["simcc_x", "simcc_y"], (256, 192)),
        (SIMCC, ["simcc_x", "simcc_y"], ("height", "width")),
        ([*NUMBERS, *SIMCC, *DOUBLE], ["simcc_x_double", "simcc_y_double"], (256, 192)),
    ],
    ids=["heatmaps", "simcc", "free size", "simcc of half pixels"],
)
def test_every_joint_is_found_in_its_place(tmp_path, dots, tail, outputs, size):
    image, places = dots
    found = find_joints(model(tmp_path / "pose.onnx", coloured(17), size, tail, outputs), image, PERSON)
    places["neck"] = (places["left_shoulder"] + places["right_shoulder"]) / 2
    away = np.array([np.linalg.norm(found.places[JOINTS.index(name)] - place) for name, place in places.items()])
    assert away.max() < 5, away  # the dots' radius is 2.5, a pixel of the window 1.6
    assert found.scores.shape == (18,) and found.scores.min() > 0.3


@pytest.mark.parametrize(("tail", "outputs"), [([EXP], ["heatmaps"]), (SIMCC, ["simcc_x", "simcc_y"])])
def test_places_are_not_off_by_half_a_pixel(tmp_path, tail, outputs):
    path = model(tmp_path / "pose.onnx", np.repeat(coloured(26)[-1:], 17, 0), (256, 192), tail, outputs)
    away = []
    for place in PERSON.middle + np.array([[0, 0], [31.2, 7.7], [-44.9, 60.4], [13.8, -52.6], [-20.3, -8.1]]):
        y, x = np.indices((300, 420)) + 0.5
        blob = 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 288)
        found = find_joints(path, np.repeat(np.uint8(blob + 0.5)[..., None], 3, -1), PERSON)
        away.append((found.places - place).mean(0))
    assert np.abs(away).max() < 1.2 and np.abs(np.mean(away, 0)).max() < 0.45, away


@pytest.mark.parametrize(("tail", "outputs"), [([EXP], ["heatmaps"]), (SIMCC, ["simcc_x", "simcc_y"])])
def test_scores_say_what_is_not_there(tmp_path, dots, tail, outputs):
    image = np.where((dots[0] == COLORS[COCO_17["left_shoulder"]]).all(-1, keepdims=True), 0, dots[0])
    path = model(tmp_path / "pose.onnx", coloured(17), (256, 192), tail, outputs)
    found = find_joints(path, np.uint8(image), PERSON)
    assert {JOINTS[i] for i in np.flatnonzero(found.scores < 0.3)} == {"left_shoulder", "neck"}


def test_joints_outside_of_the_photograph_are_invisible(tmp_path, real_data, estimator_weights):
    image = np.asarray(Image.open(real_data / "cotton/image/8.jpg"))
    corner = other_graph(tmp_path / "corner.onnx", [IMAGE], np.ones((1, 17, 16, 12)))  # the first peak of all
    found = estimate(image, Estimators(pose_model=corner))
    assert not found.photo.pose.any() and not any("wrist" in note for note in found.notes)


@pytest.mark.filterwarnings("error")
def test_half_floats_and_whole_body_keypoints(tmp_path, dots):
    colors = np.concatenate([coloured(17), np.full((116, 3), 9, np.float32)])
    path = model(tmp_path / "pose.onnx", colors, (256, 192), [EXP], ["heatmaps"], kind=TensorProto.FLOAT16)
    found = find_joints(path, dots[0], PERSON)
    assert np.linalg.norm(found.places[0] - dots[1]["nose"]) < 3


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
@pytest.mark.parametrize(
    "tail", [[SMALLER], [helper.make_node("Identity", ["match"], ["logits"])]], ids=["quarter", "full"]
)
def test_parts_lie_where_their_colours_are(tmp_path, channels, tail):
    labels = np.kron(np.arange(20).reshape(4, 5), np.ones((60, 60), int))  # 240x300, label by label
    image = np.uint8(COLORS)[labels]
    person = Person(np.array([150.0, 120.0]), 125.0, 0.0, 0)
    path = model(tmp_path / "p.onnx", coloured(20, -1 if channels == "bgr" else 1), (256, 256), tail, ["logits"])
    found = find_parts(path, "cihp", channels, image, person)
    scores = [carry(np.ascontiguousarray(found.scores[..., part]), found.view, whole((240, 300))) for part in Part]
    parts = np.argmax(scores, axis=0)
    assert (parts == CIHP[labels]).mean() > 0.9
    assert abs(found.scores.sum(-1) - 1).max() < 1e-4 and not found.notes


def test_estimate_uses_the_named_models(tmp_path, real_data, estimator_weights):
    image = np.asarray(Image.open(real_data / "cotton/image/8.jpg"))
    colors = ((np.float32([[255] * 3, [40] * 3]) - MEAN) / STD)[:, ::-1]
    parts = model(tmp_path / "parts.onnx", np.float32(colors), (128, 128), [SMALLER], ["logits"])
    dark = np.repeat((np.float32([[40] * 3]) - MEAN) / STD, 17, 0)
    pose = model(tmp_path / "pose.onnx", np.float32(dark), (64, 48), [EXP], ["heatmaps"])
    found = estimate(image, Estimators(pose_model=pose, parts_model=parts, parts_labels="cihp"))
    assert set(np.unique(found.photo.parts)) == {Part.BACKGROUND, Part.HEAD}  # the labels 0 and 1
    assert found.photo.parts[700, 330] == Part.HEAD, "his dark trousers"
    x, y, seen = found.photo.pose.T
    assert seen.all() and (np.ptp(x), np.ptp(y)) == (0, 0) and found.photo.parts[int(y[0]), int(x[0])] == Part.HEAD


def other_graph(path: Path, inputs: list[tuple[int, list]], output: np.ndarray) -> Path:
    """A network that answers the same whatever it sees."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["constant"], ["out"])], "constant",
        [helper.make_tensor_value_info(f"in{i}", *entry) for i, entry in enumerate(inputs)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(output.astype(np.float32), "constant")],
    )  # fmt: skip
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


IMAGE = (TensorProto.FLOAT, [1, 3, 64, 48])
MAPS = np.zeros((1, 17, 16, 12))


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ([IMAGE, IMAGE], MAPS, r"its inputs are in0 .*in1 .*; expected one image \(1, 3, height, width\)"),
        ([(TensorProto.FLOAT, [1, 4, 64, 48])], MAPS, r"\[1, 4, 64, 48\]; expected one image"),
        ([(TensorProto.FLOAT, [8, 3, 64, 48])], MAPS, r"expected one image"),
        ([(TensorProto.UINT8, [1, 3, 64, 48])], MAPS, r"tensor\(uint8\).*; expected float or float16"),
        ([IMAGE], np.zeros((1, 14, 16, 12)), r"outputs are \(1, 14, 16, 12\); expected COCO's 17 keypoints"),
        ([IMAGE], np.zeros((1, 17, 3)), r"outputs are \(1, 17, 3\); expected COCO's 17"),
        ([IMAGE], np.full((1, 17, 16, 12), np.nan), r"NaN or infinity"),
    ],
)
def test_unfit_pose_networks(tmp_path, inputs, output, message):
    path = other_graph(tmp_path / "odd.onnx", inputs, output)
    with pytest.raises(ValueError, match=rf"odd.onnx: .*{message}") as caught:
        find_joints(path, np.zeros((90, 90, 3), np.uint8), PERSON)
    assert isinstance(caught.value, Unusable) == ("NaN" not in message), "another photograph may give numbers"


def test_simcc_in_the_wrong_order(tmp_path, dots):
    path = model(tmp_path / "swapped.onnx", coloured(17), (256, 192), SIMCC, ["simcc_y", "simcc_x"])
    with pytest.raises(
        ValueError, match=r"swapped.onnx: its outputs are \(1, 17, 256\), \(1, 17, 192\) .*simcc_x, then"
    ):
        find_joints(path, dots[0], PERSON)


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (np.zeros((1, 20, 8, 8)), "atr", r"has 20 labels, the label map atr only 19"),
        (np.zeros((1, 20, 8, 8)), "chip", r"'chip' is unknown.*did you mean 'cihp'"),
        (np.zeros((1, 20, 8, 8)), "cihp_rgb", r"one of colours"),
        (np.zeros((1, 20)), "cihp", r"outputs are \(1, 20\); expected logits"),
        (np.full((1, 20, 8, 8), np.inf), "cihp", r"NaN or infinity"),
    ],
)
def test_unfit_parsers(tmp_path, output, labels, message):
    path = other_graph(tmp_path / "odd.onnx", [IMAGE], output)
    with pytest.raises(ValueError, match=message) as caught:
        find_parts(path, labels, "bgr", np.zeros((90, 90, 3), np.uint8), PERSON)
    assert isinstance(caught.value, Unusable) == ("NaN" not in message)


def test_channels_are_named(tmp_path):
    path = other_graph(tmp_path / "odd.onnx", [IMAGE], np.zeros((1, 20, 8, 8)))
    with pytest.raises(ValueError, match=r"channels 'rbg' are unknown; known: bgr, rgb"):
        find_parts(path, "cihp", "rbg", np.zeros((90, 90, 3), np.uint8), PERSON)


def test_a_network_that_fails_on_its_own_input(tmp_path):
    wrong = helper.make_node("Reshape", ["match", "shape"], ["logits"])
    shape = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.int64([7, 7])))
    path = model(tmp_path / "torn.onnx", coloured(17), ("h", "w"), [shape, wrong], ["logits"])
    with pytest.raises(Unusable, match=r"torn.onnx: fails on an image of 512x512 .*Reshape"):
        find_parts(path, "cihp", "bgr", np.zeros((90, 90, 3), np.uint8), PERSON)


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>", "half"])
def test_files_that_are_no_onnx(tmp_path, content):
    path = tmp_path / "bad.onnx"
    if content == "half":
        whole_file = model(path, coloured(17), (256, 192), SIMCC, ["simcc_x", "simcc_y"]).read_bytes()
        content = whole_file[: len(whole_file) // 2]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unusable, match=r"bad.onnx: (no such file|not a readable ONNX model)") as caught:
        onnx_models.load(path, (8, 8))
    assert "\n" not in str(caught.value)

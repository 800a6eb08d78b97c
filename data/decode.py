"""The bytes of a shard's members as arrays.

H, W pixels; K keypoints.
"""

import io
import json

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.schema import JOINTS

try:
    import simplejpeg
except ImportError:  # no wheel for this machine; Pillow gives the same pixels, more slowly
    simplejpeg = None

POSE_SHAPE = (len(JOINTS), 3)


def _npy_header() -> bytes:
    """What np.save writes before the numbers of a pose."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(POSE_SHAPE, np.float32), allow_pickle=False)
    return buffer.getvalue()[: -4 * POSE_SHAPE[0] * POSE_SHAPE[1]]


NPY_HEADER = _npy_header()


def decode_image(data: bytes, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """The picture as a viewer shows it, in out where that is given.  -> (H, W, 3) uint8 RGB

    libjpeg-turbo reads JPEG, Pillow everything else and the JPEGs that need more than decoding: the same pixels either
    way.  Raises ValueError when it is no image, is cut off, or has another size than (height, width).
    """
    plain = data[:2] == b"\xff\xd8" and data.find(b"Exif", 0, 64) < 0 and data.find(b"Adobe", 0, 64) < 0
    if plain and simplejpeg is not None:
        try:
            image = simplejpeg.decode_jpeg(data, buffer=np.empty((*size, 3), np.uint8) if out is None else out)
        except ValueError:
            image = None  # of another size, or broken: Pillow tells
        if image is not None and image.shape[:2] == size:
            return image if out is None else out
    image = _decode_any(data, size)
    if out is None:
        return image
    out[...] = image
    return out


def decode_smaller(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """A JPEG in the smallest of the sizes that libjpeg can decode to which is not below (height, width).

    -> (H', W', 3) uint8 RGB.  It leaves out frequencies, so that the pixels differ slightly from a resize of the whole.
    Raises ValueError when it is no JPEG, or a broken one.
    """
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        raise ValueError("data.resize=dct needs JPEGs and the package simplejpeg; use data.resize=lanczos")
    return simplejpeg.decode_jpeg(data, min_height=size[0], min_width=size[1], min_factor=1)


def _decode_any(data: bytes, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the orientations that swap height and width
            found = (image.width, image.height) if turned else (image.height, image.width)
            if found != tuple(size):
                raise ValueError(f"{found[0]}x{found[1]} pixels, not {'x'.join(map(str, size))}")
            if image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels, not 8 bits a channel")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def decode_pose(data: bytes) -> np.ndarray:
    """(K, 3) float32 rows x, y in [0, 1], visible 0 or 1.  Raises ValueError when the member holds anything else."""
    pose = parse_pose(data)
    if not ((pose >= 0) & (pose <= 1)).all() or not np.isin(pose[:, 2], (0, 1)).all():  # NaN is neither
        raise ValueError("x and y must lie in [0, 1] of the image, visible must be 0 or 1")
    return pose


def parse_pose(data: bytes) -> np.ndarray:
    """(K, 3) float32, values unchecked, from .npy or from JSON."""
    if data.startswith(NPY_HEADER) and len(data) == len(NPY_HEADER) + 4 * POSE_SHAPE[0] * POSE_SHAPE[1]:
        return np.frombuffer(data, "<f4", offset=len(NPY_HEADER)).reshape(POSE_SHAPE)
    try:
        if data.startswith(b"\x93NUMPY"):
            pose = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=1000).astype(np.float32)
        else:
            pose = np.asarray(json.loads(data), dtype=np.float32)
    except Exception as error:  # NumPy parses the header with Python's tokenizer, which has errors of its own
        raise ValueError(f"not numbers ({type(error).__name__})") from error
    if pose.shape != POSE_SHAPE:
        raise ValueError(f"a pose of shape {pose.shape}, not {len(JOINTS)} rows [x, y, visible]")
    return pose

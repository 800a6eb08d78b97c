"""Pictures as files that know what they were made of: a digest in their metadata, which no other picture has.

H, W pixels.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

MARK = "sample.py"  # the PNG's keyword, and what a comment begins with
SUFFIXES = {"png": "png", "jpeg": "jpg", "webdataset": "png", "webp": "webp", "gif": "gif"}  # by format


def digest(*facts: Any) -> str:
    """16 hexadecimal digits that other facts, which are JSON, would not give."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def encoded(image: np.ndarray, suffix: str, quality: int, stamp: str) -> bytes:
    """The picture (H, W, 3) uint8 as a file's bytes.  quality: of JPEG."""
    how = {"quality": quality, "subsampling": 0} if suffix == "jpg" else {}
    return saved(Image.fromarray(image), suffix, stamp, **how)


def saved(image: Image.Image, suffix: str, stamp: str, **how: Any) -> bytes:
    """The image as a file's bytes, with this stamp."""
    mark = f"{MARK} {stamp}".encode()
    if suffix == "png":
        how["pnginfo"] = PngImagePlugin.PngInfo()
        how["pnginfo"].add_text(MARK, stamp)
    else:
        how["xmp" if suffix == "webp" else "comment"] = mark
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if suffix == "jpg" else suffix.upper(), **how)
    return buffer.getvalue()


def stamp_of(file: Path | BinaryIO) -> str | None:
    """The stamp of a picture that sample.py made, whatever its pixels are; None for every other file."""
    try:
        with Image.open(file) as image:
            return _stamp(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _stamp(image: ImageFile.ImageFile) -> str | None:
    told = [image.info.get(key) for key in (MARK, "comment", "xmp")]
    if isinstance(told[0], str):
        return told[0]
    marks = [each.decode(errors="replace") for each in told[1:] if isinstance(each, bytes)]
    return next((mark.removeprefix(f"{MARK} ") for mark in marks if mark.startswith(f"{MARK} ")), None)


def is_whole(path: Path, stamp: str) -> bool:
    """Whether this very picture is there and can be decoded."""
    try:
        with Image.open(path) as image:
            if _stamp(image) != stamp:
                return False
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def stamps_in_tar(path: Path, names: Sequence[str] | None = None) -> list[str | None]:
    """The stamps of these members, or of the first; none where the tar cannot be read."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [archive.next()] if names is None else [archive.getmember(name) for name in names]
            return [stamp_of(archive.extractfile(member)) for member in members if member]
    except (OSError, KeyError, AttributeError, ValueError, tarfile.TarError):
        return []

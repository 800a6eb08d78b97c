"""Masks from the polygons that annotators draw: labelme's JSON and ISAT's."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data.json_files import read_json

HOLES = ("__background__", "_background_")  # what the tools call background that shows through an object
MAX_POINTS = 50_000  # of a file: filling takes a moment for each, row by row


class Outline(NamedTuple):
    """One shape as its file has it."""

    where: str  # "shapes[3] ('shirt')", for messages
    label: str
    points: Any
    layer: float | None = None  # ISAT: it hides what lies in lower layers; labelme has none


def read_mask(path: Path, size: tuple[int, int], labels: Collection[str] | None = None) -> np.ndarray:
    """The pixels inside the outlines with one of these labels, without labels inside any.  -> (H, W) bool

    size is (height, width) of the photograph as read_image shows it; what lies outside it is cut off, and the pixels
    that an outline runs through are inside.  labelme: the
    union of shapes[].points, polygons or rectangles.  ISAT: objects[].segmentation, where a higher layer hides what
    lies below.  Outlines of background make holes, and so does a polygon that crosses itself where it winds twice.

    Raises ValueError naming file, shape and remedy when the file is neither, is of a photograph of another size, has
    no such label or no pixel inside, or when an outline is no polygon: fewer than 3 points, numbers that are not
    finite, or points farther outside the photograph than it is large.
    """
    document = read_json(path, "annotation")
    if isinstance(document, dict) and isinstance(document.get("shapes"), list):
        outlines = _labelme(document["shapes"], path)
        noted = (document.get("imageHeight"), document.get("imageWidth"))
    elif isinstance(document, dict) and isinstance(document.get("objects"), list):
        outlines = _isat(document["objects"], path)
        info = document.get("info")
        noted = (info.get("height"), info.get("width")) if isinstance(info, dict) else (None, None)
    else:
        raise ValueError(f"{path}: has no list 'shapes' (labelme) or 'objects' (ISAT); export it from one of the two")
    if any(isinstance(side, int | float) and side != real for side, real in zip(noted, size, strict=True)):
        raise ValueError(
            f"{path}: outlines a picture of {noted[0]}x{noted[1]} (height x width), but the photograph has "
            f"{size[0]}x{size[1]}; outline this very photograph"
        )

    def chosen(outline: Outline) -> bool:
        return outline.label not in HOLES and (labels is None or outline.label in labels)

    if not any(map(chosen, outlines)):
        found = ", ".join(sorted({repr(outline.label)[:40] for outline in outlines})[:8])
        wanted = " or ".join(map(repr, labels)) if labels is not None else "anything"
        raise ValueError(f"{path}: no outline is labelled {wanted}; found: {found or 'none'}; name one, or outline it")
    mask, num_points = Image.new("1", size[::-1]), 0
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        if chosen(outline) or outline.label in HOLES or outline.layer is not None:
            points = _points(outline, size)
            num_points += len(points)
            if num_points > MAX_POINTS:
                raise ValueError(f"{outline.where}: this file has more than {MAX_POINTS} points; simplify its outlines")
            draw.polygon(points.ravel().tolist(), fill=chosen(outline))
    pixels = np.array(mask)
    if not pixels.any():
        raise ValueError(f"{path}: no pixel of the photograph lies inside its outlines; draw them again")
    return pixels


def _labelme(shapes: list, path: Path) -> list[Outline]:
    outlines = []
    for i, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            raise ValueError(f"{path}: shapes[{i}] is no object; save it again with labelme")
        label, kind, points = str(shape.get("label")), shape.get("shape_type", "polygon"), shape.get("points")
        where = f"{path}: shapes[{i}] ({label[:40]!r})"
        if kind == "rectangle" and isinstance(points, list) and len(points) == 2:
            try:
                (left, top), (right, bottom) = points
            except (TypeError, ValueError):
                raise ValueError(f"{where}.points: not two corners [x, y]; draw it again") from None
            points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        elif kind not in ("polygon", "rectangle"):
            points = f"a {kind}"
        outlines.append(Outline(f"{where}.points", label, points))
    return outlines


def _isat(objects: list, path: Path) -> list[Outline]:
    """From the lowest layer to the highest."""
    outlines = []
    for i, thing in enumerate(objects):
        if not isinstance(thing, dict):
            raise ValueError(f"{path}: objects[{i}] is no object; save it again with ISAT")
        label, layer = str(thing.get("category")), thing.get("layer")
        where = f"{path}: objects[{i}] ({label[:40]!r}).segmentation"
        layer = float(layer) if isinstance(layer, float) or (isinstance(layer, int) and abs(layer) < 1e6) else 0.0
        outlines.append(Outline(where, label, thing.get("segmentation"), layer))
    return sorted(outlines, key=lambda outline: outline.layer)


def _points(outline: Outline, size: tuple[int, int]) -> np.ndarray:
    """The corners, (N, 2) float64 rows (x, y)."""
    if isinstance(outline.points, str):
        raise ValueError(f"{outline.where}: {outline.points[:40]!r} has no inside; draw a polygon")
    try:
        points = np.asarray(outline.points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{outline.where}: not a list of [x, y]; draw it again") from None
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{outline.where}: not a list of [x, y]; draw it again")
    if len(points) < 3:
        raise ValueError(f"{outline.where}: {len(points)} points have no inside; draw at least 3, or remove it")
    frame = np.float64(size[::-1])
    if not np.isfinite(points).all() or (np.abs(points - frame / 2) > 1.5 * frame).any():
        raise ValueError(
            f"{outline.where}: points far outside the photograph of {size[0]}x{size[1]}, NaN or infinity; outline this "
            "very photograph"
        )
    return points

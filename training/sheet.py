"""Contact sheets: what the network was given, what it made of it, and the truth, a row a pair."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.pose_drawing import draw_pose
from data.schema import Sample

GAP = 4
HEADING = 22
TITLE = 12  # pixels of its letters
PAPER = (255, 255, 255)


def contact_sheet(
    samples: list[Sample], results: list[np.ndarray], *, paired: bool = True, height: int = 128
) -> np.ndarray:
    """(H, W, 3) uint8.  Columns: person, clothing-agnostic, garment, result and, for pairs, the truth.

    The poses are drawn on the two conditioning images; `height` is that of one picture.
    """
    titles = ["person", "clothing-agnostic", "garment", "result", "truth"]
    rows = []
    for sample, result in zip(samples, results, strict=True):
        person, agnostic, garment, drawn = (
            scaled(image, height) for image in (sample.person, sample.clothing_agnostic, sample.garment, result)
        )
        agnostic, garment = draw_pose(agnostic, sample.person_pose), draw_pose(garment, sample.garment_pose)
        rows.append([person, agnostic, garment, drawn, person][: 5 if paired else 4])
    return grid(rows, titles[: len(rows[0])])


def sharpened_sheet(
    lowres: list[np.ndarray], results: list[np.ndarray], truth: list[np.ndarray] | None = None, *, height: int = 128
) -> np.ndarray:
    """(H, W, 3) uint8.  Columns: what a stage without try-on is told, result and, where it is known, the truth.

    `height` is that of one picture.
    """
    columns = [lowres, results] + ([] if truth is None else [truth])
    rows = [[scaled(shown, height) for shown in row] for row in zip(*columns, strict=True)]
    return grid(rows, ["low resolution", "result", "truth"][: len(columns)])


def scaled(image: np.ndarray, height: int) -> np.ndarray:
    """The image at another height, in its own proportions."""
    width = round(height * image.shape[1] / image.shape[0])
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def shortened(name: str, rest: str, width: int) -> str:
    """A title of this many pixels: the name, shortened in its middle where it must be, and the rest."""
    font, title, num = ImageFont.load_default(TITLE), name + rest, len(name)
    while font.getlength(title) > width and num > 2:
        num -= 1
        title = f"{name[: (num + 1) // 2]}...{name[-(num // 2) :]}{rest}"
    return title


def grid(rows: list[list[np.ndarray]], titles: list[str]) -> np.ndarray:
    """Pictures of one size in rows, under the titles of their columns."""
    height, width = rows[0][0].shape[:2]
    sheet = Image.new("RGB", (len(titles) * (width + GAP) + GAP, HEADING + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TITLE)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP) + width / 2, HEADING / 2), title, fill="black", anchor="mm", font=font)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (GAP + j * (width + GAP), HEADING + i * (height + GAP)))
    return np.asarray(sheet)

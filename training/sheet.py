"""Contact sheets: what the network was given, what it made of it, and the truth, a row a pair."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.pose_drawing import draw_pose
from data.schema import Sample

GAP = 4
HEADING = 22
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
        row = [
            sample.person,
            draw_pose(sample.clothing_agnostic, sample.person_pose),
            draw_pose(sample.garment, sample.garment_pose),
            result,
            sample.person,
        ]
        rows.append(row if paired else row[:-1])
    return grid(rows, titles[: len(rows[0])], height)


def grid(rows: list[list[np.ndarray]], titles: list[str], height: int) -> np.ndarray:
    """Pictures of one size in rows, under the titles of their columns."""
    width = round(height * rows[0][0].shape[1] / rows[0][0].shape[0])
    size = (len(titles) * (width + GAP) + GAP, HEADING + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP) + width / 2, HEADING / 2), title, fill="black", anchor="mm", font=font)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            tile = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (GAP + j * (width + GAP), HEADING + i * (height + GAP)))
    return np.asarray(sheet)

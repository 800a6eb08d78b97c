"""python -m data.inspect SHARDS: a picture of what the network will be fed, one sample a row."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.dataset import ShardedDataset
from data.pose_drawing import draw_pose
from data.schema import Sample

COLUMNS = ("person", "clothing-agnostic, person's pose", "garment, its wearer's pose")
TILE = 256  # pixels: smaller samples are enlarged until their width reaches it
BAR = 20  # pixels: height of a line of text


def contact_sheet(samples: list[Sample]) -> np.ndarray:
    """Rows person | clothing-agnostic | garment, poses drawn over the latter two, under labelled columns.

    -> (H, W, 3) uint8; each row stands under its sample's key.
    """
    return np.concatenate([text_bar(COLUMNS, _row(samples[0]).shape[1]), *map(_labelled_row, samples)])


def _labelled_row(sample: Sample) -> np.ndarray:
    row = _row(sample)
    flat = "" if sample.garment_pose[:, 2].any() else "no pose: it lies flat"
    return np.concatenate([text_bar((sample.key, "", flat), row.shape[1]), row])


def _row(sample: Sample) -> np.ndarray:
    zoom = -(-TILE // sample.person.shape[1])
    person, agnostic, garment = (
        image.repeat(zoom, 0).repeat(zoom, 1) for image in (sample.person, sample.clothing_agnostic, sample.garment)
    )
    posed = [person, draw_pose(agnostic, sample.person_pose), draw_pose(garment, sample.garment_pose)]
    return np.concatenate(posed, axis=1)


def text_bar(texts: tuple[str, ...], width: int) -> np.ndarray:
    """A white bar (BAR, width, 3) uint8 with the texts in equal columns."""
    bar = Image.new("RGB", (width, BAR), "white")
    draw = ImageDraw.Draw(bar)
    for i, text in enumerate(texts):
        draw.text((4 + i * width // len(texts), 3), text, fill="black", font=ImageFont.load_default(13))
    return np.asarray(bar)


def main(argv: list[str] | None = None) -> int:
    """Writes the picture; returns the exit status: 0, or 2 after one line on stderr about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description=__doc__)
    parser.add_argument("shards", help="a folder that python -m data.prepare wrote, or its URL")
    parser.add_argument("--num", type=int, default=8, help="number of samples, the first ones [8]")
    parser.add_argument("--out", type=Path, default=Path("inspect.png"), help="[inspect.png]")
    args = parser.parse_args(argv)
    try:
        if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--out {args.out}: name a .png or a .jpg")
        dataset = ShardedDataset(args.shards)
        picture = contact_sheet([dataset.read(i) for i in range(min(max(args.num, 1), len(dataset)))])
        Image.fromarray(picture).save(args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: the first samples of {args.shards}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Pictures of pictures: contact sheets, grids of persons and garments, and the denoising in motion."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from data.schema import Sample
from model.cascade import Stage
from model.diffusion import to_uint8
from model.sampler import Step
from sampling.stamps import saved
from training.sheet import GAP, PAPER, contact_sheet, grid, scaled, sharpened_sheet

SMALLEST, HEIGHT = 128, 256  # of one picture on a sheet
FRAMES = 24  # of each stage, at most
FRAME_MS, LAST_MS = 120, 2000
WIDEST = 16383  # pixels that WebP can hold
ANIMATIONS = ("webp", "gif", "png")


def pairs_sheet(samples: list[Sample], results: list[np.ndarray], paired: bool) -> Image.Image:
    """What the network was given, what it made of it and, for pairs, the truth, a row a pair."""
    return Image.fromarray(contact_sheet(samples, results, paired=paired, height=_height(results[0])))


def images_sheet(lowres: list[np.ndarray], results: list[np.ndarray]) -> Image.Image:
    """Low-resolution images beside what became of them, a row an image."""
    return Image.fromarray(sharpened_sheet(lowres, results, height=_height(results[0])))


def figure(persons: list[np.ndarray], garments: list[np.ndarray], results: list[list[np.ndarray]]) -> Image.Image:
    """Persons down, garments across, and each person in each garment (as Zhu et al. 2023, Fig. 7).

    results: a list a person.
    """
    height = _height(results[0][0])
    small = [[scaled(image, height) for image in row] for row in [garments, *results]]
    corner = np.full_like(small[0][0], PAPER[0])
    left = [corner, *(scaled(image, height) for image in persons)]
    rows = [[first, *row] for first, row in zip(left, small, strict=True)]
    return Image.fromarray(grid(rows, [""] * len(rows[0])))


def _height(picture: np.ndarray) -> int:
    return min(HEIGHT, max(SMALLEST, picture.shape[0]))


class Recorder:
    """The predicted images of every step, in frames of one height; those of several batches side by side."""

    def __init__(self, stages: Sequence[Stage]):
        self.height = min(HEIGHT, stages[-1].model.image_size[0])
        self.seen = {stage.name: 0 for stage in stages}
        self.frames: dict[tuple[str, int], list[np.ndarray]] = {}  # by stage and step, a picture a pair

    def __call__(self, stage: Stage, step: Step) -> None:
        num = stage.sampler.num_steps
        number, every = self.seen[stage.name] % num + 1, -(-num // FRAMES)
        self.seen[stage.name] += 1
        if (number - 1) % every == 0 or number == num:
            images = to_uint8(step.x0).permute(0, 2, 3, 1).cpu().numpy()
            pictures = self.frames.setdefault((stage.name, number), [])
            pictures += [scaled(image, self.height) for image in images]

    def animation(self, suffix: str, stamp: str) -> bytes:
        """A file's bytes.  Raises ValueError when there are too many pairs for one."""
        first, *rest = [self._frame(pictures) for pictures in self.frames.values()]
        if first.width > WIDEST:
            raise ValueError(f"--animation: {first.width} pixels wide, {WIDEST} is the most; ask for fewer --rows")
        lasting = [FRAME_MS] * len(rest) + [LAST_MS]
        return saved(first, suffix, stamp, save_all=True, append_images=rest, duration=lasting, loop=0)

    def _frame(self, pictures: list[np.ndarray]) -> Image.Image:
        width = pictures[0].shape[1]
        sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, self.height), PAPER)
        for i, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (i * (width + GAP), 0))
        return sheet

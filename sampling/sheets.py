"""Pictures of pictures: contact sheets, grids of persons and garments, and the denoising in motion."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.schema import Sample
from model.cascade import Stage
from model.diffusion import to_uint8
from model.sampler import Step
from training.sheet import GAP, PAPER, contact_sheet, grid, scaled

SMALLEST, HEIGHT = 128, 256  # of one picture on a sheet
FRAMES = 24  # of each stage, at most
FRAME_MS, LAST_MS = 120, 2000
ANIMATIONS = ("webp", "gif", "png")


def pairs_sheet(samples: list[Sample], results: list[np.ndarray], paired: bool) -> Image.Image:
    """What the network was given, what it made of it and, for pairs, the truth, a row a pair."""
    return Image.fromarray(contact_sheet(samples, results, paired=paired, height=_height(results[0])))


def sharpened_sheet(lowres: list[np.ndarray], results: list[np.ndarray]) -> Image.Image:
    """Low-resolution images beside what became of them, a row an image."""
    height = _height(results[0])
    rows = [[scaled(small, height), scaled(result, height)] for small, result in zip(lowres, results, strict=True)]
    return Image.fromarray(grid(rows, ["input", "result"]))


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
    """The predicted images of every step, side by side in frames of one height."""

    def __init__(self, stages: Sequence[Stage]):
        self.height = min(HEIGHT, stages[-1].model.image_size[0])
        self.seen = {stage.name: 0 for stage in stages}
        self.frames: list[Image.Image] = []

    def __call__(self, stage: Stage, step: Step) -> None:
        self.seen[stage.name] += 1
        number, every = self.seen[stage.name], -(-stage.sampler.num_steps // FRAMES)
        if (number - 1) % every == 0 or number == stage.sampler.num_steps:
            self.frames.append(self._frame(step.x0))

    def _frame(self, x0: torch.Tensor) -> Image.Image:
        images = to_uint8(x0).permute(0, 2, 3, 1).cpu().numpy()
        pictures = [scaled(image, self.height) for image in images]
        width = pictures[0].shape[1]
        sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, self.height), PAPER)
        for i, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (i * (width + GAP), 0))
        return sheet

    def save(self, path: Path) -> None:
        first, *rest = self.frames
        lasting = [FRAME_MS] * len(rest) + [LAST_MS]
        first.save(path, save_all=True, append_images=rest, duration=lasting, loop=0)

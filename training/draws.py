"""The randomness of training and sampling, keyed by (seed, position)."""

import numpy as np
import torch
from torch import Tensor

from data.randomness import Purpose, keyed_rng
from model.diffusion import DiffusionConfig, Draws, draw

OFFSET_KEY = 2**64 - 1  # no position reaches it


class TrainingDraws:
    """position -> Draws of one sample, as arrays: what the loader's workers call."""

    def __init__(self, seed: int, image_size: tuple[int, int], num_aug_levels: int, config: DiffusionConfig):
        self.seed, self.image_size, self.num_aug_levels, self.config = seed, image_size, num_aug_levels, config
        self.offset = keyed_rng(seed, OFFSET_KEY, Purpose.DIFFUSION).random()

    def __call__(self, position: int) -> Draws:
        rng = keyed_rng(self.seed, position, Purpose.DIFFUSION)
        return draw(rng, position, self.offset, self.image_size, self.num_aug_levels, self.config)


class SamplingNoise:
    """Standard normal noise for a batch of images, each from its own stream: the picture of a sample does not depend
    on its neighbours.  Images of another height, which are another stage's, have streams of their own."""

    def __init__(self, seed: int, positions: list[int], image_size: tuple[int, int], device: torch.device):
        self.rngs = [keyed_rng(seed, position, Purpose.SAMPLING, image_size[0]) for position in positions]
        self.image_size, self.device = image_size, device

    def __call__(self) -> Tensor:
        """The next (B, 3, H, W)."""
        arrays = [rng.standard_normal((3, *self.image_size), dtype=np.float32) for rng in self.rngs]
        return torch.from_numpy(np.stack(arrays)).to(self.device)

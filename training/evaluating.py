"""How like the truth pictures are, pair by pair; and in training, how it comes along on held-out pairs.

B batch, H W pixels.  evaluate.py measures what is drawn with all steps, and crowds of pictures.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.agnostic import drawn_region
from data.dataset import ShardedDataset
from data.mixture import Mixture
from data.schema import Sample
from model.diffusion import Net
from model.lpips import LPIPS, SMALLEST
from model.metrics import WINDOW, mean_in, ssim, ssim_maps
from training.config import Config
from training.distributed import all_gather, num_ranks
from training.held_out import own_preview
from training.lpips_weights import load_lpips

# Around what measures: TF32, which training may allow, errs by as much as the constants of SSIM.
exactly = partial(torch.backends.cudnn.flags, enabled=True, benchmark=False, deterministic=False, allow_tf32=False)


def lpips_name(net: str, size: tuple[int, int] | None) -> str:
    """What LPIPS is called, of pictures that are resized to this (height, width) for it."""
    return f"lpips_{net}" if size is None else f"lpips_{net}_{size[0]}x{size[1]}"


class Likeness(NamedTuple):
    """Measures of pairs of pictures.

    Names: ssim, lpips_NET; lpips_NET_HEIGHTxWIDTH where pictures are resized for it; with _region, the mean within a
    mask.
    """

    lpips: LPIPS | None = None
    lpips_size: tuple[int, int] | None = None  # (height, width), by Pillow's bilinear filter
    grey: bool = False  # SSIM of the grey pictures, as Pillow makes them
    device: torch.device | str = "cpu"
    ssim: bool = True  # False for pictures that are smaller than its window

    @torch.no_grad()
    @exactly()
    def __call__(
        self, images: Sequence[np.ndarray], truth: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """(B,) float64 of each name.  images, truth (H, W, 3) uint8 of one size; masks (H, W) bool.

        The mean within an empty mask is NaN.  Raises ValueError for images that are too small for a measure.
        """
        found = self._ssim(images, truth, masks) if self.ssim else {}
        if self.lpips is not None:
            found |= self._lpips(images, truth, masks)
        return {name: value.double().cpu().numpy() for name, value in found.items()}

    def _ssim(
        self, images: Sequence[np.ndarray], truth: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None
    ) -> dict[str, Tensor]:
        maps = ssim_maps(*(self._stacked(each, grey=self.grey) for each in (images, truth)))
        found = {"ssim": ssim(maps)}
        if masks is not None:  # which may reach to the edge of the picture
            found["ssim_region"] = mean_in(maps, self._mask(masks))
        return found

    def _lpips(
        self, images: Sequence[np.ndarray], truth: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None
    ) -> dict[str, Tensor]:
        name, size = lpips_name(self.lpips.net, self.lpips_size), self.lpips_size
        a, b = (2 * self._stacked(each, size) - 1 for each in (images, truth))
        found = {name: self.lpips(a, b)}
        if masks is not None:
            found[f"{name}_region"] = mean_in(self.lpips.maps(a, b), self._mask(masks, size))
        return found

    def _stacked(self, images: Sequence[np.ndarray], size: tuple[int, int] | None = None, grey: bool = False) -> Tensor:
        """(B, C, H, W) in [0, 1]; C is 1 for grey."""
        if size is not None:
            images = [np.asarray(Image.fromarray(x).resize(size[::-1], Image.Resampling.BILINEAR)) for x in images]
        if grey:
            images = [np.asarray(Image.fromarray(x).convert("L"))[..., None] for x in images]
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255

    def _mask(self, masks: Sequence[np.ndarray], size: tuple[int, int] | None = None) -> Tensor:
        """(B, H, W), shares of each pixel"""
        mask = torch.from_numpy(np.stack(masks)).to(self.device).float()
        return mask if size is None else F.interpolate(mask[:, None], size, mode="area")[:, 0]


class Evaluation:
    """SSIM and LPIPS of pictures drawn from held-out pairs, every log.eval_every steps.

    `told` says what is left out, and why: a run does not end for want of a measure.  `likeness` is None where nothing
    can be measured.  Every rank makes one and calls it.
    """

    def __init__(self, config: Config, device: torch.device):
        self.config, self.told = config, None
        lpips, smallest = None, min(config.training_size or (SMALLEST["alex"],))
        if smallest < SMALLEST["alex"]:
            self.told = f"eval/lpips_alex is left out: it needs {SMALLEST['alex']} pixels a side"
        else:
            try:
                lpips = load_lpips("alex", device)
            except ValueError as error:
                self.told = f"eval/lpips_alex is left out: {error}"
        self.likeness = Likeness(lpips, device=device) if smallest >= WINDOW else None
        if self.likeness is None:
            self.told = f"log.eval_every: nothing is measured of images smaller than {WINDOW} pixels a side"

    def __call__(
        self, net: Net, dataset: ShardedDataset | Mixture, *, batch: int, even: bool, device: torch.device,
        alive: Callable[[], None],
    ) -> dict[str, float]:  # fmt: skip
        """eval/ssim and the like: means over the first log.num_eval pairs, the same on any number of ranks.

        batch: pictures that a rank draws together.  even: see training.held_out.  alive: called between batches.
        """
        config, num = self.config, min(self.config.log.num_eval, len(dataset))
        sampler = config.sampler.model_copy(update={"method": "ddim", "num_steps": config.log.preview_steps})
        mine: dict[int, dict[str, float]] = {}
        for first in range(0, num, batch * num_ranks()):
            drawn = own_preview(
                net, dataset, range(first, min(first + batch * num_ranks(), num)), size=config.training_size,
                seed=config.seed, even=even, model=config.model, diffusion=config.diffusion, sampler=sampler,
                device=device,
            )  # fmt: skip
            if drawn:
                mine |= self._measured(drawn)
            alive()
        rows = {i: row for each in all_gather(mine) for i, row in each.items()}
        names = dict.fromkeys(name for i in sorted(rows) for name in rows[i])
        values = {name: [rows[i][name] for i in sorted(rows) if not math.isnan(rows[i][name])] for name in names}
        return {f"eval/{name}": float(np.mean(each)) for name, each in values.items() if each}

    def _measured(self, drawn: dict[int, tuple[Sample, np.ndarray]]) -> dict[int, dict[str, float]]:
        samples, images = zip(*drawn.values(), strict=True)
        tries_on = self.config.model.tries_on
        masks = [drawn_region(sample.person, sample.clothing_agnostic) for sample in samples] if tries_on else None
        found = self.likeness(images, [sample.person for sample in samples], masks)
        return {i: {name: float(value[k]) for name, value in found.items()} for k, i in enumerate(drawn)}

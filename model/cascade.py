"""Stages one after the other: each but the first sharpens the image of the one before.

B batch, C channels, H W pixels, A conditioning images.  Images are in [-1, 1] between all stages.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Net, upsample
from model.network import NetworkConfig
from model.sampler import Noise, SamplerConfig, Step, sample_steps


class Stage(NamedTuple):
    """A trained network and how it is sampled."""

    name: str
    net: Net  # training.engine.Autocast
    model: NetworkConfig
    diffusion: DiffusionConfig
    sampler: SamplerConfig

    @property
    def lowres_size(self) -> tuple[int, int]:
        """(height, width) of the image that a stage with lowres is given."""
        height, width = self.model.image_size
        return height // self.model.lowres_factor, width // self.model.lowres_factor


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """The stages from the smallest to the largest.

    Raises ValueError, which names the stages, when they do not chain, or when one cannot be sampled as it shall be.
    Whether the first has a low-resolution input is not judged: it may be given an image.
    """
    stages = list(stages)
    if not stages:
        raise ValueError("a cascade of no stages; name at least one run folder")
    names = [stage.name for stage in stages]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"two stages are named {twice[0]}; rename one of the folders")
    for stage in stages:
        _check(stage)
    stages.sort(key=lambda stage: stage.model.image_size[0] * stage.model.image_size[1])
    for small, large in pairwise(stages):
        have, want = small.model.image_size, large.lowres_size
        both = f"{small.name} and {large.name}"
        if have == large.model.image_size:
            raise ValueError(f"{both}: both make images of {_pixels(have)}; leave one out")
        if not large.model.lowres:
            raise ValueError(
                f"{both}: {large.name} has model.lowres=false and takes no image of {small.name}; leave one out"
            )
        if have != want:
            raise ValueError(
                f"{both}: {small.name} makes images of {_pixels(have)}, but {large.name}, of "
                f"{_pixels(large.model.image_size)} with model.lowres_factor={large.model.lowres_factor}, takes those "
                f"of {_pixels(want)}; a stage is missing between them, or one was trained for another cascade"
            )
    return stages


def between(stages: list[Stage], start: str | None = None, stop: str | None = None) -> list[Stage]:
    """Those from `start` to `stop`, both included; None: from the first, to the last.  Raises ValueError."""
    names = [stage.name for stage in stages]
    for key, name in (("start", start), ("stop", stop)):
        if name is not None and name not in names:
            raise ValueError(f"{key}={name}: no such stage; there are {', '.join(names)}")
    first = names.index(start) if start is not None else 0
    last = names.index(stop) if stop is not None else len(names) - 1
    if first > last:
        raise ValueError(f"start={start} comes after stop={stop}; the stages are {', '.join(names)}")
    return stages[first : last + 1]


class Cascade:
    """Stages on a device.  With one_at_a_time only the network that runs is there, the others are on the CPU."""

    def __init__(self, stages: Iterable[Stage], device: torch.device, one_at_a_time: bool = False):
        """Raises ValueError as in_order does."""
        self.stages, self.device, self.one_at_a_time = in_order(stages), device, one_at_a_time
        for stage in self.stages:
            if stage.sampler.tile_rows is not None:
                stage.net.model.set_tile_rows(stage.sampler.tile_rows)
            stage.net.to("cpu" if one_at_a_time else device)

    @torch.no_grad()
    def __call__(
        self,
        conditions: Mapping[str, Conditions],
        noise: Callable[[Stage], Noise],
        *,
        image: Tensor | None = None,
        start: str | None = None,
        stop: str | None = None,
        on_step: Callable[[Stage, Step], None] | None = None,
    ) -> dict[str, Tensor]:
        """The images of the stages from `start` to `stop`, by name, each (B, 3, H, W) in [-1, 1].

        conditions: for each stage that tries on, clean ones at its size.  image (B, 3, h, w) in [-1, 1]: what the first
        stage to run shall sharpen, at its lowres_size, if it has a low-resolution input.  on_step hears of every step.

        Raises ValueError for an image that does not fit, and for a network whose answers are not finite numbers.
        """
        stages = between(self.stages, start, stop)
        _check_image(stages[0], image)
        nums = set() if image is None else {len(image)}
        for stage in stages:
            nums |= _check_conditions(stage, conditions.get(stage.name))
        if len(nums) > 1:
            raise ValueError(f"images and conditions are of {sorted(nums)} pairs; give as many of each")
        results = {}
        for stage in stages:
            cond = self._conditions(stage, conditions.get(stage.name), image)
            self._bring(stage)
            for step in sample_steps(_Checked(stage), cond, noise(stage), stage.diffusion, stage.sampler):
                if on_step:
                    on_step(stage, step)
            assert step.x0.abs().max() <= 1, f"{stage.name} left [-1, 1]"  # also false for NaN
            image = results[stage.name] = step.x0
        return results

    def _conditions(self, stage: Stage, cond: Conditions | None, image: Tensor | None) -> Conditions:
        """With what the stage before has made."""
        if not stage.model.tries_on:
            cond = Conditions(None, None, None, None, torch.empty(0))
        lowres = upsample(image.float(), stage.model.image_size).to(self.device) if stage.model.lowres else None
        num = len(lowres if cond.garment is None else cond.garment)
        level = torch.zeros(num, stage.model.num_aug_levels, device=self.device)
        return cond._replace(noise_aug_level=level, lowres=lowres)

    def _bring(self, stage: Stage) -> None:
        """The stage's network onto the device; it stays there until another one is needed."""
        if self.one_at_a_time:
            for other in self.stages:
                if other is not stage:
                    other.net.to("cpu")
            stage.net.to(self.device)


class _Checked:
    """A stage's network, whose answers are finite numbers."""

    def __init__(self, stage: Stage):
        self.stage, self.remember = stage, stage.net.remember

    def __call__(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        output = self.stage.net(zt, t, cond)
        if not output.isfinite().all():
            raise ValueError(
                f"{self.stage.name}: the network answers with numbers that are not finite; its weights are broken: "
                "choose another checkpoint (or, with engine.precision=fp16, bf16 or fp32)"
            )
        return output


def _check(stage: Stage) -> None:
    """Raises ValueError for what cannot be sampled."""
    name, model, sampler = stage.name, stage.model, stage.sampler
    if model.image_size is None:
        raise ValueError(f"{name}: model.image_size is null; give the size that it was trained at")
    if not model.tries_on and not model.lowres:
        raise ValueError(f"{name}: neither try-on conditions nor model.lowres; it would draw anything")
    if not model.tries_on and sampler.guidance_scale != 1:
        raise ValueError(
            f"{name}: sampler.guidance_scale={sampler.guidance_scale}, but this network has no try-on conditions to "
            f"leave out; use {name}.sampler.guidance_scale=1"
        )
    if model.tries_on and sampler.tile_rows is not None:
        raise ValueError(
            f"{name}: sampler.tile_rows={sampler.tile_rows}, but this network's attention needs the whole image; use "
            f"{name}.sampler.tile_rows=null"
        )


def _check_image(stage: Stage, image: Tensor | None) -> None:
    if not stage.model.lowres:
        if image is not None:
            raise ValueError(f"{stage.name} takes no image; start at a later stage, or give none")
        return
    want = _pixels(stage.lowres_size)
    if image is None:
        raise ValueError(f"{stage.name} sharpens an image of {want}; give one, or add the stage that makes it")
    if tuple(image.shape[1:]) != (3, *stage.lowres_size):
        raise ValueError(f"{stage.name} sharpens images (B, 3, H, W) of {want}, not {tuple(image.shape)}; resize it")
    if not image.abs().max() <= 1:
        low, high = float(image.min()), float(image.max())
        raise ValueError(f"{stage.name}: the image has values from {low:g} to {high:g}; scale it to [-1, 1]")


def _check_conditions(stage: Stage, cond: Conditions | None) -> set[int]:
    """How many pairs they are of."""
    if not stage.model.tries_on:
        return set()
    if cond is None:
        raise ValueError(f"{stage.name} tries on, but there are no conditions for it; give conditions[{stage.name!r}]")
    for image in (cond.clothing_agnostic, cond.garment):
        if image.shape[-2:] != stage.model.image_size:
            raise ValueError(
                f"{stage.name}: conditions of {_pixels(image.shape[-2:])}, the network's images are "
                f"{_pixels(stage.model.image_size)}; prepare them at this size"
            )
    return {len(value) for value in (cond.clothing_agnostic, cond.garment, cond.person_pose, cond.garment_pose)}


def _pixels(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))

"""The cascade on one device, or a replica of it on each of several.

B batch, H W pixels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data.schema import Sample
from model.cascade import Cascade, Stage, between
from model.diffusion import to_uint8, to_unit_range
from model.sampler import Step
from sampling.stages import Trained, load
from training.distributed import under_torchrun
from training.draws import SamplingNoise
from training.engine import pick_device, set_backends
from training.held_out import conditions_of


class Work(NamedTuple):
    """Pictures to be drawn together."""

    positions: list[int]  # (B,) what their noise belongs to
    samples: dict[str, list[Sample]]  # by stage, at its size; stages that know no garment have none
    lowres: list[np.ndarray] | None = None  # (H, W, 3) uint8, what the first stage sharpens

    def share(self, i: int, num: int) -> "Work":
        """The i-th of num shares, which may be empty."""
        size = -(-len(self.positions) // num)
        mine = slice(i * size, (i + 1) * size)
        samples = {name: each[mine] for name, each in self.samples.items()}
        return Work(self.positions[mine], samples, None if self.lowres is None else self.lowres[mine])


def pick_devices(stages: Sequence[Trained], dp: bool) -> list[torch.device]:
    """All GPUs of this process with dp, else one device.  Raises ValueError when the configs' device is not here."""
    if dp and under_torchrun():
        raise ValueError("--dp is one process with all GPUs of the box; leave it out under torchrun")
    (device, *_) = [pick_device(stage.config.engine.device, stage.config.engine.precision) for stage in stages]
    if dp and device.type == "cuda":
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]


class Replicas:
    """The same stages on each of these devices, which share every batch, each in a thread of its own."""

    def __init__(
        self, stages: Sequence[Trained], weights: dict[str, str], devices: Sequence[torch.device],
        one_at_a_time: bool = False,
    ):  # fmt: skip
        self.devices = list(devices)
        set_backends(*(stage.config.engine for stage in stages))
        self.crcs: dict[str, str] = {}
        copies: list[list[Stage]] = [[] for _ in self.devices]
        for stage in stages:  # the host holds one of them at a time, and one copy
            loaded, self.crcs[stage.name] = load(stage, weights[stage.name], self.devices[0])
            for device, mine in zip(self.devices, copies, strict=True):
                net = loaded.net if mine is copies[-1] else deepcopy(loaded.net)
                mine.append(loaded._replace(net=net if one_at_a_time else net.to(device)))
        self.cascades = [
            Cascade(each, device, one_at_a_time) for each, device in zip(copies, self.devices, strict=True)
        ]
        self.stages = self.cascades[0].stages

    def __call__(
        self, work: Work, seed: int, start: str | None = None, stop: str | None = None,
        on_step: Callable[[Stage, Step], None] | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Pictures by stage, (B, H, W, 3) uint8.  A picture does not depend on how many devices share the batch.

        start, stop: the first and the last stage to run.  on_step: see model.cascade.Cascade; then one device draws
        all.
        """
        devices = self.devices[:1] if on_step else self.devices
        shares = [work.share(i, len(devices)) for i in range(len(devices))]
        shares = [share for share in shares if share.positions]

        def draw(cascade: Cascade, device: torch.device, share: Work) -> dict[str, np.ndarray]:
            return _draw(cascade, self.stages, device, share, seed, start, stop, on_step)

        if len(shares) == 1:
            return draw(self.cascades[0], self.devices[0], shares[0])
        with ThreadPoolExecutor(len(shares)) as threads:
            drawn = list(threads.map(draw, self.cascades, self.devices, shares))
        return {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}


def _draw(
    cascade: Cascade, stages: list[Stage], device: torch.device, work: Work, seed: int, start: str | None,
    stop: str | None, on_step: Callable[[Stage, Step], None] | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    conditions = {}
    for stage in stages:
        if stage.name in work.samples:
            cond = conditions_of(work.samples[stage.name], work.positions, stage.model, device)
            conditions[stage.name] = cond._replace(lowres=None)

    def noise(stage: Stage) -> SamplingNoise:
        return SamplingNoise(seed, work.positions, stage.model.image_size, device)

    image = None if work.lowres is None else _small(work.lowres, between(stages, start)[0]).to(device)
    images = cascade(conditions, noise, image=image, start=start, stop=stop, on_step=on_step)
    return {name: to_uint8(each).permute(0, 2, 3, 1).cpu().numpy() for name, each in images.items()}


def _small(images: list[np.ndarray], stage: Stage) -> torch.Tensor:
    """The low-resolution input, (B, 3, H / factor, W / factor) in [-1, 1]; pictures of the stage's size are
    downsampled as in training."""
    x = to_unit_range(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    if x.shape[-2:] != stage.lowres_size:
        x = F.interpolate(x, size=stage.lowres_size, mode="bilinear", antialias=True)
    return x.contiguous()

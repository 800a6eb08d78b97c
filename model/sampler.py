"""From noise to images: DDPM, DDIM, DPM-Solver++(2M) and Heun's method with classifier-free guidance.

B batch, H W pixels.  Every sample carries its own random stream, so that its picture does not depend on the batch it
was sampled in.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Net, Schedule, augment_conditions, x0_of
from model.guidance import guided, recolored, threshold
from model.time_grids import TimeGrid, timesteps

Noise = Callable[[], Tensor]  # the next (B, 3, H, W) of standard normal numbers
Time = Annotated[float, Field(ge=0, le=1)]


class SamplerConfig(BaseModel, extra="forbid", frozen=True):
    method: Literal["ddpm", "ddim", "dpmpp_2m", "heun"] = Field(
        "ddpm", description="ancestral steps (ddpm), or deterministic ones of first (ddim) or second order"
    )
    num_steps: int = Field(256, ge=1, description="steps of one image: network evaluations, of heun 2 num_steps - 2")
    time_grid: TimeGrid = Field("uniform", description="steps evenly spaced in t, as Karras et al. 2022, or in log-SNR")
    guidance_scale: float = Field(
        2.0, ge=0, description="1: no guidance; above: away from the unconditional prediction"
    )
    guidance_interval: tuple[Time, Time] = Field(
        (0.0, 1.0), description="from which t to which guidance works; outside a step costs less"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="share in which guided images keep the contrast of unguided ones (2305.08891)"
    )
    noise_aug_level: float = Field(0.0, ge=0, le=1, description="constant level of the conditioning images' noise")
    dynamic_threshold: float | None = Field(
        None, gt=0, le=1, description="percentile of dynamic thresholding (Imagen, Sec. 2.3); null: clip to [-1, 1]"
    )
    keep_color: bool = Field(
        True, description="with a low-resolution input: every predicted image takes its mean colour (2212.00490)"
    )
    tile_rows: int | None = Field(
        None, ge=1, description="rows that a network without attention computes at once: less memory; null: all"
    )

    @field_validator("guidance_interval")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"begins at t = {value[0]} and ends at {value[1]}; give the smaller t first")
        return value


class Step(NamedTuple):
    """One state on the way: t of zt, the image predicted there, and the next state."""

    t: float
    x0: Tensor
    z: Tensor


def num_evaluations(config: SamplerConfig) -> int:
    """How often the network is evaluated for one image; both branches of guidance are one evaluation."""
    twice = config.num_steps - 2 if config.method == "heun" else 0  # of Heun's steps, all but the first and the last
    return config.num_steps + max(twice, 0)


def sample_steps(
    net: Net, cond: Conditions, noise: Noise, diffusion: DiffusionConfig, config: SamplerConfig
) -> Iterator[Step]:
    """Each step from pure noise to the image; the last step's x0 is the result, (B, 3, H, W) in [-1, 1].

    What does not change from step to step is computed once, if the network can (Network.remember).  Deterministic
    steps are those of DDIM towards an image of first order, the predicted one, or of second order.
    """
    schedule = Schedule(diffusion.log_snr_shift)
    color = cond.lowres.mean((2, 3), keepdim=True) if config.keep_color and cond.lowres is not None else None
    z = noise()
    cond = _augmented(cond, noise, config.noise_aug_level)
    if hasattr(net, "remember"):
        cond = net.remember(cond)

    def predicted(z: Tensor, time: float) -> Tensor:
        """The image at z, (B, 3, H, W) in [-1, 1]."""
        t = torch.full((len(z),), time, device=z.device)
        first, last = config.guidance_interval
        scale = config.guidance_scale if first <= time <= last else 1.0
        image_of = partial(x0_of, diffusion.prediction, zt=z, t=t, schedule=schedule)
        x0 = guided(net, z, t, cond, image_of, scale, config.guidance_rescale)
        return recolored(threshold(x0, config.dynamic_threshold), color)

    times = timesteps(config.time_grid, config.num_steps, schedule)
    log_snr = schedule.log_snr(torch.tensor(times)).tolist()
    x0_before = None
    for i in range(config.num_steps):
        x0 = predicted(z, times[i])
        t, s = (torch.full((len(z),), time, device=z.device) for time in times[i : i + 2])
        if i == config.num_steps - 1:
            z = x0
        elif config.method == "ddpm":
            z = ddpm_step(z, x0, t, s, schedule, noise)
        elif config.method == "dpmpp_2m" and i > 0:
            z = ddim_step(z, multistep_image(x0, x0_before, *log_snr[i - 1 : i + 2]), t, s, schedule)
        elif config.method == "heun" and i > 0:
            x0_after = predicted(ddim_step(z, x0, t, s, schedule), times[i + 1])
            z = ddim_step(z, heun_image(x0, x0_after, *log_snr[i : i + 2]), t, s, schedule)
        else:
            z = ddim_step(z, x0, t, s, schedule)
        x0_before = x0
        yield Step(times[i], x0, z)


def ddim_step(z: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """z_s = alpha_s x0 + sigma_s eps with the eps that x0 implies at z_t (Song et al. 2021, Eq. 12, eta = 0).

    In sigma / alpha it is a step of Euler's method.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return alpha_s * x0 + sigma_s * (z - alpha_t * x0) / sigma_t


def multistep_image(x0: Tensor, x0_before: Tensor, log_snr_before: float, log_snr_t: float, log_snr_s: float) -> Tensor:
    """D of DPM-Solver++(2M): x0 carried on in log_snr to the middle of the step (Lu et al. 2022, Alg. 2, line 6)."""
    way, way_before = log_snr_s - log_snr_t, log_snr_t - log_snr_before
    return x0 + (x0 - x0_before) * (way / way_before / 2 if way_before > 0 else 0.0)  # 0 where the schedule is cut


def heun_image(x0: Tensor, x0_after: Tensor, log_snr_t: float, log_snr_s: float) -> Tensor:
    """The image that makes ddim_step a step of Heun's method in sigma / alpha (Karras et al. 2022, Alg. 1).

    x0_after is predicted where Euler's step ends.  With y = z / alpha, u = sigma / alpha and r = u_s / u_t, the mean
    slope of (y - x0) / u at both ends gives y_s = r y + (1 - r) (x0 + (x0_after - x0) / (2 r)).  What is right there is
    a mean of the images predicted on the way, so that no step, however long, may go beyond x0_after.
    """
    return x0.lerp(x0_after, min(math.exp((log_snr_s - log_snr_t) / 2) / 2, 1.0))


def ddpm_step(z: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """z_s ~ q(z_s | z_t, x0) for s < t (Kingma et al. 2021, App. A.4).

    With c = 1 - SNR(t) / SNR(s): mean alpha_s ((1 - c) z_t / alpha_t + c x0), variance sigma_s^2 c.
    """
    (alpha_t, _), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    c = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(s)).view(-1, 1, 1, 1)
    mean = alpha_s * ((1 - c) * z / alpha_t + c * x0)
    return mean + sigma_s * c.sqrt() * noise()


@torch.no_grad()
def sample(net: Net, cond: Conditions, noise: Noise, diffusion: DiffusionConfig, config: SamplerConfig) -> Tensor:
    """Try-on images, (B, 3, H, W) in [-1, 1], for conditions with clean images."""
    for step in sample_steps(net, cond, noise, diffusion, config):
        result = step.x0
    return result


def _augmented(cond: Conditions, noise: Noise, level: float) -> Conditions:
    """The conditions with images diffused to a constant level."""
    levels = torch.full_like(cond.noise_aug_level, level)
    num, count = levels.shape
    aug = torch.stack([noise() for _ in range(count)], 1) if level else levels.new_zeros(num, count, 1, 1, 1)
    return augment_conditions(cond, levels, aug)

"""From noise to images: DDPM and DDIM with classifier-free guidance.

B batch, H W pixels.  Every sample carries its own random stream, so that its picture does not depend on the batch it
was sampled in.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Net, Schedule, augment_conditions, x0_of

Noise = Callable[[], Tensor]  # the next (B, 3, H, W) of standard normal numbers


class SamplerConfig(BaseModel, extra="forbid", frozen=True):
    method: Literal["ddpm", "ddim"] = Field("ddpm", description="ancestral (ddpm) or deterministic (ddim) steps")
    num_steps: int = Field(256, ge=1, description="network evaluations of one image")
    guidance_scale: float = Field(
        2.0, ge=0, description="1: no guidance; above: away from the unconditional prediction"
    )
    noise_aug_level: float = Field(0.0, ge=0, le=1, description="constant level of the conditioning images' noise")
    dynamic_threshold: float | None = Field(
        None, gt=0, le=1, description="percentile of dynamic thresholding (Imagen, Sec. 2.3); null: clip to [-1, 1]"
    )


class Step(NamedTuple):
    """One state on the way: t of zt, the image predicted there, and the next state."""

    t: float
    x0: Tensor
    z: Tensor


def guided(net: Net, zt: Tensor, t: Tensor, cond: Conditions, guidance_scale: float) -> Tensor:
    """uncond + scale (cond - uncond) with both in one forward pass (Ho & Salimans 2022, Eq. 6).  -> (B, 3, H, W)

    The scale is Imagen's: 1 is the conditional prediction alone, which then costs one evaluation.
    """
    if guidance_scale == 1:
        return net(zt, t, cond).float()
    conditional, unconditional = net(zt, t, cond._replace(with_null=True)).float().chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def threshold(x0: Tensor, percentile: float | None) -> Tensor:
    """x0 back in [-1, 1]: clipped, or divided by its own percentile of |x0| (Saharia et al. 2022, Sec. 2.3)."""
    if percentile is None:
        return x0.clamp(-1, 1)
    limit = x0.abs().flatten(1).quantile(percentile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return x0.clamp(-limit, limit) / limit


def sample_steps(
    net: Net, cond: Conditions, noise: Noise, diffusion: DiffusionConfig, config: SamplerConfig
) -> Iterator[Step]:
    """Each step from pure noise to the image; the last step's x0 is the result, (B, 3, H, W) in [-1, 1]."""
    schedule = Schedule(diffusion.log_snr_shift)
    level = torch.full_like(cond.noise_aug_level, config.noise_aug_level)
    z = noise()
    aug = (
        torch.stack([noise() for _ in range(level.shape[1])], 1)
        if config.noise_aug_level
        else z.new_zeros(1, 3, 1, 1, 1)
    )
    cond = augment_conditions(cond, level, aug.expand(len(z), *aug.shape[1:]))
    timesteps = torch.linspace(1, 0, config.num_steps + 1, device=z.device)
    for t, s in pairwise(timesteps):
        t_batch, s_batch = t.expand(len(z)), s.expand(len(z))
        output = guided(net, z, t_batch, cond, config.guidance_scale)
        x0 = threshold(x0_of(diffusion.prediction, output, z, t_batch, schedule), config.dynamic_threshold)
        if s > 0:
            z = (ddim_step if config.method == "ddim" else ddpm_step)(z, x0, t_batch, s_batch, schedule, noise)
        else:
            z = x0
        yield Step(float(t), x0, z)


def ddim_step(z: Tensor, x0: Tensor, t: Tensor, s: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """z_s = alpha_s x0 + sigma_s eps with the eps that x0 implies at z_t (Song et al. 2021, Eq. 12, eta = 0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return alpha_s * x0 + sigma_s * (z - alpha_t * x0) / sigma_t


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

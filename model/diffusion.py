"""The diffusion process and its training loss.

B batch, C channels, H W pixels, A conditioning images with noise augmentation.
zt = alpha(t) x0 + sigma(t) noise with alpha^2 + sigma^2 = 1 and log_snr = log(alpha^2 / sigma^2); t in [0, 1], 0 clean.
Images are in [-1, 1] everywhere inside; uint8 only at the border (to_unit_range, to_uint8).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from model.conditions import Conditions
from model.losses import Objective, error_of, perceptual

LOG_SNR_LIMIT = 15.0
AUGMENTED = ("clothing_agnostic", "garment", "lowres")  # conditioning images, in the order of their noise levels
Net = Callable[[Tensor, Tensor, Conditions], Tensor]
MSE = Objective()  # the paper's


class DiffusionConfig(BaseModel, extra="forbid", frozen=True):
    prediction: Literal["noise", "v", "x0"] = Field("noise", description="what the network predicts: noise, v or x0")
    log_snr_shift: float = Field(
        0.0, ge=-10, le=10, description="added to the cosine schedule's log-SNR; 2 ln(64 / size) shifts it to a size"
    )
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weight (arXiv 2303.09556); null: none")
    cond_drop_prob: float = Field(
        0.1, ge=0, le=1, description="share of samples whose conditions are dropped, together"
    )
    noise_aug_max: float = Field(1.0, ge=0, le=1, description="noise augmentation levels are drawn from U(0, this)")


class Draws(NamedTuple):
    """The randomness of training samples: a pure function of (seed, position), drawn by the loader."""

    t: Tensor  # (B,) in [0, 1]
    noise: Tensor  # (B, 3, H, W) ~ N(0, 1)
    keep: Tensor  # (B,) 1 keeps the conditions, 0 drops them all
    noise_aug_level: Tensor  # (B, A) in [0, 1]
    noise_aug: Tensor  # (B, A, 3, H, W) ~ N(0, 1)


class Schedule:
    """The cosine schedule in continuous time, shifted for a resolution.

    log_snr(t) = -2 log tan(pi t / 2) + shift, cut to +-15 (Nichol & Dhariwal 2021; Hoogeboom et al. 2023, Eq. 4).
    """

    def __init__(self, shift: float = 0.0):
        self.shift = shift

    def log_snr(self, t: Tensor) -> Tensor:
        """(B,) -> (B,), falling in t."""
        t = t.float().clamp(1e-6, 1 - 1e-6)  # beyond the limits even when shifted by 10
        return (-2 * torch.log(torch.tan(t * (math.pi / 2))) + self.shift).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def t_of(self, log_snr: Tensor) -> Tensor:
        """The inverse of log_snr within its limits, in the precision it is given."""
        return torch.atan(torch.exp((self.shift - log_snr) / 2)) * (2 / math.pi)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t), sigma(t), each (B, 1, 1, 1)."""
        log_snr = self.log_snr(t).view(-1, 1, 1, 1)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def to_unit_range(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 [0, 255], rounded to the nearest; the inverse of to_unit_range."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def q_sample(x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """zt = alpha(t) x0 + sigma(t) noise (Ho et al. 2020, Eq. 4).  -> (B, C, H, W)

    x0 in [-1, 1]; t (B,) in [0, 1]; noise ~ N(0, 1), shaped like x0.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * x0 + sigma * noise


def target_of(prediction: str, x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """What the network should answer: noise, x0, or v = alpha noise - sigma x0 (Salimans & Ho 2022, App. D)."""
    if prediction == "noise":
        return noise
    if prediction == "x0":
        return x0
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * noise - sigma * x0


def x0_of(prediction: str, output: Tensor, zt: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The clean image that a network's output implies at zt; the inverse of target_of.  -> (B, C, H, W)"""
    if prediction == "x0":
        return output
    alpha, sigma = schedule.alpha_sigma(t)
    if prediction == "noise":
        return (zt - sigma * output) / alpha
    return alpha * zt - sigma * output


def loss_weight(prediction: str, t: Tensor, schedule: Schedule, min_snr_gamma: float | None) -> Tensor:
    """(B,) weights of a prediction's squared error: 1, or min(SNR, gamma) in units of x0 (Hang et al. 2023, Eq. 8).

    An error of eps is SNR times one of x0, an error of v is SNR + 1 times one.
    """
    if min_snr_gamma is None:
        return torch.ones_like(t)
    snr = schedule.log_snr(t).exp()
    units = {"x0": 1.0, "noise": snr, "v": snr + 1}[prediction]
    return snr.clamp(max=min_snr_gamma) / units


def augment_conditions(cond: Conditions, level: Tensor, noise: Tensor) -> Conditions:
    """Noise conditioning augmentation: each conditioning image diffused to its own level (Ho et al. 2021, Sec. 4.2).

    level (B, A) in [0, 1] is what the network is told; noise (B, A, 3, H, W), or (B, A, 1, 1, 1) where level is 0.
    Level 0 leaves an image as it is.
    """
    schedule = Schedule()

    def diffuse(image: Tensor, i: int) -> Tensor:
        noisy = q_sample(image, level[:, i], noise[:, i], schedule)
        return torch.where((level[:, i] > 0).view(-1, 1, 1, 1), noisy, image)

    present = [field for field in AUGMENTED if getattr(cond, field) is not None]
    assert level.shape[1] == len(present), (level.shape, present)
    noisy = {field: diffuse(getattr(cond, field), i) for i, field in enumerate(present)}
    return cond._replace(noise_aug_level=level, **noisy)


def lowres_of(x0: Tensor, factor: int) -> Tensor:
    """What the next stage gets instead of x0: downsampled with antialiasing, bilinearly upsampled.  -> (B, 3, H, W)

    In training the truth stands for the previous stage's result (Zhu et al. 2023, Sec. 3.1).
    """
    height, width = x0.shape[-2:]
    small = F.interpolate(x0, size=(height // factor, width // factor), mode="bilinear", antialias=True)
    return upsample(small, (height, width))


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A stage's result as the low-resolution input of the next one, (B, 3, *size)."""
    return F.interpolate(image, size=size, mode="bilinear")


def diffusion_loss(
    net: Net, x0: Tensor, cond: Conditions, draws: Draws, config: DiffusionConfig, objective: Objective = MSE
) -> Tensor:
    """The weighted error of each sample, (B,), squared if nothing else is asked for (Zhu et al. 2023, Eq. 1).

    x0 (B, 3, H, W) in [-1, 1]; cond holds clean images, and is augmented and dropped here as the draws say.
    """
    schedule = Schedule(config.log_snr_shift)
    cond = augment_conditions(cond, draws.noise_aug_level, draws.noise_aug).drop(draws.keep)
    zt = q_sample(x0, draws.t, draws.noise, schedule)
    output = net(zt, draws.t, cond).float()
    target = target_of(config.prediction, x0, draws.t, draws.noise, schedule)
    error = error_of(output, target, objective.config)
    loss = loss_weight(config.prediction, draws.t, schedule, config.min_snr_gamma) * error
    if objective.distance is None:
        return loss

    def implied(rows: Tensor) -> Tensor:
        return x0_of(config.prediction, output[rows], zt[rows], draws.t[rows], schedule)

    return loss + perceptual(objective, draws.t, x0, implied)


def draw(
    rng: np.random.Generator, position: int, offset: float, image_size: tuple[int, int], num_levels: int,
    config: DiffusionConfig,
) -> Draws:  # fmt: skip
    """The draws of one position, as arrays without the batch axis.

    t = frac(offset + position / golden ratio): uniform over [0, 1], and spread evenly over every stretch of the
    stream, so that a batch covers all noise levels (low-discrepancy times, Kingma et al. 2021, App. I.1).
    """
    size = (3, *image_size)
    keep = np.float32(rng.random() >= config.cond_drop_prob)
    level = rng.random(num_levels, dtype=np.float32) * np.float32(config.noise_aug_max)
    noise = rng.standard_normal(size, dtype=np.float32)
    if config.noise_aug_max > 0:
        noise_aug = rng.standard_normal((num_levels, *size), dtype=np.float32)
    else:
        noise_aug = np.zeros((num_levels, 1, 1, 1), dtype=np.float32)
    t = np.float32((offset + position * 0.6180339887498949) % 1.0)
    return Draws(np.asarray(t), noise, np.asarray(keep), level, noise_aug)

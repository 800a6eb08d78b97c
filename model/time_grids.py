"""The times at which a sampler evaluates the network.

log_snr = 2 log(alpha / sigma); the samplers' lambda is half of it, EDM's sigma is sigma / alpha = exp(-log_snr / 2).
"""

from typing import Literal

import torch

from model.diffusion import Schedule

TimeGrid = Literal["uniform", "karras", "logsnr"]
RHO = 7  # of Karras et al. 2022
# Where the unshifted schedule has EDM's sigma_max = 80 and sigma_min = 0.002.  What lies beyond is noise, or the image,
# to the eye, and steps spent on it are lost.
FIRST, LAST = 0.992, 0.001


def timesteps(grid: TimeGrid, num_steps: int, schedule: Schedule) -> list[float]:
    """num_steps + 1 falling times: 1 is pure noise, 0 the clean image.

    uniform: evenly spaced in t.  The others step from pure noise to FIRST, from there to LAST, and from LAST to the
    clean image: karras evenly in (sigma / alpha)^(1/7) (Karras et al. 2022, Eq. 5), logsnr evenly in log_snr (Lu et
    al. 2022, App. B.1).
    """
    if grid == "uniform":
        return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    first, last = schedule.log_snr(torch.tensor([FIRST, LAST])).double()
    if grid == "logsnr":
        log_snr = torch.linspace(first, last, num_steps - 1, dtype=torch.float64)
    else:
        power = -0.5 / RHO
        log_snr = torch.linspace((power * first).exp(), (power * last).exp(), num_steps - 1).double().log() / power
    return [1.0, *schedule.t_of(log_snr).tolist(), 0.0]

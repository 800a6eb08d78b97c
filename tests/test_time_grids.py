"""The times of every grid: monotone, from pure noise to the clean image, and spaced as they should be."""

from itertools import pairwise

import pytest
import torch

from model.diffusion import Schedule
from model.time_grids import FIRST, LAST, timesteps

GRIDS = ("uniform", "karras", "logsnr")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 256])
@pytest.mark.parametrize("shift", [-10.0, -2.77, 0.0, 1.5, 10.0])
def test_times_fall_from_noise_to_the_image(grid, num_steps, shift):
    times = timesteps(grid, num_steps, Schedule(shift))
    assert len(times) == num_steps + 1 and times[0] == 1 and times[-1] == 0
    assert all(t > s for t, s in pairwise(times))
    single = torch.tensor(times)
    assert (single.diff() < 0).all()  # in the network's precision, too


@pytest.mark.parametrize("shift", [-2.77, 0.0, 1.5])
def test_karras_and_logsnr_are_even_where_they_should_be(shift):
    schedule = Schedule(shift)
    for grid, even in [
        ("karras", lambda log_snr: (-log_snr / 2).exp() ** (1 / 7)),
        ("logsnr", lambda log_snr: log_snr),
    ]:
        times = torch.tensor(timesteps(grid, 12, schedule))[1:-1]
        assert [float(times[0]), float(times[-1])] == pytest.approx([FIRST, LAST], rel=1e-5)
        steps = even(schedule.log_snr(times)).diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-2, atol=0)


def test_the_ends_are_edm_s():
    ratio = (-Schedule().log_snr(torch.tensor([FIRST, LAST])) / 2).exp()
    assert ratio.tolist() == pytest.approx([80, 0.002], rel=0.25)


def test_uniform():
    assert timesteps("uniform", 4, Schedule(3)) == [1, 0.75, 0.5, 0.25, 0]

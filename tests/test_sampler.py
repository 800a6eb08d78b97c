"""Samplers return what the network knows, draw the distribution that it models, and keep samples apart."""

import math
import re
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Schedule
from model.sampler import SamplerConfig, ddim_step, ddpm_step, num_evaluations, sample, sample_steps
from model.time_grids import timesteps
from tests.answers import SIZE, Counting, answering, conditions
from training.config import validate
from training.draws import SamplingNoise

METHODS = ("ddpm", "ddim", "dpmpp_2m", "heun")
PREDICTIONS = ("noise", "v", "x0")


def noise_of(positions: list[int], size: tuple[int, int] = SIZE) -> SamplingNoise:
    return SamplingNoise(0, positions, size, torch.device("cpu"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("grid", "num_steps"), [("uniform", 1), ("uniform", 2), ("uniform", 25), ("karras", 12)])
def test_an_oracle_s_image_comes_back(method, prediction, grid, num_steps):
    """Every state on the way is q_sample of that image: with noise that is standard normal."""
    x0 = torch.rand(64, 3, *SIZE) * 2 - 1
    diffusion = DiffusionConfig(prediction=prediction, log_snr_shift=-1)
    config = SamplerConfig(method=method, num_steps=num_steps, time_grid=grid, guidance_scale=1)
    net = answering(prediction, -1, lambda zt, alpha, sigma: x0)
    steps = list(sample_steps(net, conditions(64), noise_of(list(range(64))), diffusion, config))
    assert [step.t for step in steps] == timesteps(grid, num_steps, Schedule(-1))[:-1]
    assert torch.allclose(steps[-1].x0, x0, atol=2e-3) and torch.equal(steps[-1].z, steps[-1].x0)
    for step, after in pairwise(steps):
        alpha, sigma = Schedule(-1).alpha_sigma(torch.full((64,), after.t))
        if sigma[0] > 0.01:
            noise = (step.z - alpha * x0) / sigma
            assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05


def of_a_gaussian(mu: float, s: float):
    """For x0 ~ N(mu, s^2), E[x0 | zt] = mu + alpha s^2 (zt - alpha mu) / (alpha^2 s^2 + sigma^2) is the best answer."""
    return lambda zt, alpha, sigma: mu + alpha * s**2 * (zt - alpha * mu) / (alpha**2 * s**2 + sigma**2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("method", "grid", "num_steps"),  # the error of the first order falls with 1 / steps
    [("ddpm", "uniform", 800), ("ddim", "uniform", 800)]
    + [(method, grid, 60) for method in ("dpmpp_2m", "heun") for grid in ("uniform", "karras", "logsnr")],
)
def test_a_known_distribution_is_sampled(method, grid, num_steps, prediction):
    mu, s = 0.3, 0.15
    diffusion = DiffusionConfig(prediction=prediction)
    config = SamplerConfig(method=method, num_steps=num_steps, time_grid=grid, guidance_scale=1)
    generator = torch.Generator().manual_seed(0)
    result = sample(
        answering(prediction, 0, of_a_gaussian(mu, s)),
        conditions(300),
        lambda: torch.randn(300, 3, *SIZE, generator=generator),
        diffusion,
        config,
    )
    assert float(result.mean()) == pytest.approx(mu, abs=0.01)
    assert float(result.std()) == pytest.approx(s, rel=0.02)
    assert abs(torch.corrcoef(result.flatten(1).T)[0, 1:]).max() < 0.25  # pixels are independent
    kurtosis = ((result - result.mean()) / result.std()).pow(4).mean()
    assert float(kurtosis) == pytest.approx(3, abs=0.2)


def flow_error(prediction: str, shift: float, **sampler) -> float:
    """How far from the exact end of the flow of a Gaussian, which keeps its distance from the mean in standard
    deviations."""
    mu, s = 0.1, 0.3
    alpha, sigma = Schedule(shift).alpha_sigma(torch.ones(1))
    z = torch.randn(64, 3, *SIZE, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)  # its end is within [-1, 1]
    exact = mu + s * (z - alpha * mu) / (alpha**2 * s**2 + sigma**2).sqrt()
    net, config = answering(prediction, shift, of_a_gaussian(mu, s)), SamplerConfig(guidance_scale=1, **sampler)
    diffusion = DiffusionConfig(prediction=prediction, log_snr_shift=shift)
    return float((sample(net, conditions(64), lambda: z, diffusion, config) - exact).square().mean().sqrt())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_the_error_falls_with_the_order(method, order, prediction):
    errors = [flow_error(prediction, 0, method=method, num_steps=num, time_grid="logsnr") for num in (20, 40, 80)]
    for larger, smaller in pairwise(errors):
        assert 2 ** (order - 0.2) < larger / smaller < 2 ** (order + 0.5), errors


@pytest.mark.parametrize("method", ["dpmpp_2m", "heun"])
@pytest.mark.parametrize("grid", ["uniform", "karras", "logsnr"])
@pytest.mark.parametrize("shift", [0, -3])
def test_long_steps_of_second_order_are_no_worse_than_of_first(method, grid, shift):
    for num_steps in (2, 3, 4, 6, 8):
        first, second = (
            flow_error("v", shift, method=each, num_steps=num_steps, time_grid=grid) for each in ("ddim", method)
        )
        assert second < 1.001 * first, num_steps


def test_a_ddpm_step_is_the_posterior():
    """Stepping q(zt | x0) by q(zs | zt, x0) gives q(zs | x0), with the posterior's covariance between zs and zt."""
    schedule, n = Schedule(), 200_000
    t, s = torch.full((n,), 0.7), torch.full((n,), 0.4)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    x0 = torch.full((n, 1, 1, 1), 0.4)
    zt = alpha_t * x0 + sigma_t * torch.randn(n, 1, 1, 1)
    zs = ddpm_step(zt, x0, t, s, schedule, lambda: torch.randn(n, 1, 1, 1))
    assert float(zs.mean()) == pytest.approx(float(alpha_s[0]) * 0.4, abs=0.01)
    assert float(zs.std()) == pytest.approx(float(sigma_s[0]), rel=0.01)
    # zt = (alpha_t / alpha_s) zs + independent noise, so that cov(zs, zt) = alpha_t / alpha_s var(zs).
    covariance = ((zs - zs.mean()) * (zt - zt.mean())).mean()
    assert float(covariance) == pytest.approx(float((alpha_t / alpha_s * sigma_s**2)[0]), rel=0.02)


def test_a_ddim_step_keeps_the_noise():
    schedule = Schedule()
    t, s = torch.full((2,), 0.7), torch.full((2,), 0.4)
    x0, noise = torch.rand(2, 3, *SIZE), torch.randn(2, 3, *SIZE)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    zs = ddim_step(alpha_t * x0 + sigma_t * noise, x0, t, s, schedule)
    assert torch.allclose(zs, alpha_s * x0 + sigma_s * noise, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_picture_does_not_depend_on_its_batch(method, level):
    cond = conditions(3, lowres=True)
    config = SamplerConfig(
        method=method, num_steps=5, noise_aug_level=level, guidance_rescale=0.5, dynamic_threshold=0.9
    )
    together = sample(Counting(), cond, noise_of([3, 7, 9]), DiffusionConfig(), config)
    alone = Conditions(*(value[1:2] for value in cond[:6]))
    assert torch.allclose(sample(Counting(), alone, noise_of([7]), DiffusionConfig(), config), together[1:2], atol=1e-6)
    same = Conditions(*(value[[1, 1, 1]] for value in cond[:6]))
    pictures = sample(Counting(), same, noise_of([3, 7, 9]), DiffusionConfig(), config)
    assert not torch.allclose(pictures[0], pictures[1], atol=0.01)


def test_noise_is_drawn_anew_for_every_step():
    drawn = []

    def noise() -> Tensor:
        drawn.append(torch.randn(2, 3, *SIZE))
        return drawn[-1]

    for method, num in (("ddpm", 8), ("ddim", 1), ("dpmpp_2m", 1), ("heun", 1)):
        drawn.clear()
        sample(Counting(), conditions(2), noise, DiffusionConfig(), SamplerConfig(method=method, num_steps=8))
        assert len(drawn) == num
    source = noise_of([5])
    assert not torch.equal(source(), source())


def test_noise_augmentation_when_sampling():
    seen, cond = [], conditions(2, lowres=True)

    def net(zt, t, cond):
        seen.append(cond)
        return torch.zeros_like(zt)

    def run(level: float) -> Conditions:
        config = SamplerConfig(num_steps=3, guidance_scale=1, noise_aug_level=level)
        seen.clear()
        sample(net, cond, noise_of([0, 1]), DiffusionConfig(), config)
        assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0][:6], other[:6], strict=True))
        return seen[0]

    assert all(torch.equal(a, b) for a, b in zip(run(0)[:6], cond[:6], strict=True))
    told = run(0.5)
    assert (told.noise_aug_level == 0.5).all() and told.noise_aug_level.shape == (2, 3)
    residuals = []
    for field in ("clothing_agnostic", "garment", "lowres"):
        residuals.append((getattr(told, field) - math.sqrt(0.5) * getattr(cond, field)) / math.sqrt(0.5))
        assert abs(residuals[-1].std() - 1) < 0.2
    assert not torch.allclose(residuals[0], residuals[1], atol=0.1)
    assert not torch.allclose(residuals[1], residuals[2], atol=0.1)


@pytest.mark.parametrize("percentile", [None, 0.8, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shift", [-10, 0, 10])  # of the first and the last, much of the schedule is cut off
def test_results_stay_in_range(percentile, prediction, shift):
    def net(zt, t, cond):
        return 5 * torch.sin(3 * torch.stack([zt, zt + 1], 1))

    diffusion = DiffusionConfig(prediction=prediction, log_snr_shift=shift)
    for method, grid in product(METHODS, ("uniform", "karras", "logsnr")):
        config = SamplerConfig(
            method=method, num_steps=6, time_grid=grid, guidance_scale=4, dynamic_threshold=percentile
        )
        steps = list(sample_steps(net, conditions(2), noise_of([0, 1]), diffusion, config))
        assert all(step.x0.isfinite().all() and step.x0.abs().max() <= 1 for step in steps)
        assert all(step.z.isfinite().all() for step in steps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_evaluations_are_counted(method, num_steps):
    net = Counting()
    config = SamplerConfig(method=method, num_steps=num_steps)
    sample(net, conditions(2), noise_of([0, 1]), DiffusionConfig(), config)
    assert len(net.batches) == num_evaluations(config) == (max(1, 2 * num_steps - 2) if method == "heun" else num_steps)


def test_what_stays_is_computed_once():
    """The network is told the conditions that it has made its own, after they were noised."""

    class Remembering(Counting):
        remembered = ()

        def remember(self, cond):
            self.remembered += (cond.noise_aug_level.max(),)
            return cond._replace(garment=torch.zeros_like(cond.garment))

        def __call__(self, zt, t, cond):
            assert not cond.garment.any()
            return super().__call__(zt, t, cond)

    net = Remembering()
    config = SamplerConfig(num_steps=3, noise_aug_level=0.25)
    sample(net, conditions(1), noise_of([0]), DiffusionConfig(), config)
    assert net.remembered == (0.25,) and len(net.batches) == 3


def test_noise_belongs_to_seed_position_and_stage():
    """Images of another height are those of another stage, whose noise is no repetition of the first's."""
    small, large = noise_of([5])(), noise_of([5], (12, 4))()
    assert not torch.isin(small, large).any()
    assert torch.equal(noise_of([5])(), small) and not torch.equal(noise_of([6])(), small)


def test_old_configs_load():
    keys = {"method": "ddim", "num_steps": 4, "guidance_scale": 1.5, "noise_aug_level": 0.0, "dynamic_threshold": None}
    config = SamplerConfig(**keys)
    assert config.time_grid == "uniform" and config.guidance_interval == (0, 1) and config.guidance_rescale == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("guidance_interval", [0.8, 0.2], "begins at t = 0.8 and ends at 0.2; give the smaller t first"),
        ("guidance_interval", [0.1, 1.5], ".1=1.5: input should be less than or equal to 1"),
        ("guidance_rescale", 2, "=2: input should be less than or equal to 1"),
        ("method", "euler", "'ddpm', 'ddim', 'dpmpp_2m' or 'heun'"),
        ("time_grid", "cosine", "'uniform', 'karras' or 'logsnr'"),
        ("tile_rows", 0, "=0: input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(key, value, message):
    with pytest.raises(ValueError, match=rf"^here: sampler\.{key}.*{re.escape(message)}"):
        validate({"sampler": {key: value}}, "here")


def test_sampling_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    config = SamplerConfig(num_steps=2, guidance_scale=1)
    result = sample(lambda zt, t, cond: zt * weight, conditions(1), noise_of([0]), DiffusionConfig(), config)
    assert not result.requires_grad


@pytest.mark.parametrize("method", ["ddpm", "dpmpp_2m"])
def test_the_colour_of_the_low_resolution_image_is_kept(method):
    """Whatever the network makes of it; and nothing but the mean is touched."""
    tinted = answering("v", 0, lambda zt, alpha, sigma: image + torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1))
    image = 0.4 * torch.rand(2, 3, *SIZE) - 0.2
    cond = conditions(2, lowres=True)._replace(lowres=image.flip(2))
    for keep_color, off in ((True, 0.0), (False, 0.3)):
        config = SamplerConfig(method=method, num_steps=5, guidance_scale=1, keep_color=keep_color)
        result = sample(tinted, cond, noise_of([0, 1]), DiffusionConfig(prediction="v"), config)
        assert (result - image).abs().max() == pytest.approx(off, abs=2e-3)

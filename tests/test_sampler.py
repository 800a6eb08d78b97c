"""Samplers return what the network knows, draw the distribution that it models, and keep samples apart."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Schedule, target_of
from model.sampler import SamplerConfig, ddim_step, ddpm_step, guided, sample, sample_steps, threshold
from training.draws import SamplingNoise

PREDICTIONS = ("noise", "v", "x0")
SIZE = (6, 4)


def conditions(batch: int, lowres: bool = False) -> Conditions:
    image = lambda: torch.rand(batch, 3, *SIZE) * 2 - 1  # noqa: E731
    pose = torch.rand(batch, 18, 3).round(decimals=1)
    level = torch.zeros(batch, 3 if lowres else 2)
    return Conditions(image(), image(), pose, pose, level, image() if lowres else None)


def noise_of(positions: list[int], size: tuple[int, int] = SIZE) -> SamplingNoise:
    return SamplingNoise(0, positions, size, torch.device("cpu"))


def answering(prediction: str, shift: float, denoise):
    """A network that answers in terms of `prediction` what denoise(zt, alpha, sigma) thinks of x0."""
    schedule = Schedule(shift)

    def net(zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        x0 = denoise(zt, alpha, sigma)
        return target_of(prediction, x0, t, (zt - alpha * x0) / sigma, schedule)

    return net


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_an_oracle_s_image_comes_back(method, prediction, num_steps):
    """Every state on the way is q_sample of that image: with noise that is standard normal."""
    x0 = torch.rand(64, 3, *SIZE) * 2 - 1
    diffusion = DiffusionConfig(prediction=prediction, log_snr_shift=-1)
    config = SamplerConfig(method=method, num_steps=num_steps, guidance_scale=1)
    net = answering(prediction, -1, lambda zt, alpha, sigma: x0)
    steps = list(sample_steps(net, conditions(64), noise_of(list(range(64))), diffusion, config))
    assert len(steps) == num_steps and [step.t for step in steps] == pytest.approx(
        [1 - i / num_steps for i in range(num_steps)]
    )
    assert torch.allclose(steps[-1].x0, x0, atol=2e-3) and torch.equal(steps[-1].z, steps[-1].x0)
    for step, after in pairwise(steps):
        alpha, sigma = Schedule(-1).alpha_sigma(torch.full((64,), after.t))
        noise = (step.z - alpha * x0) / sigma
        assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_known_distribution_is_sampled(method, prediction):
    """For x0 ~ N(mu, s^2), E[x0 | zt] = mu + alpha s^2 (zt - alpha mu) / (alpha^2 s^2 + sigma^2) is the best answer."""
    mu, s = 0.3, 0.15

    def denoise(zt, alpha, sigma):
        return mu + alpha * s**2 * (zt - alpha * mu) / (alpha**2 * s**2 + sigma**2)

    diffusion = DiffusionConfig(prediction=prediction)
    config = SamplerConfig(method=method, num_steps=800, guidance_scale=1)  # the error falls with 1 / steps
    generator = torch.Generator().manual_seed(0)
    result = sample(
        answering(prediction, 0, denoise),
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
    zs = ddim_step(alpha_t * x0 + sigma_t * noise, x0, t, s, schedule, pytest.fail)
    assert torch.allclose(zs, alpha_s * x0 + sigma_s * noise, atol=1e-5)


class Counting:
    """A network whose answer depends on zt, t and the conditions, each sample by itself; it notes its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        self.batches.append(len(zt))
        assert {len(value) for value in (t, *cond) if value is not None} == {len(zt)}
        heard = (
            cond.garment * 0.3 + cond.clothing_agnostic * 0.2 + cond.person_pose.sum((1, 2)).view(-1, 1, 1, 1) * 0.01
        )
        if cond.lowres is not None:
            heard = heard + cond.lowres * 0.1
        return torch.tanh(0.8 * zt + heard) * (0.5 + 0.5 * t.view(-1, 1, 1, 1))


@pytest.mark.parametrize(("scale", "batch"), [(1, 3), (2, 6), (0, 6), (1.5, 6)])
@pytest.mark.parametrize("lowres", [False, True])
def test_guidance_is_one_evaluation_of_both(scale, batch, lowres):
    net, cond = Counting(), conditions(3, lowres)
    zt, t = torch.randn(3, 3, *SIZE), torch.rand(3)
    result = guided(net, zt, t, cond, scale)
    assert net.batches == [batch]
    conditional, unconditional = net(zt, t, cond), net(zt, t, cond.null())
    assert not torch.allclose(conditional, unconditional, atol=0.01)
    assert torch.allclose(result, unconditional + scale * (conditional - unconditional), atol=1e-6)
    assert torch.equal(cond.null().lowres, cond.lowres) if lowres else cond.null().lowres is None


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_picture_does_not_depend_on_its_batch(method, level):
    cond = conditions(3, lowres=True)
    config = SamplerConfig(method=method, num_steps=5, noise_aug_level=level)
    together = sample(Counting(), cond, noise_of([3, 7, 9]), DiffusionConfig(), config)
    alone = Conditions(*(value[1:2] for value in cond))
    assert torch.allclose(sample(Counting(), alone, noise_of([7]), DiffusionConfig(), config), together[1:2], atol=1e-6)
    same = Conditions(*(value[[1, 1, 1]] for value in cond))
    pictures = sample(Counting(), same, noise_of([3, 7, 9]), DiffusionConfig(), config)
    assert not torch.allclose(pictures[0], pictures[1], atol=0.01)


def test_noise_is_drawn_anew_for_every_step():
    drawn = []

    def noise() -> Tensor:
        drawn.append(torch.randn(2, 3, *SIZE))
        return drawn[-1]

    for method, num in (("ddpm", 8), ("ddim", 1)):
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
        assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))
        return seen[0]

    assert all(torch.equal(a, b) for a, b in zip(run(0), cond, strict=True))
    told = run(0.5)
    assert (told.noise_aug_level == 0.5).all() and told.noise_aug_level.shape == (2, 3)
    residuals = []
    for field in ("clothing_agnostic", "garment", "lowres"):
        residuals.append((getattr(told, field) - math.sqrt(0.5) * getattr(cond, field)) / math.sqrt(0.5))
        assert abs(residuals[-1].std() - 1) < 0.2
    assert not torch.allclose(residuals[0], residuals[1], atol=0.1)
    assert not torch.allclose(residuals[1], residuals[2], atol=0.1)


def test_dynamic_threshold():
    x0 = torch.linspace(-3, 3, 2 * 3 * 24).reshape(2, 3, *SIZE)
    x0[1] = x0[1] / 10  # within the range: left alone
    result = threshold(x0, 0.9)
    limit = x0[0].abs().flatten().quantile(0.9)
    assert 1 < limit < 3 and torch.allclose(result[0], x0[0].clamp(-limit, limit) / limit)
    assert torch.equal(result[1], x0[1])
    assert result.abs().max() == 1
    assert torch.equal(threshold(x0, None), x0.clamp(-1, 1))


@pytest.mark.parametrize("percentile", [None, 0.8, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_results_stay_in_range(percentile, prediction):
    net = lambda zt, t, cond: 5 * torch.sin(3 * zt)  # noqa: E731
    for method in ("ddpm", "ddim"):
        config = SamplerConfig(method=method, num_steps=6, guidance_scale=4, dynamic_threshold=percentile)
        steps = list(sample_steps(net, conditions(2), noise_of([0, 1]), DiffusionConfig(prediction=prediction), config))
        assert all(step.x0.isfinite().all() and step.x0.abs().max() <= 1 for step in steps)
        assert all(step.z.isfinite().all() for step in steps)


def test_sampling_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    result = sample(
        lambda zt, t, cond: zt * weight, conditions(1), noise_of([0]), DiffusionConfig(), SamplerConfig(num_steps=2)
    )
    assert not result.requires_grad

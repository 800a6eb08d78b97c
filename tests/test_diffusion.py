"""The diffusion process: coefficients, targets, weights, conditions that are dropped together, and its randomness."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.randomness import Purpose, keyed_rng
from model.conditions import Conditions
from model.diffusion import (
    AUGMENTED,
    DiffusionConfig,
    Draws,
    Schedule,
    augment_conditions,
    diffusion_loss,
    draw,
    loss_weight,
    lowres_of,
    q_sample,
    target_of,
    to_uint8,
    to_unit_range,
    x0_of,
)
from training.draws import TrainingDraws

PREDICTIONS = ("noise", "v", "x0")
T = torch.linspace(0, 1, 1001)


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 6, 4) * 2 - 1


def conditions(batch: int, lowres: bool = False) -> Conditions:
    pose = torch.ones(batch, 18, 3) * 0.5
    num = 3 if lowres else 2
    return Conditions(
        images(batch), images(batch), pose, pose / 2, torch.zeros(batch, num), images(batch) if lowres else None
    )


def draws_of(config: DiffusionConfig, positions: range, num_levels: int = 2, seed: int = 0) -> Draws:
    made = [TrainingDraws(seed, (6, 4), num_levels, config)(position) for position in positions]
    return Draws(*(torch.from_numpy(np.stack(values)) for values in zip(*made, strict=True)))


def seen_by_the_net(config: DiffusionConfig, draws: Draws, x0: Tensor, cond: Conditions) -> list:
    """(zt, t, cond) as diffusion_loss hands them to a network."""
    calls = []

    def net(zt, t, cond):
        calls.append((zt, t, cond))
        return torch.zeros_like(zt)

    diffusion_loss(net, x0, cond, draws, config)
    assert len(calls) == 1
    return calls[0]


@pytest.mark.parametrize("shift", [-10.0, -2.77, 0.0, 1.5, 10.0])
def test_variance_is_preserved_and_noise_grows(shift):
    schedule = Schedule(shift)
    alpha, sigma = schedule.alpha_sigma(T)
    assert alpha.shape == sigma.shape == (1001, 1, 1, 1)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(()), atol=1e-6)
    log_snr = schedule.log_snr(T)
    assert log_snr[0] == 15 and log_snr[-1] == -15 and (log_snr.diff() <= 0).all()
    inner = log_snr.abs() < 14.9
    assert (log_snr[inner].diff() < 0).all() and inner.sum() > 500
    assert torch.allclose((alpha**2 / sigma**2).flatten().log()[inner], log_snr[inner], atol=1e-3)


@pytest.mark.parametrize("shift", [-10.0, -2.77, 0.0, 1.5, 10.0])
def test_t_of_is_the_inverse_of_log_snr(shift):
    schedule = Schedule(shift)
    log_snr = torch.linspace(-15, 15, 301, dtype=torch.float64)
    t = schedule.t_of(log_snr)
    assert t.dtype == torch.float64 and (t > 0).all() and (t < 1).all() and (t.diff() < 0).all()
    error = schedule.log_snr(t) - log_snr
    assert error[t < 0.999].abs().max() < 1e-3 and error.abs().max() < 0.1  # float32 is coarse just below 1


def test_cosine_schedule_by_another_formula():
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) without shift; a shift by 2 ln(1/2) is a quarter of the SNR."""
    alpha, sigma = Schedule().alpha_sigma(T[5:-5])
    assert torch.allclose(alpha.flatten(), torch.cos(T[5:-5] * math.pi / 2), atol=1e-5)
    assert torch.allclose(sigma.flatten(), torch.sin(T[5:-5] * math.pi / 2), atol=1e-5)
    snr, shifted = (Schedule(shift).log_snr(T[100:-100]).exp() for shift in (0.0, 2 * math.log(64 / 128)))
    assert torch.allclose(shifted, snr / 4, rtol=1e-4)


def test_t0_is_the_image_and_t1_is_noise():
    x0, noise = images(2), torch.randn(2, 3, 6, 4)
    zt = q_sample(x0, torch.tensor([0.0, 1.0]), noise, Schedule())
    assert torch.allclose(zt[0], x0[0], atol=0.005) and torch.allclose(zt[1], noise[1], atol=0.005)
    half = q_sample(x0, torch.tensor([0.25, 0.25]), noise, Schedule())
    assert torch.allclose(half, math.cos(math.pi / 8) * x0 + math.sin(math.pi / 8) * noise, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_of_inverts_target_of(prediction):
    schedule, t = Schedule(-1.0), torch.linspace(0, 0.9, 16)
    x0, noise = images(16).double(), torch.randn(16, 3, 6, 4).double()
    zt = q_sample(x0, t, noise, schedule)
    target = target_of(prediction, x0, t, noise, schedule)
    assert torch.allclose(x0_of(prediction, target, zt, t, schedule), x0, atol=1e-4)


def test_targets_are_what_they_are_called():
    x0, noise, t, schedule = images(8), torch.randn(8, 3, 6, 4), torch.linspace(0.1, 0.9, 8), Schedule()
    assert torch.equal(target_of("noise", x0, t, noise, schedule), noise)
    assert torch.equal(target_of("x0", x0, t, noise, schedule), x0)
    angle = (t * math.pi / 2).view(-1, 1, 1, 1)
    assert torch.allclose(target_of("v", x0, t, noise, schedule), angle.cos() * noise - angle.sin() * x0, atol=1e-5)


def test_every_uint8_survives_the_range():
    values = torch.arange(256, dtype=torch.uint8)
    unit = to_unit_range(values)
    assert unit.min() == -1 and unit.max() == 1 and unit.dtype == torch.float32
    assert torch.equal(to_uint8(unit), values)
    assert torch.equal(to_uint8(unit + 0.49 / 127.5), values) and torch.equal(to_uint8(unit - 0.49 / 127.5), values)
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("noise_aug_max", [0.0, 1.0])
def test_conditions_are_dropped_together_or_not_at_all(noise_aug_max):
    """Null is 0, not noise, also where the images are augmented with noise."""
    config = DiffusionConfig(cond_drop_prob=0.3, noise_aug_max=noise_aug_max)
    cond = conditions(2000, lowres=True)
    _, _, seen = seen_by_the_net(config, draws_of(config, range(2000), 3), images(2000), cond)
    null = torch.stack(
        [
            (value == 0).flatten(1).all(1)
            for value in (seen.clothing_agnostic, seen.garment, seen.person_pose, seen.garment_pose)
        ]
    )
    assert torch.equal(null.all(0), null.any(0))
    assert 0.27 < null[0].float().mean() < 0.33
    if noise_aug_max > 0:
        return
    kept = ~null[0]
    for field in ("clothing_agnostic", "garment", "person_pose", "garment_pose"):
        assert torch.equal(getattr(seen, field)[kept], getattr(cond, field)[kept])
    assert torch.equal(seen.lowres, cond.lowres)


def test_dropped_in_training_is_what_guidance_evaluates():
    cond = conditions(3, lowres=True)
    trained, sampled = cond.drop(torch.zeros(3))._asdict(), cond.null()._asdict()
    for field in (*AUGMENTED, "person_pose", "garment_pose", "keep"):
        assert torch.equal(trained[field], sampled[field]), field
    for prob, share in ((0.0, 1.0), (1.0, 0.0)):
        assert draws_of(DiffusionConfig(cond_drop_prob=prob), range(200)).keep.mean() == share


def test_noise_augmentation():
    """Level 0 leaves an image alone, 1 leaves noise; each image has its own level and noise; the net is told."""
    cond = conditions(4, lowres=True)
    level = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.5], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    noise = torch.randn(4, 3, 3, 6, 4)
    result = augment_conditions(cond, level, noise)
    assert torch.equal(result.noise_aug_level, level)
    for i, field in enumerate(("clothing_agnostic", "garment", "lowres")):
        clean, noisy = getattr(cond, field), getattr(result, field)
        for j in range(4):
            if level[j, i] == 0:
                assert torch.equal(noisy[j], clean[j])
                continue
            angle = float(level[j, i]) * math.pi / 2
            assert torch.allclose(noisy[j], math.cos(angle) * clean[j] + math.sin(angle) * noise[j, i], atol=1e-3)
    assert torch.equal(result.person_pose, cond.person_pose)


def test_training_applies_its_noise_augmentation():
    config = DiffusionConfig(cond_drop_prob=0, noise_aug_max=0.5)
    draws, cond = draws_of(config, range(300), 3), conditions(300, lowres=True)
    _, _, seen = seen_by_the_net(config, draws, images(300), cond)
    assert torch.equal(seen.noise_aug_level, draws.noise_aug_level)
    for i, field in enumerate(("clothing_agnostic", "garment", "lowres")):
        level = draws.noise_aug_level[:, i]
        assert level.min() > 0 and 0.45 < level.max() <= 0.5 and abs(level.mean() - 0.25) < 0.03
        angle = (level * math.pi / 2).view(-1, 1, 1, 1)
        added = (getattr(seen, field) - angle.cos() * getattr(cond, field)) / angle.sin().clamp(min=0.1)
        assert torch.allclose(added[level > 0.1], draws.noise_aug[level > 0.1, i], atol=1e-3)
    levels = draws.noise_aug_level.T
    assert abs(torch.corrcoef(levels)[0, 1]) < 0.2 and abs(torch.corrcoef(levels)[1, 2]) < 0.2
    config = DiffusionConfig(cond_drop_prob=0, noise_aug_max=0)
    _, _, seen = seen_by_the_net(config, draws_of(config, range(300), 3), images(300), cond)
    assert all(torch.equal(a, b) for a, b in zip(seen[:6], cond[:6], strict=True))


@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
def test_min_snr_weights_agree_in_units_of_x0(gamma):
    """An answer that is wrong by d in x0 costs min(SNR, gamma) d^2, whichever way the network says it."""
    schedule, t = Schedule(), torch.linspace(0.05, 0.95, 19)
    x0, noise = images(19).double(), torch.randn(19, 3, 6, 4).double()
    wrong = x0 + 0.01
    zt = q_sample(x0, t, noise, schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    costs = {}
    for prediction in PREDICTIONS:
        # The noise that makes the wrong image of the same zt.
        answer = target_of(prediction, wrong, t, (zt - alpha * wrong) / sigma, schedule)
        error = (answer - target_of(prediction, x0, t, noise, schedule)).square().flatten(1).mean(1)
        costs[prediction] = loss_weight(prediction, t, schedule, gamma) * error
    if gamma is None:
        assert all((loss_weight(p, t, schedule, None) == 1).all() for p in PREDICTIONS)
        return
    expected = ((alpha / sigma).square().flatten().clamp(max=gamma) * 1e-4).double()
    for prediction in PREDICTIONS:
        assert torch.allclose(costs[prediction], expected, rtol=1e-3), prediction


def test_t_is_uniform_and_every_batch_covers_it():
    draws = draws_of(DiffusionConfig(noise_aug_max=0), range(4096))
    counts = torch.histc(draws.t, 64, 0, 1)
    assert draws.t.min() >= 0 and draws.t.max() <= 1 and counts.min() >= 60 and counts.max() <= 68
    for first in range(0, 4096, 16):
        assert torch.histc(draws.t[first : first + 16], 8, 0, 1).min() >= 1
    starts = torch.tensor([float(draws_of(DiffusionConfig(), range(1), seed=seed).t) for seed in range(64)])
    assert torch.histc(starts, 4, 0, 1).min() >= 6  # another seed begins elsewhere


def test_t_stays_uniform_late_in_training():
    config = DiffusionConfig(noise_aug_max=0)
    t = draws_of(config, range(10**11, 10**11 + 256)).t
    assert torch.histc(t, 16, 0, 1).min() >= 14


def test_draws_depend_on_seed_and_position_alone():
    config = DiffusionConfig()
    draws = draws_of(config, range(64))
    again = draws_of(config, range(40, 48))
    for one, other in zip(draws, again, strict=True):
        assert torch.equal(one[40:48], other)
    other = draws_of(config, range(64), seed=1)
    assert not torch.equal(other.t, draws.t) and not torch.allclose(other.noise, draws.noise, atol=0.1)
    for value in (draws.noise, draws.noise_aug):
        assert len({row.numpy().tobytes() for row in value}) == 64
        assert abs(value.mean()) < 0.03 and abs(value.std() - 1) < 0.03 and value.dtype == torch.float32
    assert not torch.equal(draws.noise_aug[:, 0], draws.noise_aug[:, 1])
    assert not torch.equal(draws.noise_aug[:, 0], draws.noise)
    assert draws.t.dtype == draws.keep.dtype == draws.noise_aug_level.dtype == torch.float32


def test_streams_of_random_numbers_are_apart():
    streams = {
        (seed, position, purpose, part): keyed_rng(seed, position, purpose, part).random(4).tobytes()
        for seed in (0, 1, 2**63 - 1)
        for position in (0, 1, 2**40)
        for purpose in Purpose
        for part in (0, 1, 1024)
    }
    assert len(set(streams.values())) == len(streams)
    long = keyed_rng(0, 0, Purpose.ORDER).integers(0, 2**63, 200_000)
    assert not np.isin(keyed_rng(0, 0, Purpose.AUGMENT).integers(0, 2**63, 1000), long).any()


def test_the_loss_of_a_silent_network_is_one():
    """Predicting 0 for noise ~ N(0, 1); the loss of a perfect answer is 0, and samples keep their own."""
    config = DiffusionConfig()
    draws, x0, cond = draws_of(config, range(1000)), images(1000), conditions(1000)
    loss = diffusion_loss(lambda zt, t, cond: torch.zeros_like(zt), x0, cond, draws, config)
    assert loss.shape == (1000,) and abs(loss.mean() - 1) < 0.02
    for prediction in PREDICTIONS:
        config = DiffusionConfig(prediction=prediction, min_snr_gamma=5, log_snr_shift=-1)
        target = target_of(prediction, x0, draws.t, draws.noise, Schedule(-1))
        answer = target.clone()
        answer[7] += 1
        loss = diffusion_loss(lambda zt, t, cond, answer=answer: answer, x0, cond, draws, config)
        assert loss.nonzero().flatten().tolist() == [7]


def test_the_network_sees_zt_of_the_draws():
    config = DiffusionConfig(log_snr_shift=-2)
    draws, x0 = draws_of(config, range(8)), images(8)
    zt, t, _ = seen_by_the_net(config, draws, x0, conditions(8))
    assert torch.equal(t, draws.t) and torch.equal(zt, q_sample(x0, draws.t, draws.noise, Schedule(-2)))


def test_draw_is_pure():
    rng = lambda: np.random.Generator(np.random.Philox(5))  # noqa: E731
    one, other = (draw(rng(), 3, 0.25, (6, 4), 2, DiffusionConfig()) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one.t == np.float32((0.25 + 3 * (math.sqrt(5) - 1) / 2) % 1)


def test_lowres_keeps_colours_and_places():
    """No tint, no shift: flat colours stay, a picture's mean stays, and mirroring commutes."""
    flat = torch.tensor([-1.0, 0.3, 1.0]).view(1, 3, 1, 1).expand(2, 3, 32, 24)
    assert torch.allclose(lowres_of(flat, 2), flat, atol=1e-6)
    smooth = F.interpolate(torch.rand(2, 3, 4, 3) * 2 - 1, size=(32, 24), mode="bicubic").clamp(-1, 1)
    low = lowres_of(smooth, 2)
    assert low.shape == smooth.shape and low.min() >= -1 and low.max() <= 1
    assert torch.allclose(low.mean((2, 3)), smooth.mean((2, 3)), atol=0.01)
    assert (low - smooth).abs().mean() < 0.03
    for axis in (2, 3):
        assert torch.allclose(lowres_of(smooth.flip(axis), 2), low.flip(axis), atol=1e-5)
    rough = torch.randn(2, 3, 32, 24).clamp(-1, 1)
    assert lowres_of(rough, 2).std() < 0.6 * rough.std()  # information is lost
    assert lowres_of(rough, 4).std() < 0.6 * lowres_of(rough, 2).std()

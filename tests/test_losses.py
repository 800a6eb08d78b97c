"""Kinds of error, and the perceptual term on the predicted x0."""

import numpy as np
import pytest
import torch

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Draws, Schedule, diffusion_loss, q_sample, target_of
from model.losses import LossConfig, Objective, error_of
from runs import deviation, empty_config, losses, unavailable, words
from training.config import load_config, validate
from training.engine import SingleDevice
from training.loop import train
from training.objective import make_objective

B = 6
T = torch.tensor([0.05, 0.2, 0.4, 0.41, 0.7, 0.99])


def inputs() -> tuple[torch.Tensor, Conditions, Draws]:
    x0 = torch.rand(B, 3, 8, 8) * 2 - 1
    cond = Conditions(x0, x0, torch.zeros(B, 18, 3), torch.zeros(B, 18, 3), torch.zeros(B, 2))
    return x0, cond, Draws(T, torch.randn(B, 3, 8, 8), torch.ones(B), torch.zeros(B, 2), torch.zeros(B, 2, 1, 1, 1))


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().flatten(1).mean(1)


@pytest.fixture
def configured(shards, tmp_path):
    return lambda **changes: load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **changes)])


def test_the_default_is_the_papers_loss_bit_by_bit():
    x0, cond, draws = inputs()
    net = lambda zt, t, cond: torch.tanh(3 * zt)  # noqa: E731
    loss = diffusion_loss(net, x0, cond, draws, DiffusionConfig())
    answer = net(q_sample(x0, T, draws.noise, Schedule()), T, cond)
    assert torch.equal(loss, squared(answer, draws.noise))
    assert LossConfig().kind == "mse" and LossConfig().lpips_weight == 0


def test_kinds_of_error():
    output, target = torch.randn(B, 3, 8, 8), torch.randn(B, 3, 8, 8)
    gap = output - target
    kinds = {kind: error_of(output, target, LossConfig(kind=kind, huber_delta=0.5)) for kind in ("mse", "l1", "huber")}
    assert torch.allclose(kinds["l1"], gap.abs().flatten(1).mean(1))
    wanted = torch.where(gap.abs() < 0.5, gap**2, gap.abs() - 0.25).flatten(1).mean(1)  # 2 delta |e| - delta^2
    assert torch.allclose(kinds["huber"], wanted)
    near = target + 0.01 * torch.randn_like(target)
    huber, mse = (error_of(near, target, LossConfig(kind=kind)) for kind in ("huber", "mse"))
    assert torch.allclose(huber, mse), "within delta, Huber's is the squared error"


@pytest.mark.parametrize("prediction", ["noise", "v", "x0"])
def test_the_perceptual_term_sees_the_implied_image_at_low_noise(prediction):
    """With the squared distance for LPIPS: an answer for a known wrong x0 costs exactly what that x0 does."""
    config = DiffusionConfig(prediction=prediction, log_snr_shift=-1)
    x0, cond, draws = inputs()
    zt = q_sample(x0, T, draws.noise, Schedule(-1))
    wrong = x0 + 0.1
    alpha, sigma = Schedule(-1).alpha_sigma(T)
    answer = target_of(prediction, wrong, T, (zt - alpha * wrong) / sigma, Schedule(-1)).requires_grad_()
    plain = diffusion_loss(lambda *_: answer, x0, cond, draws, config)
    objective = Objective(LossConfig(lpips_weight=3.0, lpips_max_t=0.4), squared)
    loss = diffusion_loss(lambda *_: answer, x0, cond, draws, config, objective)
    assert torch.allclose((loss - plain)[:3], torch.full((3,), 3 * 0.01), atol=1e-4)
    assert torch.equal(loss[3:], plain[3:]), "beyond lpips_max_t it is off"
    ours, theirs = (torch.autograd.grad(each.sum(), answer, retain_graph=True)[0] for each in (loss, plain))
    assert (ours[:3] != theirs[:3]).any() and torch.equal(ours[3:], theirs[3:])


def test_no_sample_may_be_below_the_limit():
    x0, cond, draws = inputs()
    objective = Objective(LossConfig(lpips_weight=1.0, lpips_max_t=0.01), squared)
    loss = diffusion_loss(lambda zt, t, cond: zt, x0, cond, draws, DiffusionConfig(), objective)
    assert torch.equal(loss, diffusion_loss(lambda zt, t, cond: zt, x0, cond, draws, DiffusionConfig()))


def test_what_does_not_go_together_is_refused(configured):
    with pytest.raises(ValueError, match=r"min_snr_gamma=5\.0 weighs squared errors.*loss\.kind=mse"):
        configured(loss__kind="l1", diffusion__min_snr_gamma=5.0)
    with pytest.raises(ValueError, match=r"loss\.lpips_weight=1\.0: LPIPS-alex needs 31 .* sees 16x16"):
        configured(loss__lpips_weight=1.0, loss__lpips_net="alex", model__image_size=[16, 16])


def test_a_config_of_before_has_the_same_loss(configured):
    values = configured().model_dump(mode="json")
    del values["loss"]
    assert validate(values, "old.yaml") == configured()


@pytest.mark.parametrize("kind", ["l1", "huber"])
def test_other_kinds_train(configured, tmp_path, kind):
    train(configured(loss__kind=kind, train__num_steps=12, optim__lr=5e-3), SingleDevice)
    curve = losses(tmp_path / "run")
    assert curve[-4:].mean() < 0.98 * curve[0]
    untrained = {"l1": (2 / np.pi) ** 0.5, "huber": 2 * 0.1 * (2 / np.pi) ** 0.5 - 0.01}[kind]
    assert curve[0] == pytest.approx(untrained, rel=0.1), "the first answer is 0, the target standard normal"


def test_lpips_trains_and_any_cut_of_the_batch_gives_one_curve(configured, tmp_path):
    how = {"train__num_steps": 3, "loss__lpips_weight": 1.0, "loss__lpips_net": "alex", "log__validate_every": 3}
    try:
        objective = make_objective(LossConfig(lpips_weight=1.0, lpips_net="alex"), torch.device("cpu"))
    except ValueError as error:
        unavailable(str(error))
    same = torch.rand(2, 3, 32, 32)
    assert objective.distance(same, same).tolist() == [0, 0]
    assert make_objective(LossConfig(), torch.device("cpu")).distance is None
    curves = []
    for accumulation in (1, 4):
        run_dir = str(tmp_path / f"run_{accumulation}")
        train(configured(train__accumulation=accumulation, run__dir=run_dir, **how), SingleDevice)
        curves.append(losses(tmp_path / f"run_{accumulation}"))
    assert deviation(*curves) < 1e-5
    train(configured(train__num_steps=3), SingleDevice)
    extra = curves[0][0] - losses(tmp_path / "run")[0]
    assert 0.01 < extra < 1.0, "half of the samples have t < 0.5, and LPIPS is below 1"

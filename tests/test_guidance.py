"""Guidance: both branches in one evaluation, its interval, the contrast, and the range of what comes out."""

import pytest
import torch
from torch import Tensor

from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Schedule, x0_of
from model.guidance import guided, recolored, rescaled, threshold
from model.sampler import SamplerConfig, sample_steps
from tests.answers import SIZE, Counting, conditions


@pytest.mark.parametrize(("scale", "batch"), [(1, 3), (2, 6), (0, 6), (1.5, 6)])
@pytest.mark.parametrize("lowres", [False, True])
@pytest.mark.parametrize("prediction", ["noise", "v", "x0"])
def test_guidance_is_one_evaluation_of_both(scale, batch, lowres, prediction):
    """Guiding the images that the outputs imply is guiding the outputs."""
    net, cond, schedule = Counting(), conditions(3, lowres), Schedule()
    zt, t = torch.randn(3, 3, *SIZE), torch.rand(3) * 0.9
    image_of = lambda output: x0_of(prediction, output, zt, t, schedule)  # noqa: E731
    result = guided(net, zt, t, cond, image_of, scale)
    assert net.batches == [batch]
    conditional, unconditional = net(zt, t, cond), net(zt, t, cond.null())
    assert not torch.allclose(conditional, unconditional, atol=0.01)
    expected = image_of(unconditional + scale * (conditional - unconditional))
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(cond.null().lowres, cond.lowres) if lowres else cond.null().lowres is None


@pytest.mark.parametrize(
    ("method", "interval", "num_guided"),
    [("ddim", (0.25, 0.65), 4), ("heun", (0.25, 0.65), 8), ("ddim", (0.0, 1.0), 10)],
)
def test_guidance_works_within_its_interval(method, interval, num_guided):
    """Both ends included.  Outside, an evaluation is one of the conditional branch alone."""
    config = SamplerConfig(method=method, num_steps=10, guidance_interval=interval)
    net, times = Counting(), []

    def told(zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        times.append(float(t[0]))
        return net(zt, t, cond)

    noise = torch.randn(2, 3, *SIZE)
    for _ in sample_steps(told, conditions(2), lambda: noise, DiffusionConfig(), config):
        pass
    assert net.batches == [4 if interval[0] <= round(t, 6) <= interval[1] else 2 for t in times]
    assert net.batches.count(4) == num_guided


def test_rescaled_images_have_the_contrast_of_unguided_ones():
    conditional, x0 = torch.randn(4, 3, *SIZE) * 0.3, torch.randn(4, 3, *SIZE) * 0.9 + 0.1
    contrast = lambda image: image.std((1, 2, 3))  # noqa: E731
    torch.testing.assert_close(contrast(rescaled(x0, conditional, 1)), contrast(conditional))
    half = (contrast(conditional) + contrast(x0)) / 2
    torch.testing.assert_close(contrast(rescaled(x0, conditional, 0.5)), half)
    assert torch.equal(rescaled(x0, conditional, 0), x0)
    ratio = rescaled(x0, conditional, 0.7) / x0
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio))  # one factor an image
    assert not rescaled(torch.zeros(1, 3, *SIZE), conditional[:1], 1).any()


def test_rescaling_lowers_the_contrast_of_strong_guidance():
    net, cond, zt, t = Counting(), conditions(3), torch.randn(3, 3, *SIZE), torch.full((3,), 0.5)
    plain, strong, gentle = (
        guided(net, zt, t, cond, lambda output: output, scale, share).std() for scale, share in [(1, 0), (8, 0), (8, 1)]
    )
    assert strong > 1.3 * plain and float(gentle) == pytest.approx(float(plain), rel=0.05)


def test_dynamic_threshold():
    x0 = torch.linspace(-3, 3, 2 * 3 * 24).reshape(2, 3, *SIZE)
    x0[1] = x0[1] / 10  # within the range: left alone
    result = threshold(x0, 0.9)
    limit = x0[0].abs().flatten().quantile(0.9)
    assert 1 < limit < 3 and torch.allclose(result[0], x0[0].clamp(-limit, limit) / limit)
    assert torch.equal(result[1], x0[1])
    assert result.abs().max() == 1
    assert torch.equal(threshold(x0, None), x0.clamp(-1, 1))


@pytest.mark.parametrize("off", [-0.3, 0.2])
def test_colour_is_kept_where_pixels_are_cut(off):
    """Two thirds of the picture are white, a tenth is black: only the rest can follow."""
    truth = 0.8 * torch.rand(2, 3, 30, 20) - 0.4
    truth[:, :, :20], truth[:, :, 20:23] = 1.0, -1.0
    color = truth.mean((2, 3), keepdim=True)
    kept = recolored((truth + off).clamp(-1, 1), color)
    assert kept.abs().max() <= 1 and torch.allclose(kept.mean((2, 3), keepdim=True), color, atol=1e-4)
    assert torch.allclose(recolored(truth, color), truth, atol=1e-6)
    assert recolored(truth, None) is truth

"""An image computed in strips is the image computed at once, in less memory."""

import pytest
import torch

from launch.memory import LivePeak
from model.layers import Downsample, Upsample, group_norm
from model.parallel_unet import ParallelUNetConfig
from model.tiled import activated, convolved, doubled, normalisation, rows_of, whole
from test_efficient_unet import inputs, network


@pytest.mark.parametrize("rows", [1, 3, 8, 32, 1000])
@pytest.mark.parametrize("size", [(40, 24), (64, 16)])
def test_strips_are_the_whole(size, rows):
    """At 1e-5, where 1/255 of an image's range is 8e-3: there is no seam to be seen, or measured."""
    net, given = network(), inputs(size)
    with torch.no_grad():
        at_once = net(*given)
        net.set_tile_rows(rows)
        torch.testing.assert_close(net(*given), at_once, rtol=0, atol=1e-5)
    assert at_once.std() > 0.1


def test_strips_in_half_precision():
    """They are no farther from what float32 gives than the whole is."""
    net, given = network(), inputs((40, 24))
    with torch.no_grad():
        exact = net(*given)
        with torch.autocast("cpu", torch.bfloat16):
            at_once = net(*given)
            net.set_tile_rows(8)
            in_strips = net(*given)
    assert 0 < (in_strips - exact).abs().mean() < 1.2 * (at_once - exact).abs().mean()


def test_a_convolution_has_its_halo_and_its_padding():
    x = torch.randn(2, 4, 12, 10)
    for conv in (Downsample(4, 6), torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.Conv2d(4, 6, 1)):
        torch.testing.assert_close(whole(convolved(conv, rows_of(x)), 5), conv(x))
    up = Upsample(4, 6)
    torch.testing.assert_close(whole(convolved(up, doubled(rows_of(x))), 5), up(x))


def test_a_norm_is_that_of_the_whole_map_even_far_from_0():
    """A mean of 1000 with a deviation of 1 leaves nothing of a difference of squares in float32."""
    x, norm = torch.randn(2, 16, 24, 10) + 1000 * torch.rand(2, 16, 1, 1).round(), group_norm(16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x[:, :, :8] *= 1.01  # strips differ
    exact = norm.double()(x.double()).float()
    scale, shift = normalisation(norm.float(), rows_of(x), 5)
    torch.testing.assert_close(scale * x + shift, exact, rtol=0, atol=2e-3)
    activation = whole(activated(norm, rows_of(x), 5), 7)
    torch.testing.assert_close(activation, torch.nn.functional.silu(exact), rtol=0, atol=2e-3)


def test_strips_need_a_fraction_of_the_memory():
    net, given, peaks = network(), inputs((256, 64), batch=1), []
    for rows in (None, 8):
        net.set_tile_rows(rows)
        with torch.no_grad(), LivePeak() as peak:
            net(*given)
        peaks.append(peak.peak)
    assert peaks[1] < 0.4 * peaks[0]


def test_training_sees_the_whole_image():
    """Strips overwrite what a backward pass would need."""
    net, given = network(), inputs()
    expected = net(*given)
    net.set_tile_rows(4)
    assert torch.equal(net(*given), expected)
    net(*given).sum().backward()


def test_what_cannot_be_cut_is_refused():
    tiny = ParallelUNetConfig(
        image_size=(16, 16), channels=(8, 8), num_blocks=(1, 1), attention_levels=(1,), head_dim=4, emb_dim=16
    )
    tiny.build().set_tile_rows(None)
    with pytest.raises(ValueError, match=r"sampler\.tile_rows=8: attention sees the whole image"):
        tiny.build().set_tile_rows(8)
    with pytest.raises(ValueError, match=r"sampler\.tile_rows=0: use 1 or more"):
        network().set_tile_rows(0)

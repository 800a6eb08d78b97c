"""The Efficient-UNet has about Imagen's size, trains all of itself, and takes images of any size."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model.conditions import Conditions
from model.efficient_unet import EFFICIENT_UNET, EfficientUNet, EfficientUNetConfig
from model.layers import ResBlock

TINY = EfficientUNetConfig(image_size=(16, 24), channels=(8, 12, 16), num_blocks=(1, 2, 2), emb_dim=16)


def network(trained: bool = True) -> EfficientUNet:
    """trained: with what starts at 0 moved away from it, so that everything can be seen in the output."""
    torch.manual_seed(0)
    net = TINY.build()
    if trained:
        for module in net.modules():
            if isinstance(module, ResBlock):
                torch.nn.init.normal_(module.conv2.weight, std=0.1)
                if module.film:
                    torch.nn.init.normal_(module.film.weight, std=0.1)
        torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


def inputs(size: tuple[int, int] = (16, 24), batch: int = 2) -> tuple[Tensor, Tensor, Conditions]:
    lowres = torch.rand(batch, 3, *size) * 2 - 1
    cond = Conditions(None, None, None, None, torch.rand(batch, 1), lowres)
    return torch.randn(batch, 3, *size), torch.rand(batch), cond


def test_parameters_are_about_the_400_m_of_imagen():
    with torch.device("meta"):
        num = sum(p.numel() for p in EFFICIENT_UNET.build().parameters())
    assert num == pytest.approx(427.3e6, rel=0.001) and num == pytest.approx(400e6, rel=0.07)


def test_it_starts_at_0_and_every_parameter_has_a_gradient():
    net = network(trained=False)
    output = net(*inputs())
    output.sum().backward()
    assert not output.any() and [name for name, p in net.named_parameters() if p.grad is None] == []


def test_every_parameter_and_every_input_matters():
    net, (zt, t, cond) = network(), inputs()
    told = [zt, t, cond.noise_aug_level, cond.lowres]
    for value in told:
        value.requires_grad_()
    net(zt, t, cond).square().sum().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.abs().max() > 0] == []
    assert all((value.grad.flatten(1) if value.dim() > 1 else value.grad[:, None]).any(1).all() for value in told)


@pytest.mark.parametrize("size", [(8, 8), (32, 16), (40, 56)])
def test_any_multiple_of_the_stride_is_an_image(size):
    assert network()(*inputs(size)).shape == (2, 3, *size)


def test_a_skip_is_added_and_scaled():
    """Where the coarser levels say nothing, a level's blocks see the encoder's feature / sqrt(2)."""
    net, seen = network(), []
    torch.nn.init.zeros_(net.decoder.up[1].weight)
    torch.nn.init.zeros_(net.decoder.up[1].bias)
    for blocks in (net.encoder, net.decoder):
        blocks.levels[0][0].register_forward_hook(lambda block, given, out: seen.append((given[0], out)))
    net(*inputs())
    (_, skip), (given, _) = seen
    torch.testing.assert_close(given, skip / 2**0.5)


def test_a_sample_does_not_see_its_neighbours():
    net, (zt, t, cond) = network(), inputs()
    alone = net(zt[:1], t[:1], cond._replace(noise_aug_level=cond.noise_aug_level[:1], lowres=cond.lowres[:1]))
    torch.testing.assert_close(net(zt, t, cond)[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [True, [1]])
def test_checkpointing_changes_no_gradient(levels):
    given, found = inputs(), []
    for value in (False, levels):
        net = network()
        net.set_activation_checkpointing(value)
        net(*given).square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_it_cannot_do_is_refused():
    net, (zt, t, cond) = network(), inputs()
    with pytest.raises(ValueError, match=r"Conditions\.lowres is missing"):
        net(zt, t, cond._replace(lowres=None))
    with pytest.raises(ValueError, match=r"sampler\.guidance_scale: .* use 1"):
        net(zt, t, cond._replace(with_null=True))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_size": (16, 20)}, r"image_size: \(16, 20\) is halved 3 times; use multiples of 8"),
        ({"lowres_factor": 3}, r"image_size: \(16, 24\) does not divide by lowres_factor=3"),
        ({"num_blocks": (1, 2)}, r"num_blocks: \(1, 2\) has 2 entries, channels has 3"),
        ({"lowres": False}, "lowres"),
    ],
)
def test_sizes_that_do_not_fit_together(values, said):
    with pytest.raises(ValidationError, match=said):
        EfficientUNetConfig(**(TINY.model_dump() | values))

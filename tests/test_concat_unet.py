"""The concatenation ablation hears the garment through its channels, and has no other way to it."""

import pytest
import torch

from model.concat_unet import ConcatUNet, ConcatUNetConfig
from model.layers import CrossAttention
from test_parallel_unet import TINY, TINY_SR, inputs
from training.config import load_config

KEYS = ("image_size", "lowres", "channels", "num_blocks", "attention_levels", "head_dim", "emb_dim")
CONFIGS = [ConcatUNetConfig(**{key: getattr(config, key) for key in KEYS}) for config in (TINY, TINY_SR)]


def network(config: ConcatUNetConfig) -> ConcatUNet:
    torch.manual_seed(0)
    net = ConcatUNet(config)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


@pytest.mark.parametrize("config", CONFIGS, ids=["base_unet", "sr_unet"])
def test_the_garment_is_heard_and_dropped_with_the_other_conditions(config):
    net, (zt, t, cond) = network(config), inputs(config)
    with torch.no_grad():
        told = net(zt, t, cond)
        assert not torch.equal(told, net(zt, t, cond._replace(garment=cond.garment.flip(3))))
        both = net(zt, t, cond._replace(with_null=True))
        assert both.shape == (2, 2, *zt.shape[1:])
        torch.testing.assert_close(both[:, 0], told)
        null = cond._replace(garment=-cond.garment, person_pose=0 * cond.person_pose).null()
        torch.testing.assert_close(both[:, 1], net(zt, t, null))


def test_there_is_no_garment_unet_and_no_cross_attention():
    net = network(CONFIGS[0])
    assert not any(isinstance(module, CrossAttention) for module in net.modules())
    assert net.stem.in_channels == 9 and not hasattr(net, "garment_unet")
    net(*inputs(CONFIGS[0])).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_config_chooses_it():
    config = load_config(["model.network=concat_unet"])
    assert type(config.model) is ConcatUNetConfig and config.model.tries_on
    with pytest.raises(ValueError, match=r"unknown key 'model\.garment_time'"):
        load_config(["model.network=concat_unet", "model.garment_time=false"])

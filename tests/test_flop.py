import pytest
from torch import nn

from model.efficient_unet import EfficientUNetConfig
from training.config import Config
from training.fit import blank_inputs
from training.flop import forward_flop, num_parameters, training_flop


def config(**data) -> Config:
    model = EfficientUNetConfig(
        network="efficient_unet", image_size=(64, 64), channels=(8, 16), num_blocks=(1, 1), emb_dim=8
    )
    return Config.model_validate({"model": model.model_dump(), "data": data, "sampler": {"guidance_scale": 1.0}})


def test_training_is_three_forward_passes_of_what_it_sees():
    whole, crops = config(), config(crop_size=(32, 32))
    assert 2.7 < training_flop(whole) / forward_flop(whole) < 3
    assert forward_flop(crops) == forward_flop(whole), "an image is drawn whole"
    assert training_flop(whole) / training_flop(crops) == pytest.approx(4, rel=0.02), "training sees crops"


def test_every_convolution_and_matrix_is_counted_with_a_multiply_add_as_two():
    net, counted = config().model.build(), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda layer, _, out: counted.append(2 * layer.weight.numel() * out.numel() // out.shape[1])
            )
    x0, cond, draws = blank_inputs(config(), 1)
    net(x0, draws.t, cond)
    assert sum(counted) == forward_flop(config()) and len(counted) > 20


def test_parameters():
    assert num_parameters(config()) == sum(weight.numel() for weight in config().model.build().parameters())

"""Adam of 8 bits follows Adam of 32, and its moments pass through fp32 without a change."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runs import HOME, deviation, empty_config, losses, newest, tensors, words
from training.checkpoint import open_tensors
from training.config import load_config
from training.engine import SingleDevice
from training.loop import train
from training.optim import MOMENTS, OptimConfig, load_moments, make_optimizer, moment_of, reserved_moments

SHAPES = [(64, 80), (64, 16, 3, 3), (10,), (5001,)]  # the first two and the last have more than 4096 values
CPU = torch.device("cpu")


def weights(seed: int = 1, channels_last: bool = True) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if channels_last:
        made[1] = made[1].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(w) for w in made]


def gradients(steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    draw = lambda shape: torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()  # noqa: E731
    return [[draw(shape) for shape in SHAPES] for _ in range(steps)]


def trained(name: str, steps: int, params: list, channels_last: bool = False) -> torch.optim.Optimizer:
    optimizer = make_optimizer(params, OptimConfig(name=name, lr=1e-3, weight_decay=0.1), CPU)
    for step in gradients(steps):
        for p, gradient in zip(params, step, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_is_the_packages_own(channels_last):
    """Whose optimizer takes contiguous weights only; small parameters and layouts included."""
    import bitsandbytes

    ours, theirs, plain = weights(channels_last=channels_last), weights(channels_last=False), weights()
    trained("adamw8bit", 5, ours)
    trained("adamw", 5, plain)
    optimizer = bitsandbytes.optim.AdamW8bit(theirs, lr=1e-3, weight_decay=0.1)
    for step in gradients(5):
        for p, gradient in zip(theirs, step, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    for i, (a, b, c) in enumerate(zip(ours, theirs, plain, strict=True)):
        if channels_last and i == 1:  # other values share a block
            assert a.is_contiguous(memory_format=torch.channels_last) and not torch.equal(a, b)
        else:
            assert torch.equal(a, b)
        start = weights()[i]
        assert (a - c).norm() < 0.2 * (c - start).norm(), "the way that Adam went, nearly"


@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_that_are_saved_and_loaded_are_the_same_bits(channels_last):
    """Codes and scales too: what follows a restart is what follows without one."""
    params = weights(channels_last=channels_last)
    one = trained("adamw8bit", 20, params)
    saved = {f"{slot}.{i}": moment_of(one, p, slot).contiguous() for i, p in enumerate(params) for slot in MOMENTS}
    assert all(value.dtype == torch.float32 for value in saved.values())
    two = make_optimizer(params, OptimConfig(name="adamw8bit"), CPU)
    load_moments(two, ((str(i), p) for i, p in enumerate(params)), saved.get, 20)
    for i, p in enumerate(params):
        assert one.state[p].keys() == two.state[p].keys() and two.state[p]["step"] == 20
        for key, value in one.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two.state[p][key])), (i, key)
        for slot in MOMENTS:
            assert torch.equal(moment_of(two, p, slot), saved[f"{slot}.{i}"])


def test_moments_of_32_bits_are_rounded_to_the_nearest_of_8():
    params = weights()
    plain, eight = trained("adamw", 20, params), make_optimizer(params, OptimConfig(name="adamw8bit"), CPU)
    load_moments(eight, ((str(i), p) for i, p in enumerate(params)),
                 lambda name: moment_of(plain, params[int(name.split(".")[1])], name.split(".")[0]), 20)  # fmt: skip
    for p in params:
        for slot in MOMENTS:
            exact, rounded = moment_of(plain, p, slot), moment_of(eight, p, slot)
            assert (rounded - exact).norm() < 0.02 * exact.norm()
            assert torch.equal(rounded, exact) == (p.numel() < 4096)


def test_moments_that_are_not_there_yet_have_their_room_reserved():
    params = weights()
    optimizer = make_optimizer(params, OptimConfig(name="adamw8bit"), CPU)
    num = sum(reserved.nbytes for reserved in reserved_moments(optimizer))
    trained_ = trained("adamw8bit", 1, params)
    made = [value for state in trained_.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert num == sum(value.nbytes for value in made) and reserved_moments(trained_) == []
    plain = make_optimizer(params, OptimConfig(), CPU)
    assert sum(reserved.nbytes for reserved in reserved_moments(plain)) == 8 * sum(p.numel() for p in params)


WIDE = {"model__channels": [16, 64], "model__head_dim": 16, "optim__lr": 1e-3}  # parameters of more than 4096 values


def test_a_run_follows_adam_and_resumes_bit_by_bit(shards, tmp_path):
    def run(name: str, optim: str, steps: int) -> None:
        changes = WIDE | {"optim__name": optim, "train__num_steps": steps}
        train(load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / name, **changes)]), SingleDevice)

    run("plain", "adamw", 8)
    run("eight", "adamw8bit", 8)
    run("stopped", "adamw8bit", 4)
    run("stopped", "adamw8bit", 8)
    assert 0 < deviation(losses(tmp_path / "plain"), losses(tmp_path / "eight")) < 0.05
    assert (losses(tmp_path / "stopped") == losses(tmp_path / "eight")).all()
    one, two = tensors(tmp_path / "stopped"), tensors(tmp_path / "eight")
    assert all((one[name] == value).all() for name, value in two.items())
    run("stopped", "adamw", 9)
    run("stopped", "adamw8bit", 10)
    assert len(losses(tmp_path / "stopped")) == 10


def test_the_checkpoint_is_fp32_whatever_the_optimizer(shards, tmp_path):
    arguments = words(shards, tmp_path / "run", optim__name="adamw8bit", train__num_steps=2, **WIDE)
    config = load_config([str(empty_config(tmp_path)), *arguments])
    train(config, SingleDevice)
    plain = SingleDevice(config.model, config.engine, OptimConfig(), config.seed)
    with open_tensors(newest(tmp_path / "run"), "optimizer", plain.optimizer_shapes(2)) as get:
        plain.load_optimizer(get, 2)
    assert plain.optimizer_steps == 2


def test_without_the_package_the_message_says_how_to_get_it(tmp_path):
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError('No module named bitsandbytes')")
    code = "import torch\nfrom training.optim import *\nmake_optimizer([], OptimConfig(name='adamw8bit'), None)"
    env = {"PYTHONPATH": f"{tmp_path}:{HOME}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=HOME, env=env, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: optim.name=adamw8bit needs") and "pip install bitsandbytes" in last


def test_zero_shares_moments_already():
    with pytest.raises(ValueError, match=r"adamw8bit does not go with engine.zero_stage=2.*optim.name=adamw"):
        load_config([str(Path("configs/base_unet.yaml")), "optim.name=adamw8bit", "engine.zero_stage=2"])

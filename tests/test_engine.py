import re
from pathlib import Path

import pytest
import torch

from data.dataset import ShardedDataset
from data.order import ShuffledOrder
from runs import deviation, empty_config, finish, losses, newest, ranks, stats, tensors, words
from training import checkpoint, loop
from training.config import Config, load_config
from training.distributed import DistributedConfig, process_group
from training.engine import DataParallel, SingleDevice, pick_device
from training.loop import train
from training.optim import OptimConfig, lr_at


@pytest.fixture
def configured(shards, tmp_path):
    """changes -> the config of a tiny run in tmp_path / 'run'."""

    def configure(**changes) -> Config:
        return load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **changes)])

    return configure


@pytest.fixture
def failing(monkeypatch):
    """steps -> the loss of the first micro-batch of these steps (from 1 on) becomes NaN."""
    honest, calls = loop.diffusion_loss, []

    def begin(steps) -> None:
        def loss(*args):
            calls.append(1)
            return honest(*args) * (float("nan") if len(calls) in steps else 1.0)

        monkeypatch.setattr(loop, "diffusion_loss", loss)

    return begin


def tiny_engine(config: Config) -> SingleDevice:
    return SingleDevice(config.model, config.engine, config.optim, config.seed)


def test_warmup_is_linear_and_exact():
    config = OptimConfig(lr=1e-4, warmup_steps=10_000)
    assert lr_at(0, config) == pytest.approx(1e-8, rel=1e-12) and lr_at(4_999, config) == pytest.approx(5e-5, rel=1e-12)
    assert lr_at(9_998, config) < 1e-4 and lr_at(9_999, config) == lr_at(10_000, config) == lr_at(10**6, config) == 1e-4
    assert lr_at(0, OptimConfig(lr=1.0, warmup_steps=0)) == 1.0
    falling = OptimConfig(lr=1.0, warmup_steps=10, decay_after=100)
    assert lr_at(4, falling) == 0.5 and lr_at(99, falling) == 1.0
    with pytest.raises(ValueError, match="lr would fall before it has risen"):
        OptimConfig(warmup_steps=10, decay_after=9)
    assert lr_at(399, falling) == 0.5 and lr_at(9_999, falling) == pytest.approx(0.1, rel=1e-12)


def test_the_optimizer_uses_the_learning_rate_of_its_step(configured):
    config = configured(train__num_steps=6, optim__lr=1e-3, optim__warmup_steps=4)
    train(config, SingleDevice)
    told = [line["lr"] for line in stats(Path(config.run.dir))]
    assert told == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3], rel=1e-12)
    engine = tiny_engine(config)
    before = engine.parameters[0].detach().clone()
    engine.backward(engine.parameters[0].sum() * 1e-3)
    for p in engine.parameters[1:]:
        p.grad = torch.zeros_like(p)
    engine.step(lr=0.25)  # Adam's first step moves every weight by its learning rate
    torch.testing.assert_close(before - engine.parameters[0].detach(), torch.full_like(before, 0.25), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale, clipped", [(1e4, True), (1e-9, False)])
def test_the_gradient_is_clipped_to_its_norm_and_told_as_it_was(configured, monkeypatch, scale, clipped):
    engine = tiny_engine(configured(optim__clip_grad_norm=0.5))
    engine.backward(sum((p * p).sum() + p.sum() for p in engine.parameters) * scale)
    norm = torch.cat([p.grad.flatten() for p in engine.parameters]).norm().item()
    used = []
    monkeypatch.setattr(
        engine.optimizer, "step", lambda: used.append(torch.cat([p.grad.flatten() for p in engine.parameters]).norm())
    )
    assert engine.step(lr=1e-3) == pytest.approx(norm, rel=1e-4)
    assert used[0].item() == pytest.approx(0.5 if clipped else norm, rel=1e-4)
    assert all(p.grad is None or not p.grad.any() for p in engine.parameters), "the next step starts from zero"


def test_step_average_and_cadence_count_optimizer_steps(configured, tmp_path):
    config = configured(train__num_steps=6, train__accumulation=2, checkpoint__every=3, log__every=2)
    train(config, SingleDevice)
    run_dir = tmp_path / "run"
    assert [line["step"] for line in stats(run_dir)] == [2, 4, 6]
    assert [line["samples"] for line in stats(run_dir)] == [8, 16, 24]
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("step*")) == ["step_00000003", "step_00000006"]
    state = checkpoint.read_state(newest(run_dir))
    assert (state.step, state.samples, state.ema_updates) == (6, 24, 6)
    assert state.optimizer_steps == 6


def test_the_counter_of_the_average_survives_a_resume(configured, tmp_path):
    train(configured(train__num_steps=4), SingleDevice)
    train(configured(train__num_steps=7), SingleDevice)
    assert checkpoint.read_state(newest(tmp_path / "run")).ema_updates == 7


def test_a_gradient_that_is_not_finite_changes_nothing(configured, failing, tmp_path):
    train(configured(train__num_steps=3), SingleDevice)
    before = tensors(tmp_path / "run")
    failing({1, 2})
    train(configured(train__num_steps=5, train__max_nonfinite=3), SingleDevice)
    after, state = tensors(tmp_path / "run"), checkpoint.read_state(newest(tmp_path / "run"))
    assert all((after[name] == value).all() for name, value in before.items())
    assert (state.step, state.samples, state.ema_updates, state.nonfinite_in_row) == (5, 20, 3, 2)
    train(configured(train__num_steps=6, train__max_nonfinite=3), SingleDevice)
    state = checkpoint.read_state(newest(tmp_path / "run"))
    assert (state.ema_updates, state.nonfinite_in_row) == (4, 0), "a finite one ends the row"


def test_too_many_in_a_row_end_the_run_and_name_the_positions(configured, failing, tmp_path):
    failing({3, 5, 6, 7})
    with pytest.raises(ValueError) as stop:
        train(configured(train__num_steps=9, train__max_nonfinite=3, checkpoint__every=2), SingleDevice)
    assert "not finite in 3 steps in a row, at last in step 7: the loss is not finite for '" in str(stop.value)
    assert re.findall(r"\(stream position (\d+)\)", str(stop.value)) == ["24", "25", "26", "27"]
    assert "optim.lr" in str(stop.value) and checkpoint.read_state(newest(tmp_path / "run")).step == 6


def test_a_run_whose_every_step_failed_so_far_continues(configured, failing, tmp_path):
    failing({1, 2})
    train(configured(train__num_steps=2), SingleDevice)
    train(configured(train__num_steps=4), SingleDevice)
    assert checkpoint.read_state(newest(tmp_path / "run")).optimizer_steps == 2


def test_a_backward_pass_that_overflows_is_told_from_a_loss(configured, tmp_path, capsys):
    class Overflowing(SingleDevice):
        def backward(self, loss):
            super().backward(loss)
            self.parameters[0].grad[...] = float("inf")

    with pytest.raises(ValueError, match="every loss is finite, so it is the backward pass that overflows"):
        train(configured(train__max_nonfinite=2), Overflowing)
    assert "warning: step 1 is skipped" in capsys.readouterr().err


@pytest.mark.parametrize("zero_stage", [None, 0, 1, 2, 3])
def test_all_ranks_skip_what_one_cannot_use(shards, tmp_path, zero_stage):
    script = tmp_path / "train_broken.py"
    script.write_text(
        "import os\n"
        "from training import loop\n"
        "honest, calls = loop.diffusion_loss, []\n"
        "def loss(*args):\n"
        "    calls.append(1)\n"
        "    broken = os.environ['RANK'] == '1' and len(calls) in (2, 4, 5)\n"
        "    return honest(*args) * (float('nan') if broken else 1.0)\n"
        "loop.diffusion_loss = loss\n"
        "import train_ddp\n"
        "train_ddp.run(train_ddp.main)\n"
    )
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=8)]
    arguments += ["train.max_nonfinite=2", "checkpoint.every=3"]
    arguments += [] if zero_stage is None else [f"engine.zero_stage={zero_stage}"]
    statuses, text = finish(ranks(tmp_path, 2, arguments, str(script)))
    assert statuses == [1, 1] and "Traceback" not in text
    errors = re.findall("^error: .*", text, re.MULTILINE)
    data = ShardedDataset(shards)
    key, other = (data.key(ShuffledOrder(data.shard_sizes, 0).sample_id(i)) for i in (18, 19))
    told = f"in step 5: the loss is not finite for '{key}' (stream position 18), '{other}' (stream position 19);"
    assert len(errors) == 1 and told in errors[0]
    state = checkpoint.read_state(newest(tmp_path / "run"))
    assert (state.step, state.ema_updates, state.optimizer_steps, state.skipped) == (3, 2, 2, 1)


def test_bf16_computes_in_bf16_and_keeps_fp32(configured, tmp_path):
    config = configured(train__num_steps=3, engine__precision="bf16", train__accumulation=2)
    seen = []

    class Spy(SingleDevice):
        def wrap(self, model):
            for module in model.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
            return model

        def step(self, lr):
            assert {p.dtype for p in self.parameters} == {p.grad.dtype for p in self.parameters} == {torch.float32}
            return super().step(lr)

    train(config, Spy)
    assert seen.count(torch.bfloat16) > 0.8 * len(seen)
    assert {value.dtype.name for value in tensors(tmp_path / "run").values()} == {"float32"}


def test_a_device_too_small_for_the_network_is_told(configured):
    class Small(SingleDevice):
        def wrap(self, model):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.22 GiB.")

    with pytest.raises(ValueError, match="out of memory for weights, gradients and averages; use"):
        train(configured(), Small)


def test_an_error_keeps_the_checkpoint_that_is_being_written(configured, tmp_path):
    class Dying(SingleDevice):
        def step(self, lr):
            if self.optimizer_steps == 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().step(lr)

    with pytest.raises(ValueError, match="out of memory on cpu with 4 samples"):
        train(configured(checkpoint__every=4), Dying)
    assert checkpoint.read_state(newest(tmp_path / "run")).step == 4


def test_moments_come_back_in_the_layout_of_their_weights(configured):
    """As on a GPU, where weights are channels_last and Adam is fused, which refuses moments of another layout."""
    config = configured()
    engines = [tiny_engine(config), tiny_engine(config)]
    for engine in engines:
        engine.model.to(memory_format=torch.channels_last)
        for p in engine.parameters:
            p.grad = torch.ones_like(p)
    engines[0].optimizer.step()
    shapes, values, _ = engines[0].optimizer_tensors()
    saved = dict(zip(shapes, (value.contiguous() for value in values()), strict=True))
    engines[1].load_optimizer(saved.get, engines[0].optimizer_steps)
    for one, two in zip(*(e.parameters for e in engines), strict=True):
        state, loaded = engines[0].optimizer.state[one], engines[1].optimizer.state[two]
        assert loaded["exp_avg"].stride() == two.stride() and torch.equal(state["exp_avg"], loaded["exp_avg"])
        assert torch.equal(state["step"], loaded["step"])


def test_devices_that_are_not_here_are_named():
    with pytest.raises(ValueError, match="fp16: not on a CPU; use bf16"):
        pick_device("cpu", "fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA GPU is visible"):
            pick_device("cuda")
        assert DataParallel.num_devices() == 1


def test_more_ranks_than_gpus_are_refused_by_every_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"2 GPUs .*--nproc_per_node=2"), process_group(DistributedConfig()):
        pass


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(configured):
    one, two, other = (tiny_engine(configured(seed=seed)).parameters for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_network_with_frozen_weights_is_refused_before_its_first_checkpoint(configured):
    class Frozen(SingleDevice):
        def build(self, model):
            net = super().build(model)
            net.garment_unet.requires_grad_(False)
            return net

    config = configured()
    with pytest.raises(ValueError, match=r"garment_unet\.[\w.]+: requires_grad is False, .* zero the gradient"):
        Frozen(config.model, config.engine, config.optim, config.seed)


def test_a_scaled_gradient_is_clipped_as_an_unscaled_one(configured, monkeypatch):
    """As with fp16, on any device."""
    config = configured(optim__clip_grad_norm=0.5)
    engine = SingleDevice(config.model, config.engine, config.optim, config.seed)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine.backward(sum((p * p).sum() + p.sum() for p in engine.parameters))
    norm = torch.cat([p.grad.flatten() for p in engine.parameters]).norm().item() / 1024
    used = []
    monkeypatch.setattr(
        engine.optimizer, "step", lambda: used.append(torch.cat([p.grad.flatten() for p in engine.parameters]).norm())
    )
    assert engine.step(lr=1e-3) == pytest.approx(norm, rel=1e-4) and norm > 0.5
    assert used[0].item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("zero_stage", [None, 2])
def test_every_engine_clips(shards, tmp_path, zero_stage):
    """To a norm that every gradient exceeds; norms differ from step to step, which Adam's moments remember."""
    config = str(empty_config(tmp_path))
    changes = {"train__num_steps": 6, "optim__clip_grad_norm": 1e-3, "optim__lr": 1e-2}
    train(load_config([config, *words(shards, tmp_path / "one", **changes)]), SingleDevice)
    assert min(line["grad_norm"] for line in stats(tmp_path / "one")) > 1e-2
    engine = {} if zero_stage is None else {"engine__zero_stage": zero_stage}
    statuses, text = finish(ranks(tmp_path, 2, [config, *words(shards, tmp_path / "two", **changes, **engine)]))
    assert statuses == [0, 0], text
    assert deviation(losses(tmp_path / "one"), losses(tmp_path / "two")) < 1e-4

"""How many samples are taken at once: said, found, remembered, and without a trace in the curve."""

import json

import pytest
import torch

from model.diffusion import MSE
from model.parallel_unet import ParallelUNet
from runs import Script, deviation, empty_config, finish, losses, ranks, words
from training import fit
from training.config import load_config
from training.engine import SingleDevice
from training.fit import accumulation_of, half, out_of_memory, out_of_memory_told

# A training script on whose rank BROKEN_RANK more than MOST samples do not fit, from call SINCE of the network on.
SMALL_GPU = """
import os, torch
from model.parallel_unet import ParallelUNet
forward, calls = ParallelUNet.forward, []
def limited(self, zt, t, cond):
    calls.append(len(zt))
    here = os.environ.get("RANK", "0") == os.environ["BROKEN_RANK"]
    if here and len(zt) > int(os.environ["MOST"]) and len(calls) >= int(os.environ["SINCE"]):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    return forward(self, zt, t, cond)
ParallelUNet.forward = limited
import SCRIPT
SCRIPT.run(SCRIPT.main)
"""


@pytest.fixture
def started(shards, tmp_path):
    """(name of the run, number of ranks, the environment of SMALL_GPU, changes) -> exit statuses and what was said."""

    def start(name: str, num: int, limits: dict | None = None, **changes) -> tuple[list[int], str]:
        arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / name, train__num_steps=6, **changes)]
        script = "train_single.py" if num == 1 else "train_ddp.py"
        env = {key: str(value) for key, value in ({"BROKEN_RANK": num - 1, "SINCE": 0} | (limits or {})).items()}
        if limits:
            small = tmp_path / f"small_{script}"
            small.write_text(SMALL_GPU.replace("SCRIPT", script.removesuffix(".py")))
            script = str(small)
        if num == 1:
            run = Script(tmp_path / name, script, arguments, env)
            return finish([run])
        return finish(ranks(tmp_path / name, num, arguments, script, env))

    return start


def remembered(run_dir) -> int:
    return json.loads((run_dir / "micro_batch.json").read_text())["samples"]


@pytest.mark.parametrize("num", [1, 2])
def test_auto_halves_on_all_ranks_and_the_curve_is_that_of_fixed_accumulation(started, tmp_path, num):
    """On one rank alone three samples do not fit; of the 8 of a step, 2 are taken at once."""
    each = {"train__global_batch": 8}
    assert started("found", num, {"MOST": 2}, engine__micro_batch="auto", **each)[0] == [0] * num
    assert started("said", num, train__accumulation=8 // num // 2, **each)[0] == [0] * num
    assert remembered(tmp_path / "found") == 2
    assert deviation(losses(tmp_path / "said"), losses(tmp_path / "found")) <= 1e-6
    assert started("fixed", num, engine__micro_batch=2, **each)[0] == [0] * num
    assert (losses(tmp_path / "fixed") == losses(tmp_path / "said")).all()
    assert not (tmp_path / "fixed/micro_batch.json").exists()


@pytest.mark.parametrize("num", [1, 2])
def test_memory_that_runs_out_later_halves_at_the_next_start(started, tmp_path, num):
    """Both passes of the trial fit; in the third step, on one rank, they no longer do."""
    each = {"train__global_batch": 8, "checkpoint__every": 1, "distributed__hang_s": 20, "distributed__timeout_s": 30}
    statuses, said = started("run", num, {"MOST": 8 // num - 1, "SINCE": 5}, engine__micro_batch="auto", **each)
    assert statuses[-1] == 1 and "Traceback" not in said
    most = 8 // num
    assert f"with {most} samples at a time; the same command continues with {most // 2}" in said
    assert remembered(tmp_path / "run") == most // 2
    statuses, said = started("run", num, {"MOST": most // 2}, engine__micro_batch="auto", **each)
    assert statuses == [0] * num, said
    assert started("plain", num, train__accumulation=2, **each)[0] == [0] * num
    assert deviation(losses(tmp_path / "plain"), losses(tmp_path / "run")) <= 1e-5


def test_one_sample_that_does_not_fit_is_refused_by_all(started):
    statuses, said = started("run", 2, {"MOST": 0}, engine__micro_batch="auto")
    assert statuses == [1, 1] and said.count("error: ") == 1 and "Traceback" not in said
    assert "not even one sample fits" in said and "engine.activation_checkpointing=true" in said


def test_without_auto_the_remedy_is_named(started, tmp_path):
    statuses, said = started("run", 1, {"MOST": 3})
    assert statuses == [1] and "Traceback" not in said
    assert "out of memory on cpu with 4 samples at a time; use engine.micro_batch=auto, or" in said
    assert not (tmp_path / "run/micro_batch.json").exists()


@pytest.fixture
def config(shards, tmp_path):
    """changes -> the config of a tiny run."""
    return lambda **changes: load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine__micro_batch": 3}, r"engine.micro_batch=3: on 2 devices .* train.global_batch=4; use 1 or 2"),
        ({"engine__micro_batch": 1, "train__accumulation": 2}, r"engine.micro_batch=1 and train.accumulation=2 both"),
        ({"engine__micro_batch": "auto", "train__micro_batch": 1}, r"micro_batch=auto and train.micro_batch=1 both"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, message):
    """By the config, or once the devices are known."""
    with pytest.raises(ValueError, match=message):
        accumulation_of(config(**changes), 2)


def test_passes_follow_from_samples_and_devices(config):
    assert accumulation_of(config(engine__micro_batch=1), 2) == 2 and accumulation_of(config(engine__micro_batch=2), 2)
    assert accumulation_of(config(train__accumulation=4), 1) == 4
    assert [half(n, 12) for n in (12, 6, 4, 3, 2)] == [6, 3, 2, 1, 1] and half(7, 7) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"samples": 0, "made_for": "x"}', '{"samples": "2"}', "\ufffe"])
def test_a_damaged_memory_begins_anew(config, tmp_path, text):
    (tmp_path / "micro_batch.json").write_text(text)
    assert fit._known(tmp_path, "x", 4) == 4


def test_what_was_found_for_another_network_is_not_used(config, tmp_path, monkeypatch):
    sizes = []
    honest = ParallelUNet.forward
    monkeypatch.setattr(ParallelUNet, "forward", lambda net, zt, *rest: sizes.append(len(zt)) or honest(net, zt, *rest))
    for changes, first in [({}, 4), ({}, 2), ({"engine__lean_norms": True}, 4)]:
        sizes.clear()
        one = config(engine__micro_batch="auto", **changes)
        engine = SingleDevice(one.model, one.engine, one.optim, one.seed)
        fit.fit_micro_batch(engine, one, tmp_path, MSE)
        assert sizes == [first, first], "a pass without and one with gradients"
        assert all(p.grad is None for p in engine.parameters) and not engine.optimizer.state
        fit._keep(tmp_path, fit._made_for(one, engine), 2)


def test_a_larger_batch_is_tried_anew(config, tmp_path):
    """What a small batch was taken in at once is no limit of the memory."""
    for global_batch in (4, 32):
        one = config(engine__micro_batch="auto", train__global_batch=global_batch)
        engine = SingleDevice(one.model, one.engine, one.optim, one.seed)
        assert fit.fit_micro_batch(engine, one, tmp_path, MSE) == 1
        assert remembered(tmp_path) == global_batch


def test_other_errors_are_left_alone(config, tmp_path):
    one = config()
    engine = SingleDevice(one.model, one.engine, one.optim, one.seed)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_told(engine, one, tmp_path, 1):
        raise RuntimeError("shape mismatch")
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert out_of_memory(torch.OutOfMemoryError("x")) and not out_of_memory(RuntimeError("x"))

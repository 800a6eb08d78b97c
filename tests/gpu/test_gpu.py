"""What only a GPU can show.  Run on a GPU box: bash tests/run.sh tests/gpu"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data import prepare
from launch.memory import GIB, MemoryModel
from runs import deviation, losses, stats
from training.config import read_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
HOME = Path(__file__).parent.parent.parent
GPUS = torch.cuda.device_count()
TINY = (
    "model.image_size=[32,32]", "model.channels=[32,64]", "model.num_blocks=[1,1]", "model.attention_levels=[1]",
    "model.head_dim=32", "model.emb_dim=64", "train.num_steps=20", "train.global_batch=8", "log.every=1",
    "data.num_workers=1", "optim.warmup_steps=5", "checkpoint.every=10",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={GPUS}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "train"
    assert prepare.main(["synthetic", "--num", "64", "--size", "32", "--out", str(out)]) == 0
    return out


def train(shards: Path, run: Path, command: tuple[str, ...], *overrides: str) -> np.ndarray:
    """The losses of a run."""
    words = [sys.executable, *command, "configs/base_unet.yaml", f"run.dir={run}", f"data.shards={shards}"]
    subprocess.run([*words, *TINY, *overrides], cwd=HOME, check=True, timeout=300)
    return losses(run)


def test_modes_give_one_curve(shards, tmp_path):
    fp32 = ("engine.precision=fp32", "engine.deterministic=true")
    cpu = train(shards, tmp_path / "cpu", ("train_single.py",), *fp32, "engine.device=cpu")
    single = train(shards, tmp_path / "single", ("train_single.py",), *fp32)
    dp = train(shards, tmp_path / "dp", ("train_dp.py",), *fp32)
    ddp = train(shards, tmp_path / "ddp", (*TORCHRUN, "train_ddp.py"), *fp32)
    assert deviation(dp, single) <= 1e-5
    assert deviation(ddp, single) <= 1e-5
    assert deviation(single, cpu) <= 1e-3  # other kernels


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(shards, tmp_path, precision):
    full = train(shards, tmp_path / "fp32", ("train_single.py",), "engine.precision=fp32")
    half = train(shards, tmp_path / precision, ("train_single.py",), f"engine.precision={precision}")
    assert deviation(half, full) <= 2e-2
    assert half[-1] < half[0]


def test_fp16_resumes_with_its_loss_scale(shards, tmp_path):
    whole = train(shards, tmp_path / "whole", ("train_single.py",), "engine.precision=fp16")
    half = ("engine.precision=fp16", "train.num_steps=10")
    train(shards, tmp_path / "run", ("train_single.py",), *half)
    resumed = train(shards, tmp_path / "run", ("train_single.py",), "engine.precision=fp16")
    assert deviation(resumed, whole) <= 1e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_zero_follows_ddp(shards, tmp_path, stage, precision, limit):
    """fp16 with the loss scale of this code, which DeepSpeed is only told."""
    words = (*TORCHRUN, "train_ddp.py"), f"engine.precision={precision}", "engine.deterministic=true"
    ddp = train(shards, tmp_path / "ddp", *words)
    zero = train(shards, tmp_path / "zero", *words, f"engine.zero_stage={stage}")
    assert deviation(zero, ddp) <= limit


@pytest.mark.parametrize("stage, offload", [(2, "optimizer"), (3, "optimizer"), (3, "all")])
def test_offload_follows_ddp(shards, tmp_path, stage, offload):
    ddp = train(shards, tmp_path / "ddp", (*TORCHRUN, "train_ddp.py"), "engine.precision=fp32")
    words = "engine.precision=fp32", f"engine.zero_stage={stage}", f"engine.offload={offload}"
    assert deviation(train(shards, tmp_path / "zero", (*TORCHRUN, "train_ddp.py"), *words), ddp) <= 1e-4


def test_an_fp16_run_goes_from_single_to_zero_and_back(shards, tmp_path):
    """Weights, moments and the loss scale."""
    fp16, run = "engine.precision=fp16", tmp_path / "run"
    whole = train(shards, tmp_path / "whole", ("train_single.py",), fp16)
    train(shards, run, ("train_single.py",), fp16, "train.num_steps=7")
    train(shards, run, (*TORCHRUN, "train_ddp.py"), fp16, "train.num_steps=14", "engine.zero_stage=3")
    assert deviation(train(shards, run, ("train_single.py",), fp16), whole) <= 2e-2


@pytest.mark.parametrize("option", ["engine.compile=true", "engine.activation_checkpointing=true"])
def test_options_follow_the_plain_run(shards, tmp_path, option):
    plain = train(shards, tmp_path / "plain", ("train_single.py",), "engine.precision=fp32")
    other = train(shards, tmp_path / "other", ("train_single.py",), "engine.precision=fp32", option)
    assert deviation(other, plain) <= 1e-3


def test_preflight_measures_the_gpus(shards, tmp_path):
    """NCCL, NVML, GPU memory and speed: a healthy box, on which nothing is wrong."""
    report = tmp_path / "preflight.json"
    words = [
        "launch.preflight",
        "configs/base_unet.yaml",
        f"run.dir={tmp_path / 'run'}",
        f"data.shards={shards}",
        *TINY,
    ]
    command = [sys.executable, *TORCHRUN, "-m", *words, "--json", str(report)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told["status"] == 0 and told["ranks"] == GPUS and told["broken"] == []


def test_the_forward_time_of_a_gpu_is_its_own(shards, tmp_path):
    """Ranks are compared by the device's time of the forward pass, not by how long it took to launch it."""
    train(shards, tmp_path / "run", (*TORCHRUN, "train_ddp.py"), "model.channels=[128,256]")
    lines = [line for line in stats(tmp_path / "run") if "loss" in line]
    if GPUS > 1:
        assert all(0 < line["median_s"] <= line["slowest_s"] for line in lines)
    assert all(0 <= line["data_wait_share"] <= 1 for line in lines)


def test_the_doctors_memory_is_what_training_takes(shards, tmp_path):
    """launch/memory.py's estimate without the assumed CUDA context, against the allocator's peak."""
    words = [
        f"data.shards={shards}",
        f"run.dir={tmp_path / 'run'}",
        *TINY,
        "model.channels=[128,256]",
        "model.image_size=null",
    ]
    words += ["engine.precision=fp32", "train.global_batch=32", "train.num_steps=3", "log.every=1"]
    subprocess.run(
        [sys.executable, "train_single.py", "configs/base_unet.yaml", *words], cwd=HOME, check=True, timeout=300
    )
    peak = [line["memory_gib"] for line in stats(tmp_path / "run") if "loss" in line][-1]
    config = read_config(tmp_path / "run" / "config.yaml")
    estimate = MemoryModel(config, 1).estimate(32)
    assert (estimate.total - estimate.context) / GIB == pytest.approx(peak, rel=0.15)

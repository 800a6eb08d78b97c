"""Peak memory and processor time of training steps with each memory lever, against the estimate of launch/memory.py.

    python -m benchmarks.memory [--runs plain bf16 ...] [--out benchmarks/results/memory_cpu.json]

Every run is a fresh process a rank, with the real engine, Adam and averages, on blank samples; its peak is that of
resident memory since before the network was made.  malloc returns memory at once, as a GPU's allocator reuses it.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.record import machine
from launch.memory import estimate_of
from launch.rehearsal import toy
from model.diffusion import diffusion_loss
from training.config import Config, read_config
from training.distributed import process_group, under_torchrun
from training.ema import EMA
from training.engine import DDP, SingleDevice
from training.fit import accumulation_of, blank_inputs

HOME = Path(__file__).parent.parent
MIDDLE = (  # 20 M parameters
    "model.image_size=[64,64]", "model.channels=[64,128,256]", "model.num_blocks=[1,1,2]", "model.attention_levels=[2]",
    "model.emb_dim=256", "train.global_batch=4", "engine.device=cpu", "engine.precision=fp32",
)  # fmt: skip
HALF = "engine.precision=bf16"
CHECKPOINTING = "engine.activation_checkpointing=true"
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {  # ranks (0: no torchrun), what is changed
    "plain": (0, ()),
    "bf16": (0, (HALF,)),
    "bf16, lean norms": (0, (HALF, "engine.lean_norms=true")),
    "recomputing all levels": (0, (CHECKPOINTING,)),
    "recomputing level 0": (0, ("engine.activation_checkpointing=[0]",)),
    "two passes": (0, ("engine.micro_batch=2",)),
    "four passes": (0, ("engine.micro_batch=1",)),
    "adamw8bit": (0, ("optim.name=adamw8bit",)),
    "bf16, recomputing, four passes, adamw8bit": (
        0, (HALF, CHECKPOINTING, "engine.micro_batch=1", "optim.name=adamw8bit"),
    ),
    "ddp x 2": (2, ()),
    "ddp x 2, two passes": (2, ("engine.micro_batch=1",)),
    "ddp x 2, sharded averages": (2, ("ema.placement=sharded",)),
    "zero 1 x 2": (2, ("engine.zero_stage=1",)),
    "zero 2 x 2": (2, ("engine.zero_stage=2",)),
    "zero 3 x 2": (2, ("engine.zero_stage=3",)),
    "zero 3 x 2, recomputing": (2, ("engine.zero_stage=3", CHECKPOINTING)),
}  # fmt: skip


def measure(num_ranks: int, words: list[str], steps: int) -> dict[str, float]:
    """Peak bytes of the rank that took most, and the processor seconds of its fastest step."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    ranks = [env]
    if num_ranks:
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
        ranks = [env | there | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_ranks)]
    command = [sys.executable, "-m", "benchmarks.memory", "--steps", str(steps), "--one", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HOME}
    processes = [subprocess.Popen(command, env=each, **pipes) for each in ranks]
    told = []
    for process in processes:
        out, errors = process.communicate(timeout=600)
        if process.returncode:
            raise ValueError(f"{' '.join(command)} failed: {errors.strip()[-2000:]}")
        told.append(json.loads(out.splitlines()[-1]))
    return max(told, key=lambda one: one["bytes"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_rank(words: list[str], steps: int) -> dict[str, float]:
    """What this process takes for the steps."""
    config = read_config(Path("configs/base_unet.yaml"), words)
    torch.set_num_threads(1)
    if not under_torchrun():
        return peak(config, SingleDevice, steps)
    with process_group(config.distributed, "cpu"):
        return peak(config, engine_of(config.engine.zero_stage), steps)


def engine_of(zero_stage: int | None) -> type[SingleDevice]:
    if zero_stage is None:
        return DDP
    from training.zero import zero  # seconds, and a package that DDP does without

    return zero(zero_stage)


def peak(config: Config, engine_class: type[SingleDevice], steps: int) -> dict[str, float]:
    small = toy(config, Path())
    engine = small.engine.model_copy(update={"zero_stage": config.engine.zero_stage})
    train(small.model_copy(update={"engine": engine, "optim": config.optim}), engine_class, 1)  # code and kernels
    gc.collect()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seconds = train(config, engine_class, steps)
    status = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return {"bytes": most - before, "seconds": min(seconds)}


def train(config: Config, engine_class: type[SingleDevice], steps: int) -> list[float]:
    """The seconds of processor time of each step: other programs may run beside it."""
    engine = engine_class(config.model, config.engine, config.optim, config.seed)
    ema = EMA(engine, config.ema)
    accumulation = accumulation_of(config, engine.num_devices())
    num, seconds = config.train.global_batch // accumulation // engine.num_ranks, []
    for _ in range(steps):
        began = time.process_time()
        for micro in range(accumulation):
            x0, cond, draws = blank_inputs(config, num)
            with engine.microbatch(last=micro == accumulation - 1):
                engine.backward(diffusion_loss(engine.net, x0, cond, draws, config.diffusion).mean() / accumulation)
        engine.step(config.optim.lr)
        ema.update()
        seconds.append(time.process_time() - began)
    return seconds


def compare(num_ranks: int, words: list[str], steps: int = 3) -> dict[str, Any]:
    """Measured and estimated MiB of one rank, and the processor seconds of a step."""
    config = read_config(Path("configs/base_unet.yaml"), words)
    estimate = estimate_of(config, max(1, num_ranks), gpu=False)
    real = measure(num_ranks, words, steps)
    return {
        "measured_mib": round(real["bytes"] / 2**20, 1),
        "estimated_mib": round(estimate.total / 2**20, 1),
        "estimate_to_measured": round(estimate.total / real["bytes"], 3),
        "seconds": round(real["seconds"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--steps", type=int, default=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # measures this process
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_rank(args.one, args.steps)))
        return
    packages = {name: version(name) for name in ("deepspeed", "bitsandbytes")}
    result: dict[str, Any] = {"machine": machine() | {"threads": 1} | packages, "network": list(MIDDLE), "runs": {}}
    for name in args.runs:
        num_ranks, words = RUNS[name]
        told = compare(num_ranks, [*MIDDLE, *words])
        first = result["runs"].get("plain", told)
        told["seconds_to_plain"] = round(told["seconds"] / first["seconds"], 2)
        result["runs"][name] = {"ranks": max(1, num_ranks), "changes": list(words)} | told
        print(name, json.dumps(told), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Size, work, memory and speed of the three stages' full-size networks on the device at hand.

    python -m benchmarks.model [--stages base_unet sr_unet sr_1024] [--out benchmarks/results/model_cpu.json]
    python -m benchmarks.model --table      the table of docs/models.md, counted and estimated alone

Each measurement runs in a fresh process, so that its peak memory is its own: resident memory on a CPU, what PyTorch
allocated on a GPU.  A GPU computes in bfloat16 under autocast, a CPU in float32.  FLOP count a multiply-add as two;
they are counted on the meta device, for one sample.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.record import machine, record
from data.schema import JOINTS
from launch.memory import micro_batch_bytes
from launch.residents import resident_bytes, sizes_of
from model.conditions import Conditions
from training.config import Config, read_config
from training.flop import forward_flop, num_parameters, training_flop

STAGES = ("base_unet", "sr_unet", "sr_1024")
SAMPLES = 16  # of a micro-batch whose memory is estimated
ROWS = {
    "parameters": "parameters, millions",
    "forward_tflop": "TFLOP of a forward pass of one image",
    "training_tflop": "TFLOP of a training step, a sample",
    "resident_gib": "GiB of weights, gradients, Adam and one average",
    "sample_gib": "GiB a sample of a training step, bf16",
    "lean_sample_gib": "the same with activation checkpointing and lean norms",
}
Inputs = tuple[Tensor, Tensor, Conditions]


def config_of(stage: str) -> Config:
    return read_config(Path("configs") / f"{stage}.yaml")


def random_inputs(config: Config, size: tuple[int, int], batch: int) -> Inputs:
    """zt, t and conditions of this (height, width), on the default device."""
    model, image = config.model, (batch, 3, *size)
    pose = torch.rand(2, batch, len(JOINTS), 3).round(decimals=1)
    told = (torch.rand(image), torch.rand(image), pose[0], pose[1]) if model.tries_on else (None,) * 4
    lowres = torch.rand(image) if model.lowres else None
    return torch.randn(image), torch.rand(batch), Conditions(*told, torch.rand(batch, model.num_aug_levels), lowres)


def count(stage: str) -> dict:
    """Parameters, and GFLOP of one sample: a forward pass of a whole image, and forward with backward in training."""
    config = config_of(stage)
    return {
        "parameters": num_parameters(config),
        "image_size": config.model.image_size,
        "training_size": config.training_size,
        "forward_gflop": round(forward_flop(config) / 1e9, 1),
        "forward_backward_gflop": round(training_flop(config) / 1e9, 1),
    }


def estimated(stage: str) -> dict:
    """Memory of training in GiB, as launch.memory estimates it."""
    config = config_of(stage)
    lean = {"activation_checkpointing": True, "lean_norms": True}
    leaner = config.model_copy(update={"engine": config.engine.model_copy(update=lean)})
    each, least = (micro_batch_bytes(of, SAMPLES) / SAMPLES / 2**30 for of in (config, leaner))
    resident = sum(resident_bytes(config, sizes_of(config), 1).values()) / 2**30
    return {"resident_gib": round(resident, 1), "sample_gib": round(each, 2), "lean_sample_gib": round(least, 2)}


def table(stages: list[str]) -> str:
    """Markdown: a column a stage."""
    columns = []
    for stage in stages:
        counted = count(stage)
        columns.append(
            {
                "parameters": round(counted["parameters"] / 1e6),
                "forward_tflop": round(counted["forward_gflop"] / 1e3, 2),
                "training_tflop": round(counted["forward_backward_gflop"] / 1e3, 2),
                **estimated(stage),
            }
        )
    lines = ["| | " + " | ".join(f"`{stage}`" for stage in stages) + " |", "|---" * (1 + len(stages)) + "|"]
    lines += [f"| {text} | " + " | ".join(str(column[key]) for column in columns) + " |" for key, text in ROWS.items()]
    return "\n".join(lines)


def measure(stage: str, mode: str, args: argparse.Namespace) -> dict:
    """Seconds and peak memory of a forward pass or of a training step."""
    cuda = args.device == "cuda"
    torch.manual_seed(0)
    config = config_of(stage)
    size = config.training_size if mode == "train" else config.model.image_size
    with torch.device(args.device):
        net, inputs = config.model.build(), random_inputs(config, size, args.batch)
    net.set_activation_checkpointing(args.checkpointing)
    if args.channels_last:
        net.to(memory_format=torch.channels_last)
    if args.compile:
        net.compile()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True) if args.optimizer == "adam" else None

    def forward() -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=cuda):
            return net(*inputs)

    def infer() -> None:
        with torch.no_grad():
            forward()

    def train() -> None:
        (forward() - inputs[0]).square().mean().backward()
        if optimizer:
            optimizer.step()
        net.zero_grad()

    seconds = timed({"forward": infer, "train": train}[mode], args.warmup, args.steps, cuda)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(seconds, 4),
        "samples_per_second": round(args.batch / seconds, 4),
        "peak_memory_gib": round(peak / 2**30, 2),
    }


def timed(step: Callable[[], None], warmup: int, steps: int, cuda: bool) -> float:
    """Mean seconds of a step after the warmup."""
    for i in range(warmup + steps):
        if i == warmup:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
        step()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    flag = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--table", action="store_true", help="print the table of docs/models.md and measure nothing")
    parser.add_argument("--modes", nargs="*", choices=["forward", "train"], default=["forward", "train"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, default=16 if cuda else 1)
    parser.add_argument("--warmup", type=int, default=3 if cuda else 0)
    parser.add_argument("--steps", type=int, default=10 if cuda else 1)
    parser.add_argument("--checkpointing", action=flag, default=not cuda, help="activation checkpointing")
    parser.add_argument("--compile", action=flag, default=False)
    parser.add_argument("--channels-last", action=flag, default=False)
    parser.add_argument("--optimizer", choices=["adam", "none"], default="adam", help="none: forward and backward only")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.table:
        print(table(args.stages))
        return
    settings = {key: value for key, value in vars(args).items() if key not in ("stages", "modes", "out", "table")}
    result = {"machine": machine(), "settings": settings, "stages": {}}
    spawn = multiprocessing.get_context("spawn")
    for stage in args.stages:
        result["stages"][stage] = count(stage)
        for mode in args.modes:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                result["stages"][stage][mode] = process.submit(measure, stage, mode, args).result()
    record(result, args.out)


if __name__ == "__main__":
    main()

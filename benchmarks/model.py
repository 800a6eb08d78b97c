"""Size, work, memory and speed of the full-size Parallel-UNets on the device at hand.

    python -m benchmarks.model [--stages base_unet sr_unet] [--out benchmarks/results/model_cpu.json]

Each measurement runs in a fresh process, so that its peak memory is its own: resident memory on a CPU, what PyTorch
allocated on a GPU.  A GPU computes in bfloat16 under autocast, a CPU in float32.  FLOP count a multiply-add as two;
they are counted on the meta device, for one sample.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.conditions import Conditions
from model.parallel_unet import BASE_UNET, SR_UNET, ParallelUNet, ParallelUNetConfig

STAGES = {"base_unet": BASE_UNET, "sr_unet": SR_UNET}
Inputs = tuple[Tensor, Tensor, Conditions]


def random_inputs(config: ParallelUNetConfig, batch: int) -> Inputs:
    """zt, t and conditions of the config's size, on the default device."""
    image = (batch, 3, *config.image_size)
    pose = torch.rand(2, batch, config.num_keypoints, 3).round(decimals=1)
    lowres = torch.rand(image) if config.lowres else None
    levels = torch.rand(batch, config.num_aug_levels)
    cond = Conditions(torch.rand(image), torch.rand(image), pose[0], pose[1], levels, lowres)
    return torch.randn(image), torch.rand(batch), cond


def count(stage: str) -> dict:
    """Parameters, and TFLOP of one sample, forward and forward with backward."""
    with torch.device("meta"):
        net, inputs = ParallelUNet(STAGES[stage]), random_inputs(STAGES[stage], 1)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            net(*inputs)
        with FlopCounterMode(display=False) as both:
            net(*inputs).sum().backward()
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "garment_unet_parameters": sum(p.numel() for p in net.garment_unet.parameters()),
        "forward_gflop": round(forward.get_total_flops() / 1e9, 1),
        "forward_backward_gflop": round(both.get_total_flops() / 1e9, 1),
    }


def measure(stage: str, mode: str, args: argparse.Namespace) -> dict:
    """Seconds and peak memory of a forward pass or of a training step."""
    cuda = args.device == "cuda"
    torch.manual_seed(0)
    with torch.device(args.device):
        net, inputs = ParallelUNet(STAGES[stage]), random_inputs(STAGES[stage], args.batch)
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


def machine() -> dict:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(cpu),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),  # above 0.5 another program had a share of the cores
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    flag = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
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
    settings = {key: value for key, value in vars(args).items() if key not in ("stages", "modes", "out")}
    result = {"machine": machine(), "settings": settings, "stages": {}}
    spawn = multiprocessing.get_context("spawn")
    for stage in args.stages:
        result["stages"][stage] = count(stage)
        for mode in args.modes:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                result["stages"][stage][mode] = process.submit(measure, stage, mode, args).result()
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

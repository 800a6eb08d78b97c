"""What a guided step costs: both branches apart, with one garment pass, and with one an image.

    python -m benchmarks.guidance [--stages base_unet sr_unet] [--out benchmarks/results/guidance_cpu.json]

apart: a forward pass of each branch, as one does without Conditions.with_null.  shared: both branches together, the
garment UNet evaluated once for them.  remembered: model.garment_time=false, the garment UNet evaluated once an image.
They take turns, step by step, after a round that is not counted, and the fastest of each counts.  A CPU computes in
float32 with one thread, whose processor time is counted, so that other programs change little; a GPU in bfloat16 under
autocast.  FLOP count a multiply-add as two, for one sample.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model import config_of, random_inputs
from benchmarks.record import machine, record
from model.conditions import Conditions
from model.parallel_unet import ParallelUNet

STAGES = ("base_unet", "sr_unet")  # guidance needs try-on conditions
BUDGETS = (20, 32, 128, 256)  # evaluations of an image
Variants = dict[str, Callable[[], Tensor]]


def network(stage: str, batch: int) -> tuple[ParallelUNet, tuple[Tensor, Tensor, Conditions]]:
    """A full-size network none of whose weights is left at its start, 0, and its inputs, on the default device."""
    config = config_of(stage)
    net = config.model.build().eval().requires_grad_(False)
    for parameter in net.parameters():
        if not parameter.is_meta and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return net, random_inputs(config, config.model.image_size, batch)


def variants(net: ParallelUNet, zt: Tensor, t: Tensor, cond: Conditions) -> tuple[Variants, Variants]:
    """The ways to a guided step, each (2B, 3, H, W); and what the last needs once an image."""

    def pretending(garment_time: bool) -> None:
        net.config = net.config.model_copy(update={"garment_time": garment_time})

    def apart() -> Tensor:
        pretending(True)
        return torch.stack([net(zt, t, cond), net(zt, t, cond.null())], 1)

    def shared() -> Tensor:
        pretending(True)
        return net(zt, t, cond._replace(with_null=True))

    def remembering() -> Conditions:
        pretending(False)
        return net.remember(cond)

    known = remembering()

    def remembered() -> Tensor:
        pretending(False)
        return net(zt, t, known._replace(with_null=True))

    return {"apart": apart, "shared": shared, "remembered": remembered}, {"remembering": remembering}


def count(stage: str) -> dict[str, float]:
    """TFLOP of each way."""
    result = {}
    with torch.device("meta"), torch.no_grad():
        steps, once = variants(*_flat(network(stage, 1)))
        for name, run in (steps | once).items():
            with FlopCounterMode(display=False) as counter:
                run()
            result[name] = round(counter.get_total_flops() / 1e12, 4)
    return result


def measure(stage: str, args: argparse.Namespace) -> dict:
    """Seconds of each way, the fastest of some rounds, and how far shared and apart are from each other."""
    cuda = args.device == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    torch.manual_seed(0)
    with torch.device(args.device), torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=cuda):
        steps, once = variants(*_flat(network(stage, args.batch)))
        seconds, results = {name: [] for name in steps | once}, {}
        for number in range(1 + args.rounds):
            for name, run in (steps | once).items():
                start = clock()
                results[name] = run()
                if cuda:
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    seconds[name].append(clock() - start)
    difference = (results["shared"] - results["apart"]).abs().max() / results["apart"].abs().max()
    return {
        "seconds": {name: round(min(each) / args.batch, 3) for name, each in seconds.items()},
        "rounds": {name: [round(one / args.batch, 3) for one in each] for name, each in seconds.items()},
        "relative_difference_of_shared_and_apart": float(difference),
    }


def derived(cost: dict[str, float]) -> dict:
    """How many times faster than apart: a step, and an image of so many evaluations, what it needs once included."""
    whole = {
        num: {
            name: num * cost[name] + (cost["remembering"] if name == "remembered" else 0)
            for name in ("apart", "shared", "remembered")
        }
        for num in BUDGETS
    }
    return {
        "step_against_apart": {name: round(cost["apart"] / cost[name], 3) for name in ("shared", "remembered")},
        "image_against_apart": {
            num: {name: round(costs["apart"] / costs[name], 3) for name in ("shared", "remembered")}
            for num, costs in whole.items()
        },
        "per_image": whole,
    }


def _flat(parts: tuple) -> tuple:
    net, inputs = parts
    return net, *inputs


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, default=16 if cuda else 1)
    parser.add_argument("--rounds", type=int, default=10 if cuda else 3)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "machine": machine(),
        "settings": {"device": args.device, "batch": args.batch, "rounds": args.rounds},
        "stages": {},
    }
    for stage in args.stages:
        flop, measured = count(stage), measure(stage, args)
        costs = derived(measured["seconds"])
        measured["images_per_second"] = {
            num: {name: round(1 / cost, 6) for name, cost in each.items()}
            for num, each in costs.pop("per_image").items()
        }
        by_flop = derived(flop)
        by_flop.pop("per_image")
        result["stages"][stage] = {"tflop": flop, "by_flop": by_flop, **measured, "by_seconds": costs}
    record(result, args.out)


if __name__ == "__main__":
    main()

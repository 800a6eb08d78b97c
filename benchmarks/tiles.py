"""The full-size Efficient-UNet at 1024x1024, whole and in strips: seconds, peak memory, and how far the results differ.

    python -m benchmarks.tiles [--rows 64] [--size 1024] [--out benchmarks/results/tiles_cpu.json]

Each pass runs in a fresh process, so that its peak memory is its own: resident memory on a CPU, what PyTorch allocated
on a GPU.  A GPU computes in bfloat16 under autocast, a CPU in float32.  What starts at 0 is moved away from it: a
network that answers 0 would show nothing.  Differences are of outputs, in units in which an image spans [-1, 1]; 1/255
of its range is 0.0078.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.model import timed
from benchmarks.record import machine, record
from model.conditions import Conditions
from model.efficient_unet import EFFICIENT_UNET, EfficientUNet
from model.layers import ResBlock


def wake(net: EfficientUNet) -> None:
    """Moves what starts at 0 away from it."""
    for module in net.modules():
        if isinstance(module, ResBlock):
            nn.init.kaiming_normal_(module.conv2.weight, nonlinearity="linear")
            if module.film is not None:
                nn.init.normal_(module.film.weight, std=0.02)
    nn.init.kaiming_normal_(net.head.weight, nonlinearity="linear")


def forward(rows: int | None, size: int, device: str) -> tuple[dict, np.ndarray]:
    """What one pass of one image took, and its output (3, H, W).  rows: of a strip; None: the whole image at once."""
    cuda = device == "cuda"
    torch.manual_seed(0)
    net = EFFICIENT_UNET.build()
    wake(net)
    image, noise = torch.rand(2, 1, 3, size, size).to(device)
    net.to(device).set_tile_rows(rows)
    cond = Conditions(None, None, None, None, torch.full((1, 1), 0.1, device=device), 2 * image - 1)
    outputs = []

    def step() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=cuda):
            outputs[:] = [net(4 * noise - 2, torch.full((1,), 0.5, device=device), cond)]

    seconds = timed(step, 2 if cuda else 0, 5 if cuda else 1, cuda)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    told = {"rows": rows, "seconds": round(seconds, 3), "peak_memory_gib": round(peak / 2**30, 2)}
    return told | {"weights_gib": round(weights / 2**30, 2)}, outputs[0][0].float().cpu().numpy()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", type=int, default=[64], help="rows of the strips")
    parser.add_argument("--size", type=int, default=1024, help="height and width of the image")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args()
    result = {"machine": machine(), "size": args.size, "device": args.device, "passes": []}
    spawn, whole = multiprocessing.get_context("spawn"), None
    for rows in (None, *args.rows):
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            told, output = process.submit(forward, rows, args.size, args.device).result()
        whole = output if whole is None else whole
        told["output_deviation"] = round(float(output.std()), 4)
        told["largest_difference"] = float(f"{np.abs(output - whole).max():.2e}")
        result["passes"].append(told)
    record(result, args.out)


if __name__ == "__main__":
    main()

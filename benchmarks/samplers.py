"""Quality against network evaluations, for every sampler on one trained network.

    python -m benchmarks.samplers RUN [--shards SHARDS] [--out benchmarks/results/samplers.json]

Draws the first pairs of held-out shards with each sampler, every time from the same noise, and compares the pictures
with the truth.  The reference is DDPM with the most evaluations; its pictures from other noise tell what chance does.
What OUT holds already is not drawn again, so that the same command continues.  OUT.png, beside it, is the plot.
Needs requirements-dev.txt.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.curves import Curve, draw_curves
from benchmarks.likeness import FEATURES, mean_ssim, space_of
from benchmarks.record import machine
from data.dataset import ShardedDataset
from data.prepare import count
from model.metrics import frechet_distance
from model.sampler import SamplerConfig, num_evaluations
from sampling.stages import Trained, find_stages, load
from training.engine import pick_device
from training.exits import run
from training.held_out import try_on

GRIDS = {"ddpm": ("uniform",), "ddim": ("uniform",)}  # those of second order: all
ALL_GRIDS = ("uniform", "karras", "logsnr")


def settings(args: argparse.Namespace) -> Iterator[tuple[SamplerConfig, int]]:
    """Each sampler, and the seed of its noise; the reference first, and last from other noise."""
    for scale in args.scales:
        reference = SamplerConfig(method="ddpm", num_steps=args.reference, guidance_scale=scale)
        yield reference, 0
        for num in args.evaluations:
            for method in args.methods:
                steps = num // 2 + 1 if method == "heun" else num
                for grid in GRIDS.get(method, ALL_GRIDS):
                    yield SamplerConfig(method=method, num_steps=steps, time_grid=grid, guidance_scale=scale), 0
        yield reference, 1


class Bench:
    """A network, its pairs, and the truth about them."""

    def __init__(self, trained: Trained, args: argparse.Namespace):
        """Raises ValueError where the shards are not those of the run, or are too few."""
        config = trained.config
        self.device = pick_device(config.engine.device, config.engine.precision)
        self.stage, self.crc = load(trained, args.weights, self.device)
        self.stage.net.to(self.device)
        dataset = ShardedDataset(args.shards or config.data.val_shards, size=config.model.image_size, resize="lanczos")
        if len(dataset) < args.pairs:
            raise ValueError(f"--pairs {args.pairs}: the shards have {len(dataset)}; ask for fewer, or prepare more")
        self.samples = [dataset.read(i) for i in range(args.pairs)]
        self.truth = np.stack([sample.person for sample in self.samples])
        self.space, self.batch = space_of(self.truth), args.batch

    def measure(self, sampler: SamplerConfig, seed: int) -> dict:
        start, images = time.perf_counter(), []
        for first in range(0, len(self.samples), self.batch):
            samples = self.samples[first : first + self.batch]
            images += try_on(
                self.stage.net, samples, list(range(first, first + len(samples))), model=self.stage.model,
                diffusion=self.stage.diffusion, sampler=sampler, seed=seed, device=self.device,
            )  # fmt: skip
        images = np.stack(images)
        return {
            "ssim": mean_ssim(self.truth, images),
            "frechet": frechet_distance(self.space(self.truth), self.space(images)),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def halves(self) -> float:
        """The distance between two halves of the truth, which is no error at all."""
        features = self.space(self.truth)
        return frechet_distance(features[::2], features[1::2])


def compared(rows: list[dict]) -> None:
    """Adds how far each row is from the reference of its guidance: negative is worse than it, positive better."""
    for row in rows:
        reference = next(each for each in rows if each["guidance_scale"] == row["guidance_scale"])
        row["ssim_against_reference"] = round(row["ssim"] / reference["ssim"] - 1, 4)
        row["frechet_against_reference"] = round(1 - row["frechet"] / reference["frechet"], 4)


def curves(rows: list[dict], measure: str, scale: float) -> list[Curve]:
    """One for each method and grid; the reference, from either noise, as points of its own."""
    found: dict[str, list[tuple[float, float]]] = {}
    rows = [row for row in rows if row["guidance_scale"] == scale]
    most = max(row["evaluations"] for row in rows)
    for row in rows:
        reference, alone = row["evaluations"] == most, row["method"] in GRIDS
        name = f"ddpm {most}" if reference else row["method"] + ("" if alone else f", {row['time_grid']}")
        found.setdefault(name, []).append((row["evaluations"], row[measure]))
    return [Curve(name, sorted(points)) for name, points in found.items()]


def main() -> None:
    args = parser().parse_args()
    (trained,) = find_stages([args.run])
    bench = Bench(trained, args)
    about = {"pairs": args.pairs, "image_size": list(bench.stage.model.image_size), "crc32_of_weights": bench.crc}
    result = {"machine": machine(), "about": about, "features": FEATURES, "rows": []}
    if args.out.exists():
        result = json.loads(args.out.read_text(encoding="utf-8"))
        if result["about"] != about:
            raise ValueError(f"{args.out}: measured with {result['about']}, now {about}; choose another --out")
    result["frechet_of_two_halves_of_the_truth"] = bench.halves()
    for sampler, seed in tqdm(list(settings(args)), unit="sampler"):
        key = {
            "method": sampler.method, "time_grid": sampler.time_grid, "guidance_scale": sampler.guidance_scale,
            "evaluations": num_evaluations(sampler), "seed": seed,
        }  # fmt: skip
        if any(key.items() <= row.items() for row in result["rows"]):
            continue
        result["rows"].append(key | bench.measure(sampler, seed))
        compared(result["rows"])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    panels = [
        (f"{title}, guidance {scale:g}", curves(result["rows"], measure, scale))
        for scale in args.scales
        for measure, title in (("ssim", "SSIM with the truth"), ("frechet", "Frechet distance to the truth"))
    ]
    draw_curves(panels, "network evaluations of an image", columns=2).save(args.out.with_suffix(".png"))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("run", type=Path, metavar="RUN", help="a run folder of a base stage")
    result.add_argument("--shards", help="held-out pairs [the run's data.val_shards]")
    result.add_argument("--pairs", type=count, default=256)
    result.add_argument("--methods", nargs="+", default=["ddpm", "ddim", "dpmpp_2m", "heun"])
    result.add_argument("--evaluations", nargs="+", type=count, default=[5, 10, 20, 40, 80])
    result.add_argument("--reference", type=count, default=256, help="evaluations of the reference, DDPM [256]")
    result.add_argument("--scales", nargs="+", type=float, default=[1.0, 2.0], help="of guidance [1 2]")
    result.add_argument("--batch", type=count, default=64)
    result.add_argument("--weights", default="ema")
    result.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers.json"))
    return result


if __name__ == "__main__":
    run(main)

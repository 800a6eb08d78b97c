"""Whether colour survives a cascade: each later stage against what it was given, on held-out pairs.

    python -m benchmarks.cascade CASCADE [RUN ...] --shards SHARDS [--out benchmarks/results/cascade.json]

The error of a pair is the difference of mean colours between a stage's image and its low-resolution input, in 1/255.
Measured with sampler.keep_color, which is the default, and without it: then it is what the networks have learnt.
OUT.png, beside it, shows the first pairs at every stage.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.record import machine, record
from data.prepare import count
from sampling.devices import Replicas, pick_devices
from sampling.drawing import work_of
from sampling.inputs import ShardPairs
from sampling.stages import find_stages, weights_of
from training.exits import run
from training.sheet import grid, scaled

LIMITS = {"mean": 1.0, "percentile_95": 3.0}  # of 255, that a cascade should meet
SHOWN, HEIGHT = 6, 192


def images_of(args: argparse.Namespace, keep_color: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(every stage's images, what they should be), by stage, each (N, H, W, 3) uint8."""
    overrides = [f"sampler.keep_color={str(keep_color).lower()}", *(word for word in args.words if "=" in word)]
    stages = find_stages([Path(word) for word in args.words if "=" not in word], overrides)
    sizes = [stage.config.model.image_size for stage in stages]
    inputs = ShardPairs(args.shards, sizes, args.pairs, args.unpaired)
    replicas = Replicas(stages, weights_of([], stages), pick_devices(stages, dp=False))
    drawn = [
        replicas(work_of(range(first, min(first + args.batch, inputs.num)), stages, inputs, None), args.seed)
        for first in range(0, inputs.num, args.batch)
    ]
    images = {stage.name: np.concatenate([each[stage.name] for each in drawn]) for stage in stages}
    truth = {
        stage.name: np.stack([inputs.sample(i, size).person for i in range(inputs.num)])
        for stage, size in zip(stages, sizes, strict=True)
    }
    return images, truth


def color_errors(images: dict[str, np.ndarray]) -> dict[str, dict]:
    """For each later stage the error of its mean colours, red, green and blue, in 1/255."""
    names = list(images)
    means = {name: images[name].astype(np.float64).mean((1, 2)) for name in names}  # (N, 3)
    result = {}
    for before, name in pairwise(names):
        error = np.abs(means[name] - means[before])
        result[name] = {
            "mean": error.mean(0).round(3).tolist(),
            "percentile_95": np.quantile(error, 0.95, axis=0).round(3).tolist(),
            "bias": (means[name] - means[before]).mean(0).round(3).tolist(),
        }
    return result


def sheet(images: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Image.Image:
    """The first pairs, a row each: every stage, and the truth at the last one's size."""
    last = list(images)[-1]
    columns = [*images.values(), truth[last]]
    rows = [[scaled(column[i], HEIGHT) for column in columns] for i in range(min(SHOWN, len(truth[last])))]
    return Image.fromarray(grid(rows, [*images, "truth"]))


def main() -> None:
    args = parser().parse_intermixed_args()
    result = {"machine": machine(), "unpaired": args.unpaired, "limits": LIMITS}
    for key, keep_color in (("keep_color", True), ("without_keep_color", False)):
        images, truth = images_of(args, keep_color)
        if len(images) < 2:
            raise ValueError(f"{args.words[0]}: one stage alone has nobody's colours to keep; name a cascade")
        errors = color_errors(images)
        met = all(max(row[limit]) <= LIMITS[limit] for row in errors.values() for limit in LIMITS)
        result[key] = {"limits_met": met, "stages": errors}
        if keep_color:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            sheet(images, truth).save(args.out.with_suffix(".png"))
    result["image_sizes"] = {name: list(image.shape[1:3]) for name, image in images.items()}
    result["pairs"] = len(next(iter(images.values())))
    record(result, args.out)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="+", metavar="CASCADE | key=value", help="as sample.py takes them")
    result.add_argument("--shards", required=True, help="held-out pairs, as large as the last stage's images")
    result.add_argument("--pairs", type=count, default=64)
    result.add_argument("--unpaired", action="store_true", help="every person in the next one's garment")
    result.add_argument("--batch", type=count, default=16)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--out", type=Path, default=Path("benchmarks/results/cascade.json"))
    return result


if __name__ == "__main__":
    run(main)

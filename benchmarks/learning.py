"""Whether a network learns try-on, measured on drawn people whose truth is known, after fixed times of training.

    python -m benchmarks.learning [--minutes 2.5 5 10 20 30] [--dir runs/learning] [key=value ...]

Trains configs/learning.yaml and, with the same number of parameters, the paper's ablation that concatenates the garment
(model/concat_unet.py), side by side, and draws held-out people in held-out garments.  Beside them stand the network
without its garment, and what needs no learning: the garment, or its mean colour, moved by the keypoints and pasted.

On CPUs a budget is CPU time of the whole training process, one thread, so that other programs on the machine do not
count; with engine.device=cuda it is time, and one network is trained after the other.  The same command continues.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.curves import Curve, draw_curves
from benchmarks.pasting import mean_color, pasted, warped
from benchmarks.record import machine, record
from benchmarks.recovery import NEAR, arms, measured, nearest, texture
from benchmarks.wardrobe import Known, known, pair
from data.dataset import ShardedDataset
from data.prepare import count
from data.shards import write_shards
from data.workers import cores
from model.cascade import Stage
from model.conditions import Conditions
from model.diffusion import to_uint8
from model.sampler import sample
from sampling.stages import Trained, find_stages, load
from training import checkpoint
from training.config import read_config
from training.draws import SamplingNoise, TrainingDraws
from training.engine import pick_device
from training.exits import run
from training.held_out import conditions_of, validation_loss
from training.lpips_weights import load_lpips
from training.sheet import grid, scaled

CONFIG = Path("configs/learning.yaml")
NETWORKS = {  # the same number of parameters, to a percent
    "parallel_unet": [],
    "concat_unet": ["model.network=concat_unet", "model.num_blocks=[2, 2, 2]"],
}
SEEDS = {"train": 0, "val": 1}
ALTERNATIVES = 16  # prints, and arms, that a picture is compared with
POLL_S, BATCH, SHOWN, HEIGHT = 0.5, 32, 12, 128
LATE_S = 10  # seconds by which a network may have been trained beyond its budget
SHOWN_MEASURES = ("masked_ssim", "masked_lpips_alex", "retrieval", "arms")


def shards(folder: Path, size: tuple[int, int], num: dict[str, int]) -> None:
    """Draws what is missing of FOLDER/train and FOLDER/val.  Raises ValueError where other pairs are there."""
    for name, seed in SEEDS.items():
        if (folder / name).exists():
            there = ShardedDataset(folder / name)
            if (len(there), there.stored_size) != (num[name], size):
                raise ValueError(
                    f"{folder / name}: holds {len(there)} pairs of {there.stored_size}, wanted are {num[name]} of "
                    f"{size}; use another --dir"
                )
        else:
            with ProcessPoolExecutor(cores()) as pool:
                samples = pool.map(partial(pair, seed, size=size), range(num[name]), chunksize=64)
                write_shards(samples, folder / name, samples_per_shard=4000)


def claim(root: Path, asked: dict[str, Any]) -> None:
    """Raises ValueError where the folder was made with other options: its runs and figures are not of these."""
    path = root / "asked.json"
    if path.exists() and (there := json.loads(path.read_text())) != asked:
        raise ValueError(f"--dir {root}: was made with {there}, wanted is {asked}; use another --dir")
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked))


def test_set(num: int, size: tuple[int, int]) -> list[Known]:
    with ProcessPoolExecutor(cores()) as pool:
        make = partial(known, SEEDS["val"], num=num, alternatives=min(ALTERNATIVES, num), size=size)
        return list(pool.map(make, range(num), chunksize=8))


class Training:
    """One network's run, which is trained from budget to budget."""

    def __init__(self, name: str, root: Path, words: list[str]):
        self.dir = root / name
        self.words = [str(CONFIG), f"run.dir={self.dir}", f"data.shards={root / 'shards/train'}",
                      f"data.val_shards={root / 'shards/val'}", *words, *NETWORKS[name]]  # fmt: skip
        self.ledger = self.dir / "spent_s.json"
        self.spent = json.loads(self.ledger.read_text()) if self.ledger.exists() else 0.0  # seconds, of earlier starts
        self.process: psutil.Popen | None = None

    def start(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log = (self.dir / "benchmark.log").open("a")
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "train_single.py", *self.words]
        self.began = time.monotonic()
        self.process = psutil.Popen(command, env=env, stdout=self.log, stderr=subprocess.STDOUT)

    def used(self, cpu: bool) -> float:
        """Seconds since the first start, those of what a kill has lost among them.

        Raises ValueError when training has ended of itself.
        """
        if (status := self.process.poll()) is not None:
            raise ValueError(f"{self.dir / 'benchmark.log'}: training ended with status {status}; see there")
        used = self.spent + (_cpu_seconds(self.process) if cpu else time.monotonic() - self.began)
        self.ledger.write_text(json.dumps(used))
        return used

    def stop(self) -> None:
        """Has the run save and end."""
        (self.dir / "STOP").touch()
        self.process.wait()
        self.log.close()
        self.spent, self.process = json.loads(self.ledger.read_text()), None


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all that it has started."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
            total += times.user + times.system + (times.children_user + times.children_system if each == process else 0)
        except psutil.NoSuchProcess:
            continue
    return total


def train_until(trainings: Iterable[Training], seconds: float, cpu: bool) -> None:
    """Trains each on to its budget: all at once on CPUs, one after the other on a GPU.

    Raises ValueError when one ends of itself.
    """
    waiting = [each for each in trainings if each.spent < seconds]
    for group in [waiting] if cpu else [[each] for each in waiting]:
        running = []
        try:
            for each in group:
                each.start()
                running.append(each)
            while running:
                time.sleep(POLL_S)
                for each in [one for one in running if one.used(cpu) >= seconds]:
                    each.stop()
                    running.remove(each)
        finally:
            for each in running:
                each.stop()


@torch.no_grad()
def drawn(stage: Stage, tests: list[Known], garments: list[Known] | None, device: torch.device) -> list[np.ndarray]:
    """The test people in these garments, or in none: the garment's image is blank and its features are dropped."""
    images = []
    for first in range(0, len(tests), BATCH):
        part = range(first, min(first + BATCH, len(tests)))
        worn = garments or tests
        samples = [
            tests[i].sample._replace(garment=worn[i].sample.garment, garment_pose=worn[i].sample.garment_pose)
            for i in part
        ]
        cond = conditions_of(samples, list(part), stage.model, device)
        cond = cond if garments else _without_garment(cond)
        noise = SamplingNoise(0, list(part), stage.model.image_size, device)
        images += list(to_uint8(sample(stage.net, cond, noise, stage.diffusion, stage.sampler)).permute(0, 2, 3, 1))
    return [image.cpu().numpy() for image in images]


def _without_garment(cond: Conditions) -> Conditions:
    keep = torch.zeros_like(cond.noise_aug_level[:, 0])
    return cond._replace(garment=0 * cond.garment, garment_pose=0 * cond.garment_pose, keep=keep)


def sensitivity(own: list[np.ndarray], swapped: list[np.ndarray], tests: list[Known]) -> dict[str, float]:
    """How much the next pair's garment changes the pictures, in 1/255: where either garment lies, and elsewhere."""
    change = [np.abs(a.astype(float) - b).mean(2) for a, b in zip(own, swapped, strict=True)]
    within = float(np.mean([x[k.either].mean() for x, k in zip(change, tests, strict=True)]))
    rest = float(np.mean([x[~k.either].mean() for x, k in zip(change, tests, strict=True)]))
    return {"garment_region": within, "rest": rest, "ratio": within / max(rest, 1e-9)}


def loss_of(stage: Stage, trained: Trained, val: ShardedDataset, device: torch.device) -> float:
    config = trained.config
    draws = TrainingDraws(config.seed, config.training_size, config.model.num_aug_levels, config.diffusion)
    return validation_loss(stage.net, stage.model, val, draws, len(val), BATCH, device)[0]


def look(trainings: dict[str, Training], tests: list[Known], val: Path, lpips: Any, device: torch.device) -> tuple:
    """({method: pictures}, {method: measures}) of the networks as they are now."""
    images, result = {}, {}
    swapped = tests[1:] + tests[:1]
    for name, training in trainings.items():
        trained = find_stages([training.dir], [f"engine.device={device.type}"])[0]
        stage, _ = load(trained, "ema", device)
        stage.net.to(device)
        images[name] = drawn(stage, tests, tests, device)
        if name == "parallel_unet":
            null = drawn(stage, tests, None, device)
        val_set = ShardedDataset(val)
        result[name] = _progress(training, trained.config.train.global_batch)
        result[name]["validation_loss"] = loss_of(stage, trained, val_set, device)
        result[name]["sensitivity"] = sensitivity(images[name], drawn(stage, tests, swapped, device), tests)
    images["null_garment"] = null
    for name, make in (("mean_colour", mean_color), ("keypoint_warp", warped)):
        images[name] = [pasted(base, *make(k.sample, k.garment_mask)) for base, k in zip(null, tests, strict=True)]
    for name in images:
        result[name] = result.get(name, {}) | measured(images[name], tests, lpips)
    return images, result


def _progress(training: Training, global_batch: int) -> dict[str, float]:
    """How far the run is."""
    folder, _ = checkpoint.find(training.dir)
    steps = int(folder.name.partition("_")[2])
    return {"minutes": training.spent / 60, "steps": steps, "samples": steps * global_batch}


def sheet(images: dict[str, list[np.ndarray]], tests: list[Known]) -> Image.Image:
    """The first test pairs, a row each: what is given, every method, and the truth."""
    columns = [[k.sample.clothing_agnostic for k in tests], [k.sample.garment for k in tests], *images.values(),
               [k.sample.person for k in tests]]  # fmt: skip
    rows = [[scaled(column[i], HEIGHT) for column in columns] for i in range(min(SHOWN, len(tests)))]
    return Image.fromarray(grid(rows, ["person", "garment", *images, "truth"]))


def plot(result: dict[str, Any]) -> Image.Image:
    budgets, panels = result["budgets"], []
    for measure in SHOWN_MEASURES:
        curves = [
            Curve(name, [(row["minutes"], row["methods"][name][measure]) for row in budgets])
            for name in budgets[0]["methods"]
        ]
        if measure in result["reference"]:
            curves.append(Curve("chance", [(budgets[0]["minutes"], result["reference"][measure])]))
        panels.append((measure, curves))
    return draw_curves(panels, "minutes of training", columns=2, whole=True)


def reference(tests: list[Known]) -> dict[str, float]:
    """What chance would score, and what the truth does."""
    return {
        "retrieval": 1 / len(tests[0].prints),
        "arms": float(np.mean([np.linalg.norm(j[1:] - j[0], axis=-1) < NEAR for k in tests for j in k.joints])),
        "truth_retrieval": float(np.mean([texture(k.sample.person, k.prints, k.mask) == 0 for k in tests])),
        "truth_retrieval_with_colour": float(np.mean([nearest(k.sample.person, k.prints, k.mask) == 0 for k in tests])),
        "truth_arms": float(np.mean([arms(k.sample.person, k) for k in tests])),
    }


def main() -> None:
    args = parser().parse_intermixed_args()
    root, config = args.dir, read_config(CONFIG, args.words)
    size, device = config.model.image_size, pick_device(config.engine.device, config.engine.precision)
    out = args.out or Path(f"benchmarks/results/learning_{device.type}.json")
    claim(root, {"overrides": args.words, "pairs": args.num, "training_pairs": args.train})
    shards(root / "shards", size, {"train": args.train, "val": args.num})
    tests = test_set(args.num, size)
    trainings = {name: Training(name, root, args.words) for name in NETWORKS}
    lpips = load_lpips("alex", "cpu")
    result = {
        "machine": machine(), "config": str(CONFIG), "overrides": args.words, "image_size": list(size),
        "budget": "CPU minutes of each network's training, one thread" if device.type == "cpu" else "minutes",
        "pairs": len(tests), "alternatives": len(tests[0].prints), "training_pairs": args.train,
        "reference": reference(tests), "budgets": [],
    }  # fmt: skip
    for minutes in sorted(args.minutes):
        row = root / f"measured_{minutes:g}min.json"  # of an earlier start
        if row.exists():
            result["budgets"].append(json.loads(row.read_text()))
            continue
        if (spent := max(each.spent for each in trainings.values())) > 60 * minutes + LATE_S:
            raise ValueError(f"--minutes {minutes:g}: {root} has trained {spent / 60:.1f} already; use another --dir")
        train_until(trainings.values(), 60 * minutes, device.type == "cpu")
        images, methods = look(trainings, tests, root / "shards/val", lpips, device)
        result["budgets"].append({"minutes": minutes, "methods": methods})
        row.write_text(json.dumps(result["budgets"][-1]))
        sheet(images, tests).save(out.with_name(f"{out.stem}_{minutes:g}min.png"))
    record(result, out)
    plot(result).save(out.with_suffix(".png"))


def budget(text: str) -> float:
    """'2.5' -> 2.5"""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected minutes above 0, e.g. 2.5")
    return value


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="*", metavar="key=value", help="of configs/learning.yaml, for both networks")
    result.add_argument("--minutes", type=budget, nargs="+", default=[2.5, 5, 10, 20, 30], help="budgets")
    result.add_argument("--num", type=count, default=256, help="test pairs")
    result.add_argument("--train", type=count, default=24000, help="training pairs")
    result.add_argument("--dir", type=Path, default=Path("runs/learning"))
    result.add_argument("--out", type=Path, help="[benchmarks/results/learning_cpu.json, or _cuda]")
    return result


if __name__ == "__main__":
    run(main)

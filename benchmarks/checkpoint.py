"""How long training stands still for a checkpoint, how fast it is written, and what memory that takes.

    python -m benchmarks.checkpoint [--gib 2] [--rounds 5] [--full] [--folder DIR] [--out FILE.json]

Each round runs, in this order: training steps alone; a plain sequential write and fsync of as many bytes to the same
disk; a blocking save; the plain write again, of which the faster one counts, for a disk is slow where it never wrote
before; an asynchronous save with training steps beside it.  The stall is the time inside save() and
copied() and settle().  A step is matrix products, WORK times as long as the rest of it: AdamW and the average, over
weights of a quarter of --gib.
Where others use the cores too, OMP_WAIT_POLICY=passive keeps waiting threads from spinning.
--full saves and loads the network of configs/base_unet.yaml with Adam and its average, each in a process of its own;
its peak is of memory that no file backs (RssAnon), beside the bytes of its tensors.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil
import torch
from torch import Tensor, nn

from benchmarks.record import machine
from training import checkpoint, pieces
from training.checkpoint import CheckpointConfig, Saver, TrainState
from training.config import Config, read_config
from training.ema import EMA
from training.engine import SingleDevice
from training.pieces import Tensors

GIB = 2**30
WORK = 4  # forward and backward pass against optimizer and average; of the paper's networks on a GPU, 10 and more
STEP = 7  # of the full-size checkpoint


class Trained:
    """Weights, Adam's moments and an average of so many bytes together, and steps that change them all."""

    def __init__(self, size: int):
        side = 1024
        self.weights = [nn.Parameter(torch.randn(side, side)) for _ in range(size // 16 // side**2)]
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)
        for p in self.weights:
            p.grad = torch.randn_like(p)
        self.work, self.num_products = torch.randn(2048, 2048), 0
        self.step()
        self.calibrate()

    @torch.no_grad()
    def step(self, saver: Saver | None = None) -> float:
        """-> seconds that it waited for the saver before it changed anything"""
        for _ in range(self.num_products):
            self.work @ self.work
        waited = seconds(saver.copied) if saver else 0.0
        self.optimizer.step()
        torch._foreach_lerp_(self.average, list(self.weights), 0.001)
        return waited

    def calibrate(self) -> None:
        """How many products are WORK times as long as the rest."""
        rest = statistics.median(seconds(self.step) for _ in range(3))
        one = statistics.median(seconds(lambda: self.work @ self.work) for _ in range(5))
        self.num_products = max(1, round(WORK * rest / one))

    def files(self) -> dict[str, Tensors]:
        named = {f"w{i}": p for i, p in enumerate(self.weights)}
        moments = {
            f"{s}.{name}": self.optimizer.state[p][s] for name, p in named.items() for s in ("exp_avg", "exp_avg_sq")
        }
        averages = dict(zip(named, self.average, strict=True))
        return {name: _file(values) for name, values in (("model", named), ("optimizer", moments), ("ema", averages))}


def _file(values: dict[str, Tensor]) -> Tensors:
    return Tensors({name: tuple(value.shape) for name, value in values.items()}, lambda: iter(values.values()))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def plain_write(path: Path, size: int) -> None:
    data = memoryview(torch.randint(0, 256, (pieces.PIECE,), dtype=torch.uint8).numpy())
    with path.open("wb", buffering=0) as raw:
        left = size
        while left:
            left -= raw.write(data[:left])
        os.fsync(raw.fileno())


def measure(folder: Path, size: int, rounds: int) -> dict:
    """Medians over rounds, and each round."""
    trained, state = Trained(size), TrainState()
    files = trained.files()
    savers = {kind: Saver(folder / kind, CheckpointConfig(keep=1, asynchronous=kind == "asynchronous"))
              for kind in ("blocking", "asynchronous")}  # fmt: skip
    begun = time.perf_counter()
    savers["asynchronous"].prepare(files)
    savers["asynchronous"].warming.join()
    warming_s = time.perf_counter() - begun
    total = sum(pieces.content_of(tensors).size for tensors in files.values())
    each = []
    for state.step in range(1, rounds + 1):
        alone = statistics.median(seconds(trained.step) for _ in range(5))
        plain = seconds(lambda: plain_write(folder / "plain", total))
        (folder / "plain").unlink()
        blocking = seconds(lambda: savers["blocking"].save(state, files))
        plain = min(plain, seconds(lambda: plain_write(folder / "plain", total)))
        (folder / "plain").unlink()
        copying = seconds(lambda: savers["asynchronous"].save(state, files))
        began, beside, waiting = time.perf_counter(), [], 0.0
        while savers["asynchronous"].busy():
            step = time.perf_counter()
            waiting += trained.step(savers["asynchronous"])
            beside.append(time.perf_counter() - step)
        written = time.perf_counter() - began
        publishing = seconds(savers["asynchronous"].settle)
        for saver in savers.values():
            saver.close()
        each.append({
            "step_s": alone, "step_beside_s": statistics.mean(beside), "plain_s": plain, "blocking_s": blocking,
            "saving_s": copying, "waiting_s": waiting, "publishing_s": publishing, "written_after_s": written,
            "stall_of_blocking": (copying + waiting + publishing) / blocking, "speed_of_plain": plain / blocking,
            "slowdown_beside": statistics.mean(beside) / alone,
        })  # fmt: skip
    for kind in savers:
        shutil.rmtree(folder / kind)
    medians = {key: statistics.median(one[key] for one in each) for key in each[0]}
    return {"bytes": total, "warming_s": warming_s, "median": medians, "rounds": each}


@contextmanager
def peak_memory(told: dict) -> Iterator[None]:
    """Sets told['peak_gib']: the most memory without a file behind it that this process had in the block."""
    over, peak = Event(), [0]

    def watch() -> None:
        while not over.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    told["peak_gib"] = peak[0] / 2**20


def _full(config: Config) -> tuple[SingleDevice, EMA]:
    engine = SingleDevice(config.model, config.engine, config.optim, config.seed)
    return engine, EMA(engine, config.ema)


def _bits(files: dict[str, Tensors]) -> dict[str, int]:
    """The sum of the bits of every file's tensors: equal when each came back."""
    return {
        name: sum(int(value.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64)) * (i + 1)
                  for i, value in enumerate(tensors.values()))
        for name, tensors in files.items()
    }  # fmt: skip


def _files(engine: SingleDevice, ema: EMA) -> dict[str, Tensors]:
    return {"model": engine.weight_tensors(), "optimizer": engine.optimizer_tensors()} | ema.files()


def save_full(folder: Path, config: Config) -> dict:
    told = {}
    with peak_memory(told):
        engine, ema = _full(config)
        shapes = engine.optimizer_shapes(1)
        engine.load_optimizer(lambda name: torch.randn(shapes[name]), 1)
        files = _files(engine, ema)
        tensors = sum(pieces.content_of(each).size for each in files.values())
        told |= {"tensors_gib": tensors / GIB, "bits": _bits(files)}
        told["available_gib"] = psutil.virtual_memory().available / GIB
        saver = Saver(folder, CheckpointConfig(keep=1))
        told["seconds"] = seconds(lambda: (saver.save(TrainState(step=STEP), files), saver.close()))
    return told


def load_full(folder: Path, config: Config) -> dict:
    told = {}
    with peak_memory(told):
        engine, ema = _full(config)
        begun = time.perf_counter()
        found, _ = checkpoint.find(folder)
        told["verify_s"] = time.perf_counter() - begun
        with checkpoint.open_tensors(found, "model", engine.shapes) as get:
            engine.load_weights(get)
        for name in ema.files():
            with checkpoint.open_tensors(found, name, engine.shapes) as get:
                ema.load(name, get)
        with checkpoint.open_tensors(found, "optimizer", engine.optimizer_shapes(1)) as get:
            engine.load_optimizer(get, 1)
        told["seconds"] = time.perf_counter() - begun
    return told | {"bits": _bits(_files(engine, ema))}


def measure_full(folder: Path) -> dict:
    """Of a save and of a load: seconds and peak memory beside what the tensors take."""
    config, result = read_config(Path("configs/base_unet.yaml"), ["engine.device=cpu"]), {}
    for name, action in (("save", save_full), ("load", load_full)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            result[name] = process.submit(action, folder, config).result()
    assert result["save"].pop("bits") == result["load"].pop("bits"), "what was loaded is not what was saved"
    for each in (result["save"], result["load"]):
        each["peak_of_tensors"] = each["peak_gib"] / result["save"]["tensors_gib"]
    return result


def rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2, help="size of the checkpoint whose stall is measured [2]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="the 1.13 B network too: 18 GB of memory and of disk")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure [here]")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args()
    result = {"machine": machine()}
    with TemporaryDirectory(dir=args.folder) as name:
        if args.rounds:
            result["stall"] = measure(Path(name), int(args.gib * GIB), args.rounds)
        if args.full:
            result["full"] = measure_full(Path(name))
    text = json.dumps(rounded(result), indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

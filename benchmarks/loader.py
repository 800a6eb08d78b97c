"""How fast samples reach training: the loader beside a folder with a CSV, plain webdataset and mosaicml-streaming.

    python -m benchmarks.loader --folder DIR [--source SHARDS] [--out benchmarks/results/loader_cpu.json]

All of them store the same JPEGs and decode them with simplejpeg.  The ceiling is what the cores could decode if they
did nothing else: min(cores, max(1, workers)) times the rate of one.  Contenders take turns, round after round, and are
compared within a round, for machines are noisy; every measurement runs in a fresh process.  Warm: the files were read
just before.  Cold: the page cache has forgotten them.  DIR takes a few gigabytes; benchmarks/requirements.txt says what
must be installed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.loader_rivals import PREFETCH, RIVALS, SAMPLES_PER_SHARD, DecodeOnly, Encoded
from benchmarks.record import record
from data.augment import AugmentConfig, GeometryConfig, augment
from data.dataset import ShardedDataset
from data.framing import fit
from data.loader import Layout, Stream, batches, rank_positions
from data.order import ShuffledOrder
from data.preprocess import Preparation, make_sample
from data.schema import IMAGES, Sample
from data.shard_index import BLOCK, ROW, publish_index, write_index, write_rows
from data.shards import encode_sample, write_tar
from data.synthetic import draw_pair

NUM_SAMPLES = {128: 20_000, 256: 8_000, 1024: 1_200}
BATCH_SIZE = {128: 64, 256: 32, 1024: 8}
DIFFERENT = 48  # samples; the others repeat them under other keys
VARIED = AugmentConfig(flip_prob=0.5, person=GeometryConfig(prob=1), garment=GeometryConfig(prob=1))
INDEXED = 4_000_000
PACKAGES = ("torch", "numpy", "simplejpeg", "webdataset", "mosaicml-streaming")


class NoDraws(NamedTuple):
    """No randomness beside the samples: the rivals draw none."""


def no_draws(position: int) -> NoDraws:
    return NoDraws()


class Ours:
    name, resumes = "ours", True

    def make(self, samples: Iterable[Encoded], folder: Path) -> None:
        samples, shard = iter(samples), 0
        while some := list(islice(samples, SAMPLES_PER_SHARD)):
            write_tar(folder / f"{shard:06d}.tar", some)
            shard += 1
        write_index(folder)

    def batches(self, folder: Path, workers: int, batch_size: int, start: int = 0) -> Iterator[list[Tensor]]:
        dataset = ShardedDataset(folder)
        stream = Stream(dataset, ShuffledOrder(dataset.shard_sizes, seed=0), no_draws)
        positions = rank_positions(Layout(batch_size), start, 10**9)
        for batch in batches(stream, positions, num_workers=workers, prefetch=PREFETCH, borrow=True):
            yield list(batch[1:6])


CONTENDERS = {contender.name: contender for contender in (DecodeOnly(), *RIVALS, Ours())}


def encoded_samples(source: Path | None, size: int, num: int) -> Iterator[Encoded]:
    """num samples of size x size: of prepared shards, moved a little, or of drawn people."""
    some = [encode_sample(one_sample(source, size, i)) for i in range(min(num, DIFFERENT))]
    for i in range(num):
        yield {**some[i % len(some)], "__key__": f"{i:08d}"}


def one_sample(source: Path | None, size: int, i: int) -> Sample:
    if source is None:
        return make_sample(str(i), *draw_pair(0, i, (size, size)), Preparation((size, size)))
    dataset = ShardedDataset(source)
    sample = augment(dataset.read(i % len(dataset)), 0, i, VARIED)
    return sample._replace(
        **{field: fit(np.ascontiguousarray(getattr(sample, field)), (size, size)) for field in IMAGES}
    )


def make_all(folder: Path, source: Path | None, size: int, num: int) -> dict[str, Path]:
    """The folder of each contender, made where it is not there yet."""
    folders = {name: folder / f"{size}_{num}" / name for name in CONTENDERS}
    for name, path in folders.items():
        if not path.exists():
            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            CONTENDERS[name].make(encoded_samples(source, size, num), partial)
            partial.replace(path)
    os.sync()  # only what is on the disk can be forgotten
    return folders


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def cool(folder: Path) -> None:
    """The page cache forgets the files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Timing(NamedTuple):
    first_batch_s: float
    samples_per_second: float


def measure(name: str, folder: Path, workers: int, batch_size: int, seconds: float, num: float, start: int) -> Timing:
    """Times one contender for so many seconds, or samples, once what it prepared ahead is used up."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    stream = CONTENDERS[name].batches(folder, workers, batch_size, start)
    next(stream)
    first = time.perf_counter() - begin
    for _ in range(PREFETCH * workers):
        next(stream)
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds and count < num:
        count += len(next(stream)[0])
    stream.close()
    return Timing(round(first, 4), round(count / elapsed, 1) if count else 0.0)


def fork_workers() -> None:
    multiprocessing.set_start_method("fork", force=True)


def alone(function, *arguments):
    """What the function returns in a fresh process, which forks its workers as one that was started by hand does."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=fork_workers) as process:
        return process.submit(function, *arguments).result()


def compete(folders: dict[str, Path], size: int, num: int, workers: int, cold: bool, args: argparse.Namespace) -> dict:
    """One line of the table: every contender in every round."""
    batch_size = BATCH_SIZE[size]
    most = num - (1 + PREFETCH * workers) * batch_size if cold else float("inf")  # what was read is warm
    if most <= 0:
        raise ValueError(f"--samples {num}: {workers} workers prepare more than that ahead; take more samples")
    timings, one_core = {name: [] for name in folders}, []
    for _ in range(args.rounds):
        one_core.append(alone(measure, DecodeOnly.name, folders[DecodeOnly.name], 0, batch_size, args.seconds, most, 0))
        for name, folder in folders.items():
            (cool if cold else warm)(folder)
            timings[name].append(alone(measure, name, folder, workers, batch_size, args.seconds, most, 0))
    cores = min(len(os.sched_getaffinity(0)), max(1, workers))
    ceilings = [cores * timing.samples_per_second for timing in one_core]
    rates = {name: [timing.samples_per_second for timing in timings[name]] for name in folders}
    best = [max(rates[rival.name][i] for rival in RIVALS if rival.name in rates) for i in range(args.rounds)]
    result = {"ceiling": median(ceilings)}
    for name in folders:
        result[name] = {
            "samples_per_second": median(rates[name]),
            "of_ceiling": ratio(rates[name], ceilings),
            "of_best_rival": ratio(rates[name], best),
            "first_batch_s": median(timing.first_batch_s for timing in timings[name]),
            "rounds": rates[name],
        }
    return result


def ratio(rates: list[float], others: list[float]) -> float:
    """The median of the ratios within the rounds."""
    return round(median(rate / other for rate, other in zip(rates, others, strict=True)), 3)


def resume(folders: dict[str, Path], size: int, num: int, args: argparse.Namespace) -> dict:
    """Seconds to the first batch at the start and at 90 % of an epoch, of who can resume; medians."""
    workers, batch_size = max(args.workers), BATCH_SIZE[size]
    late = num * 9 // 10 // batch_size * batch_size
    seconds = {name: ([], []) for name in folders if CONTENDERS[name].resumes}
    for _ in range(args.rounds):
        for name, taken in seconds.items():
            for times, start in zip(taken, (0, late), strict=True):
                timing = alone(measure, name, folders[name], workers, batch_size, 0, 0, start)
                times.append(timing.first_batch_s)
    return {name: {"at_start_s": median(first), "at_90_percent_s": median(at)} for name, (first, at) in seconds.items()}


def private_mb() -> list[float]:
    """Memory that each child process of this one shares with nobody."""
    return [child.memory_full_info().uss / 1e6 for child in psutil.Process().children(recursive=True)]


def memory(name: str, folder: Path, workers: int, batch_size: int, num: int) -> dict[int, float]:
    """Private megabytes of the largest worker after so many samples."""
    torch.set_num_threads(1)
    stream, count, found = CONTENDERS[name].batches(folder, workers, batch_size), 0, {}
    for milestone in [num * tenth // 10 for tenth in range(1, 11)]:
        while count < milestone:
            count += len(next(stream)[0])
        found[count] = round(max(private_mb()), 1)
    stream.close()
    return found


class Places(Dataset):
    """Where samples lie, without reading them."""

    def __init__(self, dataset: ShardedDataset):
        self.dataset, self.order = dataset, ShuffledOrder(dataset.shard_sizes, seed=0)

    def __getitem__(self, position: int) -> int:
        return self.dataset.place(self.order.sample_id(position))[1].start


def write_synthetic_index(folder: Path, num: int) -> None:
    """The index of num samples in shards of a thousand, whose tars are holes."""
    rows = np.zeros(1000, ROW)
    rows["start"] = np.arange(1000) * 64
    rows["at"], rows["image_size"], rows["pose_size"] = np.arange(1, 6) * 8, 4000, 344
    shards = {f"{i:06d}.tar": rows for i in range(num // 1000)}
    for name in shards:
        with (folder / name).open("wb") as file:
            file.truncate(64 * BLOCK * 1000)
        write_rows(folder / name, rows)
    publish_index(folder, shards, (128, 128))


def index_memory(folder: Path, workers: int) -> dict:
    """What an index costs: seconds to open, bytes in the page cache once a node, private megabytes of each worker."""
    begin = time.perf_counter()
    dataset = ShardedDataset(folder)
    opened = time.perf_counter() - begin
    step = len(dataset) // 100_000 or 1  # an epoch in 100,000 steps meets every shard
    loader = iter(DataLoader(Places(dataset), 64, sampler=range(0, len(dataset), step), num_workers=workers))
    next(loader)
    first = private_mb()
    for _ in islice(loader, len(dataset) // step // 64 - PREFETCH * workers):
        pass
    last = private_mb()
    shared = sum(path.stat().st_size for path in folder.glob("*.npy")) / 1e6
    return {
        "samples": len(dataset),
        "open_s": round(opened, 2),
        "shared_mb": round(shared, 1),
        "private_mb_first": [round(mb, 1) for mb in first],
        "private_mb_last": [round(mb, 1) for mb in last],
        "node_mb": round(shared + sum(last) - sum(first), 1),
    }


def machine() -> dict:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),  # above 0.5 another program had a share of the cores
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the data; what is there already is used again")
    parser.add_argument("--source", type=Path, help="shards of data.prepare, best at 1024; without: drawn people")
    parser.add_argument("--sizes", type=int, nargs="+", choices=NUM_SAMPLES, default=list(NUM_SAMPLES))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--caches", nargs="*", choices=["warm", "cold"], default=["warm", "cold"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement [3]")
    parser.add_argument("--samples", type=int, help="of each data set, for a trial")
    parser.add_argument("--memory", type=int, default=100_000, help="samples to watch the memory over; 0: do not")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    settings = {key: value for key, value in vars(args).items() if key not in ("folder", "out", "source")}
    settings |= {"source": args.source.name if args.source else "drawn people", "batch_sizes": BATCH_SIZE}
    result = {"machine": machine(), "settings": settings, "sizes": {}}
    for size in args.sizes:
        num = args.samples or NUM_SAMPLES[size]
        folders = make_all(args.folder, args.source, size, num)
        folders = {name: path for name, path in folders.items() if name in (*args.contenders, DecodeOnly.name)}
        stored = sum(map(len, next(encoded_samples(args.source, size, 1)).values()))
        table = {"samples": num, "bytes_per_sample": stored}
        for cache in args.caches:
            table[cache] = {w: compete(folders, size, num, w, cache == "cold", args) for w in args.workers}
            print(json.dumps({size: {cache: table[cache]}}), flush=True)
        table["resume"] = resume(folders, size, num, args)
        result["sizes"][size] = table
    if args.memory:
        size, workers = min(args.sizes), max(1, *args.workers)
        folders = make_all(args.folder, args.source, size, args.samples or NUM_SAMPLES[size])
        watched = [name for name in args.contenders if name != DecodeOnly.name]
        result["private_mb_of_a_worker_after_samples"] = {
            name: alone(memory, name, folders[name], workers, BATCH_SIZE[size], args.memory) for name in watched
        }
        index = args.folder / f"index_{INDEXED}"
        if not (index / "dataset.json").exists():
            index.mkdir(parents=True, exist_ok=True)
            write_synthetic_index(index, INDEXED)
        result["index"] = alone(index_memory, index, workers)
    record(result, args.out)


if __name__ == "__main__":
    main()

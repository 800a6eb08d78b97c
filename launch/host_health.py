"""What one process measures of its host.  Every step has a deadline; one that hangs is named and left behind.

Figures: GiB = 2^30 bytes, MB = 10^6 bytes, TFLOP/s = 10^12 multiplications and additions a second.
"""

import os
import platform
import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from data.mixture import open_training
from launch.place import Place
from training.config import Config
from training.snapshot import code_hash

try:
    import pynvml
except ImportError:  # then nobody answers for ECC errors, throttling and temperature
    pynvml = None
try:
    import resource
except ImportError:  # Windows
    resource = None

T = TypeVar("T")
Facts = dict[str, Any]  # JSON

GIB, MB = 2**30, 10**6
WRITTEN = 8 * MB
READ_S, SPEED_S = 1.0, 0.5  # seconds that reading and computing may take
# NVML's clocks event reasons (nvml.h) that mean trouble; idle and the power cap of software do not.
THROTTLES = {0x8: "hardware", 0x20: "hot", 0x40: "hot", 0x80: "power"}


def bounded(action: Callable[[], T], until: float) -> T:
    """What `action` returns.  TimeoutError at `until` (time.monotonic()), with the action left behind in its thread: a
    dead file system, driver or peer cannot be interrupted."""
    outcome: list[Any] = []

    def act() -> None:
        try:
            outcome.append((action(), None))
        except Exception as error:
            outcome.append((None, error))

    seconds = max(0.05, until - time.monotonic())
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def measure(place: Place, config: Config | None, leads: bool, mark: str, until: float) -> Facts:
    """The facts of this rank; of the host too, from the rank that leads it.  'failed' tells why a step gave none.

    mark: the name of the file that is written into the run folder, and stays there for the other hosts to see.
    """
    steps: dict[str, Callable[[], Facts]] = {"software": software, "limits": limits}
    if config is not None:
        steps["gpus"] = lambda: {"devices": [device_facts(d) for d in devices(place, config)]} | hidden_gpus(config)
        if leads:
            steps["run folder"] = lambda: {"write_mb_s": write_speed(Path(config.run.dir), mark)}
            if not any(place.startswith("pipe:") for place in config.data.places()):
                steps["shards"] = lambda: {"read_mb_s": read_speed(config)}
            steps["needs"] = lambda: needs(place, config)
    facts: Facts = {"leads": leads, "failed": {}}
    for name, step in steps.items():
        try:
            facts |= bounded(step, until)
        except Exception as error:
            told = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            facts["failed"][name] = " ".join((told or type(error).__name__).split())[:400]
    return facts


def software() -> Facts:
    """What must be the same everywhere."""
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "NCCL": nccl}
    return {"code": code_hash(), "versions": versions | {"Python": platform.python_version()}}


def limits() -> Facts:
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    memory = psutil.virtual_memory()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "free_gib": memory.available / GIB,
        "memory_gib": memory.total / GIB,
        "shm_gib": shm and shm.total / GIB,
        "shm_free_gib": shm and shm.free / GIB,
        "open_files": list(resource.getrlimit(resource.RLIMIT_NOFILE)) if resource else None,
        "cores": cores,
    }


def needs(place: Place, config: Config) -> Facts:
    """What training will take of this host: its ranks, their loader workers, shared memory and open files."""
    gpus = torch.cuda.device_count() if config.engine.device in ("auto", "cuda") else 0
    ranks = max(1, gpus) if place.local_size == 1 else place.local_size
    all_ranks = place.size * ranks // place.local_size
    share = max(1, config.train.global_batch // all_ranks // config.train.accumulation)
    wanted = config.engine.micro_batch
    micro_batch = config.train.micro_batch or (wanted if isinstance(wanted, int) else share)
    batches = ranks * config.data.num_workers * (config.data.prefetch + 1)
    return {
        "ranks": ranks,
        "processes": ranks * (1 + config.data.num_workers),
        "shm_need_gib": batches * micro_batch * sample_bytes(config) / GIB,
        "open_files_need": 256 + config.data.num_workers * (config.data.prefetch + 1),  # one piece of memory a batch
    }


def sample_bytes(config: Config) -> int:
    """Bytes of a sample between loader and training: data.loader.Batch with model.diffusion.Draws.

    uint8 images; noise in fp32, once and for each image that is augmented with noise.
    """
    height, width = config.training_size or (256, 256)  # null: as the shards have it
    noises = 1 + (config.model.num_aug_levels if config.diffusion.noise_aug_max > 0 else 0)
    return 3 * height * width * (config.num_images + 4 * noises)


def devices(place: Place, config: Config) -> list[torch.device]:
    """Those that this rank answers for: its own, or all of the host where it is alone there."""
    if config.engine.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    if place.local_size > count:
        raise ValueError(f"{place.local_size} ranks but {count} GPUs")
    numbers = range(count) if place.local_size == 1 else [place.local_rank]
    return [torch.device("cuda", number) for number in numbers]


def hidden_gpus(config: Config) -> Facts:
    """GPUs that the driver knows and torch cannot use."""
    if config.engine.device == "cpu" or torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    return {"hidden_gpus": count} if (count := nvml(lambda: pynvml.nvmlDeviceGetCount())) else {}


def device_facts(device: torch.device) -> Facts:
    """Speed first: temperature and throttling are then those under load."""
    tflops, same = product_speed(device)
    if device.type != "cuda":
        return {"name": "CPU", "kind": "cpu", "index": 0, "tflops": tflops, "same": same}
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    facts = {"name": properties.name, "kind": "cuda", "index": device.index, "tflops": tflops, "same": same}
    facts |= {"free_gib": free / GIB, "memory_gib": total / GIB, "own_gib": torch.cuda.memory_reserved(device) / GIB}
    return facts | nvml_facts(f"GPU-{properties.uuid}")


def nvml_facts(uuid: str) -> Facts:
    """ECC errors since the driver started that were not corrected, failed row remapping, throttle reasons, Celsius.

    None for what NVML does not tell.  https://docs.nvidia.com/deploy/nvml-api/
    """
    handle = nvml(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid))
    if handle is None:
        return {}
    reasons = nvml(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    rows = nvml(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))  # corrected, not corrected, pending, failed
    return {
        "ecc": nvml(
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        ),
        "rows_pending": rows and bool(rows[2]),
        "rows_failed": rows and bool(rows[3]),
        "throttle": None if reasons is None else sorted({told for bit, told in THROTTLES.items() if reasons & bit}),
        "celsius": nvml(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    }


def nvml(ask: Callable[[], T]) -> T | None:
    """What NVML answers, None where it is not installed, not running or does not know."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        return ask()
    except pynvml.NVMLError:
        return None


def product_speed(device: torch.device) -> tuple[float, bool]:
    """TFLOP/s of a matrix product, the best of several, and whether all of them gave the same bits.

    bf16 of 8192 x 8192 on a GPU, fp32 of 1024 x 1024 on a CPU.
    """
    size, dtype, repeats = (8192, torch.bfloat16, 10) if device.type == "cuda" else (1024, torch.float32, 1)
    left, right = torch.randn(2, size, size, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    first, best, same = left @ right, float("inf"), True
    end = time.monotonic() + SPEED_S
    while True:
        _finish(device)
        began = time.perf_counter()
        for _ in range(repeats):
            product = left @ right
        _finish(device)
        best = min(best, (time.perf_counter() - began) / repeats)
        same = torch.equal(product, first) and same
        if time.monotonic() > end:
            return 2 * size**3 / best / 1e12, same


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_speed(run_dir: Path, mark: str) -> float:
    """MB/s of a new file with fsync.  The file stays."""
    run_dir.mkdir(parents=True, exist_ok=True)
    data = os.urandom(WRITTEN)  # nothing compresses it on the way
    began = time.perf_counter()
    with (run_dir / mark).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN / MB / (time.perf_counter() - began)


def read_speed(config: Config) -> float:
    """MB/s of decoded samples from random places, in this one process; the median of up to 256."""
    dataset = open_training(config.data, config.model.image_size, config.num_images)
    dice = random.Random()  # other samples each time: they shall not come from the page cache
    rates, end = [], time.monotonic() + READ_S
    while len(rates) < 256 and (not rates or time.monotonic() < end):
        began = time.perf_counter()
        sample = dataset.read(dice.randrange(len(dataset)))
        rates.append(sum(value.nbytes for value in sample[1:]) / (time.perf_counter() - began))
    return statistics.median(rates) / MB


def unseen(run_dir: Path, marks: dict[str, str], until: float) -> list[str]:
    """The hosts whose mark does not lie in the run folder as this host sees it; asked until `until`, since network file
    systems take a while."""
    while True:
        there = {path.name for path in run_dir.glob(".preflight-*")}
        missing = [host for host, mark in marks.items() if mark not in there]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.2)

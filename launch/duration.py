"""How long a run takes, and what it costs."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launch.findings import Finding
from launch.gpus import GPU, find_gpu
from launch.slurm_script import SlurmScript
from training.config import Config
from training.flop import training_flop

UTILISATION = 0.4  # of a GPU's peak, an assumption: convolutions and attention under autocast reach 30 to 50 %
LAST = 20  # lines of stats.jsonl that the speed is the median of
START_S = 120  # from a job's start to its first step without the checkpoint, an assumption
HASH_MB_PER_S = 500  # SHA-256 of a checkpoint's files, an assumption


class Speed(NamedTuple):
    samples_per_s: float  # of all GPUs together
    source: str  # how it is known


def estimated_speed(config: Config, gpu: GPU, num_ranks: int) -> Speed:
    """From the network's FLOP: checkpointing repeats the forward pass, a third of them."""
    passes = 4 / 3 if config.engine.activation_checkpointing else 1  # of all levels or, at most, of some
    peak = gpu.fp32_tflops if config.engine.precision == "fp32" else gpu.half_tflops
    flop = passes * training_flop(config)
    told = f"estimated, not measured: {UTILISATION:.0%} of {peak:g} TFLOP/s a GPU"
    return Speed(UTILISATION * peak * 1e12 * num_ranks / flop, told)


def measured_speed(run_dir: Path, num_ranks: int) -> Speed | None:
    """The median of the run's last lines of stats.jsonl, scaled to this many GPUs where training.log names another
    number; None where there are none."""
    speeds = [line["samples_per_s"] for line in _lines(run_dir / "stats.jsonl") if line.get("samples_per_s")]
    if not speeds:
        return None
    speed = statistics.median(speeds[-LAST:])
    log = run_dir / "training.log"
    ran = re.findall(r"global batch \d+ on (\d+) x (\w+)", log.read_text(errors="replace")) if log.is_file() else []
    if not ran:
        return Speed(speed, f"measured in {run_dir / 'stats.jsonl'}, on an unknown number of GPUs")
    num, device = int(ran[-1][0]), ran[-1][1]
    told = f"measured in {run_dir / 'stats.jsonl'} on {num} x {device}"
    return Speed(speed * num_ranks / num, told + (f", scaled to {num_ranks}" if num != num_ranks else ""))


def steps_done(run_dir: Path) -> int:
    """The last step that stats.jsonl tells of; 0 for a new run."""
    return max((line["step"] for line in _lines(run_dir / "stats.jsonl") if "step" in line), default=0)


def _lines(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # cut off by a kill
            continue
    return [line for line in lines if isinstance(line, dict)]


def checkpoint_bytes(config: Config, num_parameters: int) -> float:
    """Weights, Adam's two moments and every average in fp32."""
    return (3 + len(config.ema.profiles())) * 4.0 * num_parameters


def snapshots_to_come(config: Config) -> int:
    """Folders of averages that ema.snapshot_every stores from where the run stands to its end; none is ever pruned."""
    every, done = config.ema.snapshot_every, steps_done(Path(config.run.dir))
    return max(0, config.train.num_steps // every - done // every) if every else 0


def checkpoint_seconds(checkpoint: float, disk_mb_per_s: float) -> float:
    """Until a checkpoint of so many bytes is written and hashed, at the disk's speed and HASH_MB_PER_S."""
    megabytes = checkpoint / 1e6
    return megabytes / disk_mb_per_s + megabytes / HASH_MB_PER_S


def restart_seconds(checkpoint: float, disk_mb_per_s: float) -> float:
    """From a job's start to its first step: START_S and reading a checkpoint of so many bytes."""
    return START_S + checkpoint / 1e6 / disk_mb_per_s


def num_jobs(seconds: float, job_s: float, signal_s: float, restart_s: float) -> int:
    """Jobs of `job_s` seconds that a run of `seconds` is cut into: each starts up, and stops at the signal."""
    return math.ceil(seconds / max(1.0, job_s - signal_s - restart_s))


def span(seconds: float) -> str:
    """'95 s', '12 min', '7.5 h', '3.1 days'."""
    for unit, size, least in (("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def best_speed(config: Config, num_ranks: int, samples_per_s: float | None, gpu: str | None) -> Speed | None:
    """What is said, else what was measured, else what a GPU of that name should do; None: nothing is known."""
    if samples_per_s:
        return Speed(samples_per_s, "as --samples-per-s says")
    measured = measured_speed(Path(config.run.dir), num_ranks)
    if measured or gpu is None:
        return measured
    return estimated_speed(config, find_gpu(gpu), num_ranks)


def check_time(
    config: Config,
    speed: Speed | None,
    num_ranks: int,
    price: float | None,
    script: SlurmScript | None,
    restart_s: float,
) -> Iterator[Finding]:
    """Hours, GPU-hours and cost of what is left of the run, and the jobs that a batch script cuts it into."""
    if speed is None:
        yield Finding("time", "not known: --gpu estimates it, --samples-per-s says it")
        return
    yield Finding("speed", f"{speed.samples_per_s:,.4g} samples/s, {speed.source}")
    done = steps_done(Path(config.run.dir))
    steps = max(0, config.train.num_steps - done)
    seconds = steps * config.train.global_batch / speed.samples_per_s
    gpu_hours = seconds / 3600 * num_ranks
    told = f"{span(seconds)} for {steps:,} {'more ' if done else ''}steps: {gpu_hours:,.4g} GPU-hours"
    if price is not None:
        told += f", {gpu_hours * price:,.0f} at {price:g} an hour"
    yield Finding("time", told)
    if script and script.time_s:
        jobs = num_jobs(seconds, script.time_s, script.signal[2], restart_s)
        yield Finding("jobs", f"{jobs} of {span(script.time_s)} each, {max(0, jobs - 1)} of them requeued")

"""Whether who waits, waits long enough: steps and checkpoints, the watchdog, collectives, Slurm's signal and limit."""

from collections.abc import Iterator

from launch.duration import span
from launch.findings import Finding
from launch.slurm_script import SlurmScript
from training.distributed import DistributedConfig


def check_waits(config: DistributedConfig, step_s: float | None, checkpoint_s: float) -> Iterator[Finding]:
    """A step and a checkpoint < hang_s < timeout_s, the latter being the config's own rule.  Seconds; step_s None: not
    known."""
    longest = (step_s or 0) + checkpoint_s
    told = f"a checkpoint {span(checkpoint_s)}" if step_s is None else (
        f"a step {span(step_s)}, a checkpoint {span(checkpoint_s)}"
    )  # fmt: skip
    if config.timeout_s <= longest:
        yield Finding(
            "waiting", f"{told}, but ranks give up after distributed.timeout_s={config.timeout_s}", "error",
            f"distributed.timeout_s={_above(longest, 4)}, or a faster disk for run.dir (--disk-mb-per-s)",
        )  # fmt: skip
    elif 0 < config.hang_s <= longest:
        yield Finding(
            "waiting", f"{told}, but the run ends after distributed.hang_s={config.hang_s} without progress", "error",
            f"distributed.hang_s={_above(longest, 2)} distributed.timeout_s="
            f"{max(config.timeout_s, _above(longest, 4))}, or a faster disk for run.dir (--disk-mb-per-s)",
        )  # fmt: skip
    else:
        watchdog = f"hang_s {config.hang_s} s" if config.hang_s else "hang_s 0 (no watchdog)"
        yield Finding("waiting", f"{told} < {watchdog} < timeout_s {config.timeout_s} s")


def check_signal(script: SlurmScript, step_s: float | None, checkpoint_s: float, restart_s: float) -> Iterator[Finding]:
    """A step and a checkpoint fit between Slurm's signal and the end of the job, and a start before the signal."""
    what, needed = "last checkpoint", (step_s or 0) + checkpoint_s
    signal_s = script.signal[2]
    if not signal_s:
        return  # the script's own line says so
    if signal_s <= needed:
        yield Finding(
            what, f"{span(needed)} for a step and a checkpoint, but --signal comes {signal_s} s before the end",
            "error",
            f"--signal=B:USR2@{_above(needed, 2)} in {script.path}",
        )  # fmt: skip
    elif script.time_s is not None and script.time_s <= signal_s + restart_s + needed:
        yield Finding(
            what, f"--time is {span(script.time_s)}: no step between the start ({span(restart_s)}) and the signal "
            f"({signal_s} s before the end)", "error",
            f"--time of {span(10 * (signal_s + restart_s + needed))} or more in {script.path}",
        )  # fmt: skip
    else:
        limit = "" if script.time_s is None else f" < --time {span(script.time_s)}"
        yield Finding(what, f"{span(needed)} for a step and a checkpoint < {signal_s} s of --signal{limit}")


def _above(seconds: float, factor: float) -> int:
    """A round number of seconds that leaves room."""
    return -int(-factor * seconds // 60) * 60

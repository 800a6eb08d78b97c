"""Whether who waits, waits long enough: steps and checkpoints, the watchdog, collectives, Slurm's signal and limit."""

from collections.abc import Iterator

from launch.duration import span
from launch.findings import Finding
from launch.slurm_script import SlurmScript
from training.distributed import DistributedConfig
from training.heartbeat import PATIENCE


def check_waits(config: DistributedConfig, step_s: float | None, checkpoint_s: float) -> Iterator[Finding]:
    """A step < hang_s, and a checkpoint < what the watchdog grants it.  Seconds; step_s None: not known.

    hang_s < timeout_s is the config's own rule.
    """
    step = "" if step_s is None else f"a step {span(step_s)} < "
    longest = max(step_s or 0, checkpoint_s)
    if longest >= PATIENCE * config.timeout_s:
        what = "a checkpoint" if longest == checkpoint_s else "a step"
        yield Finding(
            "waiting", f"{what} {span(longest)}, but the run ends after {PATIENCE} x distributed.timeout_s="
            f"{config.timeout_s} of waiting", "error",
            f"distributed.timeout_s={_above(longest, 4)}, or a faster disk for run.dir (--disk-mb-per-s)",
        )  # fmt: skip
    elif step_s is not None and 0 < config.hang_s <= step_s:
        yield Finding(
            "waiting", f"a step {span(step_s)}, but the run ends after distributed.hang_s={config.hang_s} without one",
            "error",
            f"distributed.hang_s={_above(step_s, 4)} distributed.timeout_s="
            f"{max(config.timeout_s, _above(step_s, 8))}",
        )  # fmt: skip
    else:
        watchdog = f"hang_s {config.hang_s} s" if config.hang_s else "hang_s 0 (no watchdog)"
        told = f"{step}{watchdog}; a checkpoint {span(checkpoint_s)} < {PATIENCE} x timeout_s {config.timeout_s} s"
        yield Finding("waiting", told)


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

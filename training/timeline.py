"""How long a start took, phase by phase, and how long the rest of the run will.

Scripts that start training leave their marks in TRYON_TIMELINE: 'submit=UNIX_TIME batch=UNIX_TIME ...'.
"""

import itertools
import math
import os
import time

import psutil

MARKS: dict[str, float] = {}  # what ended when in this process, Unix time


def mark(name: str) -> None:
    """The phase of this name ends now."""
    MARKS.setdefault(name, time.time())


def before_python() -> dict[str, float]:
    """The marks of the scripts before this process, in their order."""
    words = (word.partition("=") for word in os.environ.get("TRYON_TIMELINE", "").split())
    return {name: float(value) for name, _, value in words if value.replace(".", "", 1).isdigit()}


def process_began() -> float:
    return psutil.Process().create_time()


def began() -> float:
    """When this start of the run began, Unix time: the batch script's first mark, or this process."""
    scripts = before_python()
    return scripts.get("batch", min(scripts.values(), default=process_began()))


def phases() -> list[tuple[str, float]]:
    """(phase, seconds), from the first mark to the last."""
    scripts = before_python()
    ends = {**scripts, "torchrun" if "RANK" in os.environ else "shell": process_began(), **MARKS}
    moments = list(ends.items())
    return [(name, max(0.0, end - start)) for (_, start), (name, end) in itertools.pairwise(moments)]


def told() -> str:
    """One line: the whole start and its phases."""
    parts = phases()
    total = sum(seconds for _, seconds in parts)
    imports = sum(seconds for name, seconds in parts if name == "imports")
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
    return f"start-up took {total:.1f} s, {total - imports:.1f} s of it beyond Python's imports: {listed}"


class Forecast:
    """The time that is left, with the restarts that a limited job needs.

    `deadline` is the Unix time at which training leaves this job (TRYON_DEADLINE); infinite without a batch system.
    """

    def __init__(self, deadline: float, first_step: float):
        scripts = before_python()
        self.deadline = deadline
        self.usable = deadline - first_step  # seconds of steps in a job like this one
        self.lost = first_step - scripts.get("submit", began())  # seconds from a restart to its first step

    def of(self, training_s: float, now: float) -> tuple[float, int]:
        """(seconds until the run ends, requeues until then), when the steps alone take `training_s` more."""
        beyond = training_s - (self.deadline - now)
        if beyond <= 0 or not math.isfinite(self.usable) or self.usable <= 0:
            return training_s, 0
        requeues = math.ceil(beyond / self.usable)
        return training_s + requeues * self.lost, requeues


def duration(seconds: float) -> str:
    """'3 d 4 h', '5 h 12 min', '3 min 20 s', '12 s'"""
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // smaller)} {small}"
    return f"{seconds:.0f} s"

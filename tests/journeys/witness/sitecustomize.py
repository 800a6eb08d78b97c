"""What a Python process still has when its main is done: imported at its start by way of PYTHONPATH."""

import atexit
import json
import os
import sys
import threading
from pathlib import Path

# tqdm's own, which sleeps and ends with the process.
KNOWN = ("TMonitor",)


def _tell() -> None:
    """Runs when threads that are not daemons were joined: others, and children, would outlive main."""
    threads = [
        f"{thread.name} ({type(thread).__name__})"
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and type(thread).__name__ not in KNOWN
    ]
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    left = {
        "command": " ".join(sys.orig_argv),
        "threads": threads,
        "children": [_command(pid) for pid in children.read_text().split()] if children.exists() else [],
    }
    (Path(os.environ["JOURNEY_WITNESS"]) / f"{os.getpid()}.json").write_text(json.dumps(left))


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


if "JOURNEY_WITNESS" in os.environ:
    atexit.register(_tell)

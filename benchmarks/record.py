"""Results as JSON, with what they were measured on."""

import json
import os
import platform
from pathlib import Path

import torch


def machine() -> dict:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(cpu),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),  # above 0.5 another program had a share of the cores
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def record(result: dict, out: Path | None) -> None:
    """Prints a result, and writes it, too, where a file is named."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")

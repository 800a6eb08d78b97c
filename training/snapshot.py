"""What a run was made with: its code, its packages, its machine.  Standard library only, so that it starts at once."""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "model", "training")
SHOWN = ("PET_", "SLURM_", "TRYON_", "NCCL_", "GLOO_", "TORCH", "OMP_", "CUDA_", "PYTORCH_")


def code_files() -> list[Path]:
    """The Python files that decide what a run does, sorted."""
    inside = (file for package in PACKAGES for file in (HOME / package).glob("*.py"))
    return sorted([*HOME.glob("*.py"), *inside])


def code_hash() -> str:
    """SHA-256 over names and contents of the project's code, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in code_files():
        digest.update(f"{file.relative_to(HOME).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def keep_code(run_dir: Path) -> None:
    """RUN/code/HASH.zip: the code of this start, written once."""
    path = run_dir / "code" / f"{code_hash()}.zip"
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [*code_files(), *sorted(HOME.glob("configs/*.yaml")), *sorted(HOME.glob("requirements*.txt"))]:
            archive.write(file, file.relative_to(HOME).as_posix())
    partial.replace(path)


def keep_environment(run_dir: Path, devices: list[str]) -> None:
    """RUN/environment.jsonl: one object a start."""
    with (run_dir / "environment.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(environment() | {"devices": devices}) + "\n")


def environment() -> dict[str, Any]:
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "code": code_hash(),
        "git": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(installed.items())),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SHOWN)},
    }


def _git(*words: str) -> str | None:
    """What git says of the project, or None where it is no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(HOME), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

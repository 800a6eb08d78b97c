"""Where the numbers and pictures of a run go.  Rank 0 alone makes these.

    Files         RUN/stats.jsonl, one object a line, and RUN/previews
    TensorBoard   RUN/tensorboard

training/wandb_sink.py has a third.  Each of them has been told a step once when a run that was stopped goes on.
"""

import json
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


class Sink(Protocol):
    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8."""

    def close(self) -> None: ...


class Files:
    """What is always there, and all that training.report reads."""

    def __init__(self, run_dir: Path, step: int):
        self.previews = run_dir / "previews"
        drop_after(run_dir / "stats.jsonl", step)
        self.stats = (run_dir / "stats.jsonl").open("a", encoding="utf-8")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """What is not finite is null: JSON has no NaN."""
        written = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.stats.write(json.dumps({"step": step, **written}) + "\n")
        self.stats.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.previews.mkdir(exist_ok=True)
        Image.fromarray(image).save(self.previews / f"{name}_{step:08d}.png")

    def close(self) -> None:
        self.stats.close()


class TensorBoard:
    def __init__(self, run_dir: Path, step: int):
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in grouped(values).items():
            self.board.add_scalar(name, value, step)
        self.board.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self.board.add_image(name, image, step, dataformats="HWC")
        self.board.flush()

    def close(self) -> None:
        self.board.close()


def grouped(values: dict[str, float]) -> dict[str, float]:
    """Each number under the name of its group: that of a step has none of its own."""
    return {name if "/" in name else f"train/{name}": value for name, value in values.items()}


def drop_after(stats: Path, step: int) -> None:
    """Removes from stats.jsonl what a run that is continued at `step` will say again, and a line cut off by a kill."""
    if not stats.exists():
        return
    kept = []
    for line in stats.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    partial = stats.with_name(stats.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(stats)

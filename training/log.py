"""What a run tells: the console, training.log, stats.jsonl and TensorBoard, written by rank 0.

Every rank calls every method; the others stay silent.
"""

import io
import json
import logging
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.distributed import get_rank

QUIET_S = 20  # between lines of progress where no terminal can show a bar

LEAST_FREE = 1 << 16  # bytes that a line in every file may need


class LogConfig(BaseModel, extra="forbid", frozen=True):
    every: int = Field(10, ge=1, description="optimizer steps between lines of stats.jsonl and TensorBoard")
    validate_every: int = Field(1000, ge=1, description="optimizer steps between validation losses")
    num_validation: int = Field(256, ge=1, description="held-out samples of the validation loss, on fixed noise")
    preview_every: int = Field(5000, ge=1, description="optimizer steps between sampled previews")
    num_previews: int = Field(
        8, ge=1, description="pairs that are sampled for a preview, held-out ones where there are"
    )
    preview_steps: int = Field(32, ge=1, description="network evaluations of a preview image, by DDIM")


class RunLog:
    def __init__(self, run_dir: Path, step: int, samples: int, num_steps: int, global_batch: int):
        self.main = get_rank() == 0
        if not self.main:
            return
        self.run_dir, self.global_batch = run_dir, global_batch
        self._check_room()
        self.previews = run_dir / "previews"
        self.logger = logging.getLogger("training")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.handlers.clear()
        file = logging.FileHandler(run_dir / "training.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.logger.addHandler(file)
        drop_after(run_dir / "stats.jsonl", step)
        self.stats = (run_dir / "stats.jsonl").open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self.live = sys.stderr.isatty()
        self.told = time.monotonic()
        self.bar = tqdm(
            total=num_steps * global_batch, initial=samples, unit=" samples", unit_scale=True, dynamic_ncols=True,
            desc="training", file=sys.stderr if self.live else io.StringIO(),
        )  # fmt: skip

    def info(self, message: str) -> None:
        """One line on the console and in training.log."""
        if self.main:
            self.logger.info(message)
            tqdm.write(message, file=sys.stderr)

    def advance(self, loss: float, left: str) -> None:
        """The progress bar, with samples/s and the time left."""
        if self.main:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {left} left", refresh=False)
            self.bar.update(self.global_batch)
            if not self.live and time.monotonic() - self.told > QUIET_S:
                self.told = time.monotonic()
                print(self.bar, file=sys.stderr, flush=True)

    def stats_line(self, step: int, values: dict[str, Any]) -> None:
        """One object of stats.jsonl, one line of training.log, and a TensorBoard scalar for each number."""
        if not self.main:
            return
        self._check_room()
        written = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self.stats.write(json.dumps({"step": step, **written}) + "\n")
        self.stats.flush()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        self.logger.info("step %d  %s", step, shown)
        self.scalars(step, {name if "/" in name else f"train/{name}": value for name, value in values.items()})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self.main:
            self._check_room()
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image (H, W, 3) uint8 for TensorBoard and, where only ssh reaches, previews/NAME_STEP.png."""
        if self.main:
            self._check_room(2 * image.nbytes)
            self.previews.mkdir(exist_ok=True)
            Image.fromarray(image).save(self.previews / f"{name}_{step:08d}.png")
            self.board.add_image(name, image, step, dataformats="HWC")
            self.board.flush()

    def _check_room(self, needed: int = 0) -> None:
        """Raises ValueError on a full disk, before TensorBoard's thread and the logger trip over it."""
        free = shutil.disk_usage(self.run_dir).free
        if free < needed + LEAST_FREE:
            raise ValueError(
                f"run.dir={self.run_dir}: the disk is full ({free} bytes are free); free space there: the newest "
                "checkpoint is whole, and the same command continues"
            )

    def close(self) -> None:
        if self.main:
            self.bar.close()
            self.stats.close()
            self.board.close()


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

"""What a run tells, by rank 0: the console, training.log, and the sinks of its numbers and pictures.

Every rank calls every method; the others stay silent.
"""

import io
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator
from tqdm import tqdm

from training.distributed import get_rank
from training.sinks import Files, Sink, TensorBoard

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
    eval_every: int = Field(0, ge=0, description="optimizer steps between SSIM and LPIPS of drawn pairs; 0: never")
    num_eval: int = Field(64, ge=1, description="pairs that are drawn for these, held-out ones where there are")
    wandb: Literal["off", "offline", "online"] = Field(
        "off", description="Weights & Biases too; offline: RUN/wandb, for `wandb sync`; needs pip install wandb"
    )
    wandb_project: str = Field("tryon", min_length=1, description="the project there; the run folder names the run")

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML reads off


class RunLog:
    """Raises ValueError on rank 0 when a sink cannot be opened.

    config: all keys, for sinks that show them.
    """

    def __init__(
        self, run_dir: Path, step: int, samples: int, num_steps: int, global_batch: int,
        log: LogConfig, config: dict[str, Any],
    ):  # fmt: skip
        self.main = get_rank() == 0
        if not self.main:
            return
        self.run_dir, self.global_batch = run_dir, global_batch
        self._check_room()
        self.logger = logging.getLogger("training")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.handlers.clear()
        file = logging.FileHandler(run_dir / "training.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.logger.addHandler(file)
        self.sinks: list[Sink] = [Files(run_dir, step), TensorBoard(run_dir, step)]
        if log.wandb != "off":
            from training.wandb_sink import WandB  # a package that few need

            self.sinks.append(WandB(run_dir, log.wandb, log.wandb_project, config))
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
        """What a step was: one line of training.log, and every sink."""
        if self.main:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
            self._check_room()
            self.logger.info("step %d  %s", step, shown)
            self.scalars(step, values)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers for every sink, by name; those of measurements are called GROUP/NAME: validation/loss."""
        if self.main:
            self._check_room()
            for sink in self.sinks:
                sink.scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image (H, W, 3) uint8 for every sink; where only ssh reaches, previews/NAME_STEP.png."""
        if self.main:
            self._check_room(2 * image.nbytes)
            for sink in self.sinks:
                sink.image(step, name, image)

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
            for sink in self.sinks:
                sink.close()


def check_log(log: LogConfig) -> None:
    """Raises ValueError where Weights & Biases is asked for and cannot be told anything."""
    if log.wandb != "off":
        from training.wandb_sink import check_login  # a package that few need

        check_login(log.wandb)

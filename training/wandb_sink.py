"""Weights & Biases, for runs with log.wandb=offline or online.  The sole importer of that package.

A run folder is one run there, whatever its starts: its id is in RUN/wandb/id.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training.sinks import grouped

try:
    from wandb import Error, Image, Run, Settings, init, login
except ImportError as missing:
    raise ValueError(
        f"log.wandb needs a package that is not there ({missing}): pip install wandb; or use log.wandb=off"
    ) from missing

FAILURES = (Error, OSError, ValueError)  # pydantic's for WANDB_ variables that are not what they should be
LAST_S = 60.0  # that the end of a run waits for a slow network; the rest is on disk, for `wandb sync`


def check_login(mode: str) -> None:
    """Raises ValueError when this host is to tell Weights & Biases and cannot: nobody is logged in, the key is
    refused, or the service does not answer.  Nothing here ever asks for a key."""
    try:
        known = mode != "online" or login(prompt=False)
    except FAILURES as error:
        raise ValueError(
            f"log.wandb=online: {_said(error)}; use another key (`wandb login`, the variable WANDB_API_KEY), or "
            "log.wandb=offline and `wandb sync` later"
        ) from error
    if not known:
        raise ValueError(
            "log.wandb=online: nobody is logged in to Weights & Biases on this host; use `wandb login`, the variable "
            "WANDB_API_KEY, or log.wandb=offline"
        )


class WandB:
    """Raises ValueError when the run cannot be opened.  What fails later ends the telling, never the training."""

    def __init__(self, run_dir: Path, mode: str, project: str, config: dict[str, Any]):
        try:
            self.run: Run | None = init(
                project=project, id=_id(run_dir), name=run_dir.resolve().name, dir=str(run_dir), config=config,
                mode=mode, resume="allow", reinit="finish_previous",
                settings=Settings(console="off", silent=True, save_code=False, finish_timeout=LAST_S),
            )  # fmt: skip
        except FAILURES as error:
            raise ValueError(
                f"log.wandb={mode}: {_said(error)}; use log.wandb=offline and `wandb sync "
                f"{run_dir / 'wandb'}/offline-run-*` later, or log.wandb=off"
            ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A step that an earlier start told already is dropped there: it was the same number."""
        self._told(lambda run: run.log(grouped(values), step=step))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._told(lambda run: run.log({name: Image(image)}, step=step))

    def close(self) -> None:
        self._told(lambda run: run.finish())

    def _told(self, tell: Callable[[Run], None]) -> None:
        if self.run is None:
            return
        try:
            tell(self.run)
        except (Error, OSError) as error:
            self.run = None
            logging.getLogger("training").info(f"warning: Weights & Biases is told nothing more: {_said(error)}")


def _said(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()).rstrip(".")


def _id(run_dir: Path) -> str:
    path = run_dir / "wandb" / "id"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not known:
        known = secrets.token_hex(4)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name("id.partial")
        partial.write_text(known + "\n", encoding="utf-8")
        partial.replace(path)
    return known

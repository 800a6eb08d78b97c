"""Checkpoints as their tests save and find them: tiny, in pieces of one page, every number that of their step."""

from collections.abc import Callable
from pathlib import Path

import torch

from training import checkpoint, pieces, publish
from training.checkpoint import CheckpointConfig, Saver, TrainState
from training.pieces import Tensors

FILES = ("model", "ema", "optimizer")
SHAPES = {"w": (64, 64), "step": ()}


def small_pieces(set_attribute: Callable = setattr) -> None:
    for module in (pieces, publish, checkpoint):
        set_attribute(module, "PIECE", 4096)


def tensors(step: int) -> dict[str, Tensors]:
    values = [torch.full(shape, float(step)) for shape in SHAPES.values()]
    return {name: Tensors(SHAPES, lambda: iter(values)) for name in FILES}


def save(run_dir: Path, step: int, keep: int = 2, asynchronous: bool = True) -> Path:
    saver = Saver(run_dir, CheckpointConfig(keep=keep, asynchronous=asynchronous))
    saver.save(TrainState(step=step, samples=4 * step), tensors(step))
    saver.close()
    return checkpoint.folder_of(run_dir, step)


def find_step(run_dir: Path) -> int:
    """The step of the newest whole checkpoint, whose every number must be of that step."""
    folder, _ = checkpoint.find(run_dir)
    step = checkpoint.read_state(folder).step
    for name in FILES:
        with checkpoint.open_tensors(folder, name, SHAPES) as get:
            assert all((get(key) == step).all() for key in SHAPES)
    return step


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())

"""A trained network from its run folder, whatever engine trained it."""

from pathlib import Path

import torch

from model.diffusion import Net
from model.parallel_unet import ParallelUNet
from training import checkpoint
from training.config import Config, read_config
from training.distributed import agreed, say
from training.engine import Autocast, pick_device


def read_run(run_dir: Path, overrides: list[str]) -> Config:
    """The config that a run was trained with, with key=value overrides."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: missing; name a run folder, which training makes under run.dir")
    return read_config(path, overrides)


def load_net(run_dir: Path, config: Config, weights: str = "ema") -> tuple[Net, torch.device]:
    """(network, its device) of the newest whole checkpoint; weights: 'ema' or 'model'.

    Raises ValueError when there is none, or when it does not fit the config.
    """
    with agreed():
        device = pick_device(config.engine.device, config.engine.precision)
    with agreed():
        folder, rejected = checkpoint.find(run_dir)
        if folder is None:
            told = "; ".join(rejected) or "training has not written one yet"
            raise ValueError(f"{run_dir}: no whole checkpoint ({told})")
        for message in rejected:
            say(f"warning: {message}; an older checkpoint is used")
        say(f"sampling with {folder / (weights + '.safetensors')}")
        model = ParallelUNet(config.model)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        with checkpoint.open_tensors(folder, weights, shapes) as get:
            model.load_state_dict({name: get(name) for name in shapes})
    model.eval().requires_grad_(False).to(device)
    return Autocast(model, device, config.engine.precision), device

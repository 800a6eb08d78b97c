"""A trained network from its run folder, whatever engine trained it, or from an exported one."""

from pathlib import Path

import torch

from model.diffusion import Net
from training import checkpoint
from training.config import Config, read_config
from training.distributed import agreed, say
from training.engine import Autocast, pick_device


def read_run(run_dir: Path, overrides: list[str]) -> Config:
    """The config that a run was trained with, with key=value overrides.  run_dir: its folder, or an exported one."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: missing; name a run folder, which training makes under run.dir")
    return read_config(path, overrides)


def load_net(run_dir: Path, config: Config, weights: str = "ema") -> tuple[Net, torch.device]:
    """(network, its device) of the newest whole checkpoint.

    weights: a file of it without its suffix, such as ema or model; or the path of a .safetensors file, such as
    training.ema reconstruct makes, and then no checkpoint is read.  Raises ValueError when there is none, or when it
    does not fit the config.
    """
    with agreed():
        device = pick_device(config.engine.device, config.engine.precision)
    with agreed():
        path = Path(weights) if weights.endswith(".safetensors") else _file_of(run_dir, weights)
        say(f"sampling with {path}")
        model = config.model.build()
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        with checkpoint.open_tensors(path.parent, path.stem, shapes) as get:
            model.load_state_dict({name: get(name) for name in shapes})
    model.eval().requires_grad_(False).to(device)
    return Autocast(model, device, config.engine.precision), device


def _file_of(run_dir: Path, weights: str) -> Path:
    """An exported folder has one file of weights; of a run, these weights in the newest whole checkpoint."""
    exported = run_dir / "model.safetensors"
    return exported if exported.is_file() else _in_newest(run_dir, weights)


def _in_newest(run_dir: Path, weights: str) -> Path:
    """The file of these weights in the newest whole checkpoint."""
    folder, rejected = checkpoint.find(run_dir)
    if folder is None:
        told = "; ".join(rejected) or "training has not written one yet"
        raise ValueError(f"{run_dir}: no whole checkpoint ({told})")
    for message in rejected:
        say(f"warning: {message}; an older checkpoint is used")
    there = sorted({path.stem for path in folder.glob("*.safetensors")} - {"optimizer"})
    if weights not in there:
        raise ValueError(
            f"--weights {weights}: {folder} has {', '.join(there)}; name one of them, or a file that ends in "
            ".safetensors"
        )
    return folder / f"{weights}.safetensors"

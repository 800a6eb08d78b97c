"""Tiny cascades with random weights, as folders that training.checkpoint export would make."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from runs import TINY
from training.config import save_config, validate

SIZES = {"base_unet": 8, "sr_unet": 16, "sr_1024": 32}
TRIES_ON = {key: value for key, value in TINY.items() if key.startswith("model.")}
EFFICIENT = {
    "model.network": "efficient_unet",
    "model.channels": [8, 16],
    "model.num_blocks": [1, 1],
    "model.emb_dim": 16,
    "model.lowres_factor": 2,
    "sampler.guidance_scale": 1,
    "data.crop_size": [16, 16],
}


def write_stage(folder: Path, size: int, val_shards: Path | None = None, seed: int = 0, **changes) -> Path:
    """An exported folder of one stage; changes are keys with '__' for the dot."""
    values = {"engine.device": "cpu", "sampler.num_steps": 3, "data.shards": "none"}
    values |= {"diffusion.prediction": "v"}  # which does not enlarge the rounding of sums where nearly all is noise
    values |= EFFICIENT if folder.name == "sr_1024" else TRIES_ON
    values |= {"model.image_size": [size, size], "model.lowres": folder.name != "base_unet"}
    values |= {"data.val_shards": None if val_shards is None else str(val_shards)}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    config = validate(_nested(values), str(folder))
    net = config.model.build()
    generator = torch.Generator().manual_seed(seed + size)
    # Random all over: the last convolution of a new network is 0, and so would be all that it answers.
    weights = {
        name: p + 0.05 * torch.randn(p.shape, generator=generator) for name, p in sorted(net.state_dict().items())
    }
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    save_file(weights, folder / "model.safetensors")
    return folder


def write_cascade(folder: Path, val_shards: Path | None = None, stages: tuple[str, ...] = tuple(SIZES)) -> Path:
    for name in stages:
        torch.manual_seed(SIZES[name])
        write_stage(folder / name, SIZES[name], val_shards)
    return folder


def _nested(values: dict) -> dict:
    nested: dict = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested

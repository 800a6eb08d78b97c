"""The stages of a cascade on the disk: run folders, exported folders, or one folder of such."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from model.cascade import Stage, in_order
from training import checkpoint
from training.config import Config, read_config
from training.distributed import agreed, say
from training.engine import Autocast, pick_device

EXPORT = "export"  # the folder within a run that training.checkpoint export makes


class Trained(NamedTuple):
    """A stage whose network is not loaded yet."""

    name: str  # of its folder
    folder: Path
    config: Config

    def stage(self, net: Autocast | None = None) -> Stage:
        return Stage(self.name, net, self.config.model, self.config.diffusion, self.config.sampler)


def find_stages(places: Sequence[Path], overrides: Sequence[str] = ()) -> list[Trained]:
    """The stages of these folders, the smallest first.

    overrides: key=value for all stages, STAGE.key=value for one.  Raises ValueError for a folder that neither is
    nor holds such a folder, for two stages of one name, for a wrong config, and where the stages do not chain.
    """
    folders = [folder for place in places for folder in _runs_in(Path(place))]
    names = [_name_of(folder) for folder in folders]
    if twice := [name for name in names if names.count(name) > 1]:
        where = ", ".join(str(folder) for folder, name in zip(folders, names, strict=True) if name == twice[0])
        raise ValueError(f"{where}: several stages are named {twice[0]}; leave out all but one, or rename a folder")
    found = {
        name: Trained(name, folder, _config_of(folder, name, names, overrides))
        for folder, name in zip(folders, names, strict=True)
    }
    return [found[stage.name] for stage in in_order([trained.stage() for trained in found.values()])]


def _runs_in(place: Path) -> list[Path]:
    if (place / "config.yaml").is_file():
        return [place]
    found = sorted(path.parent for path in place.glob("[!.]*/config.yaml"))
    if not found:
        raise ValueError(
            f"{place / 'config.yaml'}: missing; name a run folder, which training makes under run.dir, or an exported "
            "one, or a folder of such"
        )
    return found


def _name_of(folder: Path) -> str:
    folder = folder.absolute()
    return folder.parent.name if folder.name == EXPORT else folder.name


def _config_of(folder: Path, name: str, names: list[str], overrides: Sequence[str]) -> Config:
    mine = ["engine.device=auto"]
    for word in overrides:
        first, _, rest = word.partition(".")
        if first in Config.model_fields or "=" in first:
            mine.append(word)
        elif first == name:
            mine.append(rest)
        elif first not in names:
            raise ValueError(f"{word!r}: {first} is neither a stage ({', '.join(names)}) nor a part of a config")
    return read_config(folder / "config.yaml", mine)


def weights_of(words: Sequence[str], stages: list[Trained]) -> dict[str, str]:
    """What each stage is sampled with: a file of its checkpoint, or a path of a .safetensors file.

    words: WEIGHTS for all, STAGE=WEIGHTS for one.  Raises ValueError for one file with several stages.
    """
    chosen = dict.fromkeys((stage.name for stage in stages), "ema")
    for word in words:
        name, _, one = word.partition("=")
        if one and name in chosen:
            chosen[name] = one
        elif word.endswith(".safetensors") and len(stages) > 1:
            raise ValueError(f"--weights {word}: of which stage? write --weights {stages[0].name}={word}")
        else:
            chosen |= dict.fromkeys(chosen, word)
    return chosen


def load(trained: Trained, weights: str, device: torch.device) -> tuple[Stage, str]:
    """The stage with its network, still on the CPU, and the CRC-32 of its weights, of the newest whole checkpoint.

    weights: a file of it without its suffix, such as ema or model; or the path of a .safetensors file, such as
    training.ema reconstruct makes, and then no checkpoint is read.  Raises ValueError, on every rank, when there is
    none, when it does not fit the config, or holds a value that is not finite.
    """
    with agreed():
        path = Path(weights) if weights.endswith(".safetensors") else _file_of(trained.folder, weights)
        say(f"sampling with {path}")
        model, crc = trained.config.model.build(), 0
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        with checkpoint.open_tensors(path.parent, path.stem, shapes) as get:
            for name, parameter in model.named_parameters():
                values = get(name)
                if not values.isfinite().all():
                    raise ValueError(
                        f"{path}: {name} holds values that are not finite; sample an earlier checkpoint, or train the "
                        "stage again"
                    )
                parameter.data.copy_(values)
                crc = zlib.crc32(values.numpy(), crc)
        precision = trained.config.engine.precision
        pick_device(device.type, precision)  # which refuses what it cannot compute in
    model.eval().requires_grad_(False)
    return trained.stage(Autocast(model, device, precision)), f"{crc:08x}"


def _file_of(run_dir: Path, weights: str) -> Path:
    """An exported folder has one file of weights; of a run, these weights in the newest whole checkpoint."""
    exported = run_dir / "model.safetensors"
    return exported if exported.is_file() else _in_newest(run_dir, weights)


def _in_newest(run_dir: Path, weights: str) -> Path:
    """The file of these weights in the newest whole checkpoint."""
    folder, rejected = checkpoint.find(run_dir)
    if folder is None:
        told = "; ".join(rejected) or "training has not written one yet"
        raise ValueError(f"{run_dir}: no whole checkpoint ({told}); train it on, or leave this stage out with --stop")
    for message in rejected:
        say(f"warning: {message}; an older checkpoint is used")
    there = sorted({path.stem for path in folder.glob("*.safetensors")} - {"optimizer"})
    if weights not in there:
        raise ValueError(
            f"--weights {weights}: {folder} has {', '.join(there)}; name one of them, or a file that ends in "
            ".safetensors"
        )
    return folder / f"{weights}.safetensors"

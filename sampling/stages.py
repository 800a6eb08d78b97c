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
from training.engine import Autocast, lay_out, pick_device

MODEL = "model.safetensors"  # the weights in an exported folder
USED_BY = {"sampler.guidance_": True, "sampler.tile_rows": False}  # keys of stages that try on, or that do not
EXPORT = "export"  # the folder within a run that training.checkpoint export makes

Override = tuple[str | None, str]  # the stage that a key=value is for, None: all; the key=value


class Trained(NamedTuple):
    """A stage whose network is not loaded yet."""

    name: str  # of its folder
    folder: Path
    config: Config

    def stage(self, net: Autocast | None = None) -> Stage:
        return Stage(self.name, net, self.config.model, self.config.diffusion, self.config.sampler)


def find_stages(places: Sequence[Path], overrides: Sequence[str] = ()) -> list[Trained]:
    """The stages of these folders, the smallest first.

    overrides: key=value for all stages that can use it, STAGE.key=value for one.  Raises ValueError for a folder that
    neither is nor holds such a folder, for two stages of one name, for a wrong config, and where the stages do not
    chain.
    """
    folders = [folder for place in places for folder in _runs_in(Path(place))]
    names = [_name_of(folder) for folder in folders]
    if twice := [name for name in names if names.count(name) > 1]:
        where = ", ".join(str(folder) for folder, name in zip(folders, names, strict=True) if name == twice[0])
        raise ValueError(f"{where}: several stages are named {twice[0]}; leave out all but one, or rename a folder")
    overrides = _spread(overrides, dict(zip(names, folders, strict=True)))
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


def _config_of(folder: Path, name: str, names: list[str], overrides: Sequence[Override]) -> Config:
    mine = ["engine.device=auto", *(key for stage, key in overrides if stage in (None, name))]
    try:
        return read_config(folder / "config.yaml", mine)
    except ValueError as error:
        told = str(error)  # a remedy for all stages would change the others
        raise ValueError(told.replace("use sampler.", f"use {name}.sampler.") if len(names) > 1 else told) from error


def _addressed(word: str, names: Sequence[str]) -> Override:
    """Raises ValueError where there is none such."""
    for name in sorted(names, key=len, reverse=True):  # names may hold dots
        if word.startswith(f"{name}.") and name not in Config.model_fields:
            return name, word.removeprefix(f"{name}.")
    first, dot, _ = word.partition("=")[0].partition(".")
    if dot and first not in Config.model_fields:
        raise ValueError(f"{word!r}: {first} is neither a stage ({', '.join(names)}) nor a part of a config")
    return None, word


def _spread(overrides: Sequence[str], places: dict[str, Path]) -> list[Override]:
    """The overrides, those for all stages that only some can use given to these by name.

    Guidance leaves out try-on conditions, and only a network without attention is computed in strips.  Where no stage
    can use it, the key stays one for all, and is refused.
    """
    spread = []
    for word in overrides:
        stage, key = _addressed(word, list(places))
        wanted = next((wanted for begin, wanted in USED_BY.items() if stage is None and key.startswith(begin)), None)
        some = [
            name
            for name, folder in places.items()
            if wanted is not None and read_config(folder / "config.yaml").model.tries_on == wanted
        ]
        spread += [(name, key) for name in some] or [(stage, key)]
    return spread


def weights_of(words: Sequence[str], stages: list[Trained]) -> dict[str, str]:
    """What each stage is sampled with: a file of its checkpoint, or a path of a .safetensors file.

    words: WEIGHTS for all, STAGE=WEIGHTS for one.  Raises ValueError for one file with several stages, for a stage that
    is not there, and for a name where an exported folder has one file of weights.
    """
    chosen = dict.fromkeys((stage.name for stage in stages), "ema")
    exported = {stage.name: stage.folder for stage in stages if (stage.folder / MODEL).is_file()}
    for word in words:
        name, equals, one = word.partition("=")
        if not equals or Path(word).exists():
            name, one = "", word
        elif name not in chosen:
            raise ValueError(f"--weights {word}: there is no stage {name}; there are {', '.join(chosen)}")
        is_file = one.endswith(".safetensors")
        if is_file and not name and len(stages) > 1:
            raise ValueError(f"--weights {word}: of which stage? write --weights {stages[0].name}={word}")
        if not one:
            raise ValueError(f"--weights {word}: names no weights; write --weights {name or stages[0].name}=ema")
        mine = [name] if name else list(chosen)
        if not is_file and (fixed := [each for each in mine if each in exported]):
            raise ValueError(
                f"--weights {word}: {exported[fixed[0]]} is an exported folder, with {MODEL} alone; leave it out, or "
                "name the run folder it was made of"
            )
        chosen |= dict.fromkeys(mine, one)
    return chosen


def load(trained: Trained, weights: str, device: torch.device) -> tuple[Stage, str]:
    """The stage with its network, still on the CPU, and the CRC-32 of its weights, of the newest whole checkpoint.

    weights: a file of it without its suffix, such as ema or model; or the path of a .safetensors file, such as
    training.ema reconstruct makes, and then no checkpoint is read.  Raises ValueError, on every rank, when there is
    none, when it does not fit the config, or holds a value that is not finite.
    """
    with agreed():
        path = file_of(trained.folder, weights)
        say(f"sampling with {path}")
        with torch.device("meta"):  # nothing is drawn that the file holds
            model, crc = trained.config.model.build(), 0
        assert not list(model.buffers()), "which the file does not hold"
        model.to_empty(device="cpu")
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
    lay_out(model, trained.config.engine, device)
    model.eval().requires_grad_(False)
    return trained.stage(Autocast(model, device, precision)), f"{crc:08x}"


def file_of(run_dir: Path, weights: str) -> Path:
    """The file that load reads.  Every rank calls it.

    An exported folder has one file of weights; of a run, these weights in the newest whole checkpoint.  Raises
    ValueError where there is none.
    """
    if weights.endswith(".safetensors"):
        return Path(weights)
    exported = run_dir / MODEL
    return exported if exported.is_file() else _in_newest(run_dir, weights)


def _in_newest(run_dir: Path, weights: str) -> Path:
    """The file of these weights in the newest whole checkpoint."""
    folder, rejected = checkpoint.find(run_dir)
    if folder is None:
        told = "; ".join(rejected) or "training has not written one yet"
        raise ValueError(
            f"{run_dir}: no whole checkpoint ({told}), and no {MODEL}, which an exported folder has; train it on, "
            "export it again, or leave this stage out with --stop"
        )
    for message in rejected:
        say(f"warning: {message}; an older checkpoint is used")
    there = sorted({path.stem for path in folder.glob("*.safetensors")} - {"optimizer"})
    if weights not in there:
        raise ValueError(
            f"--weights {weights}: {folder} has {', '.join(there)}; name one of them, or a file that ends in "
            ".safetensors"
        )
    return folder / f"{weights}.safetensors"

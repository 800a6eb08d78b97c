"""Options of the commands that draw."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.prepare import seed
from sampling.stages import Trained

WORDS = {
    "nargs": "*", "metavar": "RUN_OR_CASCADE | key=value",
    "help": "folders; sampler.num_steps=20 is for all stages, sr_unet.sampler.num_steps=20 for the folder sr_unet",
}  # fmt: skip


def add_drawing(group: argparse._ArgumentGroup) -> None:
    """--stop, --seed, --dp, --one-at-a-time and --weights."""
    group.add_argument("--stop", metavar="STAGE", help="end with this stage")
    group.add_argument("--seed", type=seed, default=0, help="another seed draws other noise [0]")
    group.add_argument("--dp", action="store_true", help="one process, a replica on each GPU; torchrun is faster")
    group.add_argument("--one-at-a-time", action="store_true", help="keep only the network that runs on the GPU")
    group.add_argument(
        "--weights", action="append", default=[], metavar="[STAGE=]NAME",
        help="a file of the checkpoint, or any FILE.safetensors [ema]",
    )  # fmt: skip


def split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(folders, key=value overrides)"""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in overrides], overrides


def refuse_idle(idle: Sequence[tuple[str, bool, str]]) -> None:
    """Raises ValueError for options (name, whether it is given to no effect, why) that would do nothing."""
    for option, without_effect, why in idle:
        if without_effect:
            raise ValueError(f"{option}: has no effect here, {why}; leave it out")


def check_out(out: Path, places: Sequence[Path], stages: Sequence[Trained], example: str) -> None:
    """Raises ValueError when the pictures would lie among the files of a cascade or of a run."""
    if out.resolve() in {folder.resolve() for folder in (*places, *(stage.folder for stage in stages))}:
        raise ValueError(f"--out {out}: is the folder of what draws; name one of its own, such as {out / example}")

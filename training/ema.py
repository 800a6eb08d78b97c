"""Averages of the weights over the steps: what samples are drawn with.

python -m training.ema reconstruct RUN --length 0.1      an average of another length, of a run that stored some
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from training.averages import forget_from, name_of, store
from training.checkpoint import open_tensors
from training.distributed import Agreed
from training.engine import SingleDevice
from training.exits import run
from training.pieces import Tensors
from training.placement import Placement, place
from training.post_hoc import reconstruct
from training.profiles import Decay, Power, gamma_of

PRIMARY = "ema"


class EMAConfig(BaseModel, extra="forbid", frozen=True):
    decay: float = Field(
        0.9999, ge=0, lt=1, description="per optimizer step; reached slowly: (1 + n) / (10 + n) at first"
    )
    also: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (), description="decays of further averages, each a file of the checkpoints"
    )
    power: tuple[float, ...] = Field(
        (), description="lengths of EDM2's averages, relative to the run, each a file; usual are [0.05,0.1]"
    )
    snapshot_every: int = Field(
        0, ge=0, description="steps between power averages stored for training.ema reconstruct; 0: never"
    )
    placement: Placement = Field(
        "device", description="of the averages: beside the weights; cpu: host memory; sharded: over the ranks"
    )

    @field_validator("power")
    @classmethod
    def _lengths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for length in value:
            gamma_of(length)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "EMAConfig":
        for key, values in {"also": (self.decay, *self.also), "power": self.power}.items():
            too = " (ema.decay counts too)" if key == "also" else ""
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"ema.{key}: {twice[0]} is averaged twice{too}; name it once")
        if self.snapshot_every and not self.power:
            raise ValueError(
                f"ema.snapshot_every={self.snapshot_every} stores the averages of ema.power, which names none; use "
                "ema.power=[0.05,0.1], or ema.snapshot_every=0"
            )
        return self

    def profiles(self) -> dict[str, Decay | Power]:
        """Every average by the name of its file."""
        decays = {PRIMARY: Decay(self.decay)} | {f"ema_decay_{decay}": Decay(decay) for decay in self.also}
        return decays | {name_of(length): Power(length) for length in self.power}


class EMA:
    """average <- average + share (weights - average), after every optimizer step, in fp32."""

    def __init__(self, engine: SingleDevice, config: EMAConfig):
        self.engine, self.profiles, self.snapshot_every = engine, config.profiles(), config.snapshot_every
        self.place = place(engine, config.placement)
        self.num_updates = 0
        self.shadows = {
            file: {name: self.place.new(stored) for name, stored in engine.weights().items()} for file in self.profiles
        }
        self.stepped = False  # whether a step was done since the start

    @torch.no_grad()
    def update(self) -> None:
        weights = [self.place.mine(stored) for stored in self.engine.weights().values()]
        shares = {file: profile.share(self.num_updates) for file, profile in self.profiles.items()}
        self.place.update(weights, [(shares[file], list(shadow.values())) for file, shadow in self.shadows.items()])
        self.num_updates += 1

    def files(self) -> dict[str, Tensors]:
        """The averages as files of a checkpoint, by name."""
        gathered = self.place.collective or self.engine.sharded
        return {file: Tensors(self.engine.shapes, partial(self._values, file), gathered) for file in self.profiles}

    def _values(self, file: str) -> Iterator[Tensor]:
        """Whole, one after the other.  Every rank iterates."""
        weights = self.engine.weights()
        return (self.place.whole(name, average, weights[name]) for name, average in self.shadows[file].items())

    @torch.no_grad()
    def load(self, file: str, get: Callable[[str], Tensor]) -> None:
        """get(name): the whole average of that parameter."""
        weights = self.engine.weights()
        for name, average in self.shadows[file].items():
            self.place.load(name, average, get(name), weights[name])

    @torch.no_grad()
    def read(self, folder: Path, num_updates: int) -> list[str]:
        """Continues the averages of a checkpoint, once its weights are loaded.  -> what to tell of those that only the
        checkpoint or only the config has

        Raises ValueError for a power function that the checkpoint has not got: it would have to remember all steps.
        """
        self.num_updates, told = num_updates, []
        there = {path.stem for path in folder.glob("ema*.safetensors")}
        for file, profile in self.profiles.items():
            if file in there or file == PRIMARY:
                with open_tensors(folder, file, self.engine.shapes) as get:
                    self.load(file, get)
            elif isinstance(profile, Power):
                raise ValueError(
                    f"ema.power: {folder} has no average of length {profile.length}, and one that begins now would "
                    "lack the steps before; leave it out, or train anew in another run.dir"
                )
            else:
                for name, stored in self.engine.weights().items():
                    self.shadows[file][name].copy_(self.place.mine(stored))
                told.append(f"ema.also: the average of decay {profile.decay} is new; it begins with the weights of now")
        gone = sorted(there - self.profiles.keys())
        return told + [f"{name} is not averaged any more; {folder} has the last of it" for name in gone]

    def snapshot(self, run_dir: Path, step: int) -> None:
        """Stores the power averages if they are due after this step.  Every rank calls, after every step."""
        if not self.snapshot_every:
            return
        if not self.stepped:  # what is stored from here on is of a training that was given up
            forget_from(run_dir, step)
            self.stepped = True
        if step % self.snapshot_every == 0 and self.num_updates:
            powers = {profile.length: file for file, profile in self.profiles.items() if isinstance(profile, Power)}
            files = self.files()
            store(run_dir, step, self.num_updates, {length: files[file] for length, file in powers.items()})

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averaged weights inside this block; before and after it, with its own.

        All ranks enter and leave.  An error that one rank has alone ends the run: where leaving is collective, the
        others would not answer.
        """
        self._swap()
        try:
            yield
        except BaseException as error:
            if isinstance(error, Agreed) or self.engine.num_ranks == 1 or not self.place.collective:
                self._swap()
            raise
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, stored in self.engine.weights().items():
            self.place.swap(stored, self.shadows[PRIMARY][name])
        self.engine.weights_changed()


def main() -> None:
    args = parser().parse_args()
    out, fit = reconstruct(args.run_dir, args.length, args.step, args.out)
    lengths = sorted({f"{part.average.length:.3f}" for part in fit.parts})
    print(
        f"{out}: length {fit.length:.3f} at step {fit.step}, of {len(fit.parts)} stored averages of length "
        f"{' and '.join(lengths)}; the steps are weighed {fit.error:.2%} wrong\n"
        f"python sample.py {args.run_dir} --weights {out}"
    )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(required=True, metavar="reconstruct")
    make = commands.add_parser("reconstruct", help="make an average of those that a run stored")
    make.add_argument("run_dir", type=Path, metavar="RUN", help="a folder that training made with ema.snapshot_every")
    make.add_argument("--length", type=float, required=True, help="relative to the run, EDM2's sigma_rel: 0.1")
    make.add_argument("--step", type=int, help="the step it ends with [the last one stored]")
    make.add_argument("--out", type=Path, metavar="FILE", help="[RUN/averages/ema_power_LENGTH_step_N.safetensors]")
    return result


if __name__ == "__main__":
    run(main)

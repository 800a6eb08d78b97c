"""The cascade for programs: photographs in, pictures out.

from model import TryOnCascade

cascade = TryOnCascade.from_pretrained("runs/cascade")
cascade(person="anna.jpg", garment="shirt.jpg").save("anna_in_shirt.png")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.estimators import DEFAULT, Estimators
from model.cascade import between
from sampling.devices import Replicas, pick_devices
from sampling.drawing import work_of
from sampling.inputs import Inputs, Lowres
from sampling.photos import Shot, Source, pairs_of_photos
from sampling.stages import Trained, find_stages, weights_of
from training.engine import pick_device

Photographs = Source | np.ndarray | Sequence[Source | np.ndarray]
Pictures = Image.Image | list[Image.Image]

OF_THE_PERSON = "the low-resolution input is the person's picture, downsampled, not a previous stage's result"
IN_A_PROGRAM = {
    "--garment-kind flat": 'garment_kind="flat"',
    "--weights ": "weights=",
    "engine.device=": "device=",
    ", or leave this stage out with --stop": ", or leave this stage's folder out",
}  # options of sample.py, and what a program says instead


class TryOnCascade:
    """Trained stages that put garments on persons."""

    def __init__(self, replicas: Replicas, stages: list[Trained]):
        self.replicas, self.stages = replicas, stages
        self.notes: list[str] = []  # what the photographs of the last call could not tell

    @classmethod
    def from_pretrained(
        cls, *folders: str | Path | Sequence[str | Path],
        device: str | torch.device | Sequence[str | torch.device] = "auto",
        precision: str | None = None, overrides: Sequence[str] = (), weights: str | Sequence[str] = (),
        one_at_a_time: bool = False,
    ) -> "TryOnCascade":  # fmt: skip
        """The cascade of run folders, exported folders, or one folder of such.

        device: auto, cpu, cuda, cuda:1, mps; of several, each gets a replica and a share of every batch.  precision of
        computation: fp32, bf16, fp16; None: that of training.  overrides: as on sample.py's command line, such as
        "sampler.num_steps=20" or "sr_unet.sampler.method=ddim".  Raises ValueError for whatever is wrong there.
        """
        extra = [] if precision is None else [f"engine.precision={precision}"]
        places = [Path(each) for folder in folders for each in _listed(folder)]
        with _in_a_program():
            stages = find_stages(places, [*_listed(overrides), *extra])
            devices = pick_devices(stages, dp=False) if device == "auto" else _devices(_listed(device))
            weights = weights_of([str(word) for word in _listed(weights) if word], stages)
            return cls(Replicas(stages, weights, devices, one_at_a_time), stages)

    def __call__(
        self, person: Photographs, garment: Photographs, *, garment_kind: str = "worn",
        seed: int = 0, start: str | None = None, stop: str | None = None,
        image: Photographs | None = None, return_all: bool = False, batch: int = 16, crop: bool = False,
        rule: str = "paper", estimators: Estimators = DEFAULT,
    ) -> Pictures | dict[str, Pictures]:  # fmt: skip
        """One picture for one person and one garment; for lists, which go together one by one, a list.  A single
        person tries on all garments of a list, and the other way round.

        Photographs are paths, PIL images, or arrays (H, W, 3) uint8 RGB.  start and stop: the first and the last stage
        to run; image: what the first one sharpens, if it is not the first of the cascade; without it, the person's
        picture.  return_all: a dict of every stage's pictures, by name.  Raises ValueError that names the photograph
        and the remedy.
        """
        persons, garments = _photographs("person", person), _photographs("garment", garment)
        images = None if image is None else _photographs("image", image)
        _check_number("batch", batch, 1)
        _check_number("seed", seed, 0)
        num = max(len(persons), len(garments))
        if {len(persons), len(garments)} - {1, num}:
            raise ValueError(
                f"{len(persons)} persons and {len(garments)} garments; give as many of both, or one of one"
            )
        if images and len(images) != num:
            raise ValueError(f"image: {len(images)} images for {num} pictures; give one for each, in their order")
        pairs = [(min(i, len(persons) - 1), min(i, len(garments) - 1)) for i in range(num)]
        stages = between(self.stages, start, stop)
        with _in_a_program():
            inputs, notes = pairs_of_photos(
                [Shot(each) for each in persons], [Shot(each) for each in garments], garment_kind, pairs, crop=crop,
                rule=rule, estimators=estimators,
            )  # fmt: skip
            wants_image = stages[0].config.model.lowres
            lowres = Lowres(stages[0], inputs, images) if images or wants_image else None
        self.notes = [_told(note) for note in notes] + [OF_THE_PERSON] * (wants_image and not images)
        drawn = self._draw(inputs, stages, lowres, batch, seed)
        if not any(isinstance(each, list | tuple) for each in (person, garment)):
            drawn = {name: each[0] for name, each in drawn.items()}
        return drawn if return_all else drawn[stages[-1].name]

    def _draw(
        self, inputs: Inputs, stages: list[Trained], lowres: Lowres | None, batch: int, seed: int
    ) -> dict[str, list[Image.Image]]:
        drawn: dict[str, list[Image.Image]] = {stage.name: [] for stage in stages}
        for first in range(0, inputs.num, batch):
            ids = range(first, min(first + batch, inputs.num))
            work = work_of(ids, stages, inputs, lowres)
            for name, images in self.replicas(work, seed, stages[0].name, stages[-1].name).items():
                drawn[name] += map(Image.fromarray, images)
        return drawn


def _listed(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _photographs(name: str, value: Photographs) -> list[Source]:
    """Those of an argument of this name.  Raises ValueError for what is no photograph, and where there is none."""
    photographs = _listed(value)
    if not photographs:
        raise ValueError(f"{name}: an empty list; give at least one photograph")
    return [_photograph(name, each) for each in photographs]


def _photograph(name: str, value: Source | np.ndarray) -> Source:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
        return Image.fromarray(value)
    if isinstance(value, str | Path | Image.Image):
        return value
    is_array = isinstance(value, np.ndarray)
    what = f"an array of {value.dtype}, {value.shape}" if is_array else type(value).__name__
    raise ValueError(f"{name}: expected a path, a PIL image, or an array (H, W, 3) of uint8, not {what}")


def _check_number(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or not least <= value < 2**64:
        raise ValueError(f"{name}={value!r}: expected a whole number from {least} to 2**64 - 1")


def _devices(named: Sequence[str | torch.device]) -> list[torch.device]:
    """Raises ValueError for one that is not here, and for none."""
    if not named:
        raise ValueError("device: an empty list; name at least one, such as cpu or cuda:0")
    devices = []
    for each in named:
        try:
            device = torch.device(each)
        except (RuntimeError, TypeError):
            raise ValueError(f"device={each!r}: no such device; use auto, cpu, cuda, cuda:1 or mps") from None
        if device.type not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device={each!r}: not computed on; use auto, cpu, cuda, cuda:1 or mps")
        pick_device(device.type)  # which refuses what is not here
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={each!r}: there are {torch.cuda.device_count()} GPUs, from cuda:0 on; name these")
        devices.append(device)
    return devices


@contextmanager
def _in_a_program() -> Iterator[None]:
    """What is refused within, in the words of a program."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_told(str(error))) from error


def _told(message: str) -> str:
    for option, word in IN_A_PROGRAM.items():
        message = message.replace(option, word)
    return message

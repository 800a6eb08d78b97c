"""The cascade for programs: photographs in, pictures out.

from model import TryOnCascade

cascade = TryOnCascade.from_pretrained("runs/cascade")
cascade(person="anna.jpg", garment="shirt.jpg").save("anna_in_shirt.png")
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from data.estimators import DEFAULT, Estimators
from model.cascade import between
from sampling.devices import Replicas, pick_devices
from sampling.drawing import work_of
from sampling.inputs import Inputs, Lowres
from sampling.photos import Shot, Source, pairs_of_photos
from sampling.stages import Trained, find_stages, weights_of

Pictures = Image.Image | list[Image.Image]


class TryOnCascade:
    """Trained stages that put garments on persons."""

    def __init__(self, replicas: Replicas, stages: list[Trained]):
        self.replicas, self.stages = replicas, stages
        self.notes: list[str] = []  # what the photographs of the last call could not tell

    @classmethod
    def from_pretrained(
        cls, *folders: str | Path, device: str | torch.device | Sequence[str | torch.device] = "auto",
        precision: str | None = None, overrides: Sequence[str] = (), weights: str | Sequence[str] = (),
        one_at_a_time: bool = False,
    ) -> "TryOnCascade":  # fmt: skip
        """The cascade of run folders, exported folders, or one folder of such.

        device: auto, cpu, cuda, cuda:1, mps; of several, each gets a replica and a share of every batch.  precision of
        computation: fp32, bf16, fp16; None: that of training.  overrides: as on sample.py's command line, such as
        "sampler.num_steps=20" or "sr_unet.sampler.method=ddim".  Raises ValueError for whatever is wrong there.
        """
        extra = [] if precision is None else [f"engine.precision={precision}"]
        stages = find_stages([Path(folder) for folder in folders], [*overrides, *extra])
        named = [device] if isinstance(device, str | torch.device) else device
        devices = pick_devices(stages, dp=False) if device == "auto" else [torch.device(each) for each in named]
        words = [weights] if isinstance(weights, str) else weights
        return cls(Replicas(stages, weights_of(words, stages), devices, one_at_a_time), stages)

    def __call__(
        self, person: Source | Sequence[Source], garment: Source | Sequence[Source], *, garment_kind: str = "worn",
        seed: int = 0, start: str | None = None, stop: str | None = None,
        image: Source | Sequence[Source] | None = None, return_all: bool = False, batch: int = 16, crop: bool = False,
        rule: str = "paper", estimators: Estimators = DEFAULT,
    ) -> Pictures | dict[str, Pictures]:  # fmt: skip
        """One picture for one person and one garment; for lists, which go together one by one, a list.  A single
        person tries on all garments of a list, and the other way round.

        Photographs are paths or PIL images.  start and stop: the first and the last stage to run; image: what the first
        one sharpens, if it is not the first of the cascade.  return_all: a dict of every stage's pictures, by name.
        Raises ValueError that names the photograph and the remedy.
        """
        persons, garments = _listed(person), _listed(garment)
        num = max(len(persons), len(garments))
        if {len(persons), len(garments)} - {1, num}:
            raise ValueError(
                f"{len(persons)} persons and {len(garments)} garments; give as many of both, or one of one"
            )
        pairs = [(min(i, len(persons) - 1), min(i, len(garments) - 1)) for i in range(num)]
        stages = between(self.stages, start, stop)
        inputs, self.notes = pairs_of_photos(
            [Shot(each) for each in persons], [Shot(each) for each in garments], garment_kind, pairs, crop=crop,
            rule=rule, estimators=estimators,
        )  # fmt: skip
        images = None if image is None else _listed(image)
        lowres = Lowres(stages[0], inputs, images) if images or stages[0].config.model.lowres else None
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


def _listed(value: Source | Sequence[Source]) -> list[Source]:
    return list(value) if isinstance(value, list | tuple) else [value]

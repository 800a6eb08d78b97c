"""The run that is diagnosed: config, data and newest checkpoint.  Nothing of it is changed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.augment import NO_AUGMENTATION, AugmentConfig
from data.dataset import BadSample, ShardedDataset
from data.loader import Batch, Order, Stream, batches
from data.mixture import Mixture, shuffled
from data.order import FixedOrder
from data.pipes import Pipes
from data.schema import Sample
from model.conditions import Conditions
from model.diffusion import Net, diffusion_loss, to_unit_range
from model.losses import Objective
from training import checkpoint
from training.batch import clean_conditions, to_device
from training.checkpoint import TrainState
from training.config import Config, read_config
from training.draws import TrainingDraws
from training.engine import SingleDevice
from training.start import open_data

ALONE = ("engine.device=auto", "engine.compile=false", "engine.offload=none", "engine.zero_stage=null")


class Subject(NamedTuple):
    run_dir: Path
    config: Config
    dataset: Mixture
    held_out: ShardedDataset | None
    folder: Path | None  # of the newest whole checkpoint; None: there is none, as of a run that diverged early
    state: TrainState  # of that
    told: list[str]  # what the user should know of checkpoints and data

    def engine(self) -> SingleDevice:
        """One device with the weights that the run began with: the seed gives them again."""
        config = self.config
        return SingleDevice(config.model, config.engine, config.optim, config.seed)

    def weights(self, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """These weights of the checkpoint by parameter, on the CPU: model, ema, ..."""
        there = sorted({file.stem for file in self.folder.glob("*.safetensors")} - {"optimizer"})
        if not there:
            raise ValueError(f"{self.folder}: gone: training has written newer ones meanwhile; the same command again")
        if name not in there:
            raise ValueError(f"--weights {name}: {self.folder} has {', '.join(there)}; name one of them")
        with checkpoint.open_tensors(self.folder, name, shapes) as get:
            return {key: get(key).clone() for key in shapes}  # what is mapped from a file may vanish with it

    def stream(self, *, held_out: bool = False, augmented: bool = False) -> Stream:
        """What training sees, from its first position on, or held-out samples in their order."""
        config = self.config
        augmentation = config.data.augment if augmented and not config.train.overfit_one_batch else NO_AUGMENTATION
        if held_out:
            return self._stream(self.held_out, FixedOrder(len(self.held_out)), augmentation)
        if config.train.overfit_one_batch:
            return self._stream(self.dataset, FixedOrder(config.train.global_batch), augmentation)
        return self._stream(self.dataset, shuffled(self.dataset, config.data, config.seed), augmentation)

    def _stream(self, dataset: Mixture | ShardedDataset, order: Order, augmentation: AugmentConfig) -> Stream:
        config = self.config
        draws = TrainingDraws(config.seed, config.training_size, config.model.num_aug_levels, config.diffusion)
        return Stream(dataset, order, draws, config.seed, augmentation, config.data.crop_size)

    def inputs(self, batch: Batch, device: torch.device) -> tuple[Tensor, Conditions, Batch]:
        """x0, its clean conditions and the batch, on this device."""
        batch = to_device(batch, device)
        x0 = to_unit_range(batch.person)
        return x0, clean_conditions(batch, x0, self.config.model), batch

    def loss(self, net: Net, batch: Batch, objective: Objective, device: torch.device) -> Tensor:
        """(B,), as training computes it."""
        x0, cond, batch = self.inputs(batch, device)
        return diffusion_loss(net, x0, cond, batch.draws, self.config.diffusion, objective)


def read(stream: Stream, num: int, size: int) -> Iterator[Batch]:
    """The first `num` samples of a stream, in batches of `size` and a rest."""
    positions = ([*range(first, min(first + size, num))] for first in range(0, num, size))
    return batches(stream, positions, num_workers=0)


def whole_samples(stream: Stream, num: int) -> list[Sample]:
    """The first `num` samples of a stream, without those that are broken."""
    samples = []
    for position in range(num):
        with suppress(BadSample):
            samples.append(stream.sample(position))
    return samples


def open_subject(run_dir: Path, overrides: list[str]) -> Subject:
    """overrides: key=value for what is elsewhere now, such as data.shards.

    Raises ValueError where there is no run or no data, or where a checkpoint is of another seed.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: missing; name a run folder, which training makes under run.dir")
    config = read_config(path, [*ALONE, *overrides])
    config, dataset, held_out = open_data(config)
    if isinstance(dataset, Pipes):
        raise ValueError(
            f"data.shards={config.data.shards}: a pipe is read once, from its beginning; name some shards of the same "
            "data in a folder: data.shards=FOLDER"
        )
    folder, told = checkpoint.find(run_dir)
    if folder is None:
        why = "; ".join(told) or "training has not written one"
        told = [f"{run_dir}: no whole checkpoint ({why}): what depends on trained weights is not looked at"]
        return Subject(run_dir, config, dataset, held_out, None, TrainState(seed=config.seed), told)
    state = checkpoint.read_state(folder)
    if state.seed != config.seed:
        raise ValueError(f"seed={config.seed}: {folder} was trained with seed={state.seed}; leave the key out")
    if list(state.data.values()) != list(dataset.fingerprints().values()):
        told = [*told, f"data.shards={','.join(config.data.places())}: not the data that {folder} was trained on"]
    return Subject(run_dir, config, dataset, held_out, folder, state, told)

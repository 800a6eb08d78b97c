"""A run's state in and out of its checkpoints, whatever the engine and the number of ranks."""

from pathlib import Path

import torch

from data.dataset import ShardedDataset
from training import checkpoint
from training.checkpoint import TrainState
from training.config import Config
from training.ema import EMA
from training.engine import SingleDevice


def resume(
    run_dir: Path, config: Config, dataset: ShardedDataset, engine: SingleDevice, ema: EMA
) -> tuple[TrainState, list[str]]:
    """The state of the newest whole checkpoint, loaded on every rank, or a fresh one; and what newer ones lacked."""
    folder, rejected = checkpoint.find(run_dir)
    if folder is None:
        if rejected:
            raise ValueError(
                "no checkpoint is whole: " + "; ".join(rejected) + f"; remove {run_dir / 'checkpoints'} to start anew"
            )
        return TrainState(seed=config.seed, data=dataset.fingerprint), []
    state = checkpoint.read_state(folder)
    if state.data != dataset.fingerprint:
        raise ValueError(
            f"data.shards={config.data.shards}: not the data that {folder} was trained on (fingerprint "
            f"{dataset.fingerprint}, then {state.data}); samples would repeat or be lost: use the same shards, or "
            "another run.dir"
        )
    if state.seed != config.seed:
        raise ValueError(
            f"seed={config.seed}: {folder} was trained with seed={state.seed}; use that one, or another run.dir"
        )
    parameters = dict(engine.model.named_parameters())
    weights = checkpoint.read_tensors(folder, "model", parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    ema.load(checkpoint.read_tensors(folder, "ema", parameters), state.ema_updates)
    engine.load_optimizer_tensors(checkpoint.read_tensors(folder, "optimizer"))
    engine.set_loss_scale(state.loss_scale)
    return state, rejected


def save(run_dir: Path, state: TrainState, engine: SingleDevice, ema: EMA, keep: int) -> None:
    state.ema_updates, state.loss_scale = ema.num_updates, engine.loss_scale()
    tensors = {
        "model": dict(engine.model.named_parameters()),
        "ema": ema.shadow,
        "optimizer": engine.optimizer_tensors(),
    }
    checkpoint.save(run_dir, state, tensors, keep)

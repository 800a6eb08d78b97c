"""A run's state in and out of its checkpoints, whatever the engine and the number of ranks."""

from pathlib import Path

from data.mixture import Mixture
from data.pipes import Pipes
from training import checkpoint
from training.checkpoint import TrainState
from training.config import Config
from training.ema import EMA
from training.engine import SingleDevice


def resume(
    run_dir: Path, config: Config, dataset: Mixture | Pipes, engine: SingleDevice, ema: EMA
) -> tuple[TrainState, list[str]]:
    """The state of the newest whole checkpoint, loaded on every rank, or a fresh one; and what newer ones lacked."""
    folder, rejected = checkpoint.find(run_dir)
    if folder is None:
        if rejected:
            raise ValueError(
                "no checkpoint is whole: " + "; ".join(rejected) + f"; remove {run_dir / 'checkpoints'} to start anew"
            )
        return TrainState(seed=config.seed, data=dataset.fingerprints()), []
    state = checkpoint.read_state(folder)
    _check_data(state.data, dataset.fingerprints(), folder)
    if state.seed != config.seed:
        raise ValueError(
            f"seed={config.seed}: {folder} was trained with seed={state.seed}; use that one, or another run.dir"
        )
    with checkpoint.open_tensors(folder, "model", engine.shapes) as get:
        engine.load_weights(get)
    for name in ema.files():
        with checkpoint.open_tensors(folder, name, engine.shapes) as get:
            ema.load(name, get)
    ema.num_updates = state.ema_updates
    with checkpoint.open_tensors(folder, "optimizer", engine.optimizer_shapes(state.optimizer_steps)) as get:
        engine.load_optimizer(get, state.optimizer_steps)
    engine.set_loss_scale(state.loss_scale)
    return state, rejected


def _check_data(then: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """Raises ValueError naming the data set that is another than at the checkpoint; where it lies may change."""
    if len(then) != len(now):
        raise ValueError(
            f"data.shards={','.join(now)}: {folder} was trained on {','.join(then)}; name the same data sets, or "
            "choose another run.dir"
        )
    for (old_place, old), (place, new) in zip(then.items(), now.items(), strict=True):
        if old != new:
            raise ValueError(
                f"data.shards={place}: not the data that {folder} was trained on (fingerprint {new}, then {old}, "
                f"{old_place}); samples would repeat or be lost: use the same shards, or another run.dir"
            )


def save(run_dir: Path, state: TrainState, engine: SingleDevice, ema: EMA, keep: int) -> None:
    state.ema_updates, state.optimizer_steps = ema.num_updates, engine.optimizer_steps
    state.loss_scale = engine.loss_scale()
    files = {"model": engine.weight_tensors(), "optimizer": engine.optimizer_tensors()} | ema.files()
    checkpoint.save(run_dir, state, files, keep)

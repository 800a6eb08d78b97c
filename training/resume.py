"""A run's state in and out of its checkpoints, whatever the engine and the number of ranks."""

from pathlib import Path

from data.mixture import Mixture
from data.pipes import Pipes
from training import checkpoint
from training.checkpoint import Saver, TrainState
from training.config import Config
from training.ema import EMA
from training.engine import SingleDevice
from training.pieces import Tensors


def resume(
    run_dir: Path, config: Config, dataset: Mixture | Pipes, engine: SingleDevice, ema: EMA
) -> tuple[TrainState, list[str]]:
    """The state of the newest whole checkpoint, loaded on every rank, or a fresh one; and what the user should know."""
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
    told = [f"{message}; falling back to an older checkpoint" for message in rejected]
    told += ema.read(folder, state.ema_updates)
    with checkpoint.open_tensors(folder, "optimizer", engine.optimizer_shapes(state.optimizer_steps)) as get:
        engine.load_optimizer(get, state.optimizer_steps)
    engine.set_loss_scale(state.loss_scale)
    return state, told


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


def prepare(saver: Saver, engine: SingleDevice, ema: EMA) -> None:
    """Makes the memory ready for the checkpoints of this run, of which all after a first step hold moments."""
    saver.prepare(files(engine, ema) | {"optimizer": Tensors(engine.optimizer_shapes(1), lambda: iter(()))})


def save(saver: Saver, state: TrainState, engine: SingleDevice, ema: EMA) -> None:
    """Begins a checkpoint of where training stands now."""
    state.ema_updates, state.optimizer_steps = ema.num_updates, engine.optimizer_steps
    state.loss_scale = engine.loss_scale()
    saver.save(state, files(engine, ema))


def files(engine: SingleDevice, ema: EMA) -> dict[str, Tensors]:
    """What a checkpoint holds, by file name."""
    return {"model": engine.weight_tensors(), "optimizer": engine.optimizer_tensors()} | ema.files()

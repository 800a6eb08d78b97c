"""Everything that is checked before the first step."""

import errno
import math
import os
import socket
import time
from pathlib import Path
from typing import Any, TextIO

from data.dataset import ShardedDataset
from data.mixture import Mixture, open_shards, open_training
from data.pipes import Pipes
from training.config import Config, TrainConfig, differences, read_config, save_config, validate
from training.distributed import Passing, is_stray_rank, num_ranks
from training.engine import SingleDevice, pick_device
from training.fit import accumulation_of
from training.log import check_log
from training.snapshot import keep_code, keep_environment
from training.stop import clear_markers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE_S = 100  # that a batch job waits for the end of another start in its run folder
HELD: list[TextIO] = []  # locks of this process; an open file is what holds one
# A run that changes one of these is another run.
CURVE_KEYS = (
    "seed", "data.shuffle_block", "data.weights", "data.resize", "data.crop_size", "train.overfit_one_batch",
    "diffusion.prediction",
)  # fmt: skip


def check(config: Config, engine_class: type[SingleDevice]) -> tuple[Config, Mixture | Pipes, ShardedDataset | None]:
    """The config with what follows from data and ranks filled in, and the data sets.

    Raises ValueError for whatever does not fit together.
    """
    if is_stray_rank():
        raise ValueError("torchrun started several processes of a script that is one process; use train_ddp.py")
    if config.engine.zero_stage is not None and not engine_class.takes_zero_stage:
        raise ValueError(
            f"engine.zero_stage={config.engine.zero_stage} is for train_ddp.py: torchrun --nproc_per_node=NUM_GPUS "
            "train_ddp.py; use engine.zero_stage=null here"
        )
    pick_device(config.engine.device, config.engine.precision)
    train = cut_batch(config.train, engine_class.num_devices(), num_ranks())
    config = config.model_copy(update={"train": train})
    accumulation_of(config, engine_class.num_devices())
    return open_data(config)


def cut_batch(train: TrainConfig, num_devices: int, num_ranks: int) -> TrainConfig:
    """With the global batch that follows from micro_batch and the devices, if micro_batch is given.

    Raises ValueError when ranks and accumulation do not divide the global batch.
    """
    if train.micro_batch is not None:
        train = train.model_copy(update={"global_batch": train.micro_batch * num_devices * train.accumulation})
    share = num_ranks * train.accumulation
    if train.global_batch % share:
        fits = [str(n) for n in range(1, 1025) if train.global_batch % (n * train.accumulation) == 0]
        raise ValueError(
            f"train.global_batch={train.global_batch} does not divide by {num_ranks} ranks x "
            f"train.accumulation={train.accumulation}; use train.global_batch="
            f"{math.ceil(train.global_batch / share) * share}" + (f" or {', '.join(fits[:8])} ranks" if fits else "")
        )
    return train


def open_data(config: Config) -> tuple[Config, Mixture | Pipes, ShardedDataset | None]:
    """The config with what follows from the data filled in, the training samples and the held-out ones.

    Raises ValueError when they are not there, do not fit the config or are too few.
    """
    train = config.train
    if any(place.startswith("pipe:") for place in config.data.places()):
        return config, _open_pipes(config), _open_held_out(config)
    dataset = open_training(config.data, config.model.image_size, config.num_images)
    if config.model.image_size is None:
        config = _with_size_of(dataset.parts[0], config)
        dataset = open_training(config.data, config.model.image_size, config.num_images)
    for part in dataset.parts:
        _check_part("data.shards", part, config)
        if config.model.tries_on and not part.paired:
            raise ValueError(
                f"data.shards={part.folder}: unpaired samples: the persons wear other garments than the ones beside "
                "them; train on shards made with --pairing paired"
            )
    held_out = _open_held_out(config)
    if len(dataset) < train.global_batch:
        raise ValueError(
            f"data.shards={','.join(config.data.places())}: {len(dataset)} samples, fewer than train.global_batch="
            f"{train.global_batch}; prepare more samples or use train.global_batch={len(dataset)} or less"
        )
    if train.num_epochs is not None:
        steps = max(1, math.ceil(train.num_epochs * len(dataset) / train.global_batch))
        train = train.model_copy(update={"num_steps": steps})
    return config.model_copy(update={"train": train}), dataset, held_out


def _with_size_of(dataset: ShardedDataset, config: Config) -> Config:
    values = config.model_dump(mode="json")
    values["model"]["image_size"] = dataset.image_size
    return validate(values, f"data.shards={dataset.folder}")


def _open_held_out(config: Config) -> ShardedDataset | None:
    if not config.data.val_shards:
        return None
    size, num_images = config.model.image_size, config.num_images
    held_out = open_shards("data.val_shards", config.data.val_shards, config.data, size, num_images)
    _check_part("data.val_shards", held_out, config)
    return held_out


def _open_pipes(config: Config) -> Pipes:
    """Raises ValueError for what needs to know the data."""
    places = config.data.places()
    needs = {
        "train.num_epochs": config.train.num_epochs,
        "train.overfit_one_batch": config.train.overfit_one_batch,
        "data.weights": config.data.weights,
    }
    for key, value in needs.items():
        if value:
            raise ValueError(f"{key}={value}: a pipe does not tell what it holds; use shards in a folder or at a URL")
    if not all(place.startswith("pipe:") for place in places):
        raise ValueError(f"data.shards={','.join(places)}: pipes and other shards do not mix; use one kind")
    return Pipes(places, config.model.image_size, config.num_images)


def _check_part(key: str, dataset: ShardedDataset, config: Config) -> None:
    """Raises ValueError when the images have another size than the model."""
    if dataset.image_size != config.model.image_size:
        have, want = ("x".join(map(str, size)) for size in (dataset.image_size, config.model.image_size))
        raise ValueError(
            f"{key}={dataset.folder}: images of {have}, but model.image_size={want}; prepare shards with --size "
            f"{want}, resize them as they are read with data.resize=lanczos, or set "
            f"model.image_size=[{','.join(map(str, dataset.image_size))}]"
        )


def check_run(run_dir: Path, config: Config) -> tuple[dict[str, tuple[Any, Any]], str]:
    """Makes the run folder and takes it.  -> (keys, with both values, that changed since it was last used; a word that
    tells this start from earlier ones, also in RUN/start)

    Raises ValueError when it belongs to another run, is in use, or cannot be written.
    """
    check_log(config.log)
    path, changed = run_dir / "config.yaml", {}
    if path.is_file():
        changed = differences(read_config(path), config)
        foreign = {key: value for key, value in changed.items() if key in CURVE_KEYS or key.startswith("model.")}
        if foreign:
            told = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in foreign.items())
            raise ValueError(f"{run_dir}: holds a run of another kind ({told}); choose another run.dir (--logdir)")
    start = f"{socket.gethostname()} {os.getpid()} {time.time()}"
    try:
        (run_dir / "logs" / socket.gethostname()).mkdir(parents=True, exist_ok=True)
        (run_dir / "training.log").open("a").close()
        _take(run_dir)
        (run_dir / "start").write_text(start, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"run.dir={run_dir}: cannot be written ({error}); choose another run.dir") from error
    return changed, start


def _take(run_dir: Path) -> None:
    """Holds RUN/lock until this process ends, however it ends.

    A record lock: the loader's workers do not inherit it, and no kill leaves a stale one, though a network file system
    may keep that of a dead host for a minute or two.  Some of those know no locks; there, nothing is held.
    """
    if fcntl is None:
        return
    lock = (run_dir / "lock").open("a+")
    end = time.monotonic() + (PATIENCE_S if "TRYON_REFUSED" in os.environ else 0)
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > end:
            lock.seek(0)
            raise Passing(
                f"run.dir={run_dir}: {lock.read().strip() or 'another process'} is training there; stop it, or choose "
                "another run.dir"
            )
        time.sleep(1)
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
    lock.flush()
    HELD.append(lock)


def keep(run_dir: Path, config: Config, devices: list[str]) -> None:
    """Writes config.yaml, code and environment once nothing speaks against the run: a refused command leaves the old
    ones as they were."""
    try:
        clear_markers(run_dir)
        save_config(config, run_dir / "config.yaml")
        keep_code(run_dir)
        keep_environment(run_dir, devices)
    except OSError as error:
        raise ValueError(f"run.dir={run_dir}: cannot be written ({error}); choose another run.dir") from error

"""Runs of a toy network in place of the config's: every mechanism, none of the work."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.loader import Layout, rank_positions
from model.diffusion import diffusion_loss
from training.config import Config
from training.distributed import fake_process_group
from training.engine import DDP, SingleDevice
from training.fit import blank_inputs
from training.loop import train

CHANNELS, EMB_DIM = 8, 16  # of the toy; as many levels as the config has
MICRO_BATCHES = 2  # of the dry run at most: one that does not reduce, one that does


def toy(config: Config, run_dir: Path) -> Config:
    """The config with a network of a few thousand parameters, one step of two samples, on the CPU."""
    levels = len(config.model.channels)
    parts: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir)},
        "model": {
            "channels": (CHANNELS,) * levels, "num_blocks": (1,) * levels, "garment_num_blocks": None,
            "head_dim": CHANNELS, "emb_dim": EMB_DIM,
        },
        "data": {"num_workers": 0},
        "sampler": {"num_steps": 2},
        "train": {"num_steps": 1, "num_epochs": None, "global_batch": 2, "micro_batch": None, "accumulation": 1},
        "optim": {"name": "adamw"},
        "engine": {
            "zero_stage": None, "offload": "none", "micro_batch": None, "activation_checkpointing": False,
            "device": "cpu", "precision": "fp32" if config.engine.precision == "fp16" else config.engine.precision,
            "compile": False, "deterministic": False,
        },
        "log": {"num_validation": 2, "preview_every": 1, "num_previews": 1, "preview_steps": 2},
    }  # fmt: skip
    parts["model"] = {key: value for key, value in parts["model"].items() if key in type(config.model).model_fields}
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in parts.items()}
    )


def real_step(config: Config) -> None:
    """One step of the toy by the training loop itself, on the run's own shards: data, step, validation, preview and
    checkpoint, in a folder that is removed.

    Raises ValueError as training would.
    """
    with tempfile.TemporaryDirectory(prefix="doctor_") as folder, redirect_stderr(StringIO()), _unchanged_backends():
        train(toy(config, Path(folder) / "run"), SingleDevice)


def missing_positions(layout: Layout) -> list[int]:
    """The places of the first step that the ranks together do not take exactly once."""
    taken = [0] * layout.global_batch
    for rank in range(layout.num_ranks):
        for positions in rank_positions(layout._replace(rank=rank), 0, 1):
            for position in positions:
                taken[position] += 1
    return [position for position, times in enumerate(taken) if times != 1]


def dry_run(config: Config, num_ranks: int) -> None:
    """One DDP step of the toy as the first and as the last of `num_ranks` ranks, whose others do not exist.

    Raises ValueError naming the parameters that got no gradient, which DDP would wait for.
    """
    small = toy(config, Path())
    for rank in sorted({0, num_ranks - 1}):
        with fake_process_group(rank, num_ranks), _unchanged_backends():
            engine = DDP(small.model, small.engine, small.optim, small.seed)
            engine.net.register_comm_hook(None, _nobody_else)
            idle = {name for name, _ in engine.model.named_parameters()}
            for name, p in engine.model.named_parameters():
                p.register_post_accumulate_grad_hook(lambda p, name=name, idle=idle: idle.discard(name))
            micro_batches = min(MICRO_BATCHES, config.train.accumulation)
            for micro in range(micro_batches):
                x0, cond, draws = blank_inputs(small, 1)
                with engine.microbatch(last=micro == micro_batches - 1):
                    engine.backward(diffusion_loss(engine.net, x0, cond, draws, small.diffusion).mean())
            if idle:
                raise ValueError(f"rank {rank} of {num_ranks}: no gradient for {', '.join(islice(sorted(idle), 5))}")
            engine.step(small.optim.lr)


def _nobody_else(state, bucket):  # DDP refuses annotations other than its own
    """The reduction of a group whose other ranks do not exist: what was there.  -> a Future of it"""
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


@contextmanager
def _unchanged_backends() -> Iterator[None]:
    """What engines set for the whole process is as before after this block."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before

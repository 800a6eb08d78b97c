"""How many samples a rank takes at once: as many as the config says, or as fit into its devices' memory.

The loss curve does not depend on it: train.global_batch samples make a step, in however many passes.

    RUN/micro_batch.json    what engine.micro_batch=auto found, so that a restart begins there
"""

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from data.schema import JOINTS
from model.conditions import Conditions
from model.diffusion import Draws, diffusion_loss
from model.losses import Objective
from training.config import Config
from training.distributed import Agreed, Passing, all_gather, get_rank, on_main
from training.engine import SingleDevice
from training.optim import reserved_moments

FILE = "micro_batch.json"
REMEDIES = (
    "use engine.activation_checkpointing=true, engine.lean_norms=true, engine.zero_stage=2 or optim.name=adamw8bit; "
    "python -m launch.doctor --gpu NAME says what fits"
)


class TooLarge(Passing):
    """A step did not fit into a device's memory; started again, the run takes fewer samples at once."""


def accumulation_of(config: Config, num_devices: int) -> int:
    """Passes of one optimizer step that the config asks for; 1 for engine.micro_batch=auto, which finds out.

    Raises ValueError when engine.micro_batch does not divide the global batch.
    """
    micro, train = config.engine.micro_batch, config.train
    if micro is None:
        return train.accumulation
    if micro == "auto":
        return 1
    if train.global_batch % (micro * num_devices):
        share = train.global_batch // num_devices
        fits = [str(n) for n in range(1, share + 1) if train.global_batch % (n * num_devices) == 0]
        raise ValueError(
            f"engine.micro_batch={micro}: on {num_devices} devices it does not divide train.global_batch="
            f"{train.global_batch}; use " + (" or ".join(fits[-4:]) or f"at most {train.global_batch} devices")
        )
    return train.global_batch // (micro * num_devices)


def fit_micro_batch(engine: SingleDevice, config: Config, run_dir: Path, objective: Objective) -> int:
    """Passes of one optimizer step: train.accumulation of this start.

    Every rank calls, once all that the run keeps on its devices is there.  With engine.micro_batch=auto each rank tries
    a pass; while one of them runs out of memory, all halve their samples.  DeepSpeed's passes are collective: nothing
    is tried there, and it is the first step that fails (see out_of_memory_told).
    Raises ValueError on every rank when a single sample does not fit.
    """
    accumulation = accumulation_of(config, engine.num_devices())
    if config.engine.micro_batch != "auto":
        return accumulation
    share = config.train.global_batch // engine.num_ranks
    made_for = _made_for(config, engine)
    num = on_main(lambda: _known(run_dir, made_for, share))
    while config.engine.zero_stage is None and not all(all_gather(_fits(engine, config, num, objective))):
        if num == 1:
            raise Agreed(f"engine.micro_batch=auto: not even one sample fits into the memory; {REMEDIES}")
        num = half(num, share)
    on_main(lambda: _keep(run_dir, made_for, num))
    return share // num


@contextmanager
def out_of_memory_told(engine: SingleDevice, config: Config, run_dir: Path, accumulation: int) -> Iterator[None]:
    """Around the steps: a rank that runs out of its device's memory says what helps.

    With engine.micro_batch=auto it raises TooLarge, and the next start takes half the samples at once; otherwise, and
    where one sample was too much, ValueError.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        share = config.train.global_batch // engine.num_ranks
        num = share // accumulation
        told = f"out of memory on {engine.device} with {num} sample{'s' * (num > 1)} at a time"
        if config.engine.micro_batch != "auto" or num == 1:
            auto = "" if config.engine.micro_batch == "auto" else "use engine.micro_batch=auto, or "
            raise ValueError(f"{told}; {auto}{REMEDIES}") from error
        _keep(run_dir, _made_for(config, engine), half(num, share))
        raise TooLarge(f"{told}; the same command continues with {half(num, share)}") from error


@contextmanager
def needs_memory(what: str) -> Iterator[None]:
    """Around what no smaller micro-batch would mend: a device too small for it is a ValueError that says what helps."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(f"out of memory for {what}; {REMEDIES}") from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory was too small; CUDA's libraries have errors of their own for it."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in told or "CUDA error: out of memory" in told


def half(num: int, share: int) -> int:
    """The largest number that divides `share` and is at most half of `num`; 1 at least."""
    return next(n for n in range(max(1, num // 2), 0, -1) if share % n == 0)


def _fits(engine: SingleDevice, config: Config, num: int, objective: Objective) -> bool:
    """Whether this rank has the memory for passes of so many samples, beside moments and gradients."""
    try:
        _two_passes(engine, config, num, objective)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        engine.clear_gradients()
        gc.collect()
        if engine.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _two_passes(engine: SingleDevice, config: Config, num: int, objective: Objective) -> None:
    """The second goes forward while the gradients of the first are there."""
    reserved = reserved_moments(engine.optimizer)
    for _ in range(2):
        with torch.device(engine.device):
            x0, cond, draws = blank_inputs(config, num)
        with engine.microbatch(last=False):
            engine.backward(diffusion_loss(engine.net, x0, cond, draws, config.diffusion, objective).mean())
    del reserved


def blank_inputs(config: Config, num: int) -> tuple[Tensor, Conditions, Draws]:
    """x0, conditions and draws of a micro-batch of zeros, (B, ...), as the loop gives them to the loss.

    LPIPS, where the loss has it, takes all of the samples, as it may in training.
    """
    model, size = config.model, config.training_size
    noise_aug = (3, *size) if config.diffusion.noise_aug_max > 0 else (1, 1, 1)
    x0, noise, *images = (torch.zeros(num, 3, *size) for _ in range(4))
    poses = [torch.zeros(num, len(JOINTS), 3) for _ in range(2)]
    told = [*images, *poses] if model.tries_on else [None] * 4
    lowres = torch.zeros(num, 3, *size) if model.lowres else None
    cond = Conditions(*told, torch.zeros(num, model.num_aug_levels), lowres)
    level, aug = torch.zeros(num, model.num_aug_levels), torch.zeros(num, model.num_aug_levels, *noise_aug)
    return x0, cond, Draws(torch.zeros(num) + min(0.5, config.loss.lpips_max_t), noise, torch.ones(num), level, aug)


def _made_for(config: Config, engine: SingleDevice) -> str:
    """A fingerprint of all that the memory of a rank depends on, and of the batch: a larger share is tried anew."""
    device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else engine.device.type
    sections = (config.model, config.engine, config.optim, config.ema, config.loss)
    parts = [section.model_dump(mode="json") for section in sections]
    shared = [config.train.global_batch, engine.num_devices(), engine.num_ranks, config.data.crop_size]
    told = json.dumps([parts, device, shared], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _known(run_dir: Path, made_for: str, share: int) -> int:
    """What an earlier start found for the same network and batch on the same devices, else the whole share."""
    try:
        known = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        if known["made_for"] == made_for and known["samples"] in range(1, share + 1) and share % known["samples"] == 0:
            return int(known["samples"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours: it is found anew
    return share


def _keep(run_dir: Path, made_for: str, num: int) -> None:
    """Writes the file, whole or not at all.  Raises ValueError when it cannot be written."""
    partial = run_dir / f"{FILE}.{get_rank()}.partial"
    try:
        partial.write_text(json.dumps({"samples": num, "made_for": made_for}) + "\n", encoding="utf-8")
        partial.replace(run_dir / FILE)
    except OSError as error:
        raise ValueError(f"{run_dir / FILE}: cannot be written ({error}); choose another run.dir") from error

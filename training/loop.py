"""The training loop.  There is one."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from data.dataset import ShardedDataset
from data.loader import Batch, Layout, Stream, batches, rank_positions
from data.order import FixedOrder, ShuffledOrder
from model.diffusion import diffusion_loss, to_unit_range
from training.batch import clean_conditions, to_device
from training.checkpoint import TrainState
from training.config import Config
from training.distributed import Agreed, agreed, all_reduce_sum, on_main
from training.draws import TrainingDraws
from training.ema import EMA
from training.engine import SingleDevice
from training.held_out import preview, validation_loss
from training.log import RunLog
from training.optim import lr_at
from training.resume import resume, save
from training.sheet import contact_sheet
from training.start import check, check_run, keep_config
from training.stop import stop_on_signal

T_BINS = 10


class Report(NamedTuple):
    """What all ranks know of a step after its one all-reduce."""

    loss: float
    stop: bool
    bins: list[float]  # loss sums of T_BINS equal intervals of t, then their counts


def train(config: Config, engine_class: type[SingleDevice]) -> None:
    """Trains, or continues, the run in config.run.dir until its last step.

    Raises ValueError on every rank, before the first step, for whatever the user got wrong.
    """
    run_dir = Path(config.run.dir)
    with agreed():
        config, dataset, held_out = check(config, engine_class)
    changed = on_main(lambda: check_run(run_dir, config))
    engine = engine_class(config.model, config.engine, config.optim, config.seed)
    ema = EMA(engine.model, config.ema.decay)
    with agreed():
        state, rejected = resume(run_dir, config, dataset, engine, ema)
    on_main(lambda: keep_config(run_dir, config))
    draws = TrainingDraws(config.seed, config.model.image_size, config.model.num_aug_levels, config.diffusion)
    layout = Layout(config.train.global_batch, engine.rank, engine.num_ranks, config.train.accumulation)
    log = RunLog(run_dir, state.step, state.samples, config.train.num_steps, config.train.global_batch)
    for message in rejected:
        log.info(f"warning: {message}; falling back to an older checkpoint")
    for key, (old, new) in changed.items():
        log.info(f"changed since this run was last started: {key} from {old} to {new}")
    log.info(_greeting(config, dataset, engine, state))
    clock = Clock()
    stream = _micro_batches(config, dataset, draws, layout, state, engine.device)
    with stop_on_signal() as flag:
        while state.step < config.train.num_steps:
            losses, times = [], []
            for micro in range(layout.num_micro_batches):
                with clock.waiting():
                    batch = next(stream)
                batch = to_device(batch, engine.device)
                x0 = to_unit_range(batch.person)
                cond = clean_conditions(batch, x0, config.model.lowres)
                with engine.microbatch(last=micro == layout.num_micro_batches - 1):
                    loss = diffusion_loss(engine.net, x0, cond, batch.draws, config.diffusion)
                    engine.backward(loss.mean() / layout.num_micro_batches)
                losses.append(loss.detach())
                times.append(batch.draws.t)
            lr = lr_at(state.step, config.optim)
            grad_norm = engine.step(lr)
            _count_nonfinite(state, grad_norm, config)
            if state.nonfinite_in_row == 0:
                ema.update()
            report = share(torch.cat(losses), torch.cat(times), flag.wished)
            state.step += 1
            state.samples += config.train.global_batch
            clock.step(config.train.global_batch)
            log.advance(report.loss)
            _log_stats(log, state, report, clock, lr, grad_norm, config, engine)
            last = state.step == config.train.num_steps
            if held_out and (state.step % config.log.validate_every == 0 or last):
                with ema.applied(), clock.paused():
                    value = validation_loss(
                        engine.local_net, held_out, draws, config.log.num_validation, layout.micro_batch, engine.device
                    )
                log.scalars(state.step, {"validation/loss": value})
                log.info(f"step {state.step}: validation loss {value:.4f}")
            if state.step % config.log.preview_every == 0:
                with ema.applied(), clock.paused():
                    _log_preview(log, state, held_out or dataset, config, engine)
            if state.step % config.checkpoint.every == 0 or last or report.stop:
                with clock.paused():
                    save(run_dir, state, engine, ema, config.checkpoint.keep)
            if report.stop and not last:
                log.info(f"stopped at step {state.step} with a checkpoint; the same command continues")
                break
    if state.step >= config.train.num_steps:
        log.info(f"finished: {state.step} steps, {state.samples} samples, in {run_dir}")
    log.close()


def _micro_batches(
    config: Config, dataset: ShardedDataset, draws: TrainingDraws, layout: Layout, state: TrainState,
    device: torch.device,
) -> Iterator[Batch]:  # fmt: skip
    if config.train.overfit_one_batch:
        order = FixedOrder(config.train.global_batch)
    else:
        order = ShuffledOrder(dataset.shard_sizes, config.seed, config.data.shuffle_block)
    flip_prob = 0.0 if config.train.overfit_one_batch else config.data.flip_prob
    return batches(
        Stream(dataset, order, draws, config.seed, flip_prob),
        rank_positions(layout, state.samples, config.train.num_steps - state.step),
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        pin_memory=device.type == "cuda",
    )


def share(loss: Tensor, t: Tensor, stop: bool) -> Report:
    """The step's one all-reduce: the loss of all samples, by bins of t, and whether any rank wishes to stop."""
    dtype = torch.float32 if loss.device.type == "mps" else torch.float64
    bins = ((t * T_BINS).long().clamp(max=T_BINS - 1)[:, None] == torch.arange(T_BINS, device=t.device)).to(dtype)
    values = torch.cat(
        [bins.T @ loss.to(dtype), bins.sum(0), torch.tensor([float(stop)], dtype=dtype, device=t.device)]
    )
    *sums, stops = all_reduce_sum(values).tolist()
    return Report(sum(sums[:T_BINS]) / sum(sums[T_BINS:]), stops > 0, sums)


def _count_nonfinite(state: TrainState, grad_norm: float, config: Config) -> None:
    """One policy for a gradient that is not finite: all ranks skip the step; too many in a row end the run."""
    state.nonfinite_in_row = 0 if math.isfinite(grad_norm) else state.nonfinite_in_row + 1
    if state.nonfinite_in_row >= config.train.max_nonfinite:
        first, last = state.samples, state.samples + config.train.global_batch - 1
        raise Agreed(
            f"the gradient was not finite in {state.nonfinite_in_row} steps in a row, at last in step {state.step + 1} "
            f"(stream positions {first} to {last}); lower optim.lr, use engine.precision=bf16 or fp32; the last "
            "checkpoint is whole"
        )


def _log_stats(
    log: RunLog, state: TrainState, report: Report, clock: "Clock", lr: float, grad_norm: float, config: Config,
    engine: SingleDevice,
) -> None:  # fmt: skip
    window = state.window or [0.0] * (2 * T_BINS)
    state.window = [a + b for a, b in zip(window, report.bins, strict=True)]
    if state.step % config.log.every and state.step != config.train.num_steps:
        return
    sums, counts = state.window[:T_BINS], state.window[T_BINS:]
    state.window = []
    by_t = {f"loss_by_t/{i / T_BINS:.1f}": s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}
    samples_per_s, wait_share = clock.rates()
    log.stats_line(
        state.step,
        {
            "samples": state.samples,
            "loss": sum(sums) / sum(counts),
            "lr": lr,
            "grad_norm": grad_norm,
            "samples_per_s": samples_per_s,
            "data_wait_share": wait_share,
            "memory_gib": _memory_gib(engine.device),
            **by_t,
        },
    )


def _log_preview(log: RunLog, state: TrainState, dataset: ShardedDataset, config: Config, engine: SingleDevice) -> None:
    sampler = config.sampler.model_copy(update={"method": "ddim", "num_steps": config.log.preview_steps})
    samples, results = preview(
        engine.local_net, dataset, config.log.num_previews, lowres=config.model.lowres, diffusion=config.diffusion,
        sampler=sampler, seed=config.seed, device=engine.device,
    )  # fmt: skip
    log.image(state.step, "preview", contact_sheet(samples, results))


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _greeting(config: Config, dataset: ShardedDataset, engine: SingleDevice, state: TrainState) -> str:
    size = sum(p.numel() for p in engine.parameters) / 1e6
    start = f"continuing at step {state.step}" if state.step else "a new run"
    return (
        f"{config.run.dir}: {start} of {config.train.num_steps} steps; {size:.1f} M parameters, "
        f"{len(dataset)} samples, global batch {config.train.global_batch} on {engine.num_ranks} x "
        f"{engine.device.type}, {config.engine.precision}"
    )


class Clock:
    """Samples a second and the share of time spent waiting for data, since they were last asked for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training: validation, previews, checkpoints."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def step(self, samples: int) -> None:
        self.samples += samples

    def rates(self) -> tuple[float, float]:
        """(samples a second, share of the time spent waiting); starts anew."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        rates = self.samples / elapsed, self.waited / elapsed
        self.reset()
        return rates

"""The training loop.  There is one."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from data.augment import NO_AUGMENTATION
from data.dataset import ShardedDataset
from data.loader import Batch, Layout, Order, Stream, batches, rank_positions
from data.mixture import Mixture, shuffled
from data.order import FixedOrder
from data.pipes import PipedStream, Pipes, piped_batches
from model.diffusion import diffusion_loss, to_unit_range
from training import nonfinite, timeline
from training.batch import clean_conditions, to_device
from training.checkpoint import Saver, TrainState
from training.config import Config
from training.console import keep_apart
from training.distributed import Agreed, agreed, num_ranks, on_main
from training.draws import TrainingDraws
from training.ema import EMA
from training.engine import SingleDevice, pick_device
from training.evaluating import Evaluation
from training.fit import fit_micro_batch, needs_memory, out_of_memory_told
from training.heartbeat import Pulse
from training.held_out import preview, validation_loss
from training.hosts import check_data, check_hosts, check_shared
from training.log import RunLog
from training.meter import Meter, Report, add_to_window, share, statistics_line
from training.objective import make_objective
from training.optim import lr_at
from training.quarantine import Quarantine
from training.replicas import CHECKED_STEPS, check_replicas
from training.resume import prepare, resume, save
from training.sheet import contact_sheet, scaled, sharpened_sheet
from training.start import check, check_run, keep
from training.stop import leave_marker, listening
from training.timeline import mark


def train(config: Config, engine_class: type[SingleDevice]) -> None:
    """Trains, or continues, the run in config.run.dir until its last step or until somebody wishes it to stop.

    Raises ValueError on every rank, before the first step, for whatever the user got wrong.
    """
    mark("process group")
    run_dir = Path(config.run.dir)
    with agreed():
        device = pick_device(config.engine.device, config.engine.precision)
    devices = check_hosts(config, device)
    with agreed():
        config, dataset, held_out = check(config, engine_class)
    check_data(config, dataset)
    changed, start = on_main(lambda: check_run(run_dir, config))
    with agreed():
        check_shared(run_dir, start)
        keep_apart(run_dir)
    mark("checks")
    with Pulse(run_dir, start, config.distributed, device) as pulse, listening(run_dir) as wish, ExitStack() as guards:
        with needs_memory("weights, gradients and averages"):
            engine = engine_class(config.model, config.engine, config.optim, config.seed)
            ema = EMA(engine, config.ema)
        objective = make_objective(config.loss, engine.device)
        mark("model")
        with agreed():
            state, told = resume(run_dir, config, dataset, engine, ema)
        engine.weights_changed()
        mark("checkpoint")
        on_main(lambda: keep(run_dir, config, devices))
        saver = guards.enter_context(_published(Saver(run_dir, config.checkpoint)))
        prepare(saver, engine, ema)
        with pulse("memory"):
            accumulation = fit_micro_batch(engine, config, run_dir, objective)
        guards.enter_context(out_of_memory_told(engine, config, run_dir, accumulation))
        draws = TrainingDraws(config.seed, config.training_size, config.model.num_aug_levels, config.diffusion)
        layout = Layout(config.train.global_batch, engine.rank, engine.num_ranks, accumulation)
        with agreed():
            log = RunLog(
                run_dir, state.step, state.samples, config.train.num_steps, config.train.global_batch, config.log,
                config.model_dump(mode="json"),
            )  # fmt: skip
        for message in told:
            log.info(f"warning: {message}")
        for key, (old, new) in changed.items():
            log.info(f"changed since this run was last started: {key} from {old} to {new}")
        log.info(_greeting(config, dataset, engine, state))
        meter = Meter(pulse, devices, wish.deadline)
        num_samples = None if isinstance(dataset, Pipes) else len(dataset)
        quarantine = Quarantine(run_dir, num_samples, config.data.max_bad)
        order = None if isinstance(dataset, Pipes) else _order(config, dataset)
        stream = _micro_batches(config, dataset, order, draws, layout, state, quarantine)
        key, stop = partial(_key, dataset, order), None
        evaluation = _evaluation(log, config, engine, held_out or dataset)
        while state.step < config.train.num_steps and stop is None:
            losses, times, positions = [], [], []
            for micro in range(layout.num_micro_batches):
                last = micro == layout.num_micro_batches - 1
                with pulse("data"):
                    batch = next(stream)
                mark("first batch")
                with engine.microbatch(last):
                    with pulse("forward"):
                        batch = to_device(batch, engine.device)
                        x0 = to_unit_range(batch.person)
                        cond = clean_conditions(batch, x0, config.model)
                        loss = diffusion_loss(engine.net, x0, cond, batch.draws, config.diffusion, objective)
                    with pulse("all-reduce" if last else "backward"):
                        engine.backward(loss.mean() / layout.num_micro_batches)
                losses.append(loss.detach())
                times.append(batch.draws.t)
                positions.append(batch.position)
            with pulse("all-reduce"):
                lr = lr_at(state.step, config.optim)
                saver.copied()
                grad_norm = engine.step(lr)
                skipped = nonfinite.count(state, grad_norm, losses, positions, key, config.train.max_nonfinite)
                if skipped is None:
                    ema.update()
                broken, saving = len(quarantine.fresh), saver.busy()
                report = share(torch.cat(losses), torch.cat(times), wish.flags(), broken, saving, pulse)
            state.step += 1
            state.samples += config.train.global_batch
            pulse.end_step(state.step)
            meter.step(config.train.global_batch)
            stop, finished = report.stop, state.step == config.train.num_steps
            _log_step(log, state, report, meter, lr, grad_norm, config, engine)
            if skipped:
                log.info(f"warning: {skipped}")
            if report.broken:
                for bad in quarantine.settle(state.samples):
                    log.info(f"warning: {bad.shard}: sample {bad.key!r}: {bad.reason}; a spare takes its place")
            saves = state.step % config.checkpoint.every == 0 or finished or stop is not None
            if saves or pulse.steps_done in CHECKED_STEPS:
                with pulse("all-reduce"):
                    check_replicas(engine.model, state.step)
            if held_out and not report.hurry and (state.step % config.log.validate_every == 0 or finished):
                with ema.applied(), meter.paused("validation"), needs_memory("the validation"):
                    value, broken = validation_loss(
                        engine.local_net, config.model, held_out, draws, config.log.num_validation, layout.micro_batch,
                        engine.device, engine.sharded, objective,
                    )  # fmt: skip
                log.scalars(state.step, {"validation/loss": value})
                without = f" without {broken} broken samples, named in the ranks' logs" if broken else ""
                log.info(f"step {state.step}: validation loss {value:.4f}{without}")
            if ema.snapshot_every:
                with meter.paused("checkpoint"):
                    ema.snapshot(run_dir, state.step)
            shown = held_out or dataset
            if state.step % config.log.preview_every == 0 and not report.hurry and not isinstance(shown, Pipes):
                with ema.applied(), meter.paused("preview"), needs_memory("the preview (log.num_previews)"):
                    _log_preview(log, state, shown, config, engine)
            if evaluation and not report.hurry and (state.step % config.log.eval_every == 0 or finished):
                with ema.applied(), meter.paused("evaluation"), needs_memory("the evaluation (log.eval_every)"):
                    values = evaluation(
                        engine.local_net, shown, batch=layout.micro_batch, even=engine.sharded, device=engine.device,
                        alive=pulse.beat,
                    )  # fmt: skip
                log.scalars(state.step, values)
                log.info(f"step {state.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
            if saves:
                with meter.paused("checkpoint"):
                    save(saver, state, engine, ema)
            elif saver.pending and not report.saving:
                with meter.paused("checkpoint"):
                    saver.settle()
        guards.close()
        _leave(log, run_dir, state, config, stop)


@contextmanager
def _published(saver: Saver) -> Iterator[Saver]:
    """Around the steps: a checkpoint that is still being written is published when all ranks leave together."""
    try:
        yield saver
    except BaseException as error:
        if isinstance(error, ValueError) and (isinstance(error, Agreed) or num_ranks() == 1):
            saver.close()
        if num_ranks() == 1:  # of several, this one leaves at once: a copy from a dead peer's stream may never end
            saver.end()
        raise
    saver.close()
    saver.end()


def _leave(log: RunLog, run_dir: Path, state: TrainState, config: Config, stop: str | None) -> None:
    """Leaves DONE or REQUEUE behind for whoever started the run."""
    if state.step >= config.train.num_steps:
        on_main(lambda: leave_marker(run_dir, "DONE", state.step, "the last step is done"))
        log.info(f"finished: {state.step} steps, {state.samples} samples, in {run_dir}")
    else:
        on_main(lambda: leave_marker(run_dir, "REQUEUE", state.step, f"stopped by {stop}"))
        log.info(f"stopped at step {state.step} by {stop}, with a checkpoint; the same command continues")
    log.close()


def _order(config: Config, dataset: Mixture) -> Order:
    if config.train.overfit_one_batch:
        return FixedOrder(config.train.global_batch)
    return shuffled(dataset, config.data, config.seed)


def _key(dataset: Mixture | Pipes, order: Order | None, position: int) -> str:
    """The key of the sample at a place in the stream."""
    return "from a pipe" if order is None else dataset.key(order.sample_id(position))


def _micro_batches(
    config: Config, dataset: Mixture | Pipes, order: Order | None, draws: TrainingDraws, layout: Layout,
    state: TrainState, quarantine: Quarantine,
) -> Iterator[Batch]:  # fmt: skip
    plan = partial(rank_positions, layout, state.samples, config.train.num_steps - state.step)
    how = {
        "num_workers": config.data.num_workers,
        "prefetch": config.data.prefetch,
        "on_replaced": quarantine.add,
    }
    augmentation = NO_AUGMENTATION if config.train.overfit_one_batch else config.data.augment
    if isinstance(dataset, Pipes):
        stream = PipedStream(
            dataset, plan, draws, config.seed, augmentation, state.samples, layout.rank, layout.num_ranks,
            config.data.crop_size,
        )  # fmt: skip
        return piped_batches(stream, **how)
    stream = Stream(dataset, order, draws, config.seed, augmentation, config.data.crop_size)
    return batches(stream, plan(), borrow=True, **how)


def _log_step(
    log: RunLog, state: TrainState, report: Report, meter: Meter, lr: float, grad_norm: float, config: Config,
    engine: SingleDevice,
) -> None:  # fmt: skip
    add_to_window(state, report)
    log.advance(report.loss, meter.left(config.train.num_steps - state.step))
    if meter.started():
        log.info(timeline.told())
    if state.step % config.log.every == 0 or state.step == config.train.num_steps:
        if slow := meter.straggler(report):
            log.info(slow)
        log.stats_line(state.step, statistics_line(state, lr, grad_norm) | meter.values(report, engine.device))


def _log_preview(
    log: RunLog, state: TrainState, dataset: ShardedDataset | Mixture, config: Config, engine: SingleDevice
) -> None:
    sampler = config.sampler.model_copy(update={"method": "ddim", "num_steps": config.log.preview_steps})
    samples, results = preview(
        engine.local_net, dataset, config.log.num_previews, size=config.training_size, seed=config.seed,
        even=engine.sharded, model=config.model, diffusion=config.diffusion, sampler=sampler, device=engine.device,
    )  # fmt: skip
    if samples and config.model.tries_on:
        log.image(state.step, "preview", contact_sheet(samples, results))
    elif samples:
        truth = [sample.person for sample in samples]
        height = truth[0].shape[0]
        told = [scaled(image, height // config.model.lowres_factor) for image in truth]
        log.image(state.step, "preview", sharpened_sheet(told, results, truth, height=max(128, height)))


def _evaluation(
    log: RunLog, config: Config, engine: SingleDevice, shown: ShardedDataset | Mixture | Pipes
) -> Evaluation | None:
    if not config.log.eval_every:
        return None
    if isinstance(shown, Pipes):
        log.info("warning: log.eval_every: a pipe has no pairs to come back to; name some with data.val_shards")
        return None
    evaluation = Evaluation(config, engine.device)
    if evaluation.told:
        log.info(f"warning: {evaluation.told}")
    return evaluation if evaluation.likeness else None


def _greeting(config: Config, dataset: Mixture | Pipes, engine: SingleDevice, state: TrainState) -> str:
    size = sum(map(math.prod, engine.shapes.values())) / 1e6
    start = f"continuing at step {state.step}" if state.step else "a new run"
    if state.step >= config.train.num_steps:
        start = f"nothing is left to do at step {state.step}"
    if isinstance(dataset, Pipes):
        told = "samples of a pipe: their order depends on ranks, workers and restarts"
    else:
        told = f"{len(dataset)} samples"
    return (
        f"{config.run.dir}: {start} of {config.train.num_steps} steps; {size:.1f} M parameters, "
        f"{told}, global batch {config.train.global_batch} on {engine.num_ranks} x "
        f"{engine.device.type}, {config.engine.precision}"
    )

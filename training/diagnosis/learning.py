"""How fast a fresh network of the run's config learns, at the run's learning rate and at others."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from data.loader import Batch
from model.diffusion import Net
from model.losses import Objective
from training.diagnosis.subject import Subject
from training.fit import needs_memory

TAIL = 0.1  # of the steps: their mean is what a trial comes to
SWEEP = tuple(10 ** (k / 2) for k in range(-4, 6))  # times the run's learning rate
OTHERS = (0.1, 10.0, 100.0)
FURTHER = 5  # steps of 10 that a search goes on where its best lies at the edge
STILL = 1e-3  # of the loss: who loses less, and gains no more, has not moved
NEARLY = 0.9  # of the best trial's fall
ENOUGH = 0.5  # of the loss: who learns so much of one batch is not asked about other learning rates


@dataclass(frozen=True)
class Trial:
    """Training from the first weights on, without warmup."""

    lr: float
    first: float  # the loss before the first step
    last: float | None  # at the end; None: not finite
    fall: float | None  # share of the untrained network's loss that is gone at the end


def trial(subject: Subject, lr: float, batches: list[Batch], objective: Objective) -> Trial:
    """One step on each batch; the same noise each time a batch comes again."""
    engine = subject.engine()
    tail = max(1, round(TAIL * len(batches)))
    with needs_memory("a training step; use --batch 1"):
        with torch.no_grad():
            untrained = [_mean_loss(subject, engine.net, batch, objective, engine.device) for batch in batches[-tail:]]
        values = []
        for batch in batches:
            loss = subject.loss(engine.net, batch, objective, engine.device).mean()
            engine.backward(loss)
            engine.step(lr)
            values.append(float(loss.detach()))
    last, start = sum(values[-tail:]) / tail, sum(untrained) / tail
    finite = math.isfinite(last)
    told = f"falls by {1 - last / start:.0%}" if finite else "is not finite in the end"
    print(f"    optim.lr={lr:.1e}: the loss {told}")
    return Trial(lr, values[0], last, 1 - last / start) if finite else Trial(lr, values[0], None, None)


def _mean_loss(subject: Subject, net: Net, batch: Batch, objective: Objective, device: torch.device) -> float:
    return float(subject.loss(net, batch, objective, device).mean())


def overfit(subject: Subject, batch: Batch, num_steps: int, objective: Objective) -> list[Trial]:
    """One batch at the run's learning rate; where it hardly learns it, at others too."""
    lr = subject.config.optim.lr
    trials = [trial(subject, lr, [batch] * num_steps, objective)]
    if trials[0].fall is None or trials[0].fall < ENOUGH:
        others = (lr * factor for factor in OTHERS)
        trials = search(trials, others, lambda other: trial(subject, other, [batch] * num_steps, objective))
    return trials


def sweep(subject: Subject, batches: list[Batch], objective: Objective) -> list[Trial]:
    """The first batches of the training stream, the same ones at every learning rate."""
    rates = (subject.config.optim.lr * factor for factor in SWEEP)
    return search([], rates, lambda lr: trial(subject, lr, batches, objective))


def search(trials: list[Trial], rates: Iterable[float], tried: Callable[[float], Trial]) -> list[Trial]:
    """These trials and those of other rates; then, as far as FURTHER, beyond the edge at which the best of them lies:
    below the lowest where all diverge, above the highest where not even that moves.  By learning rate."""
    trials = sorted([*trials, *map(tried, rates)], key=lambda each: each.lr)
    for _ in range(FURTHER):
        low, high, top = trials[0], trials[-1], best(trials)
        if top is None:
            top = high if high.fall is not None and high.fall > -STILL else low
        if top is low:
            trials.insert(0, tried(low.lr / 10))
        elif top is high:
            trials.append(tried(high.lr * 10))
        else:
            break
    return trials


def best(trials: list[Trial]) -> Trial | None:
    """Which learnt the most; None: none learnt anything."""
    learnt = [each for each in trials if each.fall is not None and each.fall > 0]
    return max(learnt, key=lambda each: each.fall, default=None)


def advised(trials: list[Trial]) -> float | None:
    """The smallest learning rate that learns nearly as fast as the best: few steps flatter large ones."""
    top = best(trials)
    near = [each.lr for each in trials if top and each.fall is not None and each.fall >= NEARLY * top.fall]
    return min(near, default=None)

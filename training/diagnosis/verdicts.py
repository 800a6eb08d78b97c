"""From what was measured to what is wrong, in words: the fault, the numbers that show it, what to change.

A fault explains a plateau by itself; a warning may.  Causes come before what follows from them, and what follows is
left out where its cause is known.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from training.diagnosis.answers import Change, Losses
from training.diagnosis.curve import Curve
from training.diagnosis.learning import Trial, advised, best
from training.diagnosis.pairs import LEAST, Pairs
from training.diagnosis.weights import Block, whole_parts

SHUFFLED, DOUBTFUL = 0.35, 0.22  # place of the own garment; 0.02 on drawn people, 0.13 on photographs, 0.5 by chance
YOUNG = 10  # steps before which nothing is said of the weights
FROZEN = 1e-3  # of the median block's movement
ROUNDED = 2**-24  # of a weight: what changes it by less leaves it as it is in fp32
LINES = 50  # of the curve, before which nothing is said of its end
HARDLY = 0.1  # of the best trial's fall
TAUGHT = 0.2  # of the loss, that the best trial must have learnt before anything is said of the others
AHEAD = 1.2  # how many times a loss is larger than another where that means something
SKIPPED = 0.01  # of the steps
IGNORED = 0.02  # of what a perfect answer would change
TRIVIAL = 0.97  # of the loss of an answer that looks at zt alone


@dataclass(frozen=True)
class Facts:
    """All that was measured; None: not asked for, or nothing to measure."""

    step: int
    num_steps: int
    global_batch: int
    num_samples: int
    skipped: int
    lr: float
    lr_now: float
    warmup_steps: int
    weights: str  # compared with model
    pairs: Pairs | None
    blocks: list[Block]
    curve: Curve
    losses: dict[str, Losses]  # by 'model on training samples', ...
    changes: list[Change]
    swap: float  # how much the truths of a swap differ
    overfit: list[Trial]
    sweep: list[Trial]
    one_batch: bool = False  # whether the run learns one batch by heart, on purpose


@dataclass(frozen=True)
class Verdict:
    name: str
    kind: Literal["fault", "warning"]
    finding: str
    evidence: str
    remedy: str


def judge(facts: Facts) -> list[Verdict]:
    """Every verdict, faults first; empty: nothing speaks against the run."""
    found = [*_of_data(facts), *_of_weights(facts), *_of_learning_rate(facts), *_of_curve(facts)]
    if not any(verdict.kind == "fault" for verdict in found):
        found += _of_answers(facts)
    return sorted(found, key=lambda verdict: verdict.kind != "fault")


def _of_data(facts: Facts) -> Iterator[Verdict]:
    pairs = facts.pairs
    if pairs is None:
        return
    if pairs.drawn > 0.95 or pairs.drawn < 0.01:
        told = "of somebody else" if pairs.drawn > 0.5 else "the person, garment and all"
        yield Verdict(
            "agnostic_image", "fault", f"the clothing-agnostic image is {told}",
            f"it differs from the person in {pairs.drawn:.1%} of the pixels; usual is 10 to 70 %",
            "look at data.png; write the shards again with python -m data.prepare",
        )  # fmt: skip
    if pairs.place is not None and pairs.place >= DOUBTFUL:
        shuffled = pairs.place >= SHUFFLED
        finding = "garments and persons do not belong together: the pairs look shuffled"
        if not shuffled:
            finding = "some garments may not be those that the persons wear"
        yield Verdict(
            "shuffled_pairs" if shuffled else "doubtful_pairs", "fault" if shuffled else "warning", finding,
            f"by colours, the own garment stands at {pairs.place:.2f} among {pairs.num} garments; 0 is the best, usual "
            "is below 0.15, 0.50 is chance",
            "look at data.png; correct the list of pairs that the shards were made of, and write them again with "
            "python -m data.prepare",
        )  # fmt: skip


def _of_weights(facts: Facts) -> Iterator[Verdict]:
    if facts.step < YOUNG or not facts.blocks:
        return
    typical = median(block.moved for block in facts.blocks)
    if not any(block.moved for block in facts.blocks):
        yield Verdict(
            "nothing_moved", "fault", "no weight has ever changed",
            f"after {facts.step} steps all of them have their initial values; {facts.skipped} steps were skipped",
            "raise optim.lr, lower optim.warmup_steps; where steps were skipped, engine.precision=fp32",
        )  # fmt: skip
        return
    frozen = [block for block in facts.blocks if block.moved <= FROZEN * typical and _tells(typical)]
    if frozen:
        names = whole_parts([block.name for block in frozen], facts.blocks)
        reached = median(block.gradient for block in frozen)
        why = f"gradients do reach it now (norm {reached:.1e} of the weights'), so it was not given to the optimizer"
        if not reached:
            why = "and no gradient reaches it now either"
        yield Verdict(
            "frozen", "fault", f"{' and '.join(names)} never trained",
            f"in {facts.step} steps it moved by {max(block.moved for block in frozen):.1e} of its norm, the median "
            f"block by {typical:.1e}; {why}",
            "remove what freezes or detaches it in the code (requires_grad, detach, no_grad; RUN/code has the code of "
            "each start), and train anew",
        )  # fmt: skip
    silent = [block for block in facts.blocks if not block.gradient and block not in frozen]
    if silent:
        names = whole_parts([block.name for block in silent], facts.blocks)
        before = ", though the weights have moved before" if all(block.moved for block in silent) else ""
        yield Verdict(
            "no_gradient", "warning", f"no gradient reaches {' and '.join(names)}",
            f"its norm is 0 on the samples that were looked at{before}",
            "look at the values that these blocks are given: an overflow in fp16, or inputs that are all alike",
        )  # fmt: skip


def _tells(typical: float) -> bool:
    """Whether a block that moved FROZEN times as far as the median one can be told from one that is rounded back."""
    return FROZEN * typical > ROUNDED


def _of_learning_rate(facts: Facts) -> Iterator[Verdict]:
    if facts.step and facts.lr_now < 0.2 * facts.lr and facts.warmup_steps > facts.num_steps / 2:
        yield Verdict(
            "long_warmup", "fault", "the learning rate is still warming up",
            f"at step {facts.step} of {facts.num_steps} it is {facts.lr_now:.1e} of {facts.lr:.1e}: optim.warmup_steps="
            f"{facts.warmup_steps}",
            f"optim.warmup_steps={max(1, facts.num_steps // 20)}, or a larger train.num_steps",
        )  # fmt: skip
    own = next((each for each in facts.overfit if each.lr == facts.lr), None)
    if own is None:
        return
    others = [each for each in facts.sweep if each.lr != own.lr]
    one_batch = best(facts.overfit)
    if (top := one_batch or best(others)) is None:
        yield Verdict(
            "cannot_overfit", "fault", "the network cannot learn even one batch, at any learning rate that was tried",
            f"the loss of one batch does not fall at {', '.join(f'{each.lr:.0e}' for each in facts.overfit)}",
            "engine.precision=fp32; look at data.png; compare RUN/code with the project's code",
        )  # fmt: skip
        return
    fell = "is not finite" if own.fall is None else f"falls by {own.fall:.0%}"
    that = "" if one_batch else "that of training samples falls "
    told = f"at optim.lr={own.lr:.1e} the loss of one batch {fell}, at {top.lr:.1e} {that}by {top.fall:.0%}"
    if own.fall is not None and (own.fall >= HARDLY * top.fall or max(top.fall, -own.fall) < TAUGHT):
        return
    low = top.lr > own.lr
    advice = (advised(trials) for trials in (facts.sweep, facts.overfit))  # which one batch may contradict
    wanted = next((lr for lr in advice if lr and (lr > own.lr if low else lr < own.lr)), top.lr)
    tried = [each.lr for each in (*facts.overfit, *facts.sweep)]
    edge = " at least" if wanted == max(tried) else " at most" if wanted == min(tried) else ""
    yield Verdict(
        "low_learning_rate" if low else "high_learning_rate", "fault",
        f"the learning rate is {'much too low' if low else 'too high'}", told,
        f"optim.lr={wanted:.0e}{edge}; --lr-sweep looks for the best one",
    )  # fmt: skip


def _of_curve(facts: Facts) -> Iterator[Verdict]:
    curve = facts.curve
    skipped, steps = max((facts.skipped, facts.step), (curve.skipped, curve.step))
    if skipped > SKIPPED * max(1, steps):
        yield Verdict(
            "skipped_steps", "warning", "many steps are skipped, for their gradient is not finite",
            f"{skipped} of {steps}", "a lower optim.lr, or engine.precision=bf16 or fp32",
        )  # fmt: skip
    if curve.last is not None and curve.last > AHEAD * curve.best and curve.lines >= LINES:
        yield Verdict(
            "rising_loss", "warning", "the training loss has risen again",
            f"its best tenth has {curve.best:.4f}, its last one {curve.last:.4f}",
            f"optim.lr={facts.lr / 3:.0e}, or lower optim.betas[1]: optim.betas=[0.9,0.99]",
        )  # fmt: skip
    trained, averaged = (facts.losses.get(f"{name} on training samples") for name in ("model", facts.weights))
    if trained and averaged and averaged.mean > AHEAD * trained.mean:
        yield Verdict(
            "late_average", "warning", f"the average {facts.weights}, which samples are drawn with, lags behind",
            f"its loss is {averaged.mean:.4f}, that of the weights of now {trained.mean:.4f}",
            "a shorter average, as ema.decay=0.999, or more steps",
        )  # fmt: skip


def _of_answers(facts: Facts) -> Iterator[Verdict]:
    trained, trivial = (facts.losses.get(f"{name} on training samples") for name in ("model", "zt alone"))
    held_out = facts.losses.get("model on held-out samples")
    epochs = facts.step * facts.global_batch / facts.num_samples
    if trained and trivial and trained.mean > TRIVIAL * trivial.mean:
        yield Verdict(
            "nothing_learnt", "warning", "the network knows no more of the image than zt tells it",
            f"its loss is {trained.mean:.4f}, that of the best multiple of zt {trivial.mean:.4f}",
            "train longer; if the curve is flat already, diagnose with --lr-sweep",
        )  # fmt: skip
    if trained and held_out and held_out.mean > AHEAD * trained.mean and epochs > 1 and not facts.one_batch:
        yield Verdict(
            "overfitting", "warning", "the network learns its training samples by heart",
            f"its loss is {held_out.mean:.4f} on held-out samples, {trained.mean:.4f} on its own, after {epochs:.0f} "
            "epochs",
            "more data, data.augment.flip_prob=0.5, or an earlier checkpoint",
        )  # fmt: skip
    garment = next((change for change in facts.changes if change.condition == "garment swapped"), None)
    if garment and garment.inside < IGNORED * facts.swap:
        yield Verdict(
            "ignored_garment", "warning", "the garment hardly matters to the result",
            f"another garment changes the region to be drawn by {garment.inside:.4f}, the truths differ by "
            f"{facts.swap:.4f}",
            "train longer: the garment is learnt last; earlier with diffusion.log_snr_shift=-2, where the image must "
            "come from it",
        )  # fmt: skip


def unseen(facts: Facts) -> list[str]:
    """What was not judged, and what that needs."""
    told = []
    if facts.pairs is not None and facts.pairs.place is None:
        there = facts.global_batch if facts.one_batch else facts.num_samples
        need = f"{LEAST} samples, there are {there}" if there < LEAST else f"--num {LEAST} or more"
        told.append(f"do garments and persons belong together: needs {need}, of garments that differ")
    if not any(name.startswith("model ") for name in facts.losses):
        told.append("what it has learnt, and what its conditions do: needs a whole checkpoint")
    if facts.step < YOUNG:
        told.append(f"has every block trained: needs a checkpoint of step {YOUNG} or later")
    elif any(block.moved for block in facts.blocks) and not _tells(median(block.moved for block in facts.blocks)):
        told.append("has every block trained: needs weights that have moved further; more steps, or a higher optim.lr")
    if not facts.overfit:
        told.append("can it learn one batch, and is the learning rate right: needs --steps 60")
    elif (top := best(facts.overfit)) and top.fall < TAUGHT:
        told.append(f"is the learning rate right: needs more --steps; the best trial learnt {top.fall:.0%} of a batch")
    if facts.curve.lines < LINES:
        told.append(
            f"has the training loss risen again: needs {LINES} lines in stats.jsonl, not {facts.curve.lines}: "
            "more steps, or a lower log.every"
        )
    if "zt alone on held-out samples" not in facts.losses and not facts.one_batch:
        told.append("does it learn its samples by heart: needs data.val_shards")
    return told


def as_values(facts: Facts, verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "verdicts": [asdict(verdict) for verdict in verdicts], "not_looked_at": unseen(facts), "facts": asdict(facts)
    }  # fmt: skip

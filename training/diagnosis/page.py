"""A diagnosis as Markdown, and as pictures."""

import numpy as np
import torch

from data.inspect import contact_sheet
from data.loader import Batch
from data.schema import Sample
from model.diffusion import Net, to_uint8
from training.diagnosis.answers import SHOWN, predicted, replaced
from training.diagnosis.learning import Trial, advised
from training.diagnosis.subject import Subject
from training.diagnosis.verdicts import Facts, Verdict, unseen
from training.meter import T_BINS
from training.sheet import grid, scaled

SHEET = 4  # rows
HEIGHT = 128  # pixels of a picture
COLUMNS = {"garment swapped": "other garment", "garment gone": "no garment", "person pose swapped": "other pose"}


def told(facts: Facts, verdicts: list[Verdict]) -> str:
    """The verdicts in lines, and what was not looked at."""
    parts = [
        f"{verdict.kind.upper()} {verdict.name}: {verdict.finding}\n    because: {verdict.evidence}\n"
        f"    remedy:  {verdict.remedy}\n"
        for verdict in verdicts
    ] or [f"{_nothing(facts)}\n"]
    if missing := unseen(facts):
        parts.append("Not looked at:\n" + "".join(f"    {line}\n" for line in missing))
    return "\n".join(parts)


def markdown(title: str, warnings: list[str], facts: Facts, verdicts: list[Verdict]) -> str:
    parts = [
        f"# {title}",
        *(f"Warning: {each}." for each in warnings),
        _verdicts(facts, verdicts),
        _unseen(facts),
        _data(facts),
        _losses(facts),
        _changes(facts),
    ]
    return "\n\n".join(part for part in [*parts, _trials(facts), _blocks(facts)] if part) + "\n"


def _nothing(facts: Facts) -> str:
    return f"Nothing{' of what was looked at' if unseen(facts) else ''} speaks against this run."


def _unseen(facts: Facts) -> str:
    lines = "".join(f"\n- {line}" for line in unseen(facts))
    return f"## Not looked at\n{lines}" if lines else ""


def _verdicts(facts: Facts, verdicts: list[Verdict]) -> str:
    if not verdicts:
        return _nothing(facts)
    return "\n".join(
        f"- **{verdict.kind} `{verdict.name}`: {verdict.finding}.**  Because {verdict.evidence}.  "
        f"*Remedy: {verdict.remedy}.*"
        for verdict in verdicts
    )


def _data(facts: Facts) -> str:
    pairs = facts.pairs
    if pairs is None:
        return ""
    place = "not to be judged: too few samples, or garments all alike" if pairs.place is None else f"{pairs.place:.2f}"
    return (
        f"## Data\n\n{pairs.num} training samples; `data.png` shows the first as the network is fed them.  Place of "
        f"the own garment among all, by colours (0 best, 0.5 chance): {place}.  To be drawn: {pairs.drawn:.0%} of the "
        f"pixels.  The garment fills {pairs.garment:.0%} of its image."
    )


def _losses(facts: Facts) -> str:
    bins = [f"{i / T_BINS:.1f}" for i in range(T_BINS)]
    rows = [
        [name, f"{each.mean:.4f}", *("" if value is None else f"{value:.3f}" for value in each.by_t)]
        for name, each in facts.losses.items()
    ]
    return f"## Loss by t\n\nEach column from its t to the next.\n\n{_table(['', 'mean', *bins], rows)}"


def _changes(facts: Facts) -> str:
    if not facts.changes:
        return ""
    rows = [
        [each.condition, f"{each.inside:.4f}", f"{each.outside:.4f}", f"{each.ratio:.1f}"] for each in facts.changes
    ]
    return (
        "## What conditions do to the predicted image\n\nMean absolute change, of values in [-1, 1], in the region "
        f"that the network draws and elsewhere.  The truths of a swap differ by {facts.swap:.4f} there.\n\n"
        + _table(["condition", "region", "elsewhere", "ratio"], rows)
    )


def _trials(facts: Facts) -> str:
    def rows(trials: list[Trial]) -> list[list[str]]:
        return [
            [f"{each.lr:.1e}", f"{each.first:.4f}", *(["not finite", ""] if each.fall is None else
             [f"{each.last:.4f}", f"{each.fall:.0%}"])]
            for each in trials
        ]  # fmt: skip

    titles, parts = ["lr", "first loss", "last loss", "fall"], []
    if facts.overfit:
        parts.append("## One batch, over and over, from the initial weights\n\n" + _table(titles, rows(facts.overfit)))
    if facts.sweep:
        parts.append("## Learning rates, from the initial weights\n\n" + _table(titles, rows(facts.sweep)))
        if lr := advised(facts.sweep):
            parts.append(f"optim.lr={lr:.1e} is the smallest that learns nearly as fast as the best.")
    return "\n\n".join(parts)


def _blocks(facts: Facts) -> str:
    rows = [[each.name, f"{each.parameters:,}", f"{each.moved:.1e}", f"{each.gradient:.1e}"] for each in facts.blocks]
    table = _table(["block", "parameters", "moved", "gradient"], rows)
    return f"## Blocks\n\nMovement since the first step and gradient now, relative to the weights' norm.\n\n{table}"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def data_picture(samples: list[Sample], tries_on: bool) -> np.ndarray:
    """(H, W, 3) uint8: the first samples as the network is fed them."""
    if tries_on:
        return contact_sheet(samples[:SHEET])
    return grid([[scaled(sample.person, HEIGHT)] for sample in samples[:SHEET]], ["truth"])


@torch.no_grad()
def answers_picture(subject: Subject, net: Net, batch: Batch, device: torch.device) -> np.ndarray:
    """(H, W, 3) uint8.  A row a sample: what it is told, the truth, the image predicted at one noise level, and the
    same with other conditions."""
    x0, cond, batch = subject.inputs(batch, device)
    others = {COLUMNS[name]: other for name, other in replaced(cond).items() if name in COLUMNS}
    shown = {"clothing-agnostic": cond.clothing_agnostic, "garment": cond.garment, "low resolution": cond.lowres}
    shown = {name: image for name, image in shown.items() if image is not None} | {"truth": x0}
    for name, each in {"predicted": cond, **others}.items():
        shown[name] = predicted(subject, net, x0, each, batch, SHOWN)
    columns = [list(to_uint8(image[:SHEET]).permute(0, 2, 3, 1).cpu().numpy()) for image in shown.values()]
    return grid([[scaled(image, HEIGHT) for image in row] for row in zip(*columns, strict=True)], list(shown))

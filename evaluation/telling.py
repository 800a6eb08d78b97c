"""What an evaluation leaves behind: OUT/PROTOCOL/metrics.json, metrics.md, per_pair.csv, contact sheets; TensorBoard.

Every number stands beside what it depends on: pictures, protocol, pairing, pairs, weights, steps, sampler.
"""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from evaluation.measuring import Measured, picture
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.sources import Source
from sampling.outputs import unwritable, write_whole
from sampling.stamps import digest
from training.sheet import grid, scaled, shortened

SHOWN, HEIGHT = 6, 192  # pairs of a sheet, pixels of a picture
OF_PAIRS = ("per_pair.csv", "worst.png", "median.png", "best.png")  # written where there are pairs
ALWAYS = ("metrics.json", "metrics.md")
BOARD = "tensorboard"
DIGITS = 5


def facts_of(source: Source, protocol: Protocol, made: dict[str, Any]) -> dict[str, Any]:
    """What every number of an evaluation depends on, as JSON.  The same pairs have the same pair_list, in any order."""
    pairing = "paired" if source.paired else "unpaired"
    stages = made.get("stages", {})

    def each(key: str) -> str:
        told = {name: stage[key] for name, stage in stages.items() if stage[key] is not None}
        return ", ".join(f"{name}: {value}" if len(stages) > 1 else str(value) for name, value in told.items())

    facts = {
        "protocol": protocol.name,
        "pairing": pairing,
        "pair_list": digest(pairing, sorted(source.names), sorted(source.references)),
        "size": "x".join(map(str, protocol.size or source.size)),
    }
    keys = ("weights", "ema", "step", "steps", "sampler", "guidance_scale") if stages else ()
    facts |= {"repainted": made["repainted"]} if protocol.repaint else {}
    return facts | {key: each(key) for key in keys if each(key)}


def tell(
    out: Path, source: Source, protocol: Protocol, repaint: bool, measured: Measured, made: dict[str, Any]
) -> str:  # fmt: skip
    """Writes all of it into a folder that is there, and returns the table.  To be called by one process.

    repaint: as in evaluation.measuring.  Raises ValueError where the disk does not take it.
    """
    facts = facts_of(source, protocol, made)
    numbers = [
        {"name": name, "value": number.value, "std": number.std, "num": number.num}
        | facts
        | ({"region": source.region} if name.endswith("_region") else {})
        for name, number in measured.numbers.items()
    ]
    document = {
        "protocol": protocol._asdict(),
        "num": len(source.names),
        "num_references": len(source.references),
        "region": source.region,
        "made": made,
        "metrics": numbers,
        "left_out": measured.left_out,
    }
    table = _table(source, protocol, measured, facts)
    files = {}
    if measured.pairs:
        files["per_pair.csv"] = _csv(source, measured.pairs).encode()
        for name, image in _sheets(source, protocol, repaint, measured.pairs):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            files[f"{name}.png"] = buffer.getvalue()
    for name in OF_PAIRS:
        if name in files:
            write_whole(out / name, files[name])
        else:
            _remove(out / name)  # an earlier command's
    write_whole(out / "metrics.md", table.encode())
    write_whole(out / "metrics.json", (json.dumps(document, indent=1) + "\n").encode())
    steps = [stage["step"] for stage in made.get("stages", {}).values() if stage["step"] is not None]
    _board(out / BOARD, measured, facts, steps[-1] if steps else 0)
    return table


def forget(out: Path) -> None:
    """Removes the numbers and sheets of all protocols.  Raises ValueError where the disk does not let it."""
    for protocol in PROTOCOLS:
        for name in (*ALWAYS, *OF_PAIRS):
            _remove(out / protocol / name)
        shutil.rmtree(out / protocol / BOARD, ignore_errors=True)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _table(source: Source, protocol: Protocol, measured: Measured, facts: dict[str, Any]) -> str:
    lines = ["| metric | value | deviation | of | N |", "|---|---|---|---|---|"]
    for name, number in measured.numbers.items():
        std = "" if number.std is None else f"{number.std:.{DIGITS}f}"
        what = "" if number.std is None else "subsets" if name in ("kid", "kernel_vgg16") else "pairs"
        lines.append(f"| {name} | {number.value:.{DIGITS}f} | {std} | {what} | {number.num} |")
    told = [f"{key} {value}" for key, value in facts.items()]
    about = f"{len(source.names)} pictures, {len(source.references)} references; " + "; ".join(told)
    missing = [f"- {name} is left out: {why}" for name, why in measured.left_out.items()]
    region = [f"- _region: {source.region}"] if source.region and source.paired else []
    other = "fid" in measured.numbers and protocol.fid_pairing not in ("both", facts["pairing"])
    notes = [f"- {protocol.name} has its FID of {protocol.fid_pairing} pictures"] if other else []
    notes += [f"- {note}" for note in measured.notes]
    return "\n".join([about, "", *lines, "", *region, *notes, *missing]).rstrip() + "\n"


def _csv(source: Source, pairs: list[dict[str, float]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["key", *pairs[0]], lineterminator="\n")
    writer.writeheader()
    for key, pair in zip(source.names, pairs, strict=True):
        writer.writerow({"key": key} | {name: "" if math.isnan(value) else value for name, value in pair.items()})
    return buffer.getvalue()


def _sheets(
    source: Source, protocol: Protocol, repaint: bool, pairs: list[dict[str, float]]
) -> list[tuple[str, np.ndarray]]:
    """(name, (H, W, 3) uint8) of the worst, the median and the best pairs by LPIPS, or by SSIM: a column a pair, from
    what was given down to result and truth."""
    name = next((name for name in pairs[0] if name.startswith("lpips_") and not name.endswith("_region")), None)
    name, sign = (name, 1) if name else ("ssim", -1)
    if name not in pairs[0]:
        return []
    order = sorted(range(len(pairs)), key=lambda i: sign * pairs[i][name])
    num = min(SHOWN, len(order))
    middle = (len(order) - num) // 2
    chosen = {"worst": order[::-1][:num], "median": order[middle : middle + num], "best": order[:num]}

    def column(i: int) -> list[np.ndarray]:
        return [*source.given(i), picture(source, protocol, i, repaint), source.reference(i)]

    return [
        (each, _sheet([column(i) for i in ids], [(source.names[i], pairs[i][name]) for i in ids]))
        for each, ids in chosen.items()
    ]


def _sheet(pictures: list[list[np.ndarray]], titles: list[tuple[str, float]]) -> np.ndarray:
    """A column each, under a name and its number; all in the proportions of the last."""
    columns = []
    for *shown, last in pictures:
        truth = scaled(last, HEIGHT)
        size = truth.shape[1], HEIGHT
        columns.append(
            [*(np.asarray(Image.fromarray(each).resize(size, Image.Resampling.LANCZOS)) for each in shown), truth]
        )
    told = [shortened(name, f" {value:.3f}", truth.shape[1]) for name, value in titles]
    return grid([list(row) for row in zip(*columns, strict=True)], told)


def _board(folder: Path, measured: Measured, facts: dict[str, Any], step: int) -> None:
    try:
        with SummaryWriter(str(folder)) as board:
            for name, number in measured.numbers.items():
                board.add_scalar(f"evaluation_{facts['protocol']}_{facts['pairing']}/{name}", number.value, step)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error}); free space, or choose another --out") from error

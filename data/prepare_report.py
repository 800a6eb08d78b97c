"""report.html: what was prepared, what was left out and why, and what it looks like.  One file, pictures included."""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.chunk import Facts
from data.dataset import ShardedDataset
from data.pose_drawing import draw_pose
from data.schema import JOINTS, Sample

PICTURES = 24  # of samples, spread over all sets
PICTURE_HEIGHT = 256  # pixels
LISTED = 5000  # lines of a list; the .json beside each shard has all
SIDES = (256, 512, 768, 1024, 1536, 2048)  # pixels, where the bins of photograph sizes end

STYLE = """
:root { --ink: #20242c; --soft: #667085; --line: #e4e7ec; --bar: #4c6ef5; --other: #f08c00; --bad: #e03131 }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: #f6f7f9; margin: 0 }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere } h2 { font-size: 18px; margin: 0 0 14px }
p { margin: 0 0 10px; color: var(--soft) } .bars + p { margin-top: 12px }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 18px }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px }
.numbers div { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px;
  min-width: 130px }
.numbers b { display: block; font-size: 24px } .numbers span { color: var(--soft) } .bad b { color: var(--bad) }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 28px }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 6px; border: 1px solid var(--line) }
figcaption { font-size: 12px; color: var(--soft); overflow-wrap: anywhere; margin-top: 3px }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600 }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 3px 10px; align-items: center;
  font-size: 13px }
.bars i { display: block; height: 13px; background: #eef0f4; border-radius: 3px; overflow: hidden }
.bars i b { display: block; height: 100%; background: var(--bar) } .garment i b { background: var(--other) }
.bars span:nth-child(3n) { color: var(--soft); text-align: right }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { text-align: left; vertical-align: top; padding: 5px 10px 5px 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere }
td:first-child { min-width: 110px } summary { cursor: pointer; margin: 12px 0 8px }
.remark { border-left: 4px solid var(--other) }
"""


class Report(NamedTuple):
    """What the page says beside its pictures."""

    title: str
    facts: Facts
    sets: Mapping[str, int]  # samples by folder
    arguments: Mapping[str, str]
    remarks: Sequence[str]
    left_out: Sequence[tuple[str, str]]  # files that no sample uses, and why


def write_report(folder: Path, report: Report) -> None:
    """The page, as folder/report.html, with pictures of the shards in folder."""
    (folder / "report.html").write_text(page(folder, report), encoding="utf-8")


def page(folder: Path, report: Report) -> str:
    """The whole page: the same text for the same shards."""
    facts = report.facts
    body = [f"<h1>{escape(report.title)}</h1>", "<p>prepared by python -m data.prepare</p>", _numbers(report)]
    body += [f'<section class="remark">{escape(remark)}</section>' for remark in report.remarks]
    body.append(_samples(folder, report.sets))
    body.append(_section("Left out", _reasons(facts)) if facts.rejects else "")
    if report.left_out:
        body.append(_section("Files that no sample uses", _table(("file", "why"), report.left_out)))
    if facts.notes:
        rows = [(note, count, facts.samples) for note, count in facts.notes.most_common()]
        body.append(_section("What the estimates could not tell", _bars(rows) + _noted(facts)))
    body.append(_section("Visible joints", _visibility(facts)))
    body.append(_section("Photographs by their shorter side", _sizes(facts)))
    body.append(_section("Arguments", _table(("argument", "value"), report.arguments.items())))
    head = f'<meta charset="utf-8"><title>{escape(report.title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{"".join(body)}</main></body></html>\n'


def _numbers(report: Report) -> str:
    facts = report.facts
    size = f"{facts.bytes / 1e9:,.1f} GB" if facts.bytes >= 1e9 else f"{facts.bytes / 1e6:,.1f} MB"
    shown = [(f"{facts.samples:,}", "samples", ""), (size, "in shards", "")]
    shown += [(f"{num:,}", name, "") for name, num in report.sets.items() if name]
    shown.append((f"{len(facts.rejects):,}", "left out", "bad" if facts.rejects else ""))
    shown.append((report.arguments.get("--size", ""), "height x width", ""))
    boxes = [
        f'<div class="{kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name, kind in shown
    ]
    return f'<div class="numbers">{"".join(boxes)}</div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _samples(folder: Path, sets: Mapping[str, int]) -> str:
    figures, total = [], sum(sets.values())
    for name, num in sets.items():
        if num:
            dataset = ShardedDataset(folder / name)
            wanted = min(num, max(1, PICTURES * num // total))
            for place in np.linspace(0, num - 1, wanted).round().astype(int).tolist():
                sample = dataset.read(place)
                caption = escape(f"{name}: {sample.key}" if name else sample.key)
                figures.append(f'<figure><img src="{_picture(sample)}"><figcaption>{caption}</figcaption></figure>')
    about = "<p>The person with the pose, the person without the garment, and the garment with its wearer’s pose.</p>"
    return _section("Samples", f'{about}<div class="samples">{"".join(figures)}</div>')


def _picture(sample: Sample) -> str:
    """One sample as a JPEG within a URI."""
    person, garment = (draw_pose(sample.person, sample.person_pose), draw_pose(sample.garment, sample.garment_pose))
    image = Image.fromarray(np.concatenate([person, sample.clothing_agnostic, garment], axis=1))
    image.thumbnail((10 * PICTURE_HEIGHT, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _bars(rows: Iterable[tuple[str, int, int]], kind: str = "") -> str:
    """Horizontal bars: (name, count, the count of a full bar)."""
    cells = []
    for name, count, full in rows:
        share = 100 * count / full if full else 0
        cells.append(f'<span>{escape(name)}</span><i><b style="width:{share:.1f}%"></b></i><span>{count:,}</span>')
    return f'<div class="bars {kind}">{"".join(cells)}</div>'


def _visibility(facts: Facts) -> str:
    columns = []
    for i, (kind, whose) in enumerate((("", "The person"), ("garment", "The garment’s wearer"))):
        flat = int(facts.num_visible[i, 0])
        heading = f"<h3>{whose}{f' ({flat:,} samples without a pose)' if flat else ''}</h3>"
        names = [name.replace("_", " ") for name in JOINTS]
        joints = [(name, int(count), facts.samples) for name, count in zip(names, facts.joints[i], strict=True)]
        counts = facts.num_visible[i].tolist()
        numbers = [(f"{number} joints", count, max(counts)) for number, count in enumerate(counts) if count]
        bars = "" if flat == facts.samples else _bars(joints, kind) + "<br>" + _bars(numbers, kind)
        columns.append(f"<div>{heading}{bars}</div>")
    return f'<p>Samples by joint, and by number of joints.</p><div class="columns">{"".join(columns)}</div>'


def _sizes(facts: Facts) -> str:
    bins = [0] * (len(SIDES) + 1)
    for size, count in facts.photo_sizes.items():
        shorter = min(map(int, size.split("x")))
        bins[sum(shorter >= side for side in SIDES)] += count
    names = [f"{low} to {high - 1}" for low, high in zip((0, *SIDES), SIDES, strict=False)] + [f"{SIDES[-1]} and more"]
    common = ", ".join(f"{size} ({count:,})" for size, count in facts.photo_sizes.most_common(5))
    bars = _bars([(name, count, max(bins)) for name, count in zip(names, bins, strict=True)])
    return f"{bars}<p>Most frequent, height x width: {common}.</p>"


def _reasons(facts: Facts) -> str:
    """The rejects: how many of each kind, and every one with its reason."""
    kinds = Counter(re.sub(r"\S*/\S*|'[^']*'|\d+", "…", reason) for _, reason in facts.rejects)
    rows = [(f"{count:,}", reason) for reason, count in kinds.most_common(50)]
    every = (
        f"<details><summary>all {len(facts.rejects):,}</summary>{_table(('sample', 'reason'), facts.rejects)}</details>"
    )
    return _table(("samples", "kind of reason"), rows) + every


def _noted(facts: Facts) -> str:
    """The first samples of each note."""
    rows = []
    for note, count in facts.notes.most_common():
        keys = facts.noted[note]
        rows.append((note, ", ".join(keys) + (f", and {count - len(keys):,} more" if count > len(keys) else "")))
    return f"<details><summary>which samples</summary>{_table(('note', 'samples'), rows)}</details>"


def _table(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    lines = [f"<tr><td>{escape(str(a))}</td><td>{escape(str(b))}</td></tr>" for a, b in rows[:LISTED]]
    if len(rows) > LISTED:
        lines.append(f"<tr><td></td><td>and {len(rows) - LISTED:,} more</td></tr>")
    return f"<table><tr><th>{header[0]}</th><th>{header[1]}</th></tr>{''.join(lines)}</table>"

"""The page of training.report: one file of HTML, with its style, script, numbers and pictures inside."""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from training.history import Curve, Run, smoothed
from training.report_charts import charts, measured_names, titled
from training.report_metrics import MARK, metric_rows
from training.timeline import duration

HERE = Path(__file__).parent
BEGINNING = "<!doctype html>"  # of every page
STEPS = 4  # of which pictures are shown
WIDTH, QUALITY = 760, 82  # of a picture: pixels, JPEG
EVENTS = 200  # of a run
# Settings without which losses are other quantities; of the data, validation losses.
LOSS_KEYS = ("model.image_size", "model.lowres", "data.crop_size", "diffusion.", "loss.")
VALIDATION_KEYS = ("data.val_shards", "log.num_validation")
OWN_KEYS = ("run.dir", "log.wandb")  # that say nothing of how a run trains


class Work(NamedTuple):
    parameters: int
    flop: int  # of training a sample


def page(runs: Sequence[Run], works: Sequence[Work | None]) -> str:
    """The whole page."""
    title = f"Training run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs compared"
    body = [f"<h1>{escape(title)}</h1>", _remarks(runs), _controls(runs)]
    body.append(_section("Runs", _table(runs, _facts(runs, works), "run")))
    if budgets := _budgets(runs, works):
        text = "Training loss, smoothed, at the largest budget that all of these runs have spent."
        body.append(_section("At equal budgets", f"<p>{text}</p>" + _table(runs, budgets, "budget")))
    body.append('<div id="charts"></div>')
    if metrics := metric_rows(runs):
        marked = any(name.endswith(MARK) for name, _ in metrics)
        text = f"<p>{MARK} of other pairs, sizes, regions or samplers: these do not compare.</p>" * marked
        body.append(_section("Evaluations", text + _table(runs, metrics, "metric")))
    body += _pictures(runs)
    body.append(_section("Settings", _settings(runs)))
    body.append(_section("Events", "".join(_events(run, i) for i, run in enumerate(runs))))
    data = {"runs": [run.name for run in runs], "flop": [work and work.flop for work in works], "charts": charts(runs)}
    told = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    style, script = ((HERE / f"report_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f'{BEGINNING}\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{''.join(body)}</main>"
        f'<script type="application/json" id="data">{told}</script><script>{script}</script></body></html>\n'
    )


def _remarks(runs: Sequence[Run]) -> str:
    """What a reader must know before comparing."""
    told = [f"{run.name}: {'; '.join(run.remarks)}" for run in runs if run.remarks]
    known = [run.keys for run in runs if run.keys]
    for keys, what in ((LOSS_KEYS, "Losses do not compare"), (VALIDATION_KEYS, "Validation losses do not compare")):
        if names := [key for key in _differing(known) if key.startswith(keys)]:
            told.append(f"{what} across all of these runs: they differ in {', '.join(names)}")
    return "".join(f'<p class="remark">{escape(line)}</p>' for line in told)


def _controls(runs: Sequence[Run]) -> str:
    axes = (("samples", "samples"), ("seconds", "seconds of training"), ("flop", "FLOP"))
    x = "".join(
        f'<label><input type="radio" name="x" value="{value}"{" checked" * (value == "samples")}>{text}</label>'
        for value, text in axes
    )
    logs = "".join(f'<label><input type="checkbox" id="log{axis}">log {axis}</label>' for axis in "xy")
    keys = "".join(
        f'<label>{_key(i)}<input type="checkbox" class="run" value="{i}" checked>{escape(run.name)}</label>'
        for i, run in enumerate(runs)
    )
    return f'<nav><fieldset>{x}</fieldset><fieldset>{logs}</fieldset><fieldset class="keys">{keys}</fieldset></nav>'


def _key(i: int) -> str:
    """The line that stands for a run: colour, and dashes once all colours are taken."""
    dash = f' stroke-dasharray="{[None, "6 4", "2 3"][i // 8 % 3]}"' if i >= 8 else ""
    return f'<svg class="key" width="22" height="8"><line class="c{i % 8}" x2="22" y1="4" y2="4"{dash}/></svg>'


def _facts(runs: Sequence[Run], works: Sequence[Work | None]) -> list[tuple[str, list[str]]]:
    """The rows of the first table: what it is, and a text for each run."""
    rows = [
        ("State", [run.state for run in runs]),
        ("Steps", [f"{run.steps:,} of {run.keys.get('train.num_steps', '?'):,}" if run.keys else f"{run.steps:,}"
                   for run in runs]),
        ("Steps skipped, for they were not finite", [f"{run.skipped:,}" if run.skipped else "" for run in runs]),
        ("Samples", [f"{run.samples:,.0f}" for run in runs]),
        ("Training time", [duration(run.seconds) if math.isfinite(run.seconds) else "" for run in runs]),
        ("Training compute, FLOP", [_si(work.flop * run.samples) if work else ""
                                    for run, work in zip(runs, works, strict=True)]),
        ("Compute a sample, FLOP", [_si(work.flop) if work else "" for work in works]),
        ("Parameters", [_si(work.parameters) if work else "" for work in works]),
        ("Training loss, smoothed", [_last(smoothed(run.curve("loss"))) for run in runs]),
    ]  # fmt: skip
    for name in measured_names(runs):
        rows.append((f"{titled(name)}, last", [_last(run.measurements(name)) for run in runs]))
    rows += [
        ("Validation loss, lowest", [_lowest(run) for run in runs]),
        ("Throughput, samples/s", [_typical(run, "samples_per_s") for run in runs]),
        ("Waiting for data", [_typical(run, "data_wait_share", ".1%") for run in runs]),
        ("Memory of rank 0, GiB", [_typical(run, "memory_gib") for run in runs]),
        ("Hardware", [_hardware(run) for run in runs]),
        ("Precision", [str(run.keys.get("engine.precision", "")) for run in runs]),
        ("Starts", [str(len(run.starts) or "") for run in runs]),
        ("Code", [_code(run) for run in runs]),
    ]
    return [(name, cells) for name, cells in rows if any(cells)]


def _budgets(runs: Sequence[Run], works: Sequence[Work | None]) -> list[tuple[str, list[str]]]:
    """The loss of each run at the largest number of samples, seconds and FLOP that all have spent."""
    curves = {id(run): smoothed(run.curve("loss")) for run in runs}
    told = [
        (run, work)
        for run, work in zip(runs, works, strict=True)
        if np.isfinite(curves[id(run)].values).any()  # one that never had a loss has spent nothing on it
    ]
    if len(told) < 2:
        return []
    rows = []
    for unit in ("samples", "seconds", "FLOP"):
        costs = {}
        for run, work in told:
            curve = curves[id(run)]
            each = curve.seconds if unit == "seconds" else curve.samples
            costs[id(run)] = each * (work.flop if work else math.nan) if unit == "FLOP" else each
        paid = [(run, costs[id(run)]) for run, _ in told if np.isfinite(costs[id(run)]).all()]
        if len(paid) > 1:
            budget = min(cost[-1] for _, cost in paid)
            loss = {id(run): _loss_at(budget, cost, run.curve("loss"), curves[id(run)]) for run, cost in paid}
            cells = [loss.get(id(run), "") for run in runs]
            text = duration(budget) + " of training" if unit == "seconds" else f"{_si(budget)} {unit}"
            rows.append((text, cells))
    return rows


def _loss_at(budget: float, cost: np.ndarray, logged: Curve, average: Curve) -> str:
    """The average where so much has been spent; a run that has diverged until there has none."""
    last = max(0, int(np.searchsorted(cost, budget, "right")) - 1)
    value = float(np.interp(budget, cost, average.values))
    return f"{value:.4f}" if math.isfinite(value) and math.isfinite(logged.values[last]) else "not finite"


def _table(runs: Sequence[Run], rows: Iterable[tuple[str, Sequence[str]]], corner: str) -> str:
    heads = "".join(f"<th>{_key(i)} {escape(run.name)}</th>" for i, run in enumerate(runs))
    lines = []
    for name, cells in rows:
        told = "".join(f"<td>{escape(cell or '–')}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(name)}</th>{told}</tr>")
    return f'<div class="wide"><table><tr><th>{corner}</th>{heads}</tr>{"".join(lines)}</table></div>'


def _settings(runs: Sequence[Run]) -> str:
    known = [run.keys for run in runs if run.keys]
    if len(runs) == 1:
        return _table(runs, [(key, [_shown(value)]) for key, value in runs[0].keys.items()], "key")
    rows = [(key, [_shown(run.keys[key]) if key in run.keys else "" for run in runs]) for key in _differing(known)]
    same = f"<p>{len({key for keys in known for key in keys}) - len(rows)} others are the same.</p>"
    return (_table(runs, rows, "key") if rows else "<p>None differs.</p>") + same


def _differing(known: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that not all of these configurations have, or have with one value."""
    names = dict.fromkeys(key for keys in known for key in keys if key not in OWN_KEYS)
    return [key for key in names if len({json.dumps(keys.get(key, "–"), sort_keys=True) for keys in known}) > 1]


def _pictures(runs: Sequence[Run]) -> list[str]:
    """A section for each kind of picture that training drew, and for the contact sheets of sampling beside it."""
    sections = []
    for name in sorted({name for run in runs for name in run.pictures}):
        steps = _common(run.pictures.get(name, {}) for run in runs)
        places = np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int)
        rows = [
            f"<h3>step {step:,}</h3>" + _row(runs, [run.pictures.get(name, {}).get(step) for run in runs])
            for step in (steps[i] for i in places)
        ]
        sections.append(_section(f"{name.capitalize()}s by step", "".join(rows)))
    sheets = [{path.parent.name: path for path in sorted(run.folder.glob("*/sheet.png"))} for run in runs]
    for name in sorted({name for found in sheets for name in found}):
        sections.append(_section(f"Contact sheet {name}", _row(runs, [found.get(name) for found in sheets])))
    return sections


def _common(pictures: Iterable[dict[int, Path]]) -> list[int]:
    """The steps at which most runs have a picture, and the last one of any."""
    counts = Counter(step for each in pictures for step in each)
    most = max(counts.values())
    return sorted(step for step, count in counts.items() if count == most or step == max(counts))


def _row(runs: Sequence[Run], paths: Sequence[Path | None]) -> str:
    figures = []
    for i, (run, path) in enumerate(zip(runs, paths, strict=True)):
        image = _image(path) if path else '<p class="none">none here</p>'
        figures.append(f"<figure>{image}<figcaption>{_key(i)} {escape(run.name)}</figcaption></figure>")
    return f'<div class="pictures">{"".join(figures)}</div>'


def _image(path: Path) -> str:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f'<p class="none">{escape(f"{path}: not a readable picture ({error})")}</p>'
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{text}" alt="" width="{image.width}" height="{image.height}">'


def _events(run: Run, i: int) -> str:
    shown = run.events[-EVENTS:]
    rows = "".join(
        f"<tr{' class=bad' * event.bad}><td>{event.time}</td><td>{escape(event.text)}"
        + f" <b>({event.times} times)</b>" * (event.times > 1)
        + "</td></tr>"
        for event in shown
    )
    more = f"<p>The first {len(run.events) - len(shown)} are left out.</p>" if len(run.events) > len(shown) else ""
    table = f'<div class="wide"><table class="events">{rows}</table></div>' if rows else "<p>None is known.</p>"
    return f"<h3>{_key(i)} {escape(run.name)}</h3>{more}{table}"


def _hardware(run: Run) -> str:
    """The devices of the last start: '16 x GPU (NVIDIA H100) on 2 hosts'."""
    devices = run.starts[-1].get("devices") if run.starts else None
    if not isinstance(devices, list) or not devices:
        return ""
    told = [str(device).partition(": ") for device in devices]
    kinds = [kind.rpartition("(")[2].rstrip(")") for _, _, kind in told]
    hosts = len({host for host, _, _ in told})
    each = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return f"{each} on {hosts} hosts" if hosts > 1 else each


def _code(run: Run) -> str:
    told = dict.fromkeys(str(start.get("code", "?"))[:8] for start in run.starts)
    return ", ".join(told)


def _last(curve: Curve) -> str:
    values = curve.values[np.isfinite(curve.values)]
    return f"{values[-1]:.4g}" if len(values) else ""


def _lowest(run: Run) -> str:
    told = run.measured.get("validation/loss", {})
    step = min(told, key=told.__getitem__, default=None)
    return "" if step is None else f"{told[step]:.4g} at step {step:,}"


def _typical(run: Run, name: str, form: str = ".4g") -> str:
    value = run.typical(name)
    return "" if value is None else format(value, form)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _si(value: float) -> str:
    """'1.2e+18' above what a prefix names plainly; '3.4 T', '56 M'."""
    for size, prefix in ((1e18, None), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value:.3g}" if prefix is None else f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"

"""Why does a run not learn?  Measures data, weights, answers and learning rate of a run, and names what is wrong.

python -m training.diagnose RUN [key=value ...]      RUN/diagnosis/: diagnosis.md, diagnosis.json, data.png, answers.png

Works on the newest whole checkpoint, beside training too, and changes nothing of the run.  Where there is none, as
when a run diverges at once, data and learning rate are looked at all the same.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.loader import Batch
from training.diagnosis import answers, learning, page
from training.diagnosis.curve import read_curve
from training.diagnosis.pairs import examine
from training.diagnosis.subject import Subject, open_subject, read, whole_samples
from training.diagnosis.verdicts import Facts, Verdict, as_values, judge
from training.diagnosis.weights import gradient_norms, movements
from training.distributed import is_stray_rank
from training.exits import run
from training.fit import needs_memory
from training.objective import make_objective
from training.optim import lr_at

GRADIENT_BATCHES = 2
PARTIAL = ".partial"  # within the folder, while it is written
PICTURES = ("data", "answers")
LEAST_STEPS = 5  # of a trial: one alone cannot show what it did


def diagnose(
    run_dir: Path, overrides: list[str], *, weights: str, num: int, batch: int, steps: int, lr_sweep: bool, out: Path
) -> list[Verdict]:
    """Writes the diagnosis into `out` and returns its verdicts, faults first.

    num: samples that are looked at, `batch` at a time; steps: of a trial of learning, 0: none.
    Raises ValueError for a folder that is no run, or whose data are gone.
    """
    subject = open_subject(run_dir, overrides)
    _check_writable(out)
    for message in subject.told:
        print(f"warning: {message}")
    facts, pictures = measure(subject, weights=weights, num=num, batch=batch, steps=steps, lr_sweep=lr_sweep)
    verdicts = judge(facts)
    title = f"{run_dir} at step {facts.step} of {facts.num_steps}"
    if not subject.folder:
        title = f"{run_dir} without a whole checkpoint"
    _write(out, title, subject.told, facts, verdicts, pictures)
    if lr := learning.advised(facts.sweep):
        print(f"optim.lr={lr:.1e} is the smallest that learns nearly as fast as the best")
    print(f"\n{title}\n\n{page.told(facts, verdicts)}\n{out / 'diagnosis.md'} has the numbers")
    return verdicts


def measure(
    subject: Subject, *, weights: str, num: int, batch: int, steps: int, lr_sweep: bool
) -> tuple[Facts, dict[str, np.ndarray]]:
    config, state = subject.config, subject.state
    size = min(batch, num)
    with needs_memory("weights and gradients"):
        engine = subject.engine()
        # At once: training that goes on removes old checkpoints.
        names = ("model", weights) if subject.folder else ()
        saved = {name: subject.weights(name, engine.shapes) for name in names}
    print(f"{subject.folder or subject.run_dir}: data")
    fed = subject.stream(augmented=True)
    plain = subject.stream()
    samples = whole_samples(plain, min(num, len(plain.order)))
    if not samples:
        raise ValueError(
            f"data.shards={','.join(config.data.places())}: {num} samples in a row are broken; run python "
            "-m data.verify on these shards"
        )
    pairs = examine(samples) if config.model.tries_on else None
    pictures = {"data": page.data_picture(whole_samples(fed, page.SHEET) or samples, config.model.tries_on)}

    print("weights, gradients and losses")
    with needs_memory("weights and gradients"):
        objective = make_objective(config.loss, engine.device)
        initial = {name: value.cpu().clone() for name, value in engine.weights().items()}
        if saved:
            engine.load_weights(saved["model"].__getitem__)
        blocks = movements(initial, saved.get("model", initial), config.optim.weight_decay)
        first = list(read(fed, GRADIENT_BATCHES * size, size))
        norms = gradient_norms(subject, engine, first, objective)
    del initial
    blocks = [replace(block, gradient=norms[block.name]) for block in blocks]
    sets = {"training": plain}
    if subject.held_out is not None:
        sets["held-out"] = subject.stream(held_out=True)
    losses: dict[str, answers.Losses] = {}
    with needs_memory("the network's answers; use --batch 1"):
        for name in ("zt alone", *saved):
            net = engine.local_net if name in saved else None
            if net:
                engine.load_weights(saved[name].__getitem__)
            for kind, stream in sets.items():
                counted = min(num, len(stream.order))
                losses[f"{name} on {kind} samples"] = answers.losses(
                    subject, net, read(stream, counted, size), engine.device
                )
        changes, swap = [], 0.0
        if saved:
            looked_at: Batch = next(read(sets.get("held-out", plain), size, size))
            changes, swap = answers.sensitivity(subject, engine.local_net, looked_at, engine.device)
            pictures["answers"] = page.answers_picture(subject, engine.local_net, looked_at, engine.device)
    del engine, saved

    overfit, sweep = [], []
    if steps:
        print(f"learning one batch of {size} in {steps} steps")
        overfit = learning.overfit(subject, first[0], steps, objective)
    if steps and lr_sweep:
        print(f"{len(learning.SWEEP)} learning rates or more, {steps} steps each")
        sweep = learning.sweep(subject, list(read(fed, steps * size, size)), objective)
    facts = Facts(
        step=state.step, num_steps=config.train.num_steps, global_batch=config.train.global_batch,
        num_samples=len(subject.dataset), skipped=state.skipped, lr=config.optim.lr,
        lr_now=lr_at(max(0, state.step - 1), config.optim), warmup_steps=config.optim.warmup_steps, weights=weights,
        pairs=pairs, blocks=blocks, curve=read_curve(subject.run_dir / "stats.jsonl"), losses=losses, changes=changes,
        swap=swap, overfit=overfit, sweep=sweep, one_batch=config.train.overfit_one_batch,
    )  # fmt: skip
    return facts, pictures


def _check_writable(out: Path) -> None:
    try:
        (out / PARTIAL).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / PARTIAL)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error}); name another folder with --out") from error


def _write(
    out: Path, title: str, warnings: list[str], facts: Facts, verdicts: list[Verdict], pictures: dict[str, np.ndarray]
) -> None:
    """Each file whole or not at all; an earlier diagnosis's picture that this one has not is removed."""
    texts = {
        "diagnosis.md": page.markdown(title, warnings, facts, verdicts),
        "diagnosis.json": json.dumps(as_values(facts, verdicts), indent=1) + "\n",
    }
    partial = out / PARTIAL
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for name, image in pictures.items():
            Image.fromarray(image).save(partial / f"{name}.png")
        for name in PICTURES:
            if name not in pictures:
                (out / f"{name}.png").unlink(missing_ok=True)
        for path in sorted(partial.iterdir()):
            path.replace(out / path.name)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error}); name another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m training.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    result.add_argument("words", nargs="*", metavar="key=value", help="for what is elsewhere now: data.shards=FOLDER")
    result.add_argument("--weights", default="ema", help="an average of the checkpoint, compared with model [ema]")
    result.add_argument("--num", type=int, default=64, help="samples that are looked at [64]")
    result.add_argument("--batch", type=int, default=8, help="of them at a time, and samples of one batch [8]")
    result.add_argument("--steps", type=int, default=60, help="of learning one batch; 0: leave that out [60]")
    result.add_argument(
        "--lr-sweep", action="store_true", help="try ten learning rates from 1/100 to 300 times the run's"
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="[RUN/diagnosis]")
    return result


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_intermixed_args(argv)
    if is_stray_rank():
        raise ValueError("torchrun started several processes of a program that is one; use python -m training.diagnose")
    for key, least in (("num", 2), ("batch", 2), ("steps", 0)):
        if getattr(args, key) < least:
            raise ValueError(f"--{key} {getattr(args, key)}: {least} at least")
    if 0 < args.steps < LEAST_STEPS:
        raise ValueError(f"--steps {args.steps}: tell nothing; {LEAST_STEPS} at least, or 0 for no trial")
    if strange := [word for word in args.words if "=" not in word]:
        raise ValueError(f"{strange[0]!r}: expected key=value after the run folder")
    diagnose(
        args.run_dir, args.words, weights=args.weights, num=args.num, batch=args.batch, steps=args.steps,
        lr_sweep=args.lr_sweep, out=args.out or args.run_dir / "diagnosis",
    )  # fmt: skip


if __name__ == "__main__":
    run(main, again="nothing is lost")

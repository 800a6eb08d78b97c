"""python -m data.prepare LAYOUT --out DIR ...: a data set of a known layout, or drawn people, to shards.

The same command goes on where it was stopped.  docs: README.md, "Data".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.agnostic import RULES
from data.estimators import Estimators
from data.importers import csv_file, drawn, dresscode, given, pairs, photos, viton_hd
from data.importers.job import Job, JobList
from data.parts import LABEL_MAPS, label_map
from data.preparing import Progress, Task, prepare
from data.preprocess import Preparation
from data.split import split, survey

ANYWAY = ("layout", "out", "workers", "slice", "skip_bad", "jobs", "left_out")  # what the shards do not depend on
SHOWN = 20  # bad samples that are printed; the report has all


def preparation(args: argparse.Namespace) -> Preparation:
    return Preparation(args.size, args.rule, args.crop)


def estimators(args: argparse.Namespace) -> Estimators:
    return Estimators(args.pose_model, args.parts_model, args.parts_labels)


def viton_hd_jobs(args: argparse.Namespace) -> JobList:
    labels = label_map(args.label_map)
    return viton_hd.list_jobs(args.source, preparation(args), labels, args.split, args.pairing)


def dresscode_jobs(args: argparse.Namespace) -> JobList:
    labels = label_map(args.label_map)
    return dresscode.list_jobs(args.source, preparation(args), labels, args.category, args.split, args.pairing)


def csv_jobs(args: argparse.Namespace) -> JobList:
    return csv_file.list_jobs(args.source, preparation(args), estimators(args), args.split, args.garments)


def pairs_jobs(args: argparse.Namespace) -> JobList:
    return pairs.list_jobs(args.source, preparation(args), estimators(args), args.split)


def photos_jobs(args: argparse.Namespace) -> JobList:
    if (args.pairing == "shuffle") != (args.pairs_per_group is not None):
        raise ValueError("--pairing shuffle and --pairs-per-group belong together; give both, or neither for all pairs")
    if (args.parse is None) != (args.label_map is None):
        raise ValueError("--parse and --label-map belong together: parse maps do not say what their labels mean")
    if args.parse:
        label_map(args.label_map)  # an unknown one is refused before anything is made
    groups, args.left_out = photos.group_photos(args.source, args.group)
    labels = tuple(args.polygon_labels.split(",")) if args.polygon_labels else None
    known = photos.Known(args.source, args.poses, args.parse, args.label_map, args.polygons, labels, estimators(args))
    return photos.list_jobs(groups, known, preparation(args), args.pairs_per_group, args.seed)


def synthetic_jobs(args: argparse.Namespace) -> JobList:
    return drawn.list_jobs(preparation(args), args.num, args.seed)


def image_size(text: str) -> tuple[int, int]:
    """'128' -> (128, 128); '128x96' -> (128, 96), height before width."""
    sides = text.split("x") if "x" in text else [text, text]
    if len(sides) != 2 or not all(side.isdecimal() and 8 <= int(side) <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected e.g. 128, or 128x96 for height x width")
    return int(sides[0]), int(sides[1])


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 on")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to 2**64 - 1")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """'3/16' -> (3, 16)"""
    numbers = text.split("/")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no slice; expected e.g. 3/16, from 1/16 to 16/16")
    return int(numbers[0]), int(numbers[1])


def shares(text: str) -> tuple[float, ...]:
    """'0.9,0.05,0.05' -> train, validation and test; the last may be left away."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (2, 3) or not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares that add up to 1, e.g. 0.9,0.05,0.05 or 0.9,0.1")
    return values


def parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--out", type=Path, required=True, help="folder to write the shards to")
    every.add_argument("--size", type=image_size, default=(128, 128), help="128, or 128x96 for height x width [128]")
    every.add_argument("--samples-per-shard", type=count, default=1000, help="[1000]")
    every.add_argument("--rule", choices=RULES, default="paper", help="what of the person is masked [paper]")
    every.add_argument("--crop", action="store_true", help="crop each photo to its person")
    every.add_argument("--seed", type=seed, default=0, help="of all that is drawn: pairs, splits, people [0]")
    every.add_argument(
        "--split-shares", type=shares, metavar="A,B,C",
        help="0.9,0.05,0.05: write OUT/train, OUT/val and OUT/test, which share neither persons nor garments; "
        "viton_hd, dresscode, pairs, and csv without ids know a person or garment by its file name alone",
    )  # fmt: skip
    every.add_argument("--skip-bad", action="store_true", help="leave bad samples out and report them")
    every.add_argument("--workers", type=count, help="processes [the cores that may be used]")
    every.add_argument("--slice", type=part, default=(1, 1), metavar="I/N", help="make the I-th of N parts; any order")

    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--source", type=Path, required=True, help="where the data set lies, as README.md shows it")
    some.add_argument("--num", type=count, help="only the first so many samples [all]")
    own_split = argparse.ArgumentParser(add_help=False)
    own_split.add_argument("--split", default="train", help="which of the data set's own splits [train]")
    garments = argparse.ArgumentParser(add_help=False)
    garments.add_argument(
        "--pairing", choices=viton_hd.PAIRINGS, default="paired",
        help="paired: the garment that is worn, to train on; unpaired: another one, to sample only [paired]",
    )  # fmt: skip
    estimating = argparse.ArgumentParser(add_help=False)
    estimating.add_argument("--pose-model", type=Path, metavar="FILE.onnx", help="estimates poses [BlazePose]")
    estimating.add_argument("--parts-model", type=Path, metavar="FILE.onnx", help="parses people [selfie segmenter]")
    estimating.add_argument("--parts-labels", default="lip", help="label map of --parts-model [lip]")

    top = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    layouts = top.add_subparsers(dest="layout", required=True)

    def layout(name: str, jobs: Any, parents: Sequence[argparse.ArgumentParser], about: str) -> argparse.ArgumentParser:
        sub = layouts.add_parser(name, parents=[every, *parents], help=about, description=about)
        sub.set_defaults(jobs=jobs, left_out=())
        return sub

    def labels(sub: argparse.ArgumentParser, default: str | None) -> None:
        known = f"{', '.join(LABEL_MAPS)}, or a YAML or JSON file"
        sub.add_argument("--label-map", default=default, help=f"of the parse maps: {known} [{default or 'none'}]")

    labels(
        layout("viton_hd", viton_hd_jobs, [some, own_split, garments], "the folders of VITON-HD and HR-VITON"), "cihp"
    )
    dress = layout("dresscode", dresscode_jobs, [some, own_split, garments], "the folders of DressCode")
    labels(dress, "atr")
    dress.add_argument("--category", choices=("all", *dresscode.CATEGORIES), default="all", help="[all]")
    table = layout("csv", csv_jobs, [some, own_split, estimating], "a CSV file, or a folder with metadata/SPLIT.csv")
    table.add_argument(
        "--garments", choices=given.GARMENTS, default="cut",
        help="what the garment images show: a garment cut out, a person who wears it, or one flat on a backdrop [cut]",
    )  # fmt: skip
    layout(
        "pairs", pairs_jobs, [some, own_split, estimating], "folders ip, ig, ia, ic, jp, jg, ig_mask of two-photo pairs"
    )
    raw = layout("photos", photos_jobs, [some, estimating], "photographs, grouped by their paths")
    raw.add_argument(
        "--group", default=photos.GROUP, metavar="REGEX",
        help=f"of a path within SOURCE, naming person and garment [{photos.GROUP}]",
    )  # fmt: skip
    raw.add_argument("--pairing", choices=photos.PAIRINGS, default="all", help="ordered pairs of each group [all]")
    raw.add_argument("--pairs-per-group", type=count, help="how many --pairing shuffle draws")
    raw.add_argument("--poses", type=Path, metavar="DIR", help="poses by the photos' paths [estimated]")
    raw.add_argument("--parse", type=Path, metavar="DIR", help="parse maps by the photos' paths [estimated]")
    labels(raw, None)
    raw.add_argument("--polygons", type=Path, metavar="DIR", help="labelme or ISAT outlines of the garments")
    raw.add_argument("--polygon-labels", metavar="A,B", help="which outlines are the garment [all]")
    made = layout("synthetic", synthetic_jobs, [], "drawn people: no data set needed")
    made.add_argument("--num", type=count, default=1000, help="[1000]")
    return top


def task_of(args: argparse.Namespace) -> Task:
    """What these arguments ask for.  Raises ValueError when the data set cannot be listed."""
    if args.out.name in ("", ".."):
        raise ValueError(f"--out {args.out}: name a folder that is to be made, e.g. --out {args.out / 'shards'}")
    jobs: Sequence[Job] = args.jobs(args)
    jobs = jobs if args.num is None else jobs[: args.num]
    known, sets, remarks = survey(jobs), {"": jobs}, []
    if args.split_shares:
        places, remark = split(known, args.split_shares, args.seed)
        sets = {name: JobList(where, jobs.__getitem__) for name, where in places.items()}
        remarks += [remark] if remark else []
    return Task(
        out=args.out,
        sets=sets,
        arguments={"layout": args.layout} | arguments_of(args),
        fingerprint=known.fingerprint,
        image_size=args.size,
        samples_per_shard=args.samples_per_shard,
        paired=getattr(args, "pairing", "paired") != "unpaired",
        remarks=remarks,
        left_out=args.left_out,
    )


def arguments_of(args: argparse.Namespace) -> dict[str, str]:
    """All that the shards depend on, as the user writes it; paths from the root on."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ("x" if isinstance(value[0], int) else ",").join(map(str, value))
        return str(value.absolute() if isinstance(value, Path) else value)

    values = {name: value for name, value in vars(args).items() if name not in ANYWAY}
    said = {name: value for name, value in values.items() if value is not None and value is not False}
    return {f"--{name.replace('_', '-')}": text(value) for name, value in said.items()}


def main(argv: list[str] | None = None) -> int:
    """Writes the shards.  -> exit status: 0, 2 after one line on stderr about what is wrong, 130 after Ctrl-C"""
    args = parser().parse_args(argv)
    try:
        task = task_of(args)
        for remark in task.remarks:
            print(remark, file=sys.stderr)
        if task.left_out:
            path, why = task.left_out[0]
            print(f"{len(task.left_out)} files are used by no sample, e.g. {path}: {why}", file=sys.stderr)
        progress = prepare(task, part=args.slice, workers=args.workers, skip_bad=args.skip_bad)
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {error or 'out of memory; use fewer --workers'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with the first shard that is not whole", file=sys.stderr)
        return 130
    tell(args, task, progress)
    return 0


def tell(args: argparse.Namespace, task: Task, progress: Progress) -> None:
    rejects = progress.facts.rejects
    if rejects:
        print(f"skipped {len(rejects)} bad samples:", file=sys.stderr)
        for name, reason in rejects[:SHOWN]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(rejects) > SHOWN:
            print(f"  and {len(rejects) - SHOWN} more", file=sys.stderr)
    if not progress.published:
        whole = f"{progress.done} of {progress.shards} shards are whole"
        print(
            f"{args.out}: slice {args.slice[0]}/{args.slice[1]} is done; {whole}, and who makes the last one publishes"
        )
        return
    size = "x".join(map(str, args.size))
    labels = f", parse maps read as {args.label_map}" if getattr(args, "label_map", None) else ""
    folders = " ".join(str(args.out / name) for name in task.sets)
    print(
        f"{args.out}: {progress.facts.samples} samples of {size}{labels}; look at them: {args.out / 'report.html'}, or "
        f"python -m data.inspect {folders}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""python -m data.prepare LAYOUT --out DIR ...: photographs of a known layout, or drawn ones, to shards."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data import viton_hd
from data.parts import LABEL_MAPS, label_map
from data.preprocess import make_sample
from data.schema import Sample
from data.shards import write_shards
from data.synthetic import draw_pair

OVERSAMPLING = 2  # synthetic photographs are drawn larger than the samples made of them, as real ones are


def viton_hd_jobs(args: argparse.Namespace) -> list[tuple[str, Callable[[], Sample]]]:
    """(name, how to make the sample) of each."""
    labels = label_map(args.label_map)
    jobs = viton_hd.list_jobs(args.source, args.split, args.pairing)
    return [(job.key, partial(viton_hd.load, job, labels, args.size)) for job in jobs[: args.num]]


def synthetic_jobs(args: argparse.Namespace) -> list[tuple[str, Callable[[], Sample]]]:
    """(name, how to make the sample) of each."""
    keys = [f"{args.seed}-{i:07d}" for i in range(args.num)]
    return [(key, partial(synthetic_sample, key, args.seed, i, args.size)) for i, key in enumerate(keys)]


def synthetic_sample(key: str, seed: int, index: int, size: tuple[int, int]) -> Sample:
    person, garment = draw_pair(seed, index, (OVERSAMPLING * size[0], OVERSAMPLING * size[1]))
    return make_sample(key, person, garment, size)


def samples(jobs: list[tuple[str, Callable[[], Sample]]], skipped: dict[str, str] | None) -> Iterator[Sample]:
    """The sample of each job, one at a time.

    A bad one ends it with ValueError, or, where skipped is given, is noted there with its reason and left out.
    """
    for name, make in tqdm(jobs, unit="sample", disable=None):
        try:
            sample = make()
        except ValueError as error:
            if skipped is None:
                raise
            skipped[name] = str(error)
            continue
        yield sample


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


def parser() -> argparse.ArgumentParser:
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--out", type=Path, required=True, help="folder to write the shards to; must not exist yet")
    both.add_argument("--size", type=image_size, default=(128, 128), help="128, or 128x96 for height x width [128]")
    both.add_argument("--samples-per-shard", type=count, default=1000, help="[1000]")
    both.add_argument("--skip-bad", action="store_true", help="leave bad samples out and report them at the end")
    top = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    layouts = top.add_subparsers(dest="layout", required=True)

    layout = layouts.add_parser("viton_hd", parents=[both], help="the folders of VITON-HD")
    layout.add_argument("--source", type=Path, required=True, help="the folder above image/, or above train/ and test/")
    layout.add_argument("--split", default="train", help="train or test: names the folder and the pairs file [train]")
    layout.add_argument(
        "--pairing", choices=viton_hd.PAIRINGS, default="paired",
        help="paired: the garment that is worn, to train on; unpaired: the pairs file's column 2, to sample only",
    )  # fmt: skip
    layout.add_argument("--label-map", default="cihp", help=f"of the parse maps: {', '.join(LABEL_MAPS)} [cihp]")
    layout.add_argument("--num", type=count, help="only the first so many samples [all]")
    layout.set_defaults(jobs=viton_hd_jobs)

    layout = layouts.add_parser("synthetic", parents=[both], help="drawn people: no data set needed")
    layout.add_argument("--num", type=count, default=1000, help="[1000]")
    layout.add_argument("--seed", type=seed, default=0, help="another seed draws other people and garments [0]")
    layout.set_defaults(jobs=synthetic_jobs)
    return top


def main(argv: list[str] | None = None) -> int:
    """Writes the shards; returns the exit status: 0, or 2 after one line on stderr about what is wrong."""
    args = parser().parse_args(argv)
    skipped: dict[str, str] | None = {} if args.skip_bad else None
    try:
        jobs = args.jobs(args)
        paired = getattr(args, "pairing", "paired") == "paired"
        num = write_shards(samples(jobs, skipped), args.out, samples_per_shard=args.samples_per_shard, paired=paired)
    except (ValueError, OSError) as error:
        report_skipped(skipped)
        print(f"error: {error}", file=sys.stderr)
        return 2
    report_skipped(skipped)
    size = "x".join(map(str, args.size))
    labels = f", parse maps read as {args.label_map}" if "label_map" in args else ""
    print(f"{args.out}: {num} samples of {size}{labels}; look at them: python -m data.inspect {args.out}")
    return 0


def report_skipped(skipped: dict[str, str] | None) -> None:
    if skipped:
        print(f"skipped {len(skipped)} bad samples:", file=sys.stderr)
        for name, reason in skipped.items():
            print(f"  {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

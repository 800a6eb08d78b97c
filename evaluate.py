"""Numbers for try-on images: python evaluate.py RUN_OR_CASCADE [RUN ...] [key=value ...], or under torchrun.

Draws the held-out pairs of a run, or takes pictures of any model, and measures them as a paper does:
    python evaluate.py runs/cascade --protocol paper catvton
    python evaluate.py runs/cascade --unpaired --inception-weights pt_inception-2015-12-05-6726825d.pth
    python evaluate.py --images results --reference test/image --masks test/garment_mask
Writes OUT/PROTOCOL/metrics.json, metrics.md, per_pair.csv, contact sheets of the worst, median and best pairs, and
TensorBoard scalars; OUT lies in the run where none is given.  The same command draws on where it ended.
docs/evaluation.md says what the numbers are.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.prepare import count
from evaluation.drawing import PICTURES, Asked, draw
from evaluation.measuring import Measures, check_sizes, measure, measures_of
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.sources import Drawn, Folder, Source
from evaluation.telling import tell
from model.cascade import between
from sampling.options import WORDS, add_drawing, check_out, refuse_idle, split
from sampling.outputs import make_folder
from sampling.stages import Trained, find_stages
from training.distributed import DistributedConfig, agreed, on_main, process_group, say, under_torchrun
from training.engine import pick_device
from training.exits import run

DRAWING = ("shards", "start", "stop", "seed", "weights", "dp", "one_at_a_time", "overwrite")


def main() -> None:
    args = parser().parse_intermixed_args()
    places, overrides = split(args.words)
    check(args, places, overrides)
    stages = between(find_stages(places, overrides), args.start, args.stop) if places else []
    distributed = stages[0].config.distributed if stages else DistributedConfig()
    with process_group(distributed) if under_torchrun() else nullcontext():
        with agreed():
            device = pick_device(stages[0].config.engine.device if stages else args.device)
        how_measured = partial(plan, args, device)
        source, made, out = open_drawn(args, stages, places, how_measured) if stages else open_folder(args)
        planned = how_measured(source)
        with agreed():
            for protocol in planned:
                make_folder(out / protocol.name)
        for protocol, (repaint, measures) in planned.items():
            measured = measure(source, protocol, measures, args.batch, repaint)
            facts = made | {"repainted": protocol.repaint}
            how = out / protocol.name, source, protocol, repaint, measured, facts
            say(f"{out / protocol.name}:\n{on_main(partial(tell, *how))}")


def check(args: argparse.Namespace, places: list[Path], overrides: list[str]) -> None:
    """Raises ValueError for options that do not go together."""
    if bool(places) == bool(args.images):
        raise ValueError("name a RUN_OR_CASCADE whose pictures are drawn, or --images and --reference; not both")
    if bool(args.images) != bool(args.reference):
        raise ValueError("--images and --reference belong together; give both, or neither")
    default = vars(parser().parse_args([]))
    idle = DRAWING if args.images else ("repainted", "device")
    why = "pictures of --images are drawn already" if args.images else "the run's config says so, or it is drawn anew"
    given = [(f"--{option.replace('_', '-')}", getattr(args, option) != default[option], why) for option in idle]
    given += [(word, bool(args.images), why) for word in overrides]
    given.append(("--masks", bool(args.masks) and args.unpaired, "its regions are of pairs"))
    repaints = any(PROTOCOLS[name].repaint for name in args.protocol)
    given.append(("--repainted", args.repainted and not repaints, "none of these protocols repaints"))
    refuse_idle(given)


def open_drawn(
    args: argparse.Namespace, stages: list[Trained], places: list[Path], check: Callable[[Drawn], object]
) -> tuple[Source, dict[str, Any], Path]:
    """(the pictures, what they were made with, where numbers go)

    check: as in evaluation.drawing.
    """
    out = args.out or places[-1] / ("evaluation_unpaired" if args.unpaired else "evaluation")
    asked = Asked(
        args.shards, args.pairs, args.unpaired, args.masks, args.seed, args.batch, args.weights, args.dp,
        args.one_at_a_time, args.overwrite,
    )  # fmt: skip
    check_out(out, places, stages, "evaluation")
    source, made = draw(stages, asked, out, check)
    return source, made, out


def open_folder(args: argparse.Namespace) -> tuple[Source, dict[str, Any], Path]:
    """The same of a folder of pictures."""
    unpaired = "_unpaired" if args.unpaired else ""
    images = Path(os.path.abspath(args.images))  # noqa: PTH100  '.' has a name too, and a link lies where it is
    out = args.out or images.with_name(f"{images.name}_evaluation{unpaired}")
    with agreed():
        source = Folder(args.images, args.reference, args.masks, args.unpaired, args.pairs)
        taken = {Path(folder).resolve() for folder in (args.images, args.reference, args.masks or args.images)}
        if any((out / name).resolve() in taken for name in args.protocol):
            raise ValueError(f"--out {out}: sheets would lie among the pictures; name a folder of their own")
    return source, {"images": str(args.images), "reference": args.reference}, out


def plan(args: argparse.Namespace, device: torch.device, source: Source) -> dict[Protocol, tuple[bool, Measures]]:
    """By protocol, whether pictures are repainted, and what they are measured with.

    Raises ValueError, on every rank, for what cannot be measured so, of whatever is or shall be drawn.
    """
    protocols = [PROTOCOLS[name] for name in dict.fromkeys(args.protocol)]
    with agreed():
        repainted = [repaints(args, protocol, source) for protocol in protocols]
        for protocol in protocols:
            check_sizes(source, protocol)
    how = source.paired, source.size, args.inception_weights, device
    measures = [measures_of(protocol, *how) for protocol in protocols]
    return dict(zip(protocols, zip(repainted, measures, strict=True), strict=True))


def repaints(args: argparse.Namespace, protocol: Protocol, source: Source) -> bool:
    """Whether the pictures get the person's pixels where nothing was to be drawn."""
    if not protocol.repaint or args.repainted:
        return False
    if not source.knows_drawn:
        raise ValueError(
            f"--protocol {protocol.name}: takes what is not drawn from the person, and nobody says where that is; give "
            "paired pictures with shards as --reference, or with the masks of what was inpainted as --masks, or "
            "--repainted where it is done already"
        )
    return True


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        usage="%(prog)s RUN_OR_CASCADE [RUN ...] [key=value ...] [options]\n       "
        "%(prog)s --images DIR --reference DIR_OR_SHARDS [options]",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    result.add_argument("words", **WORDS)
    what = result.add_argument_group("what is measured")
    what.add_argument("--shards", help="pairs to draw [the run's data.val_shards]")
    what.add_argument("--images", type=Path, metavar="DIR", help="pictures of any model, PNG or JPEG, of one size")
    what.add_argument("--reference", metavar="DIR_OR_SHARDS", help="the truth; pairs go by file name without suffix")
    what.add_argument(
        "--masks", type=Path, metavar="DIR",
        help="by name, white in the region of its own numbers [what is drawn]; where a protocol repaints --images of "
        "a folder of references: white where the model drew",
    )  # fmt: skip
    what.add_argument("--pairs", type=count, help="the first so many [all]")
    what.add_argument("--unpaired", action="store_true", help="every person in the next one's garment: crowds alone")
    measured = result.add_argument_group("how it is measured")
    measured.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["paper"], help="as whom [paper]")
    measured.add_argument("--inception-weights", type=Path, metavar="FILE", help="of FID and KID; docs/evaluation.md")
    measured.add_argument("--repainted", action="store_true", help="--images have the person's own pixels already")
    measured.add_argument("--batch", type=count, default=16, help="pictures in one pass [16]")
    measured.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="for --images [auto]"
    )
    how = result.add_argument_group("how it is drawn")
    how.add_argument("--start", metavar="STAGE", help="begin at this stage, with the persons' pictures")
    add_drawing(how)
    where = result.add_argument_group("what is written")
    where.add_argument("--out", type=Path, help=f"pictures go to OUT/{PICTURES} [evaluation in the last folder named]")
    where.add_argument("--overwrite", action="store_true", help="draw anew what other options have drawn into OUT")
    return result


if __name__ == "__main__":
    run(main, "the same command draws what is missing")

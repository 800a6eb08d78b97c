"""Try-on images: python sample.py RUN_OR_CASCADE [RUN ...] [key=value ...], or under torchrun on many devices.

The stages are run folders, exported folders, or the folders in one folder.  Pairs come from shards:
    python sample.py runs/cascade --unpaired --pairs 200 sampler.num_steps=20
every person in every garment, of shards or of photographs:
    python sample.py runs/cascade --grid 8x5
    python sample.py runs/cascade --person anna.jpg ben.jpg --garment shirt.jpg
Writes OUT/KEY.png for every pair, and OUT/sheet.png with the first of them beside their inputs.  The same command
continues: what is drawn already stays as it is.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data.agnostic import RULES
from data.parts import LABEL_MAPS
from data.prepare import count
from model.cascade import between
from sampling.devices import Replicas, pick_devices
from sampling.drawing import draw_all, write_animation, write_sheet
from sampling.inputs import ImagesAlone, Inputs, Lowres, ShardPairs, data_of, held_out_of, own_size
from sampling.options import WORDS, add_drawing, check_out, refuse_idle, split
from sampling.outputs import FORMATS, SHEET, Files, Names, Output, Shards, about, claim, make_folder
from sampling.photos import KINDS, Shot, pairs_of_photos
from sampling.sheets import ANIMATIONS
from sampling.stages import Trained, find_stages, weights_of
from sampling.stamps import SUFFIXES
from training.distributed import agreed, on_main, process_group, say, under_torchrun
from training.exits import run

PAIRS, QUALITY = 64, 95


def main() -> None:
    args = parser().parse_intermixed_args()
    places, overrides = split(args.words)
    if not places:
        raise ValueError("no folder named: python sample.py RUN_OR_CASCADE [RUN ...] [key=value ...]")
    stages = between(find_stages(places, overrides), args.start, args.stop)
    with process_group(stages[0].config.distributed) if under_torchrun() else nullcontext():
        with agreed():
            check(args)
            devices = pick_devices(stages, args.dp)
            inputs, lowres, grid = open_inputs(args, stages)
            out = args.out or default_out(args, places)
            check_out(out, places, stages, "samples")
            make_folder(out)
        replicas = Replicas(stages, weights_of(args.weights, stages), devices, args.one_at_a_time)
        form = {"format": args.format, "all_stages": args.all_stages}
        form |= {"webdataset": {"pairs": inputs.num}, "jpeg": {"quality": args.quality or QUALITY}}.get(args.format, {})
        given = inputs.about | (lowres.about if lowres else {})
        facts = about(stages, replicas.crcs, args.seed, given, form)
        with agreed():
            output = open_output(args, stages, inputs, out, facts)
        on_main(lambda: claim(output, facts, args.overwrite))
        drawn = draw_all(replicas, stages, inputs, lowres, output, args.batch, args.seed)
        size = max((stage.config.model.image_size for stage in stages if stage.config.model.tries_on), default=None)
        on_main(lambda: write_sheet(inputs, lowres, output, size, args.rows, grid))
        if args.animation:
            how = args.rows, args.batch, args.seed
            on_main(lambda: write_animation(args.animation, replicas, stages, inputs, lowres, output, *how))
        say(f"{out}: {inputs.num} images, {drawn} of them new, and {SHEET}")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    together = [
        ("--person", bool(args.person), "--garment", bool(args.garment)),
        ("--person-parse", bool(args.person_parse), "--label-map", args.label_map is not None),
    ]
    for one, has_one, other, has_other in together:
        if has_one != has_other:
            raise ValueError(f"{one} and {other} belong together; give both, or neither")
    photos, kind = bool(args.person), args.garment_kind
    apart = [
        ("--person", photos, "--shards", bool(args.shards)),
        ("--person", photos, "--unpaired", args.unpaired),
        ("--person", photos, "--pairs", args.pairs is not None),
        ("--grid", args.grid is not None, "--unpaired", args.unpaired),
        ("--garment-kind flat", kind == "flat", "--garment-pose", bool(args.garment_pose)),
    ]
    for one, has_one, other, has_other in apart:
        if has_one and has_other:
            raise ValueError(f"{one} and {other} exclude each other; leave one out")
    idle = [
        ("--crop", args.crop and not photos, "only photographs are cropped, with --person"),
        ("--rule", args.rule is not None and not photos, "only photographs are masked, with --person"),
        ("--garment-kind", kind is not None and not photos, "it is of a photograph, with --garment"),
        ("--quality", args.quality is not None and args.format != "jpeg", "it is of --format jpeg"),
    ]
    refuse_idle(idle)
    for option in ("person_pose", "person_parse", "garment_mask", "garment_pose"):
        files, of = getattr(args, option), option.split("_")[0]
        if files and len(files) != len(getattr(args, of) or ()):
            raise ValueError(f"--{option.replace('_', '-')}: {len(files)} files; give one for each --{of}")


def open_inputs(
    args: argparse.Namespace, stages: list[Trained]
) -> tuple[Inputs, Lowres | None, tuple[int, int] | None]:
    """The pairs, the first stage's low-resolution input where it wants one, and (persons, garments) of a grid."""
    first, grid = stages[0], args.grid
    sizes = [stage.config.model.image_size for stage in stages if stage.config.model.tries_on]
    wants_image = first.config.model.lowres
    if args.image and not wants_image:
        raise ValueError(f"--image: {first.name} makes images from noise; start at a later stage with --start")
    if args.person:
        inputs, grid = open_photos(args)
    elif sizes or not args.image:
        sizes = sizes + ([own_size(first)] if wants_image and not args.image else [])
        shards = args.shards or held_out_of(stages)
        if not shards:
            say("note: the run has no data.val_shards; sampling pairs it was trained on")
            shards = data_of(stages)[0].places()[0]
        num = args.pairs or PAIRS
        num = min(num, len(args.image)) if args.image else num
        inputs = ShardPairs(shards, sizes, num, args.unpaired, grid)
    else:
        why = f"{first.name} and what follows know no garment, and --image names all that is drawn"
        given = (("--shards", args.shards), ("--unpaired", args.unpaired), ("--grid", grid))
        refuse_idle([(option, bool(value), why) for option, value in given])
        inputs = ImagesAlone(args.image)
    if wants_image and not args.image:
        say("note: the low-resolution input is the person's picture, downsampled, not a previous stage's result")
    return inputs, Lowres(first, inputs, args.image) if wants_image else None, grid


def open_photos(args: argparse.Namespace) -> tuple[Inputs, tuple[int, int] | None]:
    persons, garments = args.person, args.garment
    if args.grid:
        have = len(persons), len(garments)
        if have[0] < args.grid[0] or have[1] < args.grid[1]:
            raise ValueError(
                f"--grid {args.grid[0]}x{args.grid[1]}: {have[0]} persons and {have[1]} garments are given"
            )
        persons, garments = persons[: args.grid[0]], garments[: args.grid[1]]

    def each(files: list[Path] | None, i: int) -> Path | None:
        return files[i] if files else None

    inputs, notes = pairs_of_photos(
        [
            Shot(person, pose=each(args.person_pose, i), parse=each(args.person_parse, i), labels=args.label_map)
            for i, person in enumerate(persons)
        ],
        [
            Shot(garment, pose=each(args.garment_pose, i), mask=each(args.garment_mask, i))
            for i, garment in enumerate(garments)
        ],
        args.garment_kind or KINDS[0],
        crop=args.crop,
        rule=args.rule or RULES[0],
    )
    for note in notes:
        say(f"note: {note}")
    return inputs, (len(persons), len(garments)) if inputs.num > 1 else None


def open_output(
    args: argparse.Namespace, stages: list[Trained], inputs: Inputs, out: Path, facts: dict[str, Any]
) -> Output:
    wanted = [stage.name for stage in (stages if args.all_stages else stages[-1:])]
    names = Names(inputs.key, inputs.num, wanted, SUFFIXES[args.format], facts)
    if args.format == "webdataset":
        return Shards(out, names, wanted)
    return Files(out, names, wanted, args.quality or QUALITY)


def default_out(args: argparse.Namespace, places: list[Path]) -> Path:
    name = "samples" if len(places) == 1 else "samples_cascade"
    name += "_unpaired" if args.unpaired else "_photos" if args.person else "_grid" if args.grid else ""
    return places[-1] / name


def grid_size(text: str) -> tuple[int, int]:
    """'8x5' -> (8, 5)"""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected PERSONSxGARMENTS, e.g. 8x5")
    return int(sides[0]), int(sides[1])


def quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 100")
    return int(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        usage="%(prog)s RUN_OR_CASCADE [RUN ...] [key=value ...] [options]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    result.add_argument("words", **WORDS)
    what = result.add_argument_group("what is drawn")
    what.add_argument("--shards", help="pairs to sample [the run's data.val_shards]")
    what.add_argument("--pairs", type=count, help=f"the first so many pairs [{PAIRS}]")
    what.add_argument("--unpaired", action="store_true", help="give every person the garment of the next pair")
    what.add_argument("--grid", type=grid_size, metavar="8x5", help="8 persons, each in 5 garments")
    photos = result.add_argument_group("photographs, prepared as data.prepare does it: every person in every garment")
    files = {"type": Path, "nargs": "+", "metavar": "FILE"}
    photos.add_argument("--person", **files, help="from head to hips, upright")
    photos.add_argument("--garment", **files, help="a transparent PNG is a garment cut out already")
    photos.add_argument("--garment-kind", choices=KINDS, help="by somebody, or lying flat [worn]")
    photos.add_argument("--crop", action="store_true", help="crop each photograph to its person [the whole is shown]")
    photos.add_argument("--rule", choices=RULES, help="what of the person is masked [paper]")
    photos.add_argument("--person-pose", **files, help="JSON of OpenPose and others [estimated]")
    photos.add_argument("--person-parse", **files, help="parse maps [estimated]")
    photos.add_argument("--label-map", help=f"of the parse maps: {', '.join(LABEL_MAPS)}, or a file")
    photos.add_argument("--garment-pose", **files, help="the wearer's [estimated]")
    photos.add_argument("--garment-mask", **files, help="white where the garment is [estimated]")
    how = result.add_argument_group("how")
    how.add_argument("--start", metavar="STAGE", help="begin at this stage")
    how.add_argument("--image", **files, help="what it shall sharpen, one for each pair [the persons' pictures]")
    how.add_argument("--batch", type=count, default=16, help="pairs in one forward pass [16]")
    add_drawing(how)
    where = result.add_argument_group("what is written")
    where.add_argument("--out", type=Path, help="[samples, samples_unpaired, ... in the last folder named]")
    where.add_argument("--format", choices=FORMATS, default="png", help="webdataset: tar shards of PNG [png]")
    where.add_argument("--quality", type=quality, help=f"of JPEG [{QUALITY}]")
    where.add_argument("--all-stages", action="store_true", help="write every stage's images, in OUT/STAGE/")
    where.add_argument("--rows", type=count, default=8, help="pairs on the contact sheet, and in the animation [8]")
    where.add_argument("--animation", choices=ANIMATIONS, help="OUT/animation.*: the denoising of the first pairs")
    where.add_argument("--overwrite", action="store_true", help="draw anew what other options have drawn into OUT")
    return result


if __name__ == "__main__":
    run(main, "the same command draws what is missing")

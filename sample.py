"""Try-on images from a run folder: python sample.py RUN_DIR [key=value ...], or under torchrun on many devices.

Writes OUT/KEY.png for every pair, and OUT/sheet.png with the first of them beside their inputs.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.dataset import ShardedDataset
from data.prepare import count, seed
from data.schema import Sample
from data.shards import escape_key
from training.config import Config
from training.distributed import agreed, get_rank, num_ranks, on_main, process_group, say, under_torchrun
from training.exits import run
from training.held_out import try_on
from training.inference import load_net, read_run
from training.sheet import contact_sheet


def main() -> None:
    args = parser().parse_intermixed_args()
    config = read_run(args.run_dir, ["engine.device=auto", *args.overrides])
    out = args.out or args.run_dir / ("samples_unpaired" if args.unpaired else "samples")
    with process_group(config.distributed) if under_torchrun() else nullcontext():
        if not (args.shards or config.data.val_shards):
            say("note: the run has no data.val_shards; sampling pairs it was trained on")
        if config.model.lowres:
            say("note: the low-resolution input is the person's picture, downsampled, not a previous stage's result")
        with agreed():
            shards = args.shards or config.data.val_shards or config.data.places()[0]
            pairs = Pairs(shards, args.pairs, args.unpaired, config)
            make_folder(out)
        sample_pairs(pairs, args, config, out)
        on_main(lambda: write_sheet(pairs, out, args.rows))


class Pairs:
    """The first `num` pairs of a shard folder; unpaired, each person gets the garment of the next."""

    def __init__(self, shards: str, num: int, unpaired: bool, config: Config):
        self.dataset = ShardedDataset(shards)
        self.unpaired = unpaired  # garments are exchanged here
        self.truth = self.dataset.paired and not unpaired
        self.num = min(num, len(self.dataset))
        if self.dataset.image_size != config.model.image_size:
            have, want = ("x".join(map(str, size)) for size in (self.dataset.image_size, config.model.image_size))
            raise ValueError(f"{shards}: images of {have}, this run's are {want}; prepare shards with --size {want}")
        if unpaired and self.num < 2:
            raise ValueError(f"--unpaired: needs at least two pairs to exchange garments, {shards} gives one")

    def __getitem__(self, i: int) -> Sample:
        sample = self.dataset.read(i)
        if not self.unpaired:
            return sample
        other = self.dataset.read((i + 1) % self.num)
        key = f"{sample.key}__{other.key}"
        return sample._replace(key=key, garment=other.garment, garment_pose=other.garment_pose)


def sample_pairs(pairs: Pairs, args: argparse.Namespace, config: Config, out: Path) -> None:
    """Every rank samples every num_ranks-th pair; a picture does not depend on how they are shared out."""
    net, device = load_net(args.run_dir, config, args.weights)
    mine = list(range(get_rank(), pairs.num, num_ranks()))
    chunks = [mine[start : start + args.batch] for start in range(0, len(mine), args.batch)]
    for ids in tqdm(chunks, desc="sampling", unit="batch", disable=None):
        samples = [pairs[i] for i in ids]
        images = try_on(
            net, samples, ids, model=config.model, diffusion=config.diffusion, sampler=config.sampler,
            seed=args.seed, device=device,
        )  # fmt: skip
        for sample, image in zip(samples, images, strict=True):
            Image.fromarray(image).save(picture(out, sample))
    with agreed():  # all ranks have written theirs
        pass


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error}); choose another folder") from error


def picture(out: Path, sample: Sample) -> Path:
    return out / f"{escape_key(sample.key)}.png"


def write_sheet(pairs: Pairs, out: Path, rows: int) -> None:
    samples = [pairs[i] for i in range(min(rows, pairs.num))]
    results = [np.asarray(Image.open(picture(out, sample))) for sample in samples]
    Image.fromarray(contact_sheet(samples, results, paired=pairs.truth)).save(out / "sheet.png")
    print(f"{out}: {pairs.num} images and sheet.png")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that training made")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sampler.num_steps=64")
    result.add_argument("--shards", help="pairs to sample [the run's data.val_shards]")
    result.add_argument("--pairs", type=count, default=64, help="the first so many pairs [64]")
    result.add_argument("--unpaired", action="store_true", help="give every person the garment of the next pair")
    result.add_argument("--out", type=Path, help="[RUN_DIR/samples or RUN_DIR/samples_unpaired]")
    result.add_argument("--batch", type=count, default=16, help="pairs in one forward pass [16]")
    result.add_argument("--rows", type=count, default=8, help="pairs on the contact sheet [8]")
    result.add_argument("--seed", type=seed, default=0, help="another seed draws other noise [0]")
    result.add_argument("--weights", default="ema", help="a file of the checkpoint, or any FILE.safetensors [ema]")
    return result


if __name__ == "__main__":
    run(main)

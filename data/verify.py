"""python -m data.verify SHARDS: reads every member of every sample and says what is broken.

Checksums, decoding, sizes, poses, what stands in the tar against the index, and whether a pair can be one: the
agnostic picture hides something, the garment is not empty.  quarantine.jsonl gets a line for each broken sample.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.dataset import BadSample, ShardedDataset
from data.schema import Sample
from data.shard_index import index_shard

GRAY_RANGE = 8  # of 255: a picture that varies less shows nothing


class Finding(NamedTuple):
    """What is wrong with a sample, or, without a key, with its shard."""

    shard: str
    key: str
    reason: str
    broken: bool  # false: it can be read, but looks odd


def check_shard(dataset: ShardedDataset, shard: int) -> list[Finding]:
    """What is wrong in one shard."""
    name = dataset.source.name(dataset.shards[shard].name)
    found = []
    if "://" not in dataset.folder:
        try:
            dataset.check_shard(dataset.shards[shard])
        except ValueError as error:
            return [Finding(name, "", str(error).removeprefix(f"{name}: "), True)]
        if problem := _structure(dataset, shard):
            found.append(Finding(name, "", problem, True))
    for sample_id in range(dataset.first_id[shard], dataset.first_id[shard + 1]):
        try:
            odd = _odd(dataset.read(sample_id))
        except BadSample as bad:
            found.append(Finding(bad.shard, bad.key, bad.reason, True))
        else:
            found += [Finding(name, dataset.key(sample_id), odd, False)] if odd else []
    return found


def _structure(dataset: ShardedDataset, shard: int) -> str:
    """How the tar, read from its beginning as other tools do, differs from its index."""
    try:
        rows = index_shard(Path(dataset.folder) / dataset.shards[shard].name).rows
    except ValueError as error:
        return f"its structure is damaged ({error}); other tools may lose samples of it"
    if len(rows) != dataset.shards[shard].samples:
        return f"holds {len(rows)} samples, but its index says {dataset.shards[shard].samples}"
    return ""


def _odd(sample: Sample) -> str:
    """What a pair that can be read cannot be."""
    if np.array_equal(sample.person, sample.clothing_agnostic):
        return "clothing_agnostic is the person: nothing is hidden"
    if np.ptp(sample.garment.reshape(-1, 3), axis=0).max() < GRAY_RANGE:
        return "garment is one colour throughout: nothing was cut out"
    if not sample.person_pose[:, 2].any():
        return "person_pose has no visible joint"
    return ""


def check(dataset: ShardedDataset, workers: int) -> Iterator[Finding]:
    """The findings of all shards, in their order."""
    shards = range(len(dataset.shards))
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(partial(check_shard, dataset), shards) if workers > 1 else None
        one_by_one = (check_shard(dataset, shard) for shard in shards)
        for found in tqdm(results or one_by_one, total=len(shards), unit="shard", disable=None):
            yield from found
    known = {shard.name for shard in dataset.shards}
    for path in sorted(Path(dataset.folder).glob("[!.]*.tar")):
        if path.name not in known:
            yield Finding(str(path), "", "the index does not know it: python -m data.shards indexes it", False)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 when nothing is broken, 1 when something is, 2 when the set cannot be opened."""
    parser = argparse.ArgumentParser(prog="python -m data.verify", description=__doc__)
    parser.add_argument("shards", help="a folder that python -m data.prepare wrote, or its URL")
    parser.add_argument("--out", type=Path, help="[quarantine.jsonl in that folder; here, for a URL]")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes [the cores]")
    args = parser.parse_args(argv)
    out = args.out or Path("quarantine.jsonl" if "://" in args.shards else f"{args.shards}/quarantine.jsonl")
    try:
        dataset = ShardedDataset(args.shards, checked=False)
        found = list(check(dataset, max(1, args.workers)))
        broken = [finding for finding in found if finding.broken]
        lines = [{"shard": f.shard, "key": f.key, "reason": f.reason} for f in broken]
        out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in found:
        sample = f" sample {finding.key!r}:" if finding.key else ""
        print(f"{'broken' if finding.broken else 'odd'}: {finding.shard}:{sample} {finding.reason}")
    samples = len({(f.shard, f.key) for f in broken if f.key})
    shards = len({f.shard for f in broken if not f.key})
    print(
        f"{dataset.folder}: {len(dataset)} samples in {len(dataset.shards)} shards; broken: {shards} shards, {samples} "
        f"samples; odd: {len(found) - len(broken)}; {out}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Training, validation and test samples that share neither persons nor garments, and what a job list is known by."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.importers.job import Job

SPLITS = ("train", "val", "test")


class Survey(NamedTuple):
    """What is known of a job list before anything is made; numbers stand for names, to be small."""

    fingerprint: str  # of all keys, persons and garments in their order
    persons: np.ndarray  # (N,) uint64
    garments: np.ndarray  # (N,) uint64


def survey(jobs: Sequence[Job]) -> Survey:
    """Looks at every job once.  Raises ValueError naming place and remedy when a key is no text, or comes twice."""
    whole, keys = hashlib.sha256(), np.empty(len(jobs), np.uint64)
    persons, garments = np.empty_like(keys), np.empty_like(keys)
    for i, job in enumerate(jobs):
        if not job.key or job.key != job.key.encode("utf-8", "replace").decode():
            raise ValueError(f"{job.place}: its name {job.key!r} is empty or not UTF-8; rename the files")
        whole.update("\0".join((job.key, job.person_id, job.garment_id, "")).encode("utf-8", "surrogatepass"))
        keys[i], persons[i], garments[i] = map(number_of, (job.key, job.person_id, job.garment_id))
    order = np.argsort(keys, kind="stable")
    for i in np.flatnonzero(keys[order[1:]] == keys[order[:-1]]):
        first, second = (jobs[int(n)] for n in sorted(order[i : i + 2]))
        if first.key == second.key:
            raise ValueError(
                f"{second.place}: names the same sample as {first.place}, {first.key!r}; remove one of the two"
            )
    return Survey(whole.hexdigest()[:16], persons, garments)


def number_of(text: str) -> int:
    """The same number for the same text, here and everywhere.  In [0, 2**64)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def components(persons: np.ndarray, garments: np.ndarray) -> np.ndarray:
    """The group of each sample, (N,) numbers from 0 on: samples that share a person or a garment are in one group."""
    num_persons = len(np.unique(persons))
    person = np.unique(persons, return_inverse=True)[1]
    garment = np.unique(garments, return_inverse=True)[1] + num_persons
    parent = array("q", range(int(garment.max(initial=-1)) + 1))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for one, other in zip(person.tolist(), garment.tolist(), strict=True):
        parent[root(one)] = root(other)
    return np.unique([root(node) for node in person.tolist()], return_inverse=True)[1]


def split(jobs: Survey, shares: Sequence[float], seed: int) -> tuple[dict[str, np.ndarray], str]:
    """The places in the job list of each of SPLITS, in their order, and one line when the shares cannot be kept, or "".

    A group of samples that share persons or garments goes whole to one split.  The largest groups are placed first,
    each where most is missing; groups of one size come in the order that seed draws for the names of their persons.  A
    share of 0 leaves its split out.  Raises ValueError when a split would be empty.
    """
    kept = {name: share for name, share in zip(SPLITS, shares, strict=False) if share}
    group = components(jobs.persons, jobs.garments)
    sizes = np.bincount(group)
    lowest = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, group, jobs.persons)
    drawn = [number_of(f"{seed} {name}") for name in lowest.tolist()]
    missing = {name: share * len(group) for name, share in kept.items()}
    chosen = np.empty(len(sizes), object)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], drawn[i])):
        chosen[i] = max(missing, key=missing.get)
        missing[chosen[i]] -= int(sizes[i])
    places = {name: np.flatnonzero((chosen == name)[group]) for name in kept}
    largest = f"the largest group that shares persons or garments has {sizes.max()} of {len(group)} samples"
    if empty := [name for name, where in places.items() if not len(where)]:
        raise ValueError(f"--split-shares: {empty[0]} would be empty: {largest}; give it no share, or group otherwise")
    if any(abs(left) > max(1, 0.1 * kept[name] * len(group)) for name, left in missing.items()):
        got = ", ".join(f"{name} {len(where)}" for name, where in places.items())
        return places, f"the shares {', '.join(map(str, shares))} cannot be kept: {largest}; it became {got}"
    return places, ""

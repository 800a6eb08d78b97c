"""One shard of a job list: made, written, and what the report says of it."""

import io
import json
import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.estimators.weights import Unusable
from data.importers.job import Job
from data.pose import NUM_JOINTS
from data.schema import POSES
from data.shard_index import index_shard
from data.shards import encode_sample, write_tar

ABANDONED = 3600  # seconds without a sample after which nobody writes at a file any more
EXAMPLES = 20  # keys that are kept of each note


class Outcome(NamedTuple):
    """What became of one job."""

    key: str
    members: dict[str, str | bytes] | None  # of the shard; None: the sample is bad
    reason: str = ""  # why
    visible: tuple[tuple[bool, ...], ...] = ()  # the joints of each of POSES
    photo_size: str = ""  # HEIGHTxWIDTH
    notes: tuple[str, ...] = ()


def make(job: Job) -> Outcome:
    """The encoded sample of a job, or why there is none.  Raises Unusable when it is not the sample's fault."""
    try:
        sample, (height, width), notes = job.load()
    except Unusable:
        raise
    except ValueError as error:
        return Outcome(job.key, None, " ".join(str(error).split()))
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        return Outcome(
            job.key, None, f"{job.place}: cannot be read ({reason}); check the file's name and who may read it"
        )
    visible = tuple(tuple(bool(seen) for seen in getattr(sample, field)[:, 2]) for field in POSES)
    return Outcome(job.key, encode_sample(sample), "", visible, f"{height}x{width}", notes)


class Facts:
    """Counts over samples, which can be added up and written to a file."""

    def __init__(self) -> None:
        self.samples, self.bytes = 0, 0
        self.rejects: list[tuple[str, str]] = []  # key, reason
        self.notes: Counter[str] = Counter()
        self.noted: dict[str, list[str]] = {}  # note: keys of the first EXAMPLES samples that have it
        self.photo_sizes: Counter[str] = Counter()
        self.joints = np.zeros((len(POSES), NUM_JOINTS), int)  # how often each is visible
        self.num_visible = np.zeros((len(POSES), NUM_JOINTS + 1), int)  # how often so many are visible

    def count(self, outcome: Outcome) -> None:
        if outcome.members is None:
            self.rejects.append((outcome.key, outcome.reason))
            return
        self.samples += 1
        self.notes.update(outcome.notes)
        self._note({note: [outcome.key] for note in outcome.notes})
        self.photo_sizes[outcome.photo_size] += 1
        self.joints += outcome.visible
        for i, seen in enumerate(outcome.visible):
            self.num_visible[i, sum(seen)] += 1

    def add(self, other: "Facts") -> None:
        self.samples += other.samples
        self.bytes += other.bytes
        self.rejects += other.rejects
        self.notes += other.notes
        self._note(other.noted)
        self.photo_sizes += other.photo_sizes
        self.joints += other.joints
        self.num_visible += other.num_visible

    def _note(self, keys: Mapping[str, Sequence[str]]) -> None:
        for note, more in keys.items():
            self.noted[note] = [*self.noted.get(note, ()), *more][:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        arrays = {"joints": self.joints.tolist(), "num_visible": self.num_visible.tolist()}
        return vars(self) | arrays

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Facts":
        facts = cls()
        facts.samples, facts.bytes = values["samples"], values["bytes"]
        facts.rejects = [(key, reason) for key, reason in values["rejects"]]
        facts.notes, facts.photo_sizes = Counter(values["notes"]), Counter(values["photo_sizes"])
        facts.noted = dict(values["noted"])
        facts.joints, facts.num_visible = np.array(values["joints"]), np.array(values["num_visible"])
        return facts


def write_chunk(tar: Path, outcomes: Iterator[Outcome], run: str, skip_bad: bool) -> Facts:
    """Writes a shard, its index rows and, when both are whole, its facts beside them; no shard where all are bad.

    Two processes that make the same shard do not disturb each other.  Raises ValueError with the reason of the first
    bad sample unless bad ones are skipped, or when the disk is full; nothing is left then.
    """
    facts = Facts()

    def good() -> Iterator[dict[str, str | bytes]]:
        for outcome in outcomes:
            if outcome.members is None and not skip_bad:
                raise ValueError(f"{outcome.reason}, or --skip-bad")
            facts.count(outcome)
            if outcome.members is not None:
                yield outcome.members

    partial = tar.with_name(f"{tar.name}.{uuid.uuid4().hex[:8]}.partial")
    written: dict[str, Any] = {"run": run}
    try:
        _remove_abandoned(tar)
        write_tar(partial, good())
        if facts.samples:
            flush(partial)
            shard = index_shard(partial)
            facts.bytes = partial.stat().st_size
            written["rows_crc"] = zlib.crc32(shard.rows)
            partial.replace(tar)
            _write_rows(tar, shard.rows)
        write_whole(tar.with_suffix(".json"), json.dumps(written | facts.as_dict()))
    except OSError as error:
        raise ValueError(
            f"{tar}: could not be written ({error}); free space, or move the folder to another disk, and start the "
            "same command again: it goes on from here"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return facts


def read_chunk(tar: Path, run: str) -> Facts | None:
    """The facts of a shard that this run has written whole; None when there is none."""
    try:
        values = json.loads(tar.with_suffix(".json").read_text(encoding="utf-8"))
        facts = Facts.from_dict(values)
        whole = values["run"] == run and (not facts.samples or tar.stat().st_size == facts.bytes)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def read_rows(tar: Path) -> np.ndarray:
    """The index rows beside a shard, made again from the shard where a disk has lost or damaged them."""
    try:
        wanted = json.loads(tar.with_suffix(".json").read_text(encoding="utf-8"))["rows_crc"]
        rows = np.load(tar.with_suffix(".npy"), allow_pickle=False)
        if zlib.crc32(rows) == wanted:
            return rows
    except (OSError, ValueError, EOFError):
        pass
    rows = index_shard(tar).rows
    _write_rows(tar, rows)
    return rows


def _write_rows(tar: Path, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    write_whole(tar.with_suffix(".npy"), buffer.getvalue())


def _remove_abandoned(tar: Path) -> None:
    """Unfinished files of killed processes go; those that somebody may be writing, here or on another host, stay."""
    for path in tar.parent.glob(f"{tar.name}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """What was written is on the disk, not only on its way there."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())

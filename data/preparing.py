"""Job lists to shards: in parallel, in slices, and again after a kill, always with the same bytes.

    OUT.partial/prepare.json     what is prepared: the arguments and the job list's fingerprint
    OUT.partial/000003.tar       a shard of it, 000003.npy its index rows, 000003.json its facts, written last
    OUT                          the same folder with dataset.json and report.html, when all shards are there

The job list is cut into chunks of equal length; chunk k becomes shard k whoever makes it.  So any number of processes
on any number of hosts may work on one folder, each on its slice of the chunks, and each may be started again.
"""

import glob
import hashlib
import itertools
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data.chunk import Facts, Outcome, make, read_chunk, read_rows, write_chunk, write_whole
from data.importers.job import Job
from data.prepare_report import Report, write_report
from data.shard_index import publish_index
from data.workers import WorkerDied, cores, ordered

JOBS_A_WORKER = 32  # fewer are made sooner without another process


class Task(NamedTuple):
    """What is to be prepared."""

    out: Path
    sets: Mapping[str, Sequence[Job]]  # jobs by folder within out; "": out itself
    arguments: Mapping[str, str]  # all that the shards depend on, as the user writes it
    fingerprint: str  # of the job list
    image_size: tuple[int, int]  # (height, width)
    samples_per_shard: int = 1000
    paired: bool = True  # the person wears the garment
    remarks: Sequence[str] = ()  # for the report
    left_out: Sequence[tuple[str, str]] = ()  # files that no sample uses, and why, for the report

    def record(self) -> dict:
        """What prepare.json holds."""
        sizes = {name: len(jobs) for name, jobs in self.sets.items()}
        return {"arguments": dict(self.arguments), "samples": sizes, "fingerprint": self.fingerprint}

    def chunks(self) -> Iterator[tuple[str, Sequence[Job]]]:
        """(path of the shard within out, its jobs) of each chunk."""
        for name, jobs in self.sets.items():
            for number, start in enumerate(range(0, len(jobs), self.samples_per_shard)):
                yield f"{name}/{number:06d}.tar".lstrip("/"), jobs[start : start + self.samples_per_shard]


class Progress(NamedTuple):
    """What a call has come to."""

    facts: Facts  # of out when it is whole, else of this slice
    done: int  # shards
    shards: int
    published: bool


def prepare(task: Task, *, part: tuple[int, int] = (1, 1), workers: int | None = 1, skip_bad: bool = False) -> Progress:
    """Makes what is missing of one slice, (i, n) with i from 1 on, and publishes out when nothing is missing at all.

    workers: None for as many processes as there are cores, fewer for few jobs.  Raises ValueError when out or its
    partial folder was prepared otherwise, when a sample is bad unless bad ones are skipped, when the disk is full, when
    a worker is killed, or when no sample is left.  What is whole then stays, and the same call goes on from there.
    """
    record = json.dumps(task.record(), indent=1)
    run, chunks = hashlib.sha256(record.encode()).hexdigest()[:16], list(task.chunks())
    partial = _partial(task.out)
    work = _open(task, record)
    if work == task.out:
        return Progress(_facts_of(work, chunks, run), len(chunks), len(chunks), published=True)
    facts = Facts()
    if work == partial:
        try:
            facts = _fill(task, work, chunks[part[0] - 1 :: part[1]], run, workers, skip_bad)
        except ValueError:
            if work.is_dir() or not _begun(task.out):
                raise
            return prepare(task, part=part, workers=workers, skip_bad=skip_bad)  # others have made this slice meanwhile
        done = _num_done(work, chunks, record)
        if done < len(chunks):
            return Progress(facts, done, len(chunks), published=False)
    published = _publish(task, work, chunks, run)
    return Progress(published or facts, len(chunks), len(chunks), published is not None)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _begun(out: Path) -> list[Path]:
    """The folders, whole, partial or being published, that stand for out; a rename may hide one for a moment."""
    folders = [out, _partial(out), *sorted(out.parent.glob(f"{glob.escape(out.name)}.publishing-*"))]
    return [folder for folder in folders if (folder / "prepare.json").is_file()]


def _open(task: Task, record: str) -> Path:
    """The folder that holds this task: out when it is whole, a folder that is being published, or the partial one.

    Raises ValueError when one of them holds something else, unless that is a beginning without a shard.
    """
    out, partial = task.out, _partial(task.out)
    if folders := _begun(out):
        folder = folders[0]
        try:
            there = json.loads((folder / "prepare.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _open(task, record)  # it has just got another name
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'prepare.json'}: not readable ({error}); remove {folder}") from error
        if folder != partial or there == json.loads(record) or not _barren(partial):
            _compare(folder, there, json.loads(record))
            return folder
    try:
        if not folders:
            there = {path.name for path in partial.glob("*") if path.suffix != ".partial"} - set(task.sets)
            if (out / "prepare.json").is_file() or "prepare.json" in there:  # another slice was quicker
                return _open(task, record)
            if out.exists():
                raise ValueError(f"{out}: exists already; choose another --out, or remove it to prepare it again")
            if there:
                raise ValueError(f"{partial}: holds {min(there)}, which this command did not begin; remove it")
        else:  # another record, of which nothing has been made: this one takes its place
            for path in partial.iterdir():
                if path.is_dir() and path.name not in task.sets:
                    path.rmdir()
        for name in task.sets:
            (partial / name).mkdir(parents=True, exist_ok=True)
        write_whole(partial / "prepare.json", record)
    except OSError as error:
        raise ValueError(f"{partial}: cannot be written ({error}); choose another --out") from error
    return partial


def _barren(partial: Path) -> bool:
    """Whether nothing stands there but what was to be prepared: no shard, and none that somebody is making."""
    return {path.name for path in partial.rglob("*") if not path.is_dir()} == {"prepare.json"}


def _compare(folder: Path, there: dict, now: dict) -> None:
    """Raises ValueError that names what differs between two records."""
    remedy = f"use the same arguments or another --out, or remove {folder} to begin again"
    try:
        before, after = there["arguments"], now["arguments"]
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                told = [f"{name} {values[name]}" if name in values else f"no {name}" for values in (before, after)]
                raise ValueError(f"{folder}: was begun with {told[0]}, and now comes {told[1]}; {remedy}")
        if there != now:
            counts = [sum(values["samples"].values()) for values in (there, now)]
            raise ValueError(
                f"{folder}: the source has changed since, from {counts[0]} listed samples to {counts[1]}; put it back, "
                f"or remove {folder} to begin again"
            )
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / 'prepare.json'}: of another version; {remedy}") from None


def _fill(
    task: Task, work: Path, chunks: Sequence[tuple[str, Sequence[Job]]], run: str, workers: int | None, skip_bad: bool
) -> Facts:
    """Makes those of the chunks that are not there; the facts of all of them."""
    facts, missing = Facts(), []
    for name, jobs in chunks:
        if found := read_chunk(work / name, run):
            facts.add(found)
        else:
            missing.append((name, jobs))
    if facts.rejects and not skip_bad:
        raise ValueError(f"{facts.rejects[0][1]}, or --skip-bad")
    num = sum(len(jobs) for _, jobs in missing)
    outcomes = ordered(
        make,
        itertools.chain.from_iterable(jobs for _, jobs in missing),
        workers or max(1, min(cores(), num // JOBS_A_WORKER)),
    )
    before = sum(len(jobs) for _, jobs in chunks) - num
    with closing(outcomes), tqdm(total=before + num, initial=before, unit="sample", disable=None) as bar:
        for name, jobs in missing:
            try:
                facts.add(write_chunk(work / name, _shown(itertools.islice(outcomes, len(jobs)), bar), run, skip_bad))
            except WorkerDied as error:
                raise ValueError(
                    f"{work / name}: {error} while it was made (out of memory?); start the same command again with "
                    "fewer --workers: it goes on from here"
                ) from None
    return facts


def _shown(outcomes: Iterator[Outcome], bar: tqdm) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        bar.update()


def _num_done(work: Path, chunks: Sequence[tuple[str, Sequence[Job]]], record: str) -> int:
    """How many shards are whole: all when another process has the folder already, to publish it.

    Of two slices that end together, the one whose file comes last must see the other's: so a file is written first, for
    a folder that was just written to is not answered from a network disk's cache.  Raises ValueError when another
    command has begun the folder anew.
    """
    with suppress(FileNotFoundError):
        if json.loads((work / "prepare.json").read_text(encoding="utf-8")) != json.loads(record):
            raise ValueError(
                f"{work}: another command has begun it anew meanwhile; choose another --out for one of them"
            )
        write_whole(work / "prepare.json", record)
    done = sum((work / name).with_suffix(".json").is_file() for name, _ in chunks)
    return done if work.is_dir() else len(chunks)


def _publish(task: Task, work: Path, chunks: Sequence[tuple[str, Sequence[Job]]], run: str) -> Facts | None:
    """Index, report, and the name out; the facts of all samples, or None when another process does it.

    Whoever renames the folder owns it: renaming succeeds once, on network disks too, and a lock that a dead process
    would hold is not needed.  Raises ValueError when there is no sample, or a shard that was whole is damaged.
    """
    mine = task.out.with_name(f"{task.out.name}.publishing-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        work.rename(mine)
    if not mine.is_dir():  # asked of the disk: the answer to a rename can get lost on its way
        return None
    try:
        facts = _facts_of(mine, chunks, run)
        if facts.samples:
            _finish(task, mine, chunks, facts)
    except (ValueError, OSError) as error:
        if not mine.is_dir():
            return None  # the same command, started again, has taken it over
        mine.rename(_partial(task.out))
        if isinstance(error, OSError):
            raise ValueError(f"{task.out}: could not be published ({error}); free space and start again") from error
        raise
    if not facts.samples:
        shutil.rmtree(mine)
        raise ValueError(f"{task.out}: the source gave no sample to write: {facts.rejects[0][1]}")
    return facts


def _finish(task: Task, mine: Path, chunks: Sequence[tuple[str, Sequence[Job]]], facts: Facts) -> None:
    """Index and report of a folder whose shards are all there, and its final name."""
    num = {}
    for name in task.sets:
        tars = [mine / tar for tar, _ in chunks if Path(tar).parent == Path(name) and (mine / tar).is_file()]
        rows = {tar.name: read_rows(tar) for tar in tars}
        num[name] = sum(map(len, rows.values()))
        if tars:
            publish_index(mine / name, rows, task.image_size, task.paired)
    write_report(mine, Report(task.out.name, facts, num, task.arguments, task.remarks, task.left_out))
    for path in mine.rglob("*.partial"):  # of processes that were killed
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        mine.rename(task.out)
    if not (task.out / "prepare.json").is_file():
        raise FileNotFoundError(task.out)


def _facts_of(folder: Path, chunks: Sequence[tuple[str, Sequence[Job]]], run: str) -> Facts:
    """The facts of all chunks together.  Raises ValueError naming the first that is not there."""
    facts = Facts()
    for name, _ in chunks:
        found = read_chunk(folder / name, run)
        if found is None:
            raise ValueError(f"{folder / name}: was whole, and is not any more; check the disk and start again")
        facts.add(found)
    return facts

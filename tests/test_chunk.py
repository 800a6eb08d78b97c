"""A shard is there whole, with its rows and its facts, or it is made again."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from data.chunk import ABANDONED, EXAMPLES, Facts, make, read_chunk, read_rows, write_chunk
from data.estimators.weights import Unusable
from data.importers import drawn
from data.importers.job import Job
from data.preprocess import Preparation
from data.shard_index import index_shard
from runs import unavailable

JOBS = list(drawn.list_jobs(Preparation((32, 32)), 4, seed=3))


def complain():
    raise ValueError("a.jpg: broken\n  at byte 7")


@pytest.fixture(scope="module")
def outcomes():
    return [make(job) for job in (*JOBS, Job("bad", "p", "g", "row 5", complain))]


def test_an_outcome_tells_what_became_of_a_job(outcomes):
    good, bad = outcomes[0], outcomes[-1]
    assert good.key == JOBS[0].key and set(good.members) > {"__key__", "person.jpg", "garment_pose.npy"}
    assert good.photo_size == "64x64" and [len(seen) for seen in good.visible] == [18, 18] and not good.reason
    assert bad.members is None and bad.reason == "a.jpg: broken at byte 7", "in one line"


def test_what_was_written_is_read(tmp_path, outcomes):
    tar = tmp_path / "000000.tar"
    facts = write_chunk(tar, iter(outcomes), "run", skip_bad=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.json", "000000.npy", "000000.tar"]
    assert facts.samples == 4 and facts.bytes == tar.stat().st_size and facts.rejects == [("bad", outcomes[-1].reason)]
    read = read_chunk(tar, "run")
    for name, value in vars(facts).items():
        assert (
            np.array_equal(getattr(read, name), value)
            if isinstance(value, np.ndarray)
            else getattr(read, name) == value
        )
    assert index_shard(tar).keys == [job.key for job in JOBS] and len(read_rows(tar)) == 4


def test_a_file_that_cannot_be_looked_at_makes_a_bad_sample():
    outcome = make(Job("long", "p", "g", "a.csv row 7", (Path("/") / ("x" * 3000)).stat))
    assert (
        outcome.members is None
        and outcome.reason.startswith("a.csv row 7: cannot be read (")
        and "long" in outcome.reason
    )
    assert len(outcome.reason) < 500


def test_what_no_sample_is_to_blame_for_is_raised():
    def load():
        raise Unusable("weights are missing")

    with pytest.raises(Unusable, match=r"^weights are missing$"):
        make(Job("a", "p", "g", "row 5", load))


def test_unfinished_files_of_the_killed_go_and_those_of_the_living_stay(tmp_path, outcomes):
    old, young = (tmp_path / f"000000.tar.{name}.partial" for name in ("old", "young"))
    for path, age in ((old, 2 * ABANDONED), (young, ABANDONED / 2)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    write_chunk(tmp_path / "000000.tar", iter(outcomes[:1]), "run", skip_bad=True)
    assert not old.exists() and young.read_bytes() == b"half"


def test_nothing_is_left_of_a_shard_with_a_bad_sample(tmp_path, outcomes):
    with pytest.raises(ValueError, match=r"^a.jpg: broken at byte 7, or --skip-bad$"):
        write_chunk(tmp_path / "000000.tar", iter(outcomes), "run", skip_bad=False)
    assert not list(tmp_path.iterdir())
    facts = write_chunk(tmp_path / "000000.tar", iter(outcomes[-1:]), "run", skip_bad=True)
    assert facts.samples == 0 and [path.name for path in tmp_path.iterdir()] == ["000000.json"]
    assert read_chunk(tmp_path / "000000.tar", "run").rejects == facts.rejects, "it is done, though there is no shard"


@pytest.mark.parametrize(
    "damage", ["another run", "cut off", "no shard", "no facts", "half of the facts", "other facts"]
)
def test_a_damaged_shard_is_none(tmp_path, outcomes, damage):
    tar = tmp_path / "000000.tar"
    write_chunk(tar, iter(outcomes[:2]), "another run" if damage == "another run" else "run", skip_bad=True)
    facts = tar.with_suffix(".json")
    if damage == "cut off":
        os.truncate(tar, tar.stat().st_size // 2)
    elif damage in ("no shard", "no facts"):
        (tar if damage == "no shard" else facts).unlink()
    elif damage != "another run":
        facts.write_text(facts.read_text()[:40] if damage == "half of the facts" else "[]")
    assert read_chunk(tar, "run") is None


def test_lost_and_foreign_index_rows_are_made_again(tmp_path, outcomes):
    tar, other = tmp_path / "000000.tar", tmp_path / "000001.tar"
    write_chunk(tar, iter(outcomes[:2]), "run", skip_bad=True)
    write_chunk(other, iter(outcomes[1:3]), "run", skip_bad=True)
    rows, whole = tar.with_suffix(".npy"), tar.with_suffix(".npy").read_bytes()
    for damaged in (b"", whole[:-1], other.with_suffix(".npy").read_bytes()):
        rows.write_bytes(damaged)
        assert np.array_equal(read_rows(tar), index_shard(tar).rows) and rows.read_bytes() == whole
    rows.unlink()
    assert np.array_equal(read_rows(tar), index_shard(tar).rows) and rows.read_bytes() == whole


def test_facts_add_up(outcomes):
    whole, part = Facts(), Facts()
    for i, outcome in enumerate(outcomes):
        (whole if i < 2 else part).count(outcome._replace(notes=("left wrist unsure",)))
    joints = whole.joints + part.joints
    whole.add(Facts.from_dict(part.as_dict()))
    assert whole.samples == 4 and len(whole.rejects) == 1 and whole.notes == {"left wrist unsure": 4}
    assert whole.noted == {"left wrist unsure": [job.key for job in JOBS]}, "in their order"
    for _ in range(EXAMPLES):
        part.add(whole)
    assert len(part.noted["left wrist unsure"]) == EXAMPLES
    assert whole.photo_sizes == {"64x64": 4} and (whole.joints == joints).all() and whole.num_visible.sum() == 8


def test_a_full_disk_leaves_what_is_whole(tmp_path, outcomes):
    """On a disk of 80 KiB, where a shard takes 30."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(tmp_path)]
    if os.name == "nt" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        unavailable("a small disk needs root and mount")
    first, second = tmp_path / "000000.tar", tmp_path / "000001.tar"
    try:
        write_chunk(first, iter(outcomes[:3]), "run", skip_bad=True)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / "filler").write_bytes(bytes(24 * 1024))
        with pytest.raises(ValueError, match=r"000001.tar: could not be written .*No space left.*free space.*goes on"):
            write_chunk(second, iter(outcomes[1:4]), "run", skip_bad=True)
        (tmp_path / "filler").unlink()
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()} and read_chunk(first, "run")
        write_chunk(second, iter(outcomes[1:3]), "run", skip_bad=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

"""Whatever happens on the way, the same shards come out: of any number of processes, slices, kills and starts."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data import chunk, preparing
from data.chunk import Facts, read_chunk
from data.dataset import ShardedDataset
from data.estimators.weights import Unusable
from data.importers import drawn
from data.importers.job import Job, JobList, Made
from data.preparing import Task, prepare
from data.preprocess import Preparation
from data.split import survey

HOW = Preparation((32, 32))
BAD = {5, 6, 7, 13}


def load(index: int, bad: bool) -> Made:
    if bad and index in BAD:
        raise ValueError(f"/set/{index}.jpg: missing; put it there")
    return drawn.load(f"{index}", 3, index, HOW)._replace(notes=("left wrist unsure",) * (index % 2))


def job(bad: bool, index: int) -> Job:
    return Job(f"{index}", f"p{index}", f"g{index}", f"row {index}", partial(load, index, bad))


def task(out: Path, num: int = 20, bad: bool = False, **changes) -> Task:
    jobs = JobList(range(num), partial(job, bad))
    values = {"sets": {"": jobs}, "arguments": {"--num": str(num)}, "fingerprint": survey(jobs).fingerprint}
    return Task(out=out, image_size=HOW.size, samples_per_shard=3, **values | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(f"{out.name}."))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files that one process leaves that is never stopped; every fourth sample is bad."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = prepare(task(out, bad=True), skip_bad=True)
    assert done.published and done.facts.samples == 16 and done.done == done.shards == 7
    return contents(out)


def check(out: Path, whole: dict[str, bytes]) -> None:
    assert contents(out) == whole and not leftovers(out)


def test_what_is_written(whole, tmp_path):
    names = set(whole)
    tars = [name for name in names if name.endswith(".tar")]
    assert len(tars) == 7 and {"dataset.json", "report.html", "prepare.json"} < names
    assert names == {*tars, *(n.replace(".tar", e) for n in tars for e in (".npy", ".json"))} | {
        "dataset.json", "report.html", "prepare.json",
    }  # fmt: skip
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    dataset = ShardedDataset(tmp_path)
    assert [dataset.key(i) for i in range(len(dataset))] == [str(i) for i in range(20) if i not in BAD]
    facts = Facts.from_dict(json.loads(whole["000001.json"]))
    assert facts.samples == 2 and facts.rejects == [("5", "/set/5.jpg: missing; put it there")]
    assert facts.photo_sizes == {"64x64": 2} and facts.notes == {"left wrist unsure": 1}
    poses = np.stack([dataset.read(i).person_pose[:, 2] for i in (3, 4)])
    assert facts.joints[0].tolist() == poses.sum(0).tolist()
    assert np.flatnonzero(facts.num_visible[0]).tolist() == sorted(set(poses.sum(1).astype(int).tolist()))


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_processes(tmp_path, whole, workers):
    prepare(task(tmp_path / "out", bad=True), workers=workers, skip_bad=True)
    check(tmp_path / "out", whole)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_slices_in_any_order(tmp_path, whole, order):
    out = tmp_path / "out"
    for place, i in enumerate(order, start=1):
        done = prepare(task(out, bad=True), part=(i, 3), skip_bad=True)
        assert done.published == out.exists() == (place == 3)
        assert done.published or done.facts.samples < 10
    check(out, whole)
    assert prepare(task(out, bad=True), part=(2, 3), skip_bad=True).facts.samples == 16, "done already"
    check(out, whole)


def test_more_slices_than_shards(tmp_path, whole):
    for i in range(1, 10):
        done = prepare(task(tmp_path / "out", bad=True), part=(i, 9), skip_bad=True)
        assert done.published == (i >= 7)
    check(tmp_path / "out", whole)


def in_process(target, *args) -> int:
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def die_at(call: int, out: Path) -> None:
    """Prepares and dies by SIGKILL before the call-th change of the disk; half of a shard may be written by then."""
    remaining = itertools.count(call, -1)

    def deadly(change):
        def changed(*args, **kwargs):
            if next(remaining) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return changed

    write_tar = chunk.write_tar

    def deadly_write(path, samples):
        write_tar(path, samples)
        if next(remaining) == 1:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    chunk.write_tar = deadly_write
    for name in ("mkdir", "replace", "rename", "write_text", "unlink"):
        setattr(Path, name, deadly(getattr(Path, name)))
    prepare(task(out, 8, bad=True), skip_bad=True)


def test_death_at_any_change_of_the_disk(tmp_path):
    prepare(task(tmp_path / "whole", 8, bad=True), skip_bad=True)
    expected = {name: data.replace(b"whole", b"out") for name, data in contents(tmp_path / "whole").items()}
    deaths = 0
    for call in range(1, 200):
        out = tmp_path / f"{call}/out"
        out.parent.mkdir()
        exitcode = in_process(die_at, call, out)
        assert exitcode in (0, -signal.SIGKILL)
        assert prepare(task(out, 8, bad=True), skip_bad=True).facts.samples == 5
        check(out, expected)
        shutil.rmtree(out.parent)
        if exitcode == 0:
            break
        deaths += 1
    assert deaths > 20


def test_a_restart_makes_only_what_is_missing(tmp_path, monkeypatch):
    out, made = tmp_path / "out", []
    monkeypatch.setattr(preparing, "make", lambda job: made.append(job.key) or chunk.make(job))
    prepare(task(out), part=(1, 2))
    assert made == [str(i) for i in range(20) if i // 3 % 2 == 0]
    first = tmp_path / "out.partial/000000.tar"
    run = json.loads(first.with_suffix(".json").read_text())["run"]
    assert read_chunk(first, run).samples == 3 and read_chunk(first, "another run") is None
    (tmp_path / "out.partial/000002.tar").write_bytes(b"cut off")
    (tmp_path / "out.partial/000004.json").write_text('{"run":')
    made.clear()
    prepare(task(out))
    assert made == [str(i) for i in range(20) if i // 3 % 2 or i // 3 in (2, 4)]


@pytest.mark.parametrize("processes", [2, 5])
def test_slices_that_end_at_the_same_moment_publish_once(tmp_path, whole, processes, monkeypatch):
    """All of them wait for the last shard and then go on together."""
    for attempt in range(4):
        out, barrier = tmp_path / f"{attempt}/out", threading.Barrier(processes)
        out.parent.mkdir()
        fill = preparing._fill

        def wait_after(*args, fill=fill, barrier=barrier):
            facts = fill(*args)
            barrier.wait(30)
            return facts

        monkeypatch.setattr(preparing, "_fill", wait_after)
        done = {}

        def run(i, out=out, done=done):
            done[i] = prepare(task(out, bad=True), part=(i, processes), skip_bad=True)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(1, processes + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        monkeypatch.undo()
        assert all(one.done == one.shards == 7 for one in done.values())
        assert len(done) == processes and [one.published for one in done.values()].count(True) == 1, done
        check(out, whole)


def test_publishing_is_taken_over_from_a_dead_process_and_lost_without_noise(tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    write = preparing.write_report

    def taken_over(folder, report):
        monkeypatch.setattr(preparing, "write_report", write)
        assert folder.name.startswith("out.publishing-") and not out.exists()
        assert prepare(task(out, bad=True), skip_bad=True).published, "a second process finds the folder"
        write(folder, report)

    monkeypatch.setattr(preparing, "write_report", taken_over)
    first = prepare(task(out, bad=True), skip_bad=True)
    assert not first.published and first.done == first.shards
    check(out, whole)


def test_a_slice_that_others_make_meanwhile_is_no_error(tmp_path, whole, monkeypatch):
    out, fill = tmp_path / "out", preparing._fill

    def overtaken(*args):
        monkeypatch.setattr(preparing, "_fill", fill)
        assert prepare(task(out, bad=True), skip_bad=True).published
        return fill(*args)

    monkeypatch.setattr(preparing, "_fill", overtaken)
    done = prepare(task(out, bad=True), part=(1, 2), skip_bad=True)
    assert done.published and done.facts.samples == 16
    check(out, whole)


def test_other_arguments_are_refused_by_name(tmp_path):
    out = tmp_path / "out"
    prepare(task(out), part=(1, 2))
    with pytest.raises(ValueError, match=r"out.partial: was begun with --num 20, and now comes --num 19; use the same"):
        prepare(task(out, 19))
    with pytest.raises(ValueError, match=r"begun with no --crop, and now comes --crop True"):
        prepare(task(out, arguments={"--num": "20", "--crop": "True"}))
    with pytest.raises(ValueError, match=r"the source has changed since, from 20 listed samples to 19; put it back"):
        prepare(task(out, 19, arguments={"--num": "20"}))
    prepare(task(out))
    before = contents(out)
    with pytest.raises(ValueError, match=r"out: was begun with --num 20, and now comes --num 19"):
        prepare(task(out, 19))
    assert contents(out) == before
    (out / "prepare.json").write_text('{"arguments": 3}')
    with pytest.raises(ValueError, match=r"prepare.json: of another version"):
        prepare(task(out))


def test_a_beginning_without_a_shard_gives_way_to_other_arguments(tmp_path, whole):
    out = tmp_path / "out"
    bad = {"train": JobList([5, 6], partial(job, True)), "val": JobList([7], partial(job, True))}
    with pytest.raises(ValueError, match="missing"):
        prepare(task(out, sets=bad, arguments={"--num": "3"}))
    assert contents(tmp_path / "out.partial").keys() == {"prepare.json"}
    living = tmp_path / "out.partial/train/000000.tar.1234.partial"
    living.write_bytes(b"")
    with pytest.raises(ValueError, match=r"was begun with --num 3, and now comes --num 20"):
        prepare(task(out, bad=True), skip_bad=True)
    living.unlink()
    prepare(task(out, bad=True), skip_bad=True)
    check(out, whole)
    assert all(path.is_file() for path in out.iterdir())


def test_a_slice_whose_beginning_was_replaced_publishes_nothing(tmp_path, monkeypatch):
    out, fill = tmp_path / "out", preparing._fill

    def replaced(*args):
        facts = fill(*args)
        (tmp_path / "out.partial/prepare.json").write_text('{"arguments": {}}')
        return facts

    monkeypatch.setattr(preparing, "_fill", replaced)
    with pytest.raises(ValueError, match=r"out.partial: another command has begun it anew meanwhile; choose another"):
        prepare(task(out))
    assert not out.exists() and "--num" not in (tmp_path / "out.partial/prepare.json").read_text()


def test_the_same_command_twice_at_once(tmp_path, whole, monkeypatch):
    out, barrier, write = tmp_path / "out", threading.Barrier(2, timeout=30), chunk.write_tar

    def together(path, samples):
        write(path, samples)
        with suppress(threading.BrokenBarrierError):
            barrier.wait()

    monkeypatch.setattr(chunk, "write_tar", together)

    def run():
        try:
            return prepare(task(out, bad=True), skip_bad=True)
        finally:
            barrier.abort()

    with ThreadPoolExecutor(2) as pool:
        done = [call.result() for call in (pool.submit(run), pool.submit(run))]
    assert True in [one.published for one in done] and all(one.done == one.shards for one in done)
    check(out, whole)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_what_no_sample_is_to_blame_for_ends_it(tmp_path, workers, skip_bad):
    sets = {"": JobList(range(20), partial(failing_job, lack_weights))}
    with pytest.raises(Unusable, match=r"^weights are missing; fetch them$"):
        prepare(task(tmp_path / "out", sets=sets), workers=workers, skip_bad=skip_bad)
    assert sorted(path.name for path in (tmp_path / "out.partial").glob("*.tar*")) == ["000000.tar", "000001.tar"]


def test_folders_of_something_else_stay_as_they_are(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "my.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: exists already; choose another --out"):
        prepare(task(out))
    out.rename(tmp_path / "out.partial")
    with pytest.raises(ValueError, match=r"out.partial: holds my.txt, which this command did not begin; remove it"):
        prepare(task(out))
    assert contents(tmp_path / "out.partial") == {"my.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be written .*; choose another --out"):
        prepare(task(tmp_path / "file/out"))


def test_the_first_bad_sample_ends_it_and_skipping_goes_on_from_there(tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^/set/5.jpg: missing"):
        prepare(task(out, bad=True), workers=2)
    assert sorted(path.name for path in (tmp_path / "out.partial").glob("*.tar")) == ["000000.tar"]
    prepare(task(out, bad=True), part=(2, 4), skip_bad=True)
    with pytest.raises(ValueError, match=r"^/set/5.jpg: missing"):
        prepare(task(out, bad=True), part=(2, 4))
    prepare(task(out, bad=True), skip_bad=True)
    check(out, whole)


def test_a_source_of_bad_samples_only(tmp_path):
    jobs = JobList([5, 6, 7], partial(job, True))
    with pytest.raises(ValueError, match=r"out: the source gave no sample to write: /set/5.jpg: missing"):
        prepare(task(tmp_path / "out", sets={"": jobs}), skip_bad=True)
    assert not list(tmp_path.iterdir()), "the same command starts afresh when the photographs are there"


def test_a_shard_of_bad_samples_only_is_left_out(tmp_path):
    jobs = JobList([0, 1, 2, 5, 6, 7, 8], partial(job, True))
    done = prepare(task(tmp_path / "out", sets={"": jobs}), skip_bad=True)
    dataset = ShardedDataset(tmp_path / "out")
    assert done.facts.samples == len(dataset) == 4 and [shard.name for shard in dataset.shards] == [
        "000000.tar",
        "000002.tar",
    ]


def test_sets_are_folders(tmp_path):
    sets = {"train": JobList(range(7), partial(job, False)), "val": JobList(range(7, 9), partial(job, False))}
    for i in (2, 1):
        prepare(task(tmp_path / "out", sets=sets), part=(i, 2))
    found = {name: ShardedDataset(tmp_path / "out" / name) for name in sets}
    assert {name: [data.key(i) for i in range(len(data))] for name, data in found.items()} == {
        "train": ["0", "1", "2", "3", "4", "5", "6"],
        "val": ["7", "8"],
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lack_weights() -> None:
    raise Unusable("weights are missing; fetch them")


def fail_at_7(fail, index: int) -> Made:
    if index == 7:
        fail()
    return load(index, False)


def failing_job(fail, index: int) -> Job:
    return job(False, index)._replace(load=partial(fail_at_7, fail, index))


def test_a_killed_worker_is_named_and_the_rest_is_kept(tmp_path):
    out, deadly = tmp_path / "out", JobList(range(20), partial(failing_job, die))
    with pytest.raises(ValueError, match=r"^[^\n]* ended by SIGKILL [^\n]*fewer --workers[^\n]*$"):
        prepare(task(out, sets={"": deadly}), workers=2)
    prepare(task(out))
    assert len(ShardedDataset(out)) == 20

"""A rank that stops is named, with its host and phase, and the run ends."""

import json
import os
import signal
import time

import psutil
import pytest
import torch

from runs import empty_config, finish, ranks, wait_for_step, words
from training.distributed import DistributedConfig
from training.heartbeat import HUNG, Heartbeat, Pulse, Watched

HANG_S = 4
ENDLESS = {"train__num_steps": 100_000, "log__every": 1, "checkpoint__every": 1_000_000, "distributed__hang_s": HANG_S}


def test_a_stopped_rank_is_named_and_killed(shards, tmp_path):
    run_dir = tmp_path / "run"
    both = ranks(tmp_path, 2, [str(empty_config(tmp_path)), *words(shards, run_dir, **ENDLESS)])
    wait_for_step(both, run_dir, 2)
    os.kill(both[1].process.pid, signal.SIGSTOP)
    began = time.monotonic()
    statuses, text = finish(both, 30)
    assert statuses == [HUNG, -signal.SIGKILL] and time.monotonic() - began < HANG_S + 4
    assert f"rank 1 (pid {both[1].process.pid}), in phase " in text and "its process stands still" in text
    assert text.count("error: ") == 1 and "Traceback" not in text
    log = next((run_dir / "logs").glob("*/rank_0.log")).read_text()
    assert 'training/loop.py", line' in log  # its stacks


def test_a_rank_without_data_is_named(shards, tmp_path):
    run_dir = tmp_path / "run"
    both = ranks(tmp_path, 2, [str(empty_config(tmp_path)), *words(shards, run_dir, data__num_workers=1, **ENDLESS)])
    wait_for_step(both, run_dir, 2)
    workers = psutil.Process(both[1].process.pid).children()
    for worker in workers:
        worker.suspend()
    statuses, text = finish(both, 30)
    for worker in workers:
        worker.kill()
    assert HUNG in statuses, text
    assert "rank 1 (pid" in text and "in phase 'data'" in text and "hangs there while the others wait" in text
    assert "rank 0 (pid" not in text


def test_heartbeat_files_tell_rank_step_and_phase(shards, tmp_path):
    run_dir = tmp_path / "run"
    both = ranks(tmp_path, 2, [str(empty_config(tmp_path)), *words(shards, run_dir)])
    statuses, text = finish(both)
    assert statuses == [0, 0], text
    told = [json.loads(path.read_text()) for path in sorted((run_dir / "logs").glob("*/rank_?.json"))]
    assert [(beat["rank"], beat["step"], beat["phase"]) for beat in told] == [(0, 20, "ended"), (1, 20, "ended")]
    assert told[0]["start"] == told[1]["start"] == (run_dir / "start").read_text()


def beat(rank: int, step: int, phase: str, ticks: int = 1, beats: int = 1, start: str = "now") -> Heartbeat:
    return Heartbeat(start, rank, f"node{rank // 2}", 100 + rank, step, phase, beats, ticks)


def watched(folder, *moments: list[Heartbeat]) -> Watched:
    """What a rank knows after it read the files at these moments."""
    watch = Watched()
    for beats in moments:
        for one in beats:
            path = folder / one.host / f"rank_{one.rank}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(one._asdict()))
        watch.look(folder, "now")
    return watch


@pytest.mark.parametrize("phase", ["data", "forward", "checkpoint"])
def test_who_waits_for_others_is_not_blamed(tmp_path, phase):
    moments = [[beat(rank, 7, phase if rank == 2 else "all-reduce", ticks) for rank in range(4)] for ticks in (1, 2)]
    told = watched(tmp_path, *moments).verdict(300)
    assert f"host node1, rank 2 (pid 102), in phase '{phase}' after step 7" in told and "rank 1" not in told


def test_a_host_that_fell_silent_comes_first(tmp_path):
    moments = [[beat(rank, 7, "all-reduce", ticks if rank < 2 else 1) for rank in range(4)] for ticks in (1, 2)]
    told = watched(tmp_path, *moments).verdict(300)
    assert "host node1, rank 2" in told and "host node1, rank 3" in told and "its host is gone" in told


def test_a_broken_network_blames_nobody(tmp_path):
    moments = [[beat(rank, 7, "all-reduce", ticks) for rank in range(4)] for ticks in (1, 2)]
    assert "the network between node0, node1 is broken" in watched(tmp_path, *moments).verdict(300)


def test_progress_of_any_rank_is_progress(tmp_path):
    still = watched(tmp_path, [beat(0, 7, "all-reduce")], [beat(0, 7, "all-reduce", 2)])
    time.sleep(0.1)
    assert still.all_stood_for(0.1)
    moving = watched(tmp_path, [beat(0, 7, "checkpoint")], [beat(0, 7, "checkpoint", 2, beats=2)])
    assert not moving.all_stood_for(0.1)


def test_files_of_an_earlier_start_count_for_nothing(tmp_path):
    old = [[beat(1, 7, "data", start="before")], [beat(0, 2, "all-reduce", 2)]]
    assert set(watched(tmp_path, *old).newest) == {0}


def test_the_first_step_may_compile(tmp_path):
    pulse = Pulse(tmp_path, "now", DistributedConfig(hang_s=10, timeout_s=100), torch.device("cpu"))
    with pulse("forward"):
        assert pulse._limit() == 80
    pulse.end_step(1)
    with pulse("forward"):
        assert pulse._limit() == 10
    with pulse("checkpoint"):
        assert pulse._limit() == 80


def test_the_watch_hears_before_those_who_wait_give_up():
    with pytest.raises(ValueError, match=r"hang_s=300 must be less than distributed\.timeout_s=300"):
        DistributedConfig(hang_s=300, timeout_s=300)

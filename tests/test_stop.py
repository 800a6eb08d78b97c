"""Who may end a run before its last step, and what the run leaves behind."""

import json
import os
import signal
import time

import pytest

from runs import Script, assert_same_bits, empty_config, finish, newest, ranks, train, wait_for_step, words
from training import checkpoint, stop

LONG = {"train__num_steps": 60, "checkpoint__every": 1000}


def start(shards, tmp_path, env: dict[str, str] | None = None, **changes) -> Script:
    return Script(tmp_path, "train_single.py", arguments(shards, tmp_path, **changes), env)


def arguments(shards, tmp_path, **changes) -> list[str]:
    return [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **(LONG | changes))]


def marker(run_dir, name: str) -> dict:
    others = {"DONE", "REQUEUE", "STOP", "FAILED"} - {name}
    assert not [other for other in others if (run_dir / other).exists()]
    return json.loads((run_dir / name).read_text())


def test_the_file_STOP_saves_leaves_REQUEUE_and_is_consumed(shards, tmp_path):
    run = start(shards, tmp_path, train__num_steps=4000)
    wait_for_step([run], tmp_path / "run", 2)
    (tmp_path / "run" / "STOP").touch()
    assert run.wait(30) == 0, run.text
    told = marker(tmp_path / "run", "REQUEUE")
    assert told["step"] == checkpoint.read_state(newest(tmp_path / "run")).step >= 2
    assert told["reason"] == "stopped by the file STOP"
    assert f"stopped at step {told['step']} by the file STOP" in run.text


def test_the_end_of_the_jobs_time_saves_and_two_limits_lose_nothing(shards, tmp_path):
    """Each job's time is over when it starts: it does one step, so that no number of restarts is endless."""
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", arguments(shards, tmp_path / "whole", train__num_steps=3))
    for step in (1, 2):
        run = start(shards, tmp_path, {"TRYON_DEADLINE": str(time.time())}, train__num_steps=3)
        assert run.wait() == 0, run.text
        told = marker(tmp_path / "run", "REQUEUE")
        assert (told["step"], told["reason"]) == (step, "stopped by the end of the job's time")
    train(tmp_path, arguments(shards, tmp_path, train__num_steps=3))
    assert marker(tmp_path / "run", "DONE")["step"] == 3
    assert_same_bits(tmp_path / "whole" / "run", tmp_path / "run")


def test_a_STOP_during_the_first_batch_is_heard(shards, tmp_path):
    """It is written before the first step, while the process starts."""
    (tmp_path / "run").mkdir()
    run = start(shards, tmp_path)
    time.sleep(0.05)
    (tmp_path / "run" / "STOP").touch()
    assert run.wait() == 0 and marker(tmp_path / "run", "REQUEUE")["step"] <= 2, run.text


def test_an_old_STOP_is_not_for_this_start(shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    os.utime(tmp_path / "run" / "STOP", (time.time() - 60,) * 2)
    text = train(tmp_path, arguments(shards, tmp_path, train__num_steps=4))
    assert marker(tmp_path / "run", "DONE")["step"] == 4 and "finished" in text


def test_markers_of_an_earlier_start_are_gone(shards, tmp_path):
    train(tmp_path, arguments(shards, tmp_path, train__num_steps=2))
    run = start(shards, tmp_path)
    wait_for_step([run], tmp_path / "run", 3)
    assert not (tmp_path / "run" / "DONE").exists()
    run.kill()
    run.wait()


def test_a_refused_command_leaves_the_markers(shards, tmp_path):
    train(tmp_path, arguments(shards, tmp_path, train__num_steps=2))
    run = start(shards, tmp_path, seed=5)
    assert run.wait() == 1 and "another kind" in run.text
    assert marker(tmp_path / "run", "DONE")["step"] == 2


def test_an_echo_of_a_signal_is_the_same_signal(shards, tmp_path):
    """torchrun passes on to its ranks what Slurm or the terminal sent them already."""
    run = start(shards, tmp_path, train__num_steps=4000)
    wait_for_step([run], tmp_path / "run", 2)
    for _ in range(3):
        run.kill(signal.SIGINT)
    assert run.wait(30) == 0 and "interrupted" not in run.text, run.text
    assert marker(tmp_path / "run", "REQUEUE")["reason"] == "stopped by a signal"


def test_a_second_signal_skips_what_is_due_and_still_saves(tmp_path):
    wish = stop.StopWish(tmp_path)
    assert wish.flags() == [0, 0, 0, 0, 0]
    wish.hear(signal.SIGTERM, None)
    wish.hear(signal.SIGTERM, None)
    assert wish.flags() == [0, 1, 0, 0, 0]
    wish.signalled -= 2 * stop.ECHO_S
    wish.hear(signal.SIGUSR2, None)
    assert wish.flags() == [0, 1, 0, 0, 1]
    with pytest.raises(KeyboardInterrupt):
        wish.hear(signal.SIGINT, None)


def test_a_batch_script_stops_its_own_job_alone(tmp_path, monkeypatch):
    (tmp_path / "STOP").write_text("job 7\n")
    assert stop.StopWish(tmp_path).flags() == [0, 0, 0, 0, 0]
    monkeypatch.setenv("TRYON_STOP_WORD", "job 8")
    assert stop.StopWish(tmp_path).flags() == [0, 0, 0, 0, 0]
    monkeypatch.setenv("TRYON_STOP_WORD", "job 7")
    assert stop.StopWish(tmp_path).flags() == [0, 0, 1, 0, 0]
    (tmp_path / "STOP").write_text("")
    assert stop.StopWish(tmp_path).flags() == [1, 0, 0, 0, 0]


def test_a_hurried_run_makes_no_pictures(shards, tmp_path):
    changes = {"log__preview_every": 1, "log__num_previews": 8, "log__preview_steps": 30, "train__num_steps": 400}
    run = start(shards, tmp_path, **changes)
    wait_for_step([run], tmp_path / "run", 1)
    run.kill(signal.SIGTERM)
    time.sleep(1.5 * stop.ECHO_S)
    if run.process.is_alive():
        run.kill(signal.SIGTERM)
    assert run.wait(30) == 0, run.text
    step = marker(tmp_path / "run", "REQUEUE")["step"]
    assert len(list((tmp_path / "run" / "previews").glob("*.png"))) in (step - 1, step)


def test_DONE_ends_a_run_of_several_ranks(shards, tmp_path):
    statuses, text = finish(ranks(tmp_path, 2, arguments(shards, tmp_path, train__num_steps=3)))
    assert statuses == [0, 0] and marker(tmp_path / "run", "DONE")["reason"] == "the last step is done", text


def test_a_refusal_is_told_to_the_batch_script(shards, tmp_path):
    refused = tmp_path / "refused.txt"
    run = start(shards, tmp_path, {"TRYON_REFUSED": str(refused)}, train__global_batch=100)
    assert run.wait() == 1
    assert refused.read_text().startswith("error: data.shards=") and refused.read_text().count("\n") == 1


@pytest.mark.slow
def test_a_STOP_during_the_first_compile_is_heard(shards, tmp_path):
    network = {"model__channels": [8], "model__num_blocks": [1], "model__attention_levels": [0]}
    run = start(shards, tmp_path, engine__compile=True, **network)
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "training.log").exists() or "a new run of" not in run.text:
        assert run.process.is_alive() and time.monotonic() < end, run.text
        time.sleep(0.01)
    (tmp_path / "run" / "STOP").touch()
    assert run.wait(240) == 0, run.text
    assert marker(tmp_path / "run", "REQUEUE")["step"] == 1


def test_a_job_waits_for_the_end_of_another_start_in_its_folder(shards, tmp_path):
    """As after a host died: its lock on a network file system outlives it for a while."""
    first = start(shards, tmp_path, train__num_steps=4000)
    wait_for_step([first], tmp_path / "run", 2)
    refused = tmp_path / "refused.txt"
    second = start(shards, tmp_path, {"TRYON_REFUSED": str(refused)}, train__num_steps=4000)
    time.sleep(2)
    assert second.process.is_alive()
    first.kill()
    first.wait()
    wait_for_step([second], tmp_path / "run", 5)
    (tmp_path / "run" / "STOP").touch()
    assert second.wait() == 0 and not refused.exists(), second.text

"""The same command continues, whatever ended the run before."""

import random
import signal
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import (
    HOME,
    Script,
    assert_same_bits,
    deviation,
    empty_config,
    finish,
    losses,
    newest,
    ranks,
    stats,
    tensors,
    train,
    wait_for_step,
    words,
)
from training import checkpoint

# train_single.py that waits before its last step until it is killed.
UNFINISHED = f"""
import sys, time
sys.path.insert(0, {str(HOME)!r})
import train_single
from training import loop
lr_at = loop.lr_at
loop.lr_at = lambda step, optim: time.sleep(1000) if step == 19 else lr_at(step, optim)
train_single.run(train_single.main)
"""
HELD_OUT = {"log__validate_every": 7, "log__preview_every": 10, "checkpoint__every": 3, "data__augment__flip_prob": 0.5}


def test_killed_five_times_at_random_it_ends_bit_identical(shards, tmp_path):
    settings = HELD_OUT | {"data__num_workers": 1, "data__val_shards": shards}
    config = str(empty_config(tmp_path))
    train(tmp_path, [config, *words(shards, tmp_path / "whole", **settings)])
    arguments, moments, kills = [config, *words(shards, tmp_path / "killed", **settings)], random.Random(3), []
    path, unfinished = tmp_path / "killed" / "stats.jsonl", tmp_path / "unfinished.py"
    unfinished.write_text(UNFINISHED)
    while len(kills) < 5:
        said = len(stats(tmp_path / "killed")) if path.exists() else 0
        goal = min(19, 3 * len(kills) + moments.randint(1, 4))
        run = Script(tmp_path, str(unfinished), arguments)
        while run.process.is_alive() and (not path.exists() or path.read_text().count("\n") < goal):
            time.sleep(0.01)
        time.sleep(moments.random() * 0.2)
        run.kill()
        assert run.wait() == -signal.SIGKILL, run.text
        kills.append((said, goal))
    with path.open("a") as file:
        file.write('{"step": 99, "lo')
    text = train(tmp_path, arguments)
    assert "continuing at step" in text
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    for run in ("whole", "killed"):
        events = EventAccumulator(
            str(tmp_path / run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
        ).Reload()
        tags = set(events.Tags()["scalars"])
        wanted = {"loss", "lr", "grad_norm", "samples_per_s", "memory_gib", "data_wait_share"}
        assert {f"train/{name}" for name in wanted} | {"validation/loss"} <= tags
        assert {f"loss_by_t/{i / 10:.1f}" for i in range(10)} <= tags
        told = events.Scalars("train/loss")
        assert [event.step for event in told] == list(range(1, 21))
        np.testing.assert_allclose([event.value for event in told], losses(tmp_path / run), rtol=1e-6)
        assert [event.step for event in events.Scalars("validation/loss")] == [7, 14, 20]
        assert [event.step for event in events.Images("preview")] == [10, 20]
    lines = [stats(tmp_path / run) for run in ("whole", "killed")]
    clockwork = {"samples_per_s", "data_wait_share", "memory_gib"}
    whole, killed = ([{k: v for k, v in line.items() if k not in clockwork} for line in run] for run in lines)
    assert whole == killed and all(0 <= line.get("data_wait_share", 0) <= 1 for line in lines[0])


def test_more_and_fewer_ranks_continue_the_same_curve(shards, tmp_path):
    config = str(empty_config(tmp_path))
    settings = {"data__augment__flip_prob": 0.5, "log__every": 1}
    train(tmp_path, [config, *words(shards, tmp_path / "whole", **settings)])
    parts = [words(shards, tmp_path / "moved", train__num_steps=steps, **settings) for steps in (7, 14, 20)]
    train(tmp_path, [config, *parts[0]])
    statuses, text = finish(ranks(tmp_path, 2, [config, *parts[1]]))
    assert statuses == [0, 0] and "continuing at step 7" in text, text
    train(tmp_path, [config, *parts[2]], "train_dp.py")
    assert deviation(losses(tmp_path / "whole"), losses(tmp_path / "moved")) < 1e-5


@pytest.mark.slow
def test_killed_on_eight_ranks_then_on_three_it_ends_on_one(shards, tmp_path):
    """At moments of chance, in the middle of an epoch: the curve is that of a run that nobody killed, so that no sample
    was repeated or skipped."""
    config, dice = str(empty_config(tmp_path)), random.Random(8)
    settings = {"train__global_batch": 24, "train__num_steps": 16, "checkpoint__every": 1, "data__num_workers": 1}
    train(tmp_path, [config, *words(shards, tmp_path / "whole", **settings)])
    arguments = [config, *words(shards, tmp_path / "killed", **settings)]
    for num, step in ((8, 3), (3, 9)):
        running = ranks(tmp_path, num, arguments)
        wait_for_step(running, tmp_path / "killed", step)
        time.sleep(dice.random())
        for script in running:
            script.kill()
        finish(running)
    assert "continuing at step" in train(tmp_path, arguments)
    assert deviation(losses(tmp_path / "whole"), losses(tmp_path / "killed")) < 1e-5
    assert [line["samples"] for line in stats(tmp_path / "killed")] == list(range(24, 24 * 17, 24))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(shards, tmp_path, number):
    """The signal reaches the loader's workers too, as Ctrl-C and a cluster's preemption do."""
    config = str(empty_config(tmp_path))
    settings = {"train__num_steps": 60, "data__num_workers": 2}
    arguments = [config, *words(shards, tmp_path / "run", **settings)]
    run = Script(tmp_path, "train_single.py", arguments)
    wait_for_step([run], tmp_path / "run", 3)
    run.kill(number)
    assert run.wait(20) == 0 and "Traceback" not in run.text, run.text
    step = checkpoint.read_state(newest(tmp_path / "run")).step
    assert 3 <= step < 60 and f"stopped at step {step} by a signal, with a checkpoint" in run.text
    assert f"continuing at step {step} " in train(tmp_path, arguments)
    if number == signal.SIGTERM:
        train(tmp_path, [config, *words(shards, tmp_path / "whole", **settings)])
        assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(shards, tmp_path):
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=400)]
    both = ranks(tmp_path, 2, arguments)
    wait_for_step(both, tmp_path / "run", 3)
    both[1].kill(signal.SIGTERM)
    statuses, text = finish(both, 30)
    assert statuses == [0, 0] and text.count("stopped at step") == 1 and "Traceback" not in text, text
    assert checkpoint.read_state(newest(tmp_path / "run")).step < 400


def test_a_rank_that_is_killed_ends_the_others_with_one_line(shards, tmp_path):
    both = ranks(tmp_path, 2, [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=4000)])
    wait_for_step(both, tmp_path / "run", 2)
    both[1].kill()
    statuses, text = finish(both, 30)
    assert statuses == [1, -signal.SIGKILL] and "lost contact with another rank" in text and "Traceback" not in text


def test_a_finished_run_says_so_and_changes_nothing(shards, tmp_path):
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=3)]
    train(tmp_path, arguments)
    before, lines = tensors(tmp_path / "run"), stats(tmp_path / "run")
    assert "finished: 3 steps, 12 samples" in train(tmp_path, arguments)
    assert lines == stats(tmp_path / "run")
    assert all((value == before[name]).all() for name, value in tensors(tmp_path / "run").items())


def test_a_damaged_newest_checkpoint_is_told_and_trained_again(shards, tmp_path):
    config, settings = str(empty_config(tmp_path)), {"train__num_steps": 6, "checkpoint__every": 2}
    train(tmp_path, [config, *words(shards, tmp_path / "whole", **settings)])
    arguments = [config, *words(shards, tmp_path / "run", **settings)]
    train(tmp_path, arguments)
    path = newest(tmp_path / "run") / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    text = train(tmp_path, arguments)
    assert "warning: " in text and "step_00000006 is not whole" in text and "continuing at step 4" in text
    assert_same_bits(tmp_path / "whole", tmp_path / "run")

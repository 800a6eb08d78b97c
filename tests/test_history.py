import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from runs import Script, words
from training.config import load_config, save_config
from training.history import Curve, Run, named_apart, smoothed


def folder(path: Path, lines: list = (), log: list[str] = ()) -> Path:
    path.mkdir(parents=True)
    save_config(load_config(["configs/demo.yaml"]), path / "config.yaml")
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (path / "stats.jsonl").write_text(text)
    (path / "training.log").write_text("".join(f"2026-01-02 03:04:05,678 {line}\n" for line in log))
    return path


def line(step: int, loss: float | None = 1.0, **more) -> dict:
    return {"step": step, "samples": 4 * step, "loss": loss, **more}


def test_what_a_step_costs(tmp_path):
    """Seconds follow from the speed of each line, or from the usual one; measurements lie between and beyond lines."""
    lines = [line(10, 3.0, samples_per_s=4), {"step": 15, "validation/loss": 2.5}, line(20, 2.0, samples_per_s=8)]
    run = Run(folder(tmp_path / "run", [*lines, line(30, 1.0), {"step": 60, "validation/loss": 0.5}]))
    curve = run.curve("loss")
    assert curve.samples.tolist() == [40, 80, 120] and curve.values.tolist() == [3, 2, 1]
    np.testing.assert_allclose(curve.seconds, [10, 15, 15 + 40 / 6])
    measured = run.measurements("validation/loss")
    assert measured.samples.tolist() == [60, 240] and measured.values.tolist() == [2.5, 0.5]
    np.testing.assert_allclose(measured.seconds, [12.5, 2 * (15 + 40 / 6)])
    assert (run.steps, run.samples, run.remarks) == (30, 120, []) and run.typical("samples_per_s") == 6
    silent = Run(folder(tmp_path / "silent", [line(1), line(2)]))
    assert math.isnan(silent.seconds) and np.isnan(silent.curve("loss").seconds).all()


def test_lines_that_are_broken_or_repeated(tmp_path):
    bad = ['{"step": 3, "lo', "[1]", '{"step": "4", "samples": 1, "loss": 1}', '{"step": -1, "samples": 1, "loss": 1}']
    bad += ['{"step": 6, "samples": NaN, "loss": 1}', '{"step": 1e999, "samples": 99, "loss": 1}']
    lines = [line(1), line(2, 9.0), *bad, line(2, 2.0), {**line(3), "samples": 8}, line(4, None), line(5)]
    run = Run(folder(tmp_path / "run", lines))
    assert run.curve("loss").samples.tolist() == [4, 8, 16, 20]
    np.testing.assert_array_equal(run.curve("loss").values, [1, 2, math.nan, 1])
    assert [remark.rpartition(": ")[2] for remark in run.remarks] == ["7", "1"], run.remarks


@pytest.mark.parametrize("name", ["stats.jsonl", "config.yaml", "training.log", "environment.jsonl", "DONE"])
def test_no_damage_is_more_than_a_remark(tmp_path, name):
    lines = [line(i, samples_per_s=5, **{"loss_by_t/0.1": 1.0}) for i in range(1, 9)]
    path = folder(tmp_path / "run", lines, [f"{tmp_path}: a new run of 9 steps", "finished: 9 steps"])
    (path / "environment.jsonl").write_text('{"devices": ["a: cpu"]}\n')
    (path / "DONE").write_text('{"reason": "the last step is done"}\n')
    whole, chance = (path / name).read_bytes(), random.Random(1)
    for _ in range(30):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 9)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (path / name).write_bytes(data[: chance.randint(0, len(data))])
        run = Run(path)
        assert np.isfinite(smoothed(run.curve("loss")).values).all() and len(run.lines) <= 8 and run.by_t() is not None
    (path / name).unlink()
    assert bool(Run(path).remarks) == (name in ("stats.jsonl", "config.yaml"))
    (path / name).mkdir()
    Run(path)


def test_starts_stops_and_what_was_trained_again(tmp_path):
    log = ["runs/a: a new run of 90 steps", "step 10  samples 40  loss 1", "step 20  samples 80  loss 1"]
    log += [
        "warning: s.tar: sample '7': no JPEG",
        "warning: s.tar: sample '8': no JPEG",
        "start-up took 3 s: imports 2",
    ]
    log += ["runs/a: continuing at step 15 of 90 steps", "step 20  samples 80  loss 1"]
    log += [
        "stopped at step 25 by a signal, with a checkpoint",
        "changed since this run was last started: a from 1 to 2",
    ]
    log += ["runs/a: continuing at step 25 of 90 steps", "runs/a: continuing at step 25 of 90 steps"]
    log += ["step 30  samples 120  loss 1", "error: why", "runs/a: continuing at step 25 of 90 steps"]
    events = Run(folder(tmp_path / "run", [line(1)], log)).events
    assert [(event.text.split(":")[0][:34], event.times, event.bad) for event in events] == [
        ("runs/a", 1, False),
        ("warning", 2, True),
        ("the start before ended without a w", 1, True),
        ("runs/a", 1, False),
        ("stopped at step 25 by a signal, wi", 1, False),
        ("changed since this run was last st", 1, False),
        ("runs/a", 1, False),
        ("the start before ended without a w", 1, True),
        ("runs/a", 1, False),
        ("error", 1, True),
        ("steps 26 to 30 were trained again", 1, True),
        ("runs/a", 1, False),
    ]
    assert events[2].text.endswith("after step 20; steps 16 to 20 were trained again")
    assert events[7].text.endswith("after step 25") and events[0].time == "2026-01-02 03:04:05"


def test_how_a_run_stands(tmp_path):
    path = folder(tmp_path / "run")
    assert Run(path).state == "no step yet" and "no step is told" in Run(path).remarks[0]
    (path / "stats.jsonl").write_text(json.dumps(line(1)) + "\n")
    assert Run(path).state == "ended without a word"
    (path / "logs/host").mkdir(parents=True)
    (path / "logs/host/rank_0.json").write_text("{}")
    assert Run(path).state == "running"
    (path / "logs/host/rank_0.json").write_text('{"phase": "ended"}\n')
    assert Run(path).state == "ended without a word"
    (path / "training.log").write_text("2026-01-02 03:04:05,678 error: why\n")
    assert Run(path).state == "ended (error: why)" and Run(path).events[-1].bad
    for name, state in (
        ("REQUEUE", "stopped, to be continued (why)"),
        ("FAILED", "given up (why)"),
        ("DONE", "finished"),
    ):
        (path / name).write_text('{"reason": "why"}')
        assert Run(path).state == state


def test_the_error_that_ends_a_run_is_its_last_word(shards, tmp_path):
    script = Script(
        tmp_path, "train_single.py", words(shards, tmp_path / "run", optim__lr=1e30, train__max_nonfinite=1)
    )
    assert script.wait() == 1
    error = script.text.strip().splitlines()[-1]
    run = Run(tmp_path / "run")
    assert run.events[-1].text == error and error.startswith("error: the gradient was not finite")
    assert run.state.startswith("ended (error: the gradient was not finite") and len(run.state) < 200


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"none: no such run folder; name the run\.dir"):
        Run(tmp_path / "none")
    stages = [folder(tmp_path / "cascade" / name, [line(1)]) for name in ("base_unet", "sr_unet")]
    with pytest.raises(
        ValueError, match=f"cascade: no run folder, but it holds some; name those: {stages[0]} {stages[1]}"
    ):
        Run(tmp_path / "cascade")


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [Run(folder(tmp_path / name)) for name in ("a/base", "b/base", "b/c/base", "other")]
    named_apart(runs)
    assert [run.name for run in runs] == ["a/base", "b/base", "c/base", "other"]


def test_smoothing_starts_at_the_first_value_and_forgets():
    samples = np.arange(1.0, 501)
    curve = smoothed(Curve(samples, samples, np.where(samples < 250, 8.0, 2.0)))
    assert curve.values[0] == 8 and curve.values[248] == pytest.approx(8)
    assert 2 < curve.values[250] < 8 and curve.values[-1] == pytest.approx(2, abs=1e-6)
    gap = smoothed(Curve(samples[:3], samples[:3], np.array([math.nan, 4, math.nan])))
    assert math.isnan(gap.values[0]) and gap.values[1:].tolist() == pytest.approx([4, 4])


def test_a_run_that_went_on_is_smoothed_the_same_until_there():
    samples = np.arange(100.0, 1_000_001, 100)
    falling = Curve(samples, samples, 0.02 + (samples / 1000) ** -0.5)
    short, whole = smoothed(Curve(*(each[:1000] for each in falling))), smoothed(falling)
    assert whole.values[999] == short.values[-1] == pytest.approx(falling.values[999], rel=0.02)


def test_the_loss_by_t_is_that_of_the_end(tmp_path):
    lines = [line(i, **{"loss_by_t/0.0": 5.0 if i < 20 else 1.0, "loss_by_t/0.9": 2.0}) for i in range(1, 21)]
    lines[-2].pop("loss_by_t/0.0")
    assert Run(folder(tmp_path / "run", lines)).by_t() == pytest.approx({0.05: 1.0, 0.95: 2.0})

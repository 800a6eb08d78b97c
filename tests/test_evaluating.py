"""Evaluation while training: the same numbers on any number of ranks, and nothing else changes."""

import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
from evaluation import spaces
from runs import deviation, empty_config, finish, losses, ranks, stats, train, words
from training.evaluating import Likeness

SETTINGS = {"train__num_steps": 4, "train__global_batch": 6, "log__num_eval": 7}


def evaluated(run_dir) -> dict[int, dict[str, float]]:
    """eval/... by step"""
    lines = [
        (line["step"], {key: value for key, value in line.items() if key.startswith("eval/")})
        for line in stats(run_dir)
    ]
    return {step: values for step, values in lines if values}


@pytest.mark.slow
def test_every_so_many_steps_on_any_ranks(tmp_path, shards):
    config = str(empty_config(tmp_path))

    def command(name: str, **changes) -> list[str]:
        return [config, *words(shards, tmp_path / name, **SETTINGS | changes)]

    train(tmp_path, command("without"))
    told = train(tmp_path, command("one", log__eval_every=3))
    assert "step 3: eval/ssim" in told
    one = evaluated(tmp_path / "one")
    assert list(one) == [3, 4] and not evaluated(tmp_path / "without")
    assert one[3].keys() == {f"eval/{name}{part}" for name in ("ssim", "lpips_alex") for part in ("", "_region")}
    trained = [line["loss"] for line in stats(tmp_path / "one") if "loss" in line]
    assert trained == losses(tmp_path / "without").tolist(), "looking changes nothing"
    # Weights that are shared out: every rank draws as often as the others, one without a pair a blank.
    statuses, output = finish(ranks(tmp_path, 3, command("three", log__eval_every=3, engine__zero_stage=3)))
    assert statuses == [0] * 3, output
    three = evaluated(tmp_path / "three")
    for step, values in one.items():  # the weights differ by the rounding of sums
        assert deviation(np.array([*values.values()]), np.array([three[step][key] for key in values])) < 1e-3


def test_small_images_are_told_of(tmp_path, shards, monkeypatch):
    changes = {"model__image_size": [16, 16], "data__resize": "lanczos", "log__eval_every": 4}
    told = train(tmp_path, [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **SETTINGS | changes)])
    assert "warning: eval/lpips_alex is left out: it needs 31 pixels a side" in told
    assert evaluated(tmp_path / "run")[4].keys() == {"eval/ssim", "eval/ssim_region"}

    monkeypatch.setattr(spaces, "VGG_SIZE", 32)  # a fraction of the work
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "run"), "--shards", str(shards), "--pairs", "2"])
    evaluate.main()
    metrics = json.loads((tmp_path / "run/evaluation/paper/metrics.json").read_text())["metrics"]
    assert {each["step"] for each in metrics} == {"4"} and metrics[0]["ema"] == "decay 0.9"
    events = EventAccumulator(str(tmp_path / "run/evaluation/paper/tensorboard")).Reload()
    assert [each.step for each in events.Scalars("evaluation_paper_paired/ssim")] == [4]


def test_an_empty_region_is_no_number():
    images = list(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    masks = [np.zeros((16, 16), bool), np.ones((16, 16), bool)]
    found = Likeness()(images, images, masks)
    assert np.isnan(found["ssim_region"][0]) and found["ssim_region"][1] == pytest.approx(1) and found["ssim"][0] == 1

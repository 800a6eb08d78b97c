"""python -m training.diagnose: planted faults are named, a healthy run has none, and nothing of a run is changed."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.dataset import ShardedDataset
from data.shards import write_shards
from runs import Script, empty_config, words
from training import diagnose
from training.config import load_config
from training.diagnose import main
from training.engine import SingleDevice
from training.loop import train

HEALTHY = {"train__num_steps": 12, "train__global_batch": 4, "optim__lr": 3e-3, "data__augment__flip_prob": 0.5}
QUICK = ["--num", "20", "--steps", "10", "--batch", "4"]
PLANTED = {"shuffled_pairs", "frozen", "low_learning_rate"}


class Frozen(SingleDevice):
    """Somebody's garment branch that never learns: its gradients are thrown away."""

    def step(self, lr: float) -> float:
        for parameter in self.model.garment_unet.parameters():
            parameter.grad.zero_()
        return super().step(lr)


@pytest.fixture(scope="module")
def healthy(shards, tmp_path_factory) -> Path:
    return trained(shards, tmp_path_factory.mktemp("healthy"), data__val_shards=shards)


def trained(shards: Path, folder: Path, engine: type[SingleDevice] = SingleDevice, **changes) -> Path:
    train(load_config([str(empty_config(folder)), *words(shards, folder / "run", **HEALTHY | changes)]), engine)
    return folder / "run"


def verdicts(run_dir: Path, *arguments: str) -> list[dict]:
    main([str(run_dir), *QUICK, *arguments])
    return json.loads((run_dir / "diagnosis/diagnosis.json").read_text())["verdicts"]


def contents(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of every file but those of a diagnosis, and when it was written."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and "diagnosis" not in path.parts)
    return {str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}" for path in files}


def test_a_healthy_run_has_no_fault_and_is_left_as_it_is(healthy, capsys):
    before = contents(healthy)
    found = verdicts(healthy)
    assert not [verdict for verdict in found if verdict["kind"] == "fault" or verdict["name"] in PLANTED], found
    assert contents(healthy) == before
    folder = healthy / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.png", "data.png", "diagnosis.json", "diagnosis.md"
    ]  # fmt: skip
    page, facts = (folder / "diagnosis.md").read_text(), json.loads((folder / "diagnosis.json").read_text())["facts"]
    for title in ("Data", "Loss by t", "What conditions do", "One batch", "Blocks"):
        assert f"## {title}" in page, title
    assert {name.split(" on ")[0] for name in facts["losses"]} == {"zt alone", "model", "ema"}
    assert facts["losses"]["model on training samples"]["num"] == 20
    assert facts["losses"]["zt alone on training samples"]["mean"] < 1, "zt tells much of its noise"
    changes = {change["condition"]: change for change in facts["changes"]}
    assert len(changes) == 7 and all(change["inside"] > 0 for change in changes.values()), "every condition is used"
    assert all(block["gradient"] > 0 for block in facts["blocks"])
    assert all(Image.open(folder / name).size[0] > 500 for name in ("data.png", "answers.png"))
    assert "diagnosis.md has the numbers" in capsys.readouterr().out


def test_shuffled_pairs_are_named(shards, tmp_path):
    dataset = ShardedDataset(shards)
    samples = [dataset.read(i) for i in range(len(dataset))]
    order = np.random.default_rng(0).permutation(len(samples))
    others = [one._replace(garment=samples[i].garment) for one, i in zip(samples, order, strict=True)]
    write_shards(others, tmp_path / "shuffled")
    found = verdicts(trained(tmp_path / "shuffled", tmp_path), "--steps", "0")
    said = (tmp_path / "run/diagnosis/diagnosis.md").read_text().split("## ")[1]
    assert said.startswith("Not looked at") and "needs --steps 60" in said and "needs data.val_shards" in said
    assert [verdict["name"] for verdict in found if verdict["kind"] == "fault"] == ["shuffled_pairs"]


def test_a_frozen_garment_branch_is_named(shards, tmp_path):
    run_dir = trained(shards, tmp_path, Frozen, optim__weight_decay=0.1)
    found = verdicts(run_dir, "--num", "2", "--batch", "2", "--steps", "0")
    assert [verdict["name"] for verdict in found if verdict["kind"] == "fault"] == ["frozen"]
    assert found[0]["finding"] == "garment_unet never trained" and "gradients do reach it now" in found[0]["evidence"]


def test_a_learning_rate_100_times_too_low_is_named(shards, tmp_path):
    run_dir = trained(shards, tmp_path, optim__lr=3e-5)
    few = verdicts(run_dir, "--num", "2", "--batch", "2", "--steps", "5")
    assert not [verdict for verdict in few if verdict["kind"] == "fault"], "five steps tell nothing"
    assert "is the learning rate right: needs more --steps" in (run_dir / "diagnosis/diagnosis.md").read_text()
    found = verdicts(run_dir, "--num", "2", "--batch", "2", "--steps", "40")
    assert [verdict["name"] for verdict in found if verdict["kind"] == "fault"] == ["low_learning_rate"]
    assert found[0]["remedy"].startswith("optim.lr=3e-03")


def test_training_may_remove_the_checkpoint_meanwhile(healthy, tmp_path, monkeypatch):
    run_dir = Path(shutil.copytree(healthy, tmp_path / "run"))
    honest = diagnose.whole_samples

    def look(*arguments):
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        return honest(*arguments)

    monkeypatch.setattr(diagnose, "whole_samples", look)
    verdicts(run_dir, "--steps", "0")
    losses = json.loads((run_dir / "diagnosis/diagnosis.json").read_text())["facts"]["losses"]
    assert "ema on training samples" in losses


def test_a_sweep_advises_a_learning_rate(healthy, tmp_path, capsys):
    main([str(healthy), "--num", "2", "--steps", "5", "--batch", "2", "--lr-sweep", "--out", str(tmp_path / "out")])
    sweep = json.loads((tmp_path / "out/diagnosis.json").read_text())["facts"]["sweep"]
    assert len(sweep) == 10 and len({trial["first"] for trial in sweep}) == 1, "the same samples and noise each time"
    falls = [trial["fall"] for trial in sweep]
    assert falls[0] < 0.05 < max(fall for fall in falls if fall is not None)
    assert "is the smallest that learns nearly as fast" in capsys.readouterr().out


def test_a_last_stage_is_told_nothing_of_garments(shards, tmp_path):
    changes = {"model__network": "efficient_unet", "model__lowres": True, "model__channels": [8, 16]}
    config = tmp_path / "config.yaml"
    config.write_text("sampler:\n  guidance_scale: 1\n")
    gone = ("model.garment_num_blocks", "model.attention_levels", "model.head_dim")
    given = words(shards, tmp_path / "run", **HEALTHY | changes)
    train(load_config([str(config), *(word for word in given if not word.startswith(gone))]), SingleDevice)
    verdicts(tmp_path / "run", "--steps", "0")
    facts = json.loads((tmp_path / "run/diagnosis/diagnosis.json").read_text())["facts"]
    assert facts["pairs"] is None and facts["overfit"] == []
    assert [change["condition"] for change in facts["changes"]] == ["low resolution swapped", "low resolution gone"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["NOWHERE"], "NOWHERE/config.yaml: missing; name a run folder"),
        (["RUN", "--weights", "ema2"], "--weights ema2: .* has ema, model; name one of them"),
        (["RUN", "data.shards=nowhere"], "data.shards: nowhere: no such folder"),
        (["RUN", "seed=5"], "seed=5: .* trained with seed=0; leave the key out"),
        (["RUN", "model.channels=[8,24]"], "of another architecture"),
        (["RUN", "lr"], "'lr': expected key=value after the run folder"),
        (["RUN", "--batch", "1"], "--batch 1: 2 at least"),
        (["RUN", "--steps", "1"], "--steps 1: tell nothing; 5 at least, or 0 for no trial"),
        (["RUN", "--out", "FILE/out"], "FILE/out: cannot be written"),
    ],
)
def test_bad_input_is_one_line(healthy, tmp_path, arguments, told):
    (tmp_path / "FILE").touch()
    places = {"RUN": str(healthy), "FILE/out": str(tmp_path / "FILE/out")}
    before = contents(healthy)
    with pytest.raises(ValueError, match=told) as raised:
        main([places.get(word, word) for word in arguments])
    assert "\n" not in str(raised.value) and contents(healthy) == before
    assert not (healthy / "diagnosis/.partial").exists()


def test_a_run_that_diverged_before_its_first_checkpoint(shards, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"not finite in 5 steps in a row.*; lower optim\.lr"):
        trained(shards, tmp_path, optim__lr=30, optim__warmup_steps=1, train__max_nonfinite=5)
    assert not (tmp_path / "run/checkpoints").exists()
    found = verdicts(tmp_path / "run")
    assert [verdict["name"] for verdict in found] == ["high_learning_rate", "skipped_steps"]
    assert "is not finite" in found[0]["evidence"]
    printed = capsys.readouterr().out
    assert "no whole checkpoint (training has not written one)" in printed
    page = (tmp_path / "run/diagnosis/diagnosis.md").read_text()
    assert page.startswith(f"# {tmp_path / 'run'} without a whole checkpoint\n\nWarning: ")
    assert "what it has learnt, and what its conditions do: needs a whole checkpoint" in page
    assert "long_warmup" not in page and not (tmp_path / "run/diagnosis/answers.png").exists()
    assert "has every block trained: needs a checkpoint of step 10" in printed


def test_one_batch_learnt_by_heart_on_purpose(shards, tmp_path, capsys):
    changes = {"train__overfit_one_batch": True, "train__num_steps": 40, "data__val_shards": shards}
    found = verdicts(trained(shards, tmp_path, **changes), "--steps", "0")
    assert "overfitting" not in {verdict["name"] for verdict in found}
    assert "needs 16 samples, there are 4, of garments that differ" in capsys.readouterr().out


def test_the_command_ends_with_one_line(tmp_path):
    script = Script(tmp_path, "training/diagnose.py", [str(tmp_path / "none")])
    assert script.wait() == 1
    assert script.text.startswith("error: ") and script.text.count("\n") == 1

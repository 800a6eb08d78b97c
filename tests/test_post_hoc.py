"""Averages stored while a run trains, and others made of them afterwards."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from runs import Script, empty_config, newest, tensors, train, words
from training.averages import folder_of, read_manifest, store
from training.pieces import Tensors
from training.post_hoc import fit, reconstruct

STEPS, EVERY = 96, 8


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory) -> Path:
    """A run that tracked the lengths 0.05, 0.075 and 0.1, and stored 0.05 and 0.1."""
    folder = tmp_path_factory.mktemp("trained")
    keys = {"train__num_steps": STEPS, "ema__power": [0.05, 0.075, 0.1], "ema__snapshot_every": EVERY}
    train(folder, [str(empty_config(folder)), *words(shards, folder / "run", **keys, log__every=40)])
    for stored in (folder / "run/averages").iterdir():
        manifest = json.loads((stored / "manifest.json").read_text())
        manifest["averages"] = [average for average in manifest["averages"] if average["length"] != 0.075]
        (stored / "manifest.json").write_text(json.dumps(manifest))
        (stored / "ema_power_0.075.safetensors").unlink()
    return folder / "run"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """Its own copy for a test to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.float64(values[name]).ravel() for name in sorted(values)])


def test_a_length_that_was_not_stored_is_that_which_was_tracked(run_dir):
    out, made = reconstruct(run_dir, 0.075)
    wanted, found = flat(load_file(newest(run_dir) / "ema_power_0.075.safetensors")), flat(load_file(out))
    weights = flat({name: v for name, v in tensors(run_dir).items() if name.startswith("model/")})
    away = np.linalg.norm(found - wanted)
    assert away < 1e-4 * np.linalg.norm(wanted) and away < 1e-3 * np.linalg.norm(wanted - weights)
    assert made.error < 0.01 and out.name == "ema_power_0.075_step_00000096.safetensors"
    with safe_open(out, "np") as file, safe_open(newest(run_dir) / "ema.safetensors", "np") as like:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {  # noqa: SIM118
            name: like.get_slice(name).get_shape()
            for name in like.keys()  # noqa: SIM118
        }


def test_a_stored_length_comes_back_as_it_was_at_any_step_that_has_it(run_dir):
    for step in (EVERY, STEPS // 2):
        out, made = reconstruct(run_dir, 0.1, step)
        stored = load_file(folder_of(run_dir, step) / "ema_power_0.100.safetensors")
        for name, value in load_file(out).items():
            np.testing.assert_allclose(value, stored[name], rtol=1e-6, atol=1e-8)
        assert made.step == step and made.error < 1e-6


def test_what_is_stored_is_what_the_checkpoint_of_that_step_has(run_dir):
    folder = folder_of(run_dir, STEPS)
    assert (read_manifest(folder).step, read_manifest(folder).updates) == (STEPS, STEPS)
    for length in ("0.050", "0.100"):
        stored = load_file(folder / f"ema_power_{length}.safetensors")
        for name, value in load_file(newest(run_dir) / f"ema_power_{length}.safetensors").items():
            assert value.tobytes() == stored[name].tobytes()
    assert len(list((run_dir / "averages").iterdir())) == STEPS // EVERY


def test_the_command_makes_what_sample_draws_with(run_dir, tmp_path):
    out, draw = tmp_path / "mine.safetensors", ["--pairs", "2", "--rows", "1"]
    text = train(tmp_path, ["reconstruct", str(run_dir), "--length", "0.12", "--out", str(out)], "training/ema.py")
    assert f"{out}: length 0.120 at step {STEPS}" in text
    assert text.splitlines()[-1] == f"python sample.py {run_dir} --weights {out}"
    for weights, name in ((str(out), "made"), ("ema_power_0.075", "tracked"), ("ema", "plain")):
        words = [str(run_dir), "--weights", weights, "--out", str(tmp_path / name)]
        assert f"sampling with {out if name == 'made' else newest(run_dir)}" in train(
            tmp_path, words + draw, "sample.py"
        )
    pictures = {(tmp_path / name / "sheet.png").read_bytes() for name in ("made", "tracked", "plain")}
    assert len(pictures) == 3
    run = Script(tmp_path, "sample.py", [str(run_dir), "--weights", "ema_power_0.2"])
    assert run.wait() == 1 and "has ema, ema_power_0.050, ema_power_0.075, ema_power_0.100, model; name" in run.text
    assert "Traceback" not in run.text


def flip(path: Path, place: int = -1000) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edited(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_shape(folder: Path) -> None:
    path = folder / "ema_power_0.050.safetensors"
    data = path.read_bytes()
    assert b'"shape":[16]' in data
    path.write_bytes(data.replace(b'"shape":[16]', b'"shape":[ 8]'))


DAMAGE = {
    "flipped bit": (lambda folder: flip(folder / "ema_power_0.100.safetensors"), "is damaged (its SHA-256"),
    "truncated": (lambda folder: os.truncate(folder / "ema_power_0.050.safetensors", 5000), "not a readable"),
    "missing": (lambda folder: (folder / "ema_power_0.050.safetensors").unlink(), "not a readable safetensors file"),
    "pickle": (lambda folder: (folder / "ema_power_0.050.safetensors").write_bytes(b"\x80\x02}q\x00."), "pickle"),
    "other shape": (other_shape, "safetensors"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: not readable"),
    "manifest cut": (lambda folder: os.truncate(folder / "manifest.json", 50), "manifest.json: not readable"),
    "manifest of another step": (lambda folder: edited(folder, step=7), "it is that of step 7"),
    "absurd updates": (lambda folder: edited(folder, updates=10**15), "updates in 88 steps"),
    "updates of another type": (lambda folder: edited(folder, updates="88"), "should be a valid integer"),
    "no averages": (lambda folder: edited(folder, averages=[]), "at least 1 item"),
    "absurd length": (lambda folder: edited(folder, averages=[{"length": 0.9, "sha256": {}}]), "0.9: use a length"),
    "path for a length": (
        lambda folder: edited(folder, averages=[{"length": "../x", "sha256": {}}]), "should be a valid number"
    ),
    "another file's hashes": (
        lambda folder: edited(folder, averages=[{"length": 0.05, "sha256": {}}]), "is damaged (its SHA-256 differs)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_refused_and_the_rest_serves_without_it(run_dir, name):
    damage, said = DAMAGE[name]
    folder, out = folder_of(run_dir, STEPS - EVERY), run_dir / "out.safetensors"
    damage(folder)
    with pytest.raises(ValueError) as refusal:
        reconstruct(run_dir, 0.075, out=out)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(run_dir.glob("out.safetensors*"))
    shutil.rmtree(folder)
    assert reconstruct(run_dir, 0.075, out=out)[1].error < 0.02


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"length": 0.3}, "0.3: use a length from 0.001 to 0.288"),
        ({"length": 0.01}, "choose a length nearer to theirs, or store averages more often"),
        ({"length": 0.075, "step": 50}, "--step 50: no averages are stored at it; use one of 40, 48, 56, 64"),
        ({"length": 0.15, "step": EVERY}, "the 2 averages of 1 steps"),
        ({"length": 0.075, "out": Path("mine.bin")}, "name a file that ends in .safetensors"),
        ({"length": 0.075, "out": Path("no/where.safetensors")}, "could not be written"),
    ],
)
def test_what_cannot_be_made_is_refused(trained, keys, said):
    with pytest.raises(ValueError) as refusal:
        reconstruct(trained, **keys)
    assert said in str(refusal.value)


def test_a_file_that_is_there_stays_as_it_is(run_dir):
    checkpoint = newest(run_dir) / "model.safetensors"
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="is there already; remove it, or name another file"):
        reconstruct(run_dir, 0.075, out=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_run_that_stored_none_says_how_to(tmp_path):
    with pytest.raises(ValueError, match=r"no averages are stored there; train with ema\.power=\[0\.05,0\.1\] and ema"):
        fit(tmp_path, 0.1)


def test_a_folder_that_cannot_be_written_leaves_the_earlier_ones(run_dir):
    before = sorted((run_dir / "averages").rglob("*"))
    blocked = folder_of(run_dir, 500)
    (blocked.parent / f"{blocked.name}.partial").write_text("a file where a folder must be")
    with pytest.raises(ValueError, match=r"step_00000500.*could not be written .*ema\.snapshot_every"):
        store(run_dir, 500, 500, {0.05: Tensors({"w": (3,)}, lambda: iter([]))})
    (blocked.parent / f"{blocked.name}.partial").unlink()
    assert sorted((run_dir / "averages").rglob("*")) == before

"""`python -m training.checkpoint verify RUN` and `export RUN`, on a run that was trained."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from runs import HOME, empty_config, newest, train, words
from training import checkpoint, publish
from training.checkpoint import main


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, [str(empty_config(folder)), *words(shards, folder / "run", train__num_steps=4, checkpoint__every=2)])
    return folder / "run"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_verify_says_what_is_whole(run_dir):
    command = [sys.executable, "-m", "training.checkpoint", "verify", str(run_dir)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1][:5] for line in lines] == ["whole", "whole"] and "step_00000004" in lines[0]


def test_verify_fails_when_the_newest_is_damaged(run_dir, capsys):
    older, newer = sorted((run_dir / "checkpoints").glob("step*"))
    os.truncate(older / "model.safetensors", 1000)
    assert main(["verify", str(run_dir)]) == 0, "training continues at the newest"
    assert "model.safetensors has 1000 bytes, not" in capsys.readouterr().out
    with (newer / "ema.safetensors").open("r+b") as file:
        file.seek(3000)
        file.write(bytes([file.read(1)[0] ^ 4]))
    assert main(["verify", str(run_dir)]) == 1
    assert "ema.safetensors is damaged: the SHA-256 of its bytes 0 to" in capsys.readouterr().out
    assert main(["verify", str(run_dir / "nowhere")]) == 2
    assert "no checkpoint there" in capsys.readouterr().err


def pruned(folder: Path) -> None:
    """As training does with an old one."""
    folder.replace(publish.partial_of(folder))
    shutil.rmtree(publish.partial_of(folder))


def pruning(monkeypatch, *victims: str) -> None:
    """Training goes on: these checkpoints go just before they are read."""
    look = checkpoint.problem_with

    def too_late(folder: Path, *args, **kwargs) -> str | None:
        if folder.name in victims:
            pruned(folder)
        return look(folder, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "problem_with", too_late)


def test_verify_goes_on_beside_training(run_dir, capsys, monkeypatch):
    older, newer = sorted((run_dir / "checkpoints").glob("step*"))
    (run_dir / "checkpoints/step_00000099").write_text("a note")
    pruning(monkeypatch, newer.name)
    assert main(["verify", str(run_dir)]) == 0, "the newest that is left is whole"
    size = sum(path.stat().st_size for path in older.iterdir() if path.name != "manifest.json") / 2**30
    told = f"{newer}: removed while it was read\n{older}: whole, {size:.2f} GiB\n"
    assert capsys.readouterr() == (told, "") and publish.size_of(older) == size * 2**30
    shutil.copytree(older, newer)
    os.truncate(older / "ema.safetensors", 10)
    assert main(["verify", str(run_dir)]) == 1 and "ema.safetensors has 10 bytes" in capsys.readouterr().out
    pruning(monkeypatch, older.name)
    assert main(["verify", str(run_dir)]) == 2
    assert "all checkpoints were removed while it was read; verify again" in capsys.readouterr().err


def test_another_format_is_said_by_both_commands(run_dir, capsys):
    older, newer = sorted((run_dir / "checkpoints").glob("step*"))
    for folder in (older, newer):
        (folder / "manifest.json").write_text('{"format": 4}')
    assert main(["verify", str(run_dir)]) == 1
    said = f"manifest.json is of format 4, this code reads format 3; continue with the code that wrote it ({run_dir}"
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"{folder}: {said}") for line, folder in zip(lines, (newer, older), strict=True)] == [1, 1]
    assert f"{newer}: {said}" in refused(capsys, run_dir) and not (run_dir / "export").exists()


@pytest.mark.parametrize(
    "module, name", [(checkpoint, "problem_with"), (checkpoint, "read_state"), (shutil, "copyfile")]
)
def test_export_looks_again_when_its_checkpoint_is_removed(run_dir, capsys, monkeypatch, module, name):
    """While it is hashed, while its state is read, while it is copied: three times, and no more."""
    kept, looks, do = run_dir.parent / "kept", [], getattr(module, name)
    older, newer = sorted((run_dir / "checkpoints").glob("step*"))
    older.rename(kept)
    live = [newer]

    def too_late(path, *args, **kwargs):
        if live[0] in (Path(path), Path(path).parent):
            looks.append(path)
            if len(looks) <= most:
                pruned(live[0])
                live[0] = Path(shutil.copytree(kept, live[0].with_name(f"step_{10 + len(looks):08d}")))
        return do(path, *args, **kwargs)

    monkeypatch.setattr(module, name, too_late)
    most = 2
    assert main(["export", str(run_dir)]) == 0 and capsys.readouterr().err == "" and len(looks) == 3
    assert "of step 2, fp32" in (run_dir / "export/README.md").read_text()
    shutil.rmtree(run_dir / "export")
    most = 99
    assert "3 times a checkpoint was removed while it was read; export when" in refused(capsys, run_dir)
    assert len(looks) == 6 and not list(run_dir.glob("export*"))


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_an_exported_folder_is_used_as_its_card_says(run_dir, weights):
    out = run_dir.parent / "ours for sampling"
    assert main(["export", str(run_dir), "--out", str(out), "--weights", weights]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    assert (out / "config.yaml").read_bytes() == (run_dir / "config.yaml").read_bytes()
    saved, exported = load_file(newest(run_dir) / f"{weights}.safetensors"), load_file(out / "model.safetensors")
    assert saved.keys() == exported.keys() and all(saved[name].equal(exported[name]) for name in saved)
    card = (out / "README.md").read_text()
    start = json.loads((run_dir / "environment.jsonl").read_text().splitlines()[-1])
    state = checkpoint.read_state(newest(run_dir))
    told = [f"`{weights}` of step 4", "base UNet 32x32", f"{sum(t.numel() for t in saved.values()):,} parameters"]
    told += ["| training samples seen | 16 |", *state.data.values(), f"git {start['git']}", start["code"]]
    told += ['"decay": 0.9' if weights == "ema" else "| averaged | no |", "| predicts | noise |"]
    assert [text for text in told if text not in card] == []
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    moved, used = out.rename(run_dir.parent / "elsewhere"), {}
    assert str(run_dir.parent) not in card and code.count("FOLDER") == 1
    exec(code.replace("FOLDER", str(moved)), used)
    assert all(p.equal(exported[name]) for name, p in used["net"].named_parameters())


def refused(capsys, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_an_exported_folder_samples_as_its_run_does(run_dir, shards, tmp_path):
    out = tmp_path / "exported"
    assert main(["export", str(run_dir), "--out", str(out)]) == 0
    assert "`python sample.py FOLDER --shards SHARDS`" in (out / "README.md").read_text()
    out = out.rename(tmp_path / "moved")
    for folder in (run_dir, out):
        words = [str(folder), "--shards", str(shards), "--pairs", "2", "--out", str(tmp_path / "drawn" / folder.name)]
        train(tmp_path, words, "sample.py")
    one, two = (sorted((tmp_path / "drawn" / folder.name).glob("*.png")) for folder in (run_dir, out))
    assert len(one) == 3 and [path.name for path in one] == [path.name for path in two]
    for a, b in zip(one, two, strict=True):  # their stamps name the folders
        assert np.array_equal(*(np.asarray(Image.open(path)) for path in (a, b)))


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(run_dir, capsys, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert "has model, " in (said := refused(capsys, run_dir, "--weights", "optimizer")) and "ema" in said
    assert "--weights ../../x" in refused(capsys, run_dir, "--weights", "../../x")
    assert "no whole checkpoint" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is there already; remove it" in refused(capsys, run_dir, "--out", tmp_path / "file")
    said = refused(capsys, run_dir, "--out", tmp_path / "file" / "out")
    assert "could not be written" in said and publish.PARTIAL not in said
    (tmp_path / "file").unlink()
    config = (run_dir / "config.yaml").read_text()
    for text in ("", "[1, 2]", "model: 3", "{", "\x00", "model: {}\ndiffusion: {}\nema: {}"):
        (run_dir / "config.yaml").write_text(text)
        assert "config.yaml" in refused(capsys, run_dir)
    (run_dir / "config.yaml").unlink()
    assert "could not be written" in refused(capsys, run_dir)
    assert sorted(tmp_path.iterdir()) == before and not list(run_dir.glob("export*"))
    (run_dir / "config.yaml").write_text(config)
    (run_dir / "environment.jsonl").write_text('{"git": nul')
    assert main(["export", str(run_dir)]) == 0 and "git unknown" in (run_dir / "export/README.md").read_text()
    assert "is there already" in refused(capsys, run_dir)


def test_the_newest_whole_one_is_exported(run_dir, capsys):
    os.truncate(newest(run_dir) / "state.json", 10)
    assert main(["export", str(run_dir)]) == 0
    assert "state.json has 10 bytes" in capsys.readouterr().err
    assert "of step 2, fp32" in (run_dir / "export" / "README.md").read_text()

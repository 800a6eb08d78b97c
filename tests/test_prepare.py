"""The commands: each layout from its folders to shards, and what a user is told when something is wrong."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import trees
from data import inspect, prepare
from data.agnostic import GRAY
from data.dataset import ShardedDataset
from data.estimators import tflite
from runs import HOME


def run(*words):
    return prepare.main([str(word) for word in words])


def error_of(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def keys_of(folder):
    dataset = ShardedDataset(folder)
    return [dataset.key(i) for i in range(len(dataset))]


def test_synthetic_shards_are_whole_and_a_function_of_the_seed(tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        words = ("--num", 3, "--seed", seed, "--size", "48x32", "--samples-per-shard", 2)
        assert run("synthetic", "--out", tmp_path / name, *words) == 0
    one, two, three = (ShardedDataset(tmp_path / name) for name in ("one", "two", "three"))
    assert len(one) == 3 and one.image_size == (48, 32) and len(list((tmp_path / "one").glob("*.tar"))) == 2
    assert one.fingerprint == two.fingerprint != three.fingerprint
    sample = one.read(1)
    assert sample.person_pose[:, 2].sum() > 8 and sample.garment_pose[:, 2].sum() > 8
    assert (sample.garment == GRAY).all(-1).mean() > 0.3 and (sample.clothing_agnostic != sample.person).any()


def test_existing_output_stays_as_it_is(tmp_path, capsys):
    words = ("synthetic", "--out", tmp_path / "a", "--size", 32, "--num")
    assert run(*words, 1) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert run(*words, 2) == 2
    assert f"{tmp_path / 'a'}: was begun with --num 1, and now comes --num 2" in error_of(capsys)
    assert run(*words, 1) == 0, "the same command finds its work done"
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def layouts(root):
    """(the words of a command, the keys that it makes) for every layout."""
    trees.viton_hd(root / "viton_hd")
    trees.dresscode(root / "dresscode")
    trees.pairs(root / "pairs")
    trees.csv(root / "csv")
    raw = trees.raw_photos(root / "raw")
    return {
        "viton_hd": ([], ["a", "b", "c"]),
        "dresscode": (["--category", "dresses"], ["dresses_000004", "dresses_000005"]),
        "pairs": ([], ["a", "b", "c"]),
        "csv": ([], ["a", "b", "c"]),
        "photos": (
            ["--source", raw / "photos", "--poses", raw / "openpose", "--parse", raw / "parse", "--label-map", "cihp"],
            ["p0/g0/1__2", "p0/g0/2__1", "p1/g1/1__2", "p1/g1/2__1"],
        ),
    }


def test_every_layout_becomes_shards(tmp_path, capsys):
    for layout, (words, keys) in layouts(tmp_path).items():
        out = tmp_path / f"shards-{layout}"
        source = [] if "--source" in words else ["--source", tmp_path / layout]
        assert run(layout, *source, *words, "--size", 32, "--out", out) == 0, capsys.readouterr().err
        assert keys_of(out) == keys and ShardedDataset(out).paired and (out / "report.html").is_file()
        assert f"{out}: {len(keys)} samples of 32x32" in capsys.readouterr().out


def test_rule_and_crop_reach_the_samples(tmp_path):
    trees.viton_hd(tmp_path / "set")
    made = {}
    for name, words in (("plain", []), ("mild", ["--rule", "viton_hd"]), ("crop", ["--crop"])):
        out = tmp_path / name
        assert run("viton_hd", "--source", tmp_path / "set", "--size", 64, "--out", out, "--num", 1, *words) == 0
        made[name] = ShardedDataset(out).read(0)
    masked = {
        name: (np.abs(sample.clothing_agnostic.astype(int) - GRAY) < 4).all(-1).sum() for name, sample in made.items()
    }
    assert masked["mild"] < 0.9 * masked["plain"]
    assert (made["crop"].person_pose != made["plain"].person_pose).any()
    assert (made["mild"].person_pose == made["plain"].person_pose).all()


def test_split_shares_and_slices(tmp_path, capsys):
    words = ("synthetic", "--num", 40, "--size", 32, "--samples-per-shard", 8, "--split-shares", "0.8,0.1,0.1")
    assert run(*words, "--out", tmp_path / "whole") == 0
    assert {name: len(keys_of(tmp_path / "whole" / name)) for name in ("train", "val", "test")} == {
        "train": 32, "val": 4, "test": 4,
    }  # fmt: skip
    capsys.readouterr()
    for i in (2, 1):
        assert run(*words, "--out", tmp_path / "sliced", "--slice", f"{i}/2") == 0
        printed = capsys.readouterr().out
        assert ("slice 2/2 is done; 3 of 6 shards are whole" in printed) == (i == 2)
    for name in ("train", "val", "test"):
        whole, sliced = (ShardedDataset(tmp_path / folder / name) for folder in ("whole", "sliced"))
        assert whole.fingerprint == sliced.fingerprint


def test_a_split_that_cannot_be_kept_is_told(tmp_path, capsys):
    rows = ["person_image,garment_image,person_id"] + [f"{i}.png,{i}.png,{'same' if i < 8 else i}" for i in range(10)]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    words = ("csv", "--source", tmp_path / "a.csv", "--size", 32, "--out", tmp_path / "o", "--split-shares", "0.5,0.5")
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "cannot be kept" in lines[0] and "8 of 10 samples" in lines[0] and "missing" in lines[-1]


def copy_cotton(real_data, folder):
    for name in ("image", "image-parse", "openpose_json", "cloth", "cloth-mask"):
        (folder / name).mkdir(parents=True)
        for path in (real_data / "cotton" / name).glob("[0-2]*"):
            (folder / name / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_bad_sample_stops_or_is_skipped_and_counted(real_data, tmp_path, capsys):
    source = copy_cotton(real_data, tmp_path / "set")
    (source / "openpose_json/1_keypoints.json").write_text('{"people": []}')
    words = ("viton_hd", "--source", source, "--label-map", "cotton", "--size", 32)
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "1_keypoints.json: 'people' is empty" in error_of(capsys)
    with pytest.raises(ValueError, match="no such folder"):
        ShardedDataset(tmp_path / "out")
    assert run(*words, "--out", tmp_path / "out", "--skip-bad") == 0
    printed = capsys.readouterr()
    assert "skipped 1 bad samples" in printed.err and "1: " in printed.err and "2 samples" in printed.out
    assert keys_of(tmp_path / "out") == ["0", "2"]
    assert "1_keypoints.json" in (tmp_path / "out/report.html").read_text()


def test_num_takes_the_first(real_data, tmp_path):
    words = ("--source", real_data / "cotton", "--label-map", "cotton", "--size", 32, "--num", 2)
    assert run("viton_hd", *words, "--out", tmp_path / "out") == 0
    assert keys_of(tmp_path / "out") == ["0", "1"]


def test_user_mistakes_are_one_line(real_data, tmp_path, capsys):
    source = real_data / "viton_hd"
    assert run("viton_hd", "--source", source, "--split", "test", "--out", tmp_path / "o") == 2
    assert "--pairing unpaired" in error_of(capsys)
    assert run("viton_hd", "--source", source, "--label-map", "cipp", "--out", tmp_path / "o") == 2
    assert "did you mean 'cihp'" in error_of(capsys)
    assert run("viton_hd", "--source", tmp_path / "none", "--out", tmp_path / "o2") == 2
    assert "no such folder" in error_of(capsys)
    raw = trees.raw_photos(tmp_path / "raw")
    photos = ("photos", "--source", raw / "photos", "--out", tmp_path / "o3")
    assert run(*photos, "--parse", raw / "parse") == 2
    assert "--parse and --label-map belong together" in error_of(capsys)
    assert run(*photos, "--pairing", "shuffle") == 2
    assert "--pairs-per-group belong together" in error_of(capsys)


def test_missing_weights_are_no_bad_photographs(tmp_path, monkeypatch, capsys):
    """One row of three has no pose: the command ends at once, and goes on when the weights are there."""
    table = trees.csv(tmp_path / "set")
    rows = table.read_text().splitlines()
    rows[2] = rows[2].replace("person_poses/b.json", "")
    table.write_text("\n".join(rows))
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path / "nowhere"))
    tflite.load.cache_clear()
    words = ("csv", "--source", tmp_path / "set", "--size", 32, "--out", tmp_path / "out")
    for more in ([], ["--skip-bad"]):
        assert run(*words, *more) == 2
        error = error_of(capsys)
        assert error.startswith(f"error: {tmp_path / 'nowhere'}") and "fetch them once" in error
        assert not (tmp_path / "out").exists()


def test_a_model_that_is_none_is_no_bad_photograph(tmp_path, real_data, estimator_weights, capsys):
    (tmp_path / "set/ip").mkdir(parents=True)
    (tmp_path / "set/ip/a.jpg").write_bytes((real_data / "cotton/image/4.jpg").read_bytes())
    (tmp_path / "set/ig").symlink_to(tmp_path / "set/ip")
    (tmp_path / "a.onnx").write_bytes(b"no model")
    words = ("pairs", "--source", tmp_path / "set", "--out", tmp_path / "out", "--skip-bad")
    for wrong in (
        ["--pose-model", tmp_path / "a.onnx"],
        ["--pose-model", tmp_path / "none.onnx"],
        ["--parts-model", tmp_path / "a.onnx", "--parts-labels", "lipp"],
    ):
        assert run(*words, *wrong) == 2
        assert ".onnx: " in error_of(capsys) and not (tmp_path / "out").exists()


def test_the_remedy_for_a_first_attempt_needs_no_other_folder(tmp_path, capsys):
    source = trees.viton_hd(tmp_path / "set")
    (source / "test_pairs.txt").write_text("a.jpg b.jpg\n")
    (source / "cloth/a.png").unlink()
    words = ("viton_hd", "--source", source, "--split", "test", "--size", 32, "--out", tmp_path / "out")
    assert run(*words) == 2
    assert "use --pairing unpaired" in error_of(capsys)
    assert run(*words, "--pairing", "unpaired") == 0 and keys_of(tmp_path / "out") == ["a__b"]


def test_a_name_that_the_disk_refuses_is_a_bad_sample(tmp_path, capsys):
    table = trees.csv(tmp_path / "set")
    table.write_text(table.read_text().replace("person/b.png", f"person/{'b' * 3000}.png"))
    words = ("csv", "--source", tmp_path / "set", "--size", 32, "--out", tmp_path / "out")
    assert run(*words) == 2
    error = error_of(capsys)
    assert "train.csv row 3" in error and "free space" not in error
    assert run(*words, "--skip-bad") == 0 and keys_of(tmp_path / "out") == ["a", "c"]


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("synthetic", "--num", 1, "--out", out) == 2
    error = error_of(capsys)
    assert error.startswith("error: --out ") and "name a folder that is to be made" in error
    assert not list(tmp_path.iterdir())


def test_photos_that_no_pair_uses_are_told_and_listed(tmp_path, capsys):
    raw = trees.raw_photos(tmp_path / "raw", 1)
    (raw / "photos/p0/g0/3.heic").write_bytes(b"")
    words = ("photos", "--source", raw / "photos", "--poses", raw / "openpose", "--parse", raw / "parse")
    assert run(*words, "--label-map", "cihp", "--size", 32, "--out", tmp_path / "out") == 0
    assert "1 files are used by no sample, e.g. p0/g0/3.heic: not one of" in capsys.readouterr().err
    assert "p0/g0/3.heic" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "0"), ("--size", "64x64x3"), ("--num", "0"), ("--seed", "-1"), ("--sizes", "8"), ("--workers", "0"),
        ("--slice", "0/4"), ("--slice", "5/4"), ("--slice", "3"), ("--split-shares", "0.9,0.2"),
        ("--split-shares", "1"), ("--split-shares", "a,b"), ("--split-shares", "nan,1"), ("--rule", "none"),
    ],
)  # fmt: skip
def test_bad_options_end_with_status_2(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        run("synthetic", "--out", tmp_path / "o", *words)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path):
    words = ["synthetic", "--num", "5000", "--size", "96", "--samples-per-shard", "4", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "data.prepare", *words, "--workers", "2"]
    process = subprocess.Popen(command, cwd=HOME, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("out.partial/000001.json")):
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.strip().splitlines() == [
        "interrupted: the same command goes on with the first shard that is not whole"
    ]
    record = json.loads((tmp_path / "out.partial/prepare.json").read_text())
    assert record["samples"] == {"": 5000} and record["arguments"] == {
        "layout": "synthetic", "--size": "96x96", "--num": "5000", "--samples-per-shard": "4", "--rule": "paper",
        "--seed": "0",
    }  # fmt: skip
    assert not list((tmp_path / "out.partial").glob("*.tar.*")), "no half of a shard is left"


def test_inspect_shows_every_column(tmp_path, capsys):
    assert run("synthetic", "--out", tmp_path / "a", "--num", 2, "--size", 64) == 0
    picture = tmp_path / "sheet.png"
    assert inspect.main([str(tmp_path / "a"), "--num", "5", "--out", str(picture)]) == 0
    sheet = np.asarray(Image.open(picture))
    assert sheet.shape == (inspect.BAR + 2 * (256 + inspect.BAR), 3 * 256, 3)
    agnostic = sheet[2 * inspect.BAR : 2 * inspect.BAR + 256, 256:512]  # below the titles and its name
    undrawn = ShardedDataset(tmp_path / "a").read(0).clothing_agnostic.repeat(4, 0).repeat(4, 1)
    assert 0.005 < (agnostic != undrawn).any(-1).mean() < 0.2, "the pose is drawn on it"
    capsys.readouterr()
    assert inspect.main([str(tmp_path / "none"), "--out", str(picture)]) == 2
    assert "no such folder" in error_of(capsys)

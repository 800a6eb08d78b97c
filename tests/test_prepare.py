import numpy as np
import pytest
from PIL import Image

from data import inspect, prepare
from data.dataset import ShardedDataset
from data.preprocess import GRAY


def run(*words):
    return prepare.main([str(word) for word in words])


def error_of(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


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
    assert run("synthetic", "--out", tmp_path / "a", "--num", 1, "--size", 32) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert run("synthetic", "--out", tmp_path / "a", "--num", 2, "--size", 32) == 2
    assert f"{tmp_path / 'a'}" in error_of(capsys)
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}


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
    dataset = ShardedDataset(tmp_path / "out")
    assert [dataset.key(i) for i in range(len(dataset))] == ["0", "2"]


def test_num_takes_the_first(real_data, tmp_path):
    words = ("--source", real_data / "cotton", "--label-map", "cotton", "--size", 32, "--num", 2)
    assert run("viton_hd", *words, "--out", tmp_path / "out") == 0
    assert len(ShardedDataset(tmp_path / "out")) == 2


def test_user_mistakes_are_one_line(real_data, tmp_path, capsys):
    source = real_data / "viton_hd"
    assert run("viton_hd", "--source", source, "--split", "test", "--out", tmp_path / "o") == 2
    assert "--pairing unpaired" in error_of(capsys)
    assert run("viton_hd", "--source", source, "--label-map", "cipp", "--out", tmp_path / "o") == 2
    assert "did you mean 'cihp'" in error_of(capsys)
    assert run("viton_hd", "--source", tmp_path / "none", "--out", tmp_path / "o2") == 2
    assert "no such folder" in error_of(capsys)


@pytest.mark.parametrize(
    "words", [("--size", "0"), ("--size", "64x64x3"), ("--num", "0"), ("--seed", "-1"), ("--sizes", "8")]
)
def test_bad_options_end_with_status_2(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        run("synthetic", "--out", tmp_path / "o", *words)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_inspect_shows_every_column(tmp_path, capsys):
    assert run("synthetic", "--out", tmp_path / "a", "--num", 2, "--size", 64) == 0
    picture = tmp_path / "sheet.png"
    assert inspect.main([str(tmp_path / "a"), "--num", "5", "--out", str(picture)]) == 0
    sheet = np.asarray(Image.open(picture))
    assert sheet.shape == (inspect.BAR + 2 * (256 + inspect.BAR), 3 * 256, 3)
    agnostic = sheet[inspect.BAR : inspect.BAR + 256, 256:512]
    undrawn = ShardedDataset(tmp_path / "a").read(0).clothing_agnostic.repeat(4, 0).repeat(4, 1)
    assert 0.005 < (agnostic != undrawn).any(-1).mean() < 0.2, "the pose is drawn on it"
    capsys.readouterr()
    assert inspect.main([str(tmp_path / "none"), "--out", str(picture)]) == 2
    assert "no such folder" in error_of(capsys)

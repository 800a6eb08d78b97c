"""evaluate.py: the same numbers whoever measures, as a paper would, beside what they depend on."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
from cascades import write_stage
from data.dataset import ShardedDataset
from data.shards import escape_key
from evaluation import spaces
from evaluation.sources import Folder
from runs import finish, ranks
from training.sheet import shortened

NUM = 5
FRECHET = ("frechet_vgg16", "kernel_vgg16")


@pytest.fixture(scope="module")
def truth(tmp_path_factory, shards) -> Path:
    """The persons of the first pairs, 32x32, by their keys."""
    folder, dataset = tmp_path_factory.mktemp("truth"), ShardedDataset(shards)
    for i in range(NUM):
        sample = dataset.read(i)
        Image.fromarray(sample.person).save(folder / f"{escape_key(sample.key)}.png")
    return folder


@pytest.fixture
def images(tmp_path, truth) -> Path:
    """The same, each with its middle disturbed, ever more."""
    folder, noise = tmp_path / "images", np.random.default_rng(0).normal(size=(16, 16, 3))
    folder.mkdir()
    for i, path in enumerate(sorted(truth.iterdir())):
        image = np.array(Image.open(path))
        image[8:24, 8:24] = (image[8:24, 8:24] + noise * 3**i / 3 * (i > 0)).clip(0, 255)
        Image.fromarray(image).save(folder / path.name)
    return folder


@pytest.fixture
def run(monkeypatch):
    """Runs evaluate.py with these words."""

    monkeypatch.setattr(spaces, "VGG_SIZE", 32)  # a fraction of the work

    def call(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        evaluate.main()

    return call


def read(out: Path, protocol: str = "paper") -> tuple[dict, dict[str, float]]:
    """(metrics.json, its values by name)"""
    document = json.loads((out / protocol / "metrics.json").read_text())
    return document, {each["name"]: each["value"] for each in document["metrics"]}


def test_a_run_is_drawn_and_measured(tmp_path, shards, run, capsys):
    stage = write_stage(tmp_path / "base_unet", 32, shards)
    run(stage, "--pairs", NUM, "sampler.num_steps=2")
    out = stage / "evaluation"
    assert f"{NUM} pictures, {NUM} of them new" in capsys.readouterr().err
    document, drawn = read(out)
    assert {"ssim", "ssim_region", "lpips_alex", "lpips_alex_region", *FRECHET} == set(drawn)
    assert document["left_out"].keys() == {"fid", "kid"} and "--inception-weights" in document["left_out"]["fid"]
    for each in document["metrics"]:
        assert each["num"] == NUM and each["protocol"] == "paper" and each["pairing"] == "paired"
        assert each["weights"].startswith("export") and (each["steps"], each["sampler"]) == ("2", "ddpm")
    events = EventAccumulator(str(out / "paper" / "tensorboard")).Reload()
    assert events.Scalars("evaluation_paper_paired/ssim")[0].value == pytest.approx(drawn["ssim"], abs=1e-6)

    run(stage, "--pairs", NUM, "sampler.num_steps=2", "--protocol", "hrviton")
    assert f"{NUM} pictures, 0 of them new" in capsys.readouterr().err
    assert "lpips_alex_128x128" in read(out, "hrviton")[1]
    with pytest.raises(ValueError, match="made with other options") as refused:
        run(stage, "--pairs", NUM, "sampler.num_steps=3")
    assert "has training gone on?" not in str(refused.value)

    run("--images", out / "pictures", "--reference", shards, "--pairs", NUM, "--out", tmp_path / "other")
    again, values = read(tmp_path / "other")
    assert values == pytest.approx(drawn, rel=1e-6)
    lists = {each["pair_list"] for each in (*document["metrics"], *again["metrics"])}
    assert len(lists) == 1, "the same pairs"


def test_unpaired_crowds(tmp_path, shards, run):
    stage = write_stage(tmp_path / "base_unet", 32, shards)
    run(stage, "--pairs", 3, "--unpaired", "sampler.num_steps=1", "--protocol", "paper", "catvton")
    document, values = read(stage / "evaluation_unpaired")
    assert values.keys() == set(FRECHET) and document["metrics"][0]["pairing"] == "unpaired"
    repainted = read(stage / "evaluation_unpaired", "catvton")[1]
    assert repainted["frechet_vgg16"] < values["frechet_vgg16"], "noise is the worse part"
    assert not (stage / "evaluation_unpaired/paper/per_pair.csv").exists()


def test_a_run_is_repainted_where_it_drew(tmp_path, shards, run):
    """--masks, which are of garments, change the numbers of the region alone; with --out, nothing else is written."""
    stage, masks = write_stage(tmp_path / "base_unet", 32, shards), tmp_path / "masks"
    masks.mkdir()
    words = (stage, "--pairs", 2, "sampler.num_steps=1", "--protocol", "catvton", "--out", tmp_path / "out")
    run(*words)
    for i in range(2):
        mask = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
        mask.save(masks / f"{escape_key(ShardedDataset(shards).key(i))}.png")
    before = read(tmp_path / "out", "catvton")[1]
    run(*words, "--masks", masks)
    after = read(tmp_path / "out", "catvton")[1]
    assert {name for name in before if after[name] != before[name]} == {"ssim_region", "lpips_alex_region"}
    assert not (stage / "evaluation").exists() and list((tmp_path / "out/catvton/tensorboard").iterdir())


@pytest.mark.slow
def test_any_number_of_ranks(tmp_path, images, shards):
    found = []
    for num in (1, 2, 3):
        words = ["--images", images, "--reference", shards, "--pairs", NUM, "--out", tmp_path / f"{num}"]
        statuses, told = finish(ranks(tmp_path / f"ranks_{num}", num, [str(word) for word in words], "evaluate.py"))
        assert statuses == [0] * num, told
        found.append(read(tmp_path / f"{num}")[1])
        table = (tmp_path / f"{num}/paper/per_pair.csv").read_text()
        assert table.count("\n") == NUM + 1
    for other in found[1:]:
        assert found[0] == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_numbers_lie_beside_a_link_not_beside_what_it_shows(tmp_path, images, truth, run):
    (tmp_path / "near").mkdir()
    (tmp_path / "near/results").symlink_to(images)
    run("--images", tmp_path / "near/results", "--reference", truth)
    document = read(tmp_path / "near/results_evaluation")[0]
    assert {each["size"] for each in document["metrics"]} == {"32x32"}


def test_the_truth_itself(tmp_path, truth, run):
    run("--images", truth, "--reference", truth, "--out", tmp_path / "out")
    document, values = read(tmp_path / "out")
    assert values["ssim"] == 1 and values["lpips_alex"] == 0
    assert values["frechet_vgg16"] == pytest.approx(0, abs=1e-4)
    assert "--masks" in document["left_out"]["ssim_region"] and "ssim_region" not in values


def test_masks_and_repainting(tmp_path, truth, images, run):
    """A change of the middle: within a mask of it all is worse, and repainting all but a corner hides it."""
    folders = {"middle": np.s_[8:24, 8:24], "corner": np.s_[:6, :6]}
    for name, place in folders.items():
        mask = np.zeros((32, 32), np.uint8)
        mask[place] = 255
        (tmp_path / name).mkdir()
        for path in images.iterdir():
            Image.fromarray(mask).save(tmp_path / name / path.name)
    common = ("--images", images, "--reference", truth, "--protocol", "paper", "catvton")
    run(*common, "--masks", tmp_path / "middle", "--out", tmp_path / "a")
    plain, repainted = read(tmp_path / "a")[1], read(tmp_path / "a", "catvton")[1]
    assert plain["ssim_region"] < plain["ssim"] < 1 and plain["lpips_alex_region"] > plain["lpips_alex"] > 0
    assert repainted["ssim"] == pytest.approx(plain["ssim"]), "only the middle differs"
    run(*common, "--masks", tmp_path / "corner", "--out", tmp_path / "b")
    document, values = read(tmp_path / "b", "catvton")
    assert values["ssim"] == 1 and values["lpips_alex"] == 0
    assert "SqueezeNet" in document["left_out"]["lpips_squeeze"] and document["metrics"][0]["repainted"]
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "corner" / path.name)  # no garment in sight
    run(*common[:-1], "--masks", tmp_path / "corner", "--out", tmp_path / "b")
    num = {each["name"]: each["num"] for each in read(tmp_path / "b")[0]["metrics"]}
    assert num["ssim"] == NUM and num["ssim_region"] == NUM - 1
    with pytest.raises(ValueError, match="--protocol catvton: takes what is not drawn from the person"):
        run(*common)
    run(*common, "--repainted", "--out", tmp_path / "c")
    assert read(tmp_path / "c", "catvton")[1]["ssim"] == pytest.approx(plain["ssim"])


def test_sheets_and_table(tmp_path, truth, images, run):
    run("--images", images, "--reference", truth, "--out", tmp_path / "out")
    out = tmp_path / "out/paper"
    with (out / "per_pair.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row["lpips_alex"]) for row in rows]
    assert values[0] == 0 and values == sorted(values), "each is more disturbed than the one before"
    assert [row["key"] for row in rows] == sorted(path.stem for path in truth.iterdir())
    worst, best = (np.asarray(Image.open(out / f"{name}.png")) for name in ("worst", "best"))
    assert worst.shape == best.shape == np.asarray(Image.open(out / "median.png")).shape
    first = np.s_[22:214, 4:196], np.s_[218:410, 4:196]  # result above truth
    assert np.array_equal(best[first[0]], best[first[1]]) and not np.array_equal(worst[first[0]], worst[first[1]])
    table = (out / "metrics.md").read_text()
    assert f"| ssim | {read(tmp_path / 'out')[1]['ssim']:.5f} |" in table and "fid is left out: needs" in table


def test_unpaired_goes_elsewhere_and_nothing_stale_is_left(tmp_path, truth, images, run):
    common = ("--images", images, "--reference", truth)
    run(*common)
    paired = read(tmp_path / "images_evaluation")[0]
    run(*common, "--unpaired")
    unpaired = read(tmp_path / "images_evaluation_unpaired")[0]
    assert paired["metrics"][0]["pair_list"] != unpaired["metrics"][0]["pair_list"]
    run(*common, "--unpaired", "--out", tmp_path / "images_evaluation")
    left = {path.name for path in (tmp_path / "images_evaluation/paper").iterdir()}
    assert left == {"metrics.json", "metrics.md", "tensorboard"}


def test_what_cannot_be_had_has_its_reason(tmp_path, run):
    """Pictures too small for SSIM, no garment in any mask; hidden files and folders are no pictures."""
    for name in ("images", "masks"):
        (tmp_path / name / "c.png").mkdir(parents=True)
        (tmp_path / name / "._a.png").write_bytes(b"no picture")
        for key in "ab":
            Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / name / f"{key}.png")
    common = ("--images", tmp_path / "images", "--reference", tmp_path / "images", "--protocol", "paper", "hrviton")
    run(*common, "--masks", tmp_path / "masks", "--out", tmp_path / "out")
    small, (document, values) = read(tmp_path / "out")[0]["left_out"], read(tmp_path / "out", "hrviton")
    for name in ("ssim", "lpips_alex"):
        assert "the pictures have 10" in small[name] and small[f"{name}_region"] == small[name]
    assert values.keys() == {"lpips_alex_128x128", *FRECHET} and values["frechet_vgg16"] >= 0
    assert document["left_out"]["lpips_alex_128x128_region"].startswith("the region is empty in all pictures")
    assert "window" in document["left_out"]["ssim_region"]
    assert "frechet_vgg16 is biased upwards" in (tmp_path / "out/hrviton/metrics.md").read_text()


def test_titles_keep_both_ends():
    assert shortened("person_1", " 0.123", 144) == "person_1 0.123"
    short = shortened("person_0123456789_garment_0123456789", " 0.123", 144)
    assert short.startswith("person_") and short.endswith("789 0.123") and "..." in short


def test_photographs_that_lie_on_their_side(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("images", "truth"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / name / "a.jpg", exif=exif)
    source = Folder(tmp_path / "images", str(tmp_path / "truth"), None, False, None)
    assert source.size == source.image(0).shape[:2] == (30, 40)


def test_sizes_of_protocols(tmp_path, truth, run):
    """ladi compares at 512x384, which squares are not; hrviton's references come to the pictures' size."""
    large = tmp_path / "large"
    large.mkdir()
    for path in truth.iterdir():
        Image.open(path).resize((64, 64), Image.Resampling.BICUBIC).save(large / path.name)
    run("--images", truth, "--reference", large, "--protocol", "hrviton", "--out", tmp_path / "out")
    assert 0.9 < read(tmp_path / "out", "hrviton")[1]["ssim"] < 1
    with pytest.raises(ValueError, match="32x32 pixels, --protocol ladi compares at 512x384, of other proportions"):
        run("--images", truth, "--reference", truth, "--protocol", "ladi", "--out", tmp_path / "out")

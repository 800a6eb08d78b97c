"""What evaluate.py refuses, in one line that names the file and the remedy."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from cascades import write_stage
from evaluation import spaces
from runs import HOME, empty_config, finish, ranks, train
from runs import words as words_of
from test_evaluate import images, truth  # noqa: F401

WHITE = np.full((32, 32, 3), 255, np.uint8)


@pytest.fixture
def refusal(monkeypatch):
    monkeypatch.setattr(spaces, "VGG_SIZE", 32)  # a fraction of the work

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        with pytest.raises(ValueError) as error:
            evaluate.main()
        assert "\n" not in str(error.value)
        return str(error.value)

    return call


def test_folders(tmp_path, truth, images, refusal):  # noqa: F811
    (tmp_path / "empty").mkdir()
    empty, common = tmp_path / "empty", ("--images", images, "--reference")
    assert "no such folder" in refusal("--images", tmp_path / "nowhere", "--reference", truth)
    assert refusal("--images", empty, "--reference", truth).endswith(
        "holds no PNG or JPEG files; name the folder that does"
    )
    assert refusal(*common, empty).startswith(f"--reference {empty}: holds no PNG or JPEG files")
    assert f"--masks {empty}: holds no" in refusal(*common, truth, "--masks", empty)
    images.rename(tmp_path / "paper")
    told = refusal("--images", tmp_path / "paper", "--reference", truth, "--out", tmp_path)
    assert told == f"--out {tmp_path}: sheets would lie among the pictures; name a folder of their own"


def test_names(tmp_path, truth, images, refusal):  # noqa: F811
    common = ("--images", images, "--reference", truth)
    first, second, *_ = sorted(images.iterdir())
    first.rename(images / "other.png")
    assert refusal(*common).startswith(f"{images / 'other'}: {truth} has none of that name (1 of 5 have no partner)")
    (images / "other.png").unlink()
    assert refusal(*common).startswith(f"{truth / first.stem}: {images} has none of that name")
    shutil.copy(truth / first.name, first)
    shutil.copy(second, second.with_suffix(".jpg"))
    assert "has the same name; remove one of the two" in refusal(*common)


def test_pictures(tmp_path, truth, images, refusal):  # noqa: F811
    common = ("--images", images, "--reference", truth)
    *_, last = sorted(images.iterdir())
    Image.fromarray(WHITE[:, :30]).save(last)
    assert refusal(*common) == f"{last}: 32x30 pixels, the others have 32x32; make all of one size"
    whole = (truth / last.name).read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    told = refusal(*common)
    assert told.startswith(f"{last}: not a readable image") and "--skip-bad" not in told
    last.write_bytes(b"no image")
    assert refusal(*common).startswith(f"{last}: not a readable image")


def test_references(tmp_path, truth, images, refusal):  # noqa: F811
    other = shutil.copytree(truth, tmp_path / "truth")
    *_, last = sorted(other.iterdir())
    Image.fromarray(WHITE[:16, :16]).save(last)
    told = refusal("--images", images, "--reference", other)
    assert told == f"{last}: 16x16 pixels, the others have 32x32; make all of one size"


def test_a_name_that_is_no_utf8(images, truth, refusal):  # noqa: F811
    first, *_ = images.iterdir()
    shutil.copy(first, images / "bad\udcff.png")
    told = refusal("--images", images, "--reference", truth, "--unpaired")
    assert told == f"--images {images}: the name 'bad\\udcff.png' is no UTF-8; rename the file"


def test_masks_of_other_proportions(tmp_path, truth, images, refusal):  # noqa: F811
    masks = shutil.copytree(truth, tmp_path / "masks")
    *_, last = sorted(masks.iterdir())
    Image.fromarray(WHITE[:, :24]).save(last)
    told = refusal("--images", images, "--reference", truth, "--masks", masks)
    assert told == f"{last}: 32x24 pixels, the pictures have 32x32, of other proportions; crop one of them"


def test_a_mask_without_a_drawn_pixel_is_no_perfect_score(tmp_path, truth, images, refusal):  # noqa: F811
    masks = tmp_path / "masks"
    masks.mkdir()
    for i, path in enumerate(sorted(truth.iterdir())):
        Image.fromarray(WHITE[..., 0] * (i > 0)).save(masks / path.name)
    told = refusal("--images", images, "--reference", truth, "--masks", masks, "--protocol", "catvton")
    first, *_ = sorted(masks.iterdir())
    assert told.startswith(f"{first.stem}: nothing of it was drawn (masks {masks})") and "correct the mask" in told


def test_where_nothing_can_be_written(truth, images, refusal, monkeypatch):  # noqa: F811
    monkeypatch.setattr(evaluate, "measure", lambda *_: pytest.fail("all was measured first"))
    *_, file = images.iterdir()
    told = refusal("--images", images, "--reference", truth, "--out", file / "out")
    assert told.startswith(f"--out {file / 'out/paper'}: cannot be written")


def test_one_picture_has_no_distance(tmp_path, truth, images, refusal, capsys, monkeypatch):  # noqa: F811
    common = ("--images", images, "--reference", truth, "--pairs", "1", "--out", tmp_path / "out")
    told = refusal(*common, "--unpaired")
    assert told.startswith("frechet_vgg16 of 1 picture and 1 references: one picture has no covariance")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, common)])
    evaluate.main()
    assert "frechet_vgg16 is left out: one picture has no covariance" in capsys.readouterr().err


def test_wrong_weights_on_every_rank(tmp_path, truth, images):  # noqa: F811
    (tmp_path / "weights.pth").write_bytes(b"others")
    words = ["--images", images, "--reference", truth, "--inception-weights", tmp_path / "weights.pth"]
    statuses, told = finish(ranks(tmp_path / "ranks", 2, [str(word) for word in words], "evaluate.py"))
    assert statuses == [1, 1] and told.count("error:") == 1
    assert f"{tmp_path / 'weights.pth'}: its SHA-256 is" in told and "begins with 6726825d" in told
    assert not any(path.is_file() for path in (tmp_path / "images_evaluation").rglob("*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a RUN_OR_CASCADE whose pictures are drawn, or --images and --reference; not both"),
        (("run", "--images", "a"), "not both"),
        (("--images", "a"), "--images and --reference belong together"),
        (("--images", "a", "--reference", "b", "--seed", "1"), "--seed: has no effect here"),
        (("--images", "a", "--reference", "b", "sampler.num_steps=3"), "sampler.num_steps=3: has no effect here"),
        (("run", "--repainted"), "--repainted: has no effect here"),
        (("--images", "a", "--reference", "b", "--repainted"), "--repainted: has no effect here, none of these"),
        (("run", "--unpaired", "--masks", "a"), "--masks: has no effect here, its regions are of pairs"),
    ],
)
def test_options(words, said, refusal):
    assert said in refusal(*words)


def test_runs(tmp_path, shards, refusal):
    stage = write_stage(tmp_path / "base_unet", 32)
    assert "data.val_shards names no held-out pairs" in refusal(stage)
    assert "is the folder of what draws" in refusal(stage, "--shards", shards, "--out", stage)
    assert not list(Path(stage).glob("pictures"))
    nowhere = tmp_path / "nowhere"
    for words, said in (
        (("--masks", nowhere), f"--masks {nowhere}: no such folder"),
        (("--inception-weights", nowhere), f"--inception-weights {nowhere}: cannot be read"),
        (("--protocol", "ladi"), "32x32 pixels, --protocol ladi compares at 512x384, of other proportions"),
    ):
        assert said in refusal(stage, "--shards", shards, "--out", tmp_path / "out", *words)
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*")), "nothing was drawn first"


def test_a_run_that_has_trained_on(tmp_path, shards, refusal, monkeypatch):
    words = ("--shards", shards, "--pairs", "2", "--out", tmp_path / "out", "sampler.num_steps=1")
    stages = [write_stage(tmp_path / name / "base_unet", 32, seed=seed) for seed, name in enumerate("ab")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, (stages[0], *words))])
    evaluate.main()
    told = refusal(stages[1], *words)
    assert "the weights are others: has training gone on?; choose another --out, or replace" in told
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *map(str, (stages[1], *words, "--protocol", "catvton", "--overwrite"))]
    )
    evaluate.main()
    assert not (tmp_path / "out/paper/metrics.json").exists(), "the numbers of pictures that are gone"
    assert (tmp_path / "out/catvton/metrics.json").exists()


def test_a_rank_that_refuses_alone_holds_nobody_up(tmp_path, shards):
    """Shards on one host's disk, and a run whose checkpoint the ranks look for together."""
    train(tmp_path, [str(empty_config(tmp_path)), *words_of(shards, tmp_path / "run", train__num_steps=2)])
    script = tmp_path / "apart.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        f"sys.argv += ['--shards', {str(shards)!r} if os.environ['RANK'] == '0' else '/nowhere']\n"
        "import evaluate\n"
        "evaluate.run(evaluate.main)\n"
    )
    statuses, told = finish(ranks(tmp_path / "ranks", 2, [str(tmp_path / "run")], str(script)))
    assert statuses == [1, 1] and "rank 1] /nowhere: no such" in told, told

import json

import numpy as np
import pytest

import trees
from data.agnostic import GRAY
from data.importers.cloth_mask import find_cloth
from data.importers.dresscode import for_category, list_jobs
from data.parts import ATR
from data.preprocess import Preparation, make_flat_sample
from data.schema import Part
from data.split import survey

HOW = Preparation((64, 48))


def jobs(source, **choice):
    return list_jobs(source, HOW, ATR, **choice)


def test_every_category_gives_the_drawn_truth(tmp_path):
    listed = jobs(trees.dresscode(tmp_path))
    categories = [f"{name}_{i}" for i, name in enumerate(("upper_body", "lower_body", "dresses"))]
    assert [job.key for job in listed][::2] == ["upper_body_000000", "lower_body_000002", "dresses_000004"]
    survey(listed)
    for number, job in enumerate(listed):
        made, photo = job.load(), trees.photos(number)[0]
        category = categories[number // 2].rpartition("_")[0]
        photo = photo._replace(parts=for_category(photo.parts, category))
        cloth, mask = trees.flat_cloth("ab"[number % 2])
        truth = make_flat_sample(job.key, photo, cloth, mask, HOW)
        for ours, drawn in zip(made.sample[1:], truth[1:], strict=True):
            np.testing.assert_allclose(ours, drawn, atol=1e-4)
        assert not made.notes and made.sample.person_pose[:, 2].sum() > 8


def test_the_garment_of_the_category_is_taken_off(tmp_path):
    """The lower garment is hidden and the upper one stays, or the other way round; bare legs tell no length."""
    listed = list_jobs(trees.dresscode(tmp_path), Preparation(trees.SIZE), ATR)
    for number, hidden, kept in ((0, Part.UPPER, Part.LOWER), (2, Part.LOWER, Part.UPPER), (4, Part.UPPER, Part.LOWER)):
        sample, photo = listed[number].load().sample, trees.photos(number)[0]
        assert (sample.clothing_agnostic[photo.parts == hidden] == GRAY).all()
        untouched = (sample.clothing_agnostic == sample.person).all(-1)
        assert untouched[photo.parts == kept].mean() > 0.3
    legs = np.uint8([[Part.LEGS]])
    assert for_category(legs, "dresses") == for_category(legs, "lower_body") == Part.NECK
    assert for_category(legs, "upper_body") == Part.LEGS


def test_pairs_files_and_categories(tmp_path):
    trees.dresscode(tmp_path)
    assert [job.key for job in jobs(tmp_path, category="dresses")] == ["dresses_000004", "dresses_000005"]
    unpaired = jobs(tmp_path, split="test", pairing="unpaired", category="upper_body")
    assert [job.key for job in unpaired] == ["upper_body_000000__000001"]
    assert (unpaired[0].person_id, unpaired[0].garment_id) == ("upper_body_000000", "upper_body_000001")
    with pytest.raises(ValueError, match=r"upper_body/test_pairs_paired.txt: missing"):
        jobs(tmp_path, split="test")
    (tmp_path / "dresses/train_pairs.txt").write_text("000004_0.jpg 000005_1.jpg\n")
    with pytest.raises(ValueError, match=r"dresses/train_pairs.txt row 1: pairs 000004_0 with 000005_1"):
        jobs(tmp_path)
    (tmp_path / "dresses/train_pairs.txt").unlink()
    assert len(jobs(tmp_path, category="dresses")) == 2, "the persons of the folder"
    with pytest.raises(ValueError, match=r"no such folder; --source is the folder above upper_body/"):
        jobs(tmp_path / "none")


@pytest.mark.parametrize("lost", ["images/000001_0.png", "images/000001_1.png", "label_maps/000001_4.png"])
def test_a_missing_file_is_named_with_its_row(tmp_path, lost):
    trees.dresscode(tmp_path)
    (tmp_path / "upper_body" / lost).unlink()
    with pytest.raises(ValueError, match=r"00001_\d\.\w+: missing \(upper_body/train_pairs.txt row 2\)"):
        jobs(tmp_path)[1].load()


def test_keypoints_without_a_visible_joint(tmp_path):
    trees.dresscode(tmp_path)
    (tmp_path / "upper_body/keypoints/000000_2.json").write_text(json.dumps({"keypoints": [[0, 1, 0, 0]] * 18}))
    with pytest.raises(ValueError, match=r"000000_2.json.*no visible joint"):
        jobs(tmp_path)[0].load()


def test_a_mask_is_taken_where_there_is_one(tmp_path):
    trees.dresscode(tmp_path)
    before = jobs(tmp_path)[0].load().sample.garment
    mask = np.zeros(trees.SIZE, np.uint8)
    mask[40:60, 30:60] = 255
    trees.save(tmp_path / "upper_body/masks/000000_1.png", mask)
    after = jobs(tmp_path)[0].load().sample.garment
    assert 0 < (after != GRAY).any(-1).sum() < 0.5 * (before != GRAY).any(-1).sum()
    trees.save(tmp_path / "upper_body/masks/000000_1.png", mask[:-1])
    with pytest.raises(ValueError, match=r"masks/000000_1.png: not of the size.*train_pairs.txt row 1"):
        jobs(tmp_path)[0].load()


def test_a_plain_background_is_found(tmp_path):
    cloth, mask = trees.flat_cloth("a")
    assert (find_cloth(cloth)[0] == mask).all() and find_cloth(cloth)[1] == ()

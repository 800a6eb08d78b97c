import numpy as np
import pytest

import trees
from data.estimators import Estimators
from data.importers.pairs import list_jobs
from data.preprocess import Preparation, make_sample

HOW = Preparation((64, 48))


def jobs(source, how=HOW, **choice):
    return list_jobs(source, how, Estimators(), **choice)


def check_truth(job, index, how=HOW):
    """The same as if the sample had been made of the photographs, up to the resizing of gray edges."""
    made = job.load()
    truth = make_sample(job.key, *trees.photos(index), how)
    for field in ("person", "clothing_agnostic"):
        assert np.array_equal(getattr(made.sample, field), getattr(truth, field)), field
    assert np.abs(made.sample.garment.astype(int) - truth.garment).max() <= 1
    for ours, drawn in ((made.sample.person_pose, truth.person_pose), (made.sample.garment_pose, truth.garment_pose)):
        np.testing.assert_allclose(ours[:, :2], drawn[:, :2], atol=0.02)
        assert np.array_equal(ours[:, 2], drawn[:, 2])
    assert made.photo_size == trees.SIZE


@pytest.mark.parametrize("kinds", [("ip", "ia", "ic", "jp", "jg"), ("ip", "ia", "ig", "ig_mask", "jp", "jg")])
def test_given_images_and_poses_are_taken(tmp_path, kinds):
    trees.pairs(tmp_path / "train", kinds)
    for source in (tmp_path, tmp_path / "train"):
        listed = jobs(source)
        assert [job.key for job in listed] == ["a", "b", "c"] == [job.person_id for job in listed]
        check_truth(listed[1], 1)


def test_files_are_matched_by_name(tmp_path):
    trees.pairs(tmp_path, names=("c", "a", "b"))
    trees.save(tmp_path / "itr128/0.png", np.zeros((8, 8, 3), np.uint8))
    listed = jobs(tmp_path)
    assert [job.key for job in listed] == ["a", "b", "c"]
    check_truth(listed[0], 1)


def test_garments_without_pose_have_none(tmp_path):
    sample = jobs(trees.pairs(tmp_path, ("ip", "ia", "ic", "jp")))[0].load().sample
    assert sample.person_pose[:, 2].sum() > 8 and not sample.garment_pose.any()


@pytest.mark.parametrize("kind", ["ip", "ia", "ic", "jp", "jg"])
def test_a_missing_file_is_named(tmp_path, kind):
    trees.pairs(tmp_path)
    next((tmp_path / kind).glob("b.*")).unlink()
    with pytest.raises(ValueError, match=rf"{kind}/b\.\w+: missing \(sample b\)"):
        jobs(tmp_path)[1].load()


def test_misfitting_images_are_named(tmp_path):
    trees.pairs(tmp_path)
    trees.save(tmp_path / "ia/a.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ia/a.png: 64x64 pixels, but .*ip/a.png has 128x96"):
        jobs(tmp_path)[0].load()
    trees.save(tmp_path / "ia/b.png", trees.images_of(1)["clothing_agnostic"][::2, ::2])  # half the size, one frame
    assert jobs(tmp_path)[1].load().sample.clothing_agnostic.shape == (64, 48, 3)


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"train/ip: no such folder; --source"):
        jobs(tmp_path)
    (tmp_path / "val/ip").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val: has neither ic/ nor ig/"):
        jobs(tmp_path, split="val")
    (tmp_path / "val/ic").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no photograph"):
        jobs(tmp_path, split="val")

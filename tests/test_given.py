"""What is not given is estimated, of real photographs."""

import numpy as np
import pytest

import trees
from data.agnostic import GRAY
from data.estimators import Estimators
from data.importers.given import Given, load
from data.importers.pairs import list_jobs
from data.preprocess import Preparation

HOW = Preparation((128, 96))


def test_agnostic_image_and_poses_are_made(real_data, estimator_weights):
    cotton = real_data / "cotton"
    given = Given(person=cotton / "image/4.jpg", garment=cotton / "image/6.jpg", kind="worn")
    sample, photo_size, _ = load("x", given, HOW, Estimators())
    assert photo_size == (1024, 768) and sample.person_pose[:, 2].sum() == sample.garment_pose[:, 2].sum() == 18
    masked = (sample.clothing_agnostic == GRAY).all(-1)
    chest = sample.person_pose[[2, 5, 8, 11], :2].mean(0) * (96, 128)
    assert masked[int(chest[1]), int(chest[0])] and 0.05 < masked.mean() < 0.5
    cut = (sample.garment != GRAY).any(-1)
    assert 0.02 < cut.mean() < 0.2 and np.median(sample.garment[cut]) < 60, "a black shirt by itself"


def test_a_given_pose_is_kept_where_only_the_agnostic_image_is_made(real_data, estimator_weights):
    cotton = real_data / "cotton"
    flat = Given(
        person=cotton / "image/3.jpg",
        garment=cotton / "cloth/3.jpg",
        kind="flat",
        person_pose=cotton / "openpose_json/4_keypoints.json",
    )
    sample = load("x", flat, HOW, Estimators()).sample
    other = load("x", flat._replace(person_pose=None), HOW, Estimators()).sample
    assert not np.allclose(sample.person_pose, other.person_pose, atol=0.005) and not sample.garment_pose.any()
    assert (sample.clothing_agnostic != other.clothing_agnostic).any(), "the hands are where the given pose has them"
    olive = sample.garment[64, 48].astype(int)
    assert olive[0] > olive[2] + 10


def test_folders_that_are_missing_are_estimated(real_data, tmp_path, estimator_weights):
    for kind, number in (("ip", 4), ("ig", 6)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.jpg").write_bytes((real_data / f"cotton/image/{number}.jpg").read_bytes())
    sample = list_jobs(tmp_path, HOW, Estimators())[0].load().sample
    assert sample.person_pose[:, 2].sum() == sample.garment_pose[:, 2].sum() == 18


def test_a_photograph_without_a_person_is_named(tmp_path, estimator_weights):
    trees.save(tmp_path / "a.png", np.full((256, 256, 3), 200, np.uint8))
    with pytest.raises(ValueError, match=r"a.png: "):
        load("x", Given(tmp_path / "a.png", tmp_path / "a.png", "cut"), HOW, Estimators())

import json

import numpy as np
import pytest
from PIL import Image

from data.parts import CIHP, COTTON
from data.preprocess import GRAY
from data.synthetic import draw_pair
from data.viton_hd import list_jobs, load

# One CIHP label for each Part; a lay-flat cloth of each person is a square of its own colour.
TO_CIHP = np.uint8([0, 13, 10, 5, 9, 14, 15, 16, 18, 11])
COLORS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}
BODY_25 = [*range(8), *range(9, 19)]


def make_set(root, names=("a", "b", "c"), parse="image-parse-v3", pose="openpose_json"):
    """A tiny set in the layout of VITON-HD; the folders of persons are filled in another order than cloth."""
    for folder in ("image", parse, pose, "cloth", "cloth-mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        photo = draw_pair(7, i, (64, 48))[0]
        Image.fromarray(photo.image).save(root / f"image/{name}.jpg", quality=95)
        Image.fromarray(TO_CIHP[photo.parts]).save(root / f"{parse}/{name}.png")
        joints = np.zeros((25, 3))
        joints[BODY_25] = photo.pose
        people = [{"pose_keypoints_2d": joints.ravel().tolist()}]
        (root / f"{pose}/{name}_keypoints.json").write_text(json.dumps({"people": people}))
    for name in reversed(names):
        cloth, mask = np.full((64, 48, 3), 255, np.uint8), np.zeros((64, 48), np.uint8)
        cloth[16:48, 8:40], mask[16:48, 8:40] = COLORS[name], 255
        mask[15] = 90  # a grey edge
        Image.fromarray(cloth).save(root / f"cloth/{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"cloth-mask/{name}.png")
    return root


def nearest_color(sample):
    center = sample.garment[sample.garment.shape[0] // 2, sample.garment.shape[1] // 2].astype(int)
    return min(COLORS, key=lambda name: np.abs(center - COLORS[name]).sum())


@pytest.mark.parametrize("spelling", [("image-parse-v3", "openpose_json"), ("image-parse", "openpose-json")])
def test_both_spellings_and_both_roots(tmp_path, spelling):
    make_set(tmp_path / "train", parse=spelling[0], pose=spelling[1])
    for source in (tmp_path, tmp_path / "train"):
        jobs = list_jobs(source)
        assert [job.key for job in jobs] == ["a", "b", "c"]
        sample = load(jobs[1], CIHP, (64, 64))
        assert nearest_color(sample) == "b" and sample.person_pose[:, 2].sum() > 8
        assert not sample.garment_pose.any() and (sample.garment[:12] == GRAY).all()


def test_without_pairs_file_photographs_are_matched_by_name_in_sorted_order(tmp_path):
    make_set(tmp_path, names=("c", "a", "b"))
    (tmp_path / "cloth/0-before-all.jpg").write_bytes((tmp_path / "cloth/a.jpg").read_bytes())
    jobs = list_jobs(tmp_path)
    assert [job.key for job in jobs] == ["a", "b", "c"]
    assert [nearest_color(load(job, CIHP, (64, 48))) for job in jobs] == ["a", "b", "c"]


def test_pairing(tmp_path):
    make_set(tmp_path / "test")
    (tmp_path / "test_pairs.txt").write_text("c.jpg a.jpg\n\na.jpg b.jpg\n")
    paired, unpaired = list_jobs(tmp_path, "test"), list_jobs(tmp_path, "test", "unpaired")
    assert [job.key for job in paired] == ["c", "a"]
    assert [nearest_color(load(job, CIHP, (64, 64))) for job in paired] == ["c", "a"]
    assert [job.key for job in unpaired] == ["c__a", "a__b"]
    assert [nearest_color(load(job, CIHP, (64, 64))) for job in unpaired] == ["a", "b"]
    (tmp_path / "test_pairs.txt").rename(tmp_path / "test/test_pairs.txt")
    assert list_jobs(tmp_path / "test", "test", "unpaired")[0].key == "c__a"


@pytest.mark.parametrize(
    "lost", ["image/b.jpg", "image-parse-v3/b.png", "openpose_json/b_keypoints.json", "cloth/b.jpg", "cloth-mask/b.png"]
)
def test_missing_file_is_named_with_its_row(tmp_path, lost):
    make_set(tmp_path)
    (tmp_path / "train_pairs.txt").write_text("a.jpg b.jpg\nb.jpg c.jpg\n")
    (tmp_path / lost).unlink()
    stem = lost.rsplit(".", 1)[0]
    with pytest.raises(ValueError, match=rf"{stem}\.\w+: missing \(train_pairs.txt row 2\)"):
        load(list_jobs(tmp_path)[1], CIHP, (64, 64))


def test_pairs_file_mistakes(tmp_path):
    make_set(tmp_path)
    pairs = tmp_path / "train_pairs.txt"
    pairs.write_text("a.jpg b.jpg\nb.jpg\n")
    with pytest.raises(ValueError, match=r"train_pairs.txt: row 2 is 'b.jpg'"):
        list_jobs(tmp_path)
    pairs.write_text("a.jpg b.jpg\na.jpg c.jpg\n")
    with pytest.raises(ValueError, match=r"row 2: names the same sample as train_pairs.txt row 1"):
        list_jobs(tmp_path)
    assert len(list_jobs(tmp_path, pairing="unpaired")) == 2
    pairs.unlink()
    with pytest.raises(ValueError, match=r"train_pairs.txt: missing"):
        list_jobs(tmp_path, pairing="unpaired")


def test_wrong_source_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"train/image: no such folder; --source"):
        list_jobs(tmp_path)
    (tmp_path / "image").mkdir()
    with pytest.raises(ValueError, match=r"holds no photograph"):
        list_jobs(tmp_path)


def test_empty_and_misfitting_masks_are_named(tmp_path):
    make_set(tmp_path)
    job = list_jobs(tmp_path)[0]
    Image.new("L", (48, 64), 127).save(job.cloth_mask)
    with pytest.raises(ValueError, match=r"a.png: no pixel is 128 or more"):
        load(job, CIHP, (64, 64))
    Image.new("L", (40, 64), 255).save(job.cloth_mask)
    with pytest.raises(ValueError, match=r"a.png: not of the size of"):
        load(job, CIHP, (64, 64))
    Image.new("L", (48, 64), 13).save(job.parse)
    with pytest.raises(ValueError, match=r"image-parse-v3/a.png: no pixel is labelled upper garment"):
        load(job, CIHP, (64, 64))


def test_real_unpaired_set(real_data):
    source = real_data / "viton_hd"
    with pytest.raises(ValueError, match=r"cloth/00891_00.jpg: missing \(test_pairs.txt row 1\).*--pairing unpaired"):
        load(list_jobs(source, "test")[0], CIHP, (64, 64))
    jobs = list_jobs(source, "test", "unpaired")
    assert [job.key for job in jobs] == ["00891_00__06802_00", "03615_00__07429_00", "07445_00__08348_00"]
    sample = load(jobs[0], CIHP, (128, 96))
    assert sample.person.shape == sample.clothing_agnostic.shape == sample.garment.shape == (128, 96, 3)
    blue = sample.garment[70, 48].astype(int)
    assert blue[2] > blue[0] + 10, f"a navy shirt, RGB: {blue}"


def test_real_paired_set_without_pairs_file(real_data):
    jobs = list_jobs(real_data / "cotton")
    assert [job.key for job in jobs] == [str(i) for i in range(10)]
    sample = load(jobs[4], COTTON, (64, 64))
    red = sample.garment[32, 32].astype(int)
    assert red[0] > red[2] + 40, f"a red pullover, RGB: {red}"


def test_a_photograph_that_only_its_parse_map_knows_of_is_missed(tmp_path):
    make_set(tmp_path)
    (tmp_path / "image/b.jpg").unlink()
    jobs = list_jobs(tmp_path)
    assert [job.key for job in jobs] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"image/b.jpg: missing"):
        load(jobs[1], CIHP, (64, 48))


def test_a_flat_folder_has_no_other_split(tmp_path):
    make_set(tmp_path)
    with pytest.raises(ValueError, match="--split"):
        list_jobs(tmp_path, split="test")

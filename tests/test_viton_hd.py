import numpy as np
import pytest
from PIL import Image

import trees
from data.agnostic import GRAY
from data.importers.viton_hd import list_jobs
from data.parts import CIHP, COTTON
from data.preprocess import Preparation, make_flat_sample
from data.schema import Part
from data.split import survey

HOW = Preparation((64, 64))


def jobs(source, labels=CIHP, how=HOW, **choice):
    return list_jobs(source, how, labels, **choice)


def keys(listed):
    return [job.key for job in listed]


def nearest_color(made):
    sample = made.sample
    center = sample.garment[sample.garment.shape[0] // 2, sample.garment.shape[1] // 2].astype(int)
    return min(trees.COLORS, key=lambda name: np.abs(center - trees.COLORS[name]).sum())


@pytest.mark.parametrize("spelling", [("image-parse-v3", "openpose_json"), ("image-parse", "openpose-json")])
def test_both_spellings_and_both_roots_give_the_drawn_truth(tmp_path, spelling):
    trees.viton_hd(tmp_path / "train", parse=spelling[0], pose=spelling[1])
    for source in (tmp_path, tmp_path / "train"):
        listed = jobs(source)
        assert keys(listed) == ["a", "b", "c"]
        made = listed[1].load()
        truth = make_flat_sample("b", trees.photos(1)[0], *trees.flat_cloth("b"), HOW)
        for ours, drawn in zip(made.sample[1:], truth[1:], strict=True):
            np.testing.assert_allclose(ours, drawn, atol=1e-6)
        assert made.photo_size == trees.SIZE and made.sample.person_pose[:, 2].sum() > 8
        assert not made.sample.garment_pose.any() and (made.sample.garment[:12] == GRAY).all()


def test_without_pairs_file_photographs_are_matched_by_name_in_sorted_order(tmp_path):
    trees.viton_hd(tmp_path, names=("c", "a", "b"))
    (tmp_path / "cloth/0-before-all.png").write_bytes((tmp_path / "cloth/a.png").read_bytes())
    listed = jobs(tmp_path)
    assert keys(listed) == ["a", "b", "c"] == [nearest_color(job.load()) for job in listed]


def test_pairing(tmp_path):
    trees.viton_hd(tmp_path / "test")
    pairs = tmp_path / "test_pairs.txt"
    pairs.write_bytes(b"\xef\xbb\xbfc.jpg a.jpg\r\n\r\na.jpg b.jpg\r\n")  # a mark and line ends as Windows writes them
    paired, unpaired = jobs(tmp_path, split="test"), jobs(tmp_path, split="test", pairing="unpaired")
    assert keys(paired) == ["c", "a"] == [nearest_color(job.load()) for job in paired]
    assert keys(unpaired) == ["c__a", "a__b"]
    assert [nearest_color(job.load()) for job in unpaired] == ["a", "b"]
    assert (unpaired[0].person_id, unpaired[0].garment_id) == ("c", "a")
    pairs.rename(tmp_path / "test/test_pairs.txt")
    assert keys(jobs(tmp_path / "test", split="test", pairing="unpaired"))[0] == "c__a"


@pytest.mark.parametrize(
    "lost", ["image/b.png", "image-parse-v3/b.png", "openpose_json/b_keypoints.json", "cloth/b.png", "cloth-mask/b.png"]
)
def test_missing_file_is_named_with_its_row(tmp_path, lost):
    trees.viton_hd(tmp_path)
    (tmp_path / "train_pairs.txt").write_text("a.jpg b.jpg\nb.jpg c.jpg\n")
    (tmp_path / lost).unlink()
    stem = lost.rsplit(".", 1)[0]
    with pytest.raises(ValueError, match=rf"{stem}\.\w+: missing \(train_pairs.txt row 2\)"):
        jobs(tmp_path)[1].load()


def test_names_that_differ_in_case_only(tmp_path):
    """Two samples where the disk tells them apart; a hint where a name is spelt otherwise than its file."""
    trees.viton_hd(tmp_path)
    for folder in ("image", "image-parse-v3", "cloth", "cloth-mask"):
        (tmp_path / folder / "A.png").write_bytes((tmp_path / folder / "b.png").read_bytes())
    pose = (tmp_path / "openpose_json/b_keypoints.json").read_bytes()
    (tmp_path / "openpose_json/A_keypoints.json").write_bytes(pose)
    listed = jobs(tmp_path)
    assert keys(listed) == ["A", "a", "b", "c"] and [nearest_color(job.load()) for job in listed[:3]] == ["b", "a", "b"]
    (tmp_path / "image-parse-v3/A.png").unlink()
    with pytest.raises(ValueError, match=r"A\.png: missing \(sample A\); there is a a\.png, but upper and lower case"):
        listed[0].load()


def test_hidden_files_are_passed_over(tmp_path):
    """As macOS leaves them beside each file."""
    trees.viton_hd(tmp_path)
    for folder in ("image", "image-parse-v3", "cloth"):
        (tmp_path / folder / "._a.png").write_bytes(b"")
    assert keys(jobs(tmp_path)) == ["a", "b", "c"]


def test_two_files_of_one_name_are_named(tmp_path):
    trees.viton_hd(tmp_path)
    (tmp_path / "cloth/a.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cloth/a.png: there is a.webp too.*remove one"):
        jobs(tmp_path)[0].load()
    (tmp_path / "cloth/a.webp").unlink()
    (tmp_path / "cloth/a.PNG").symlink_to(tmp_path / "cloth/a.png")  # one file, as where upper case is lower case
    jobs(tmp_path)[0].load()


@pytest.mark.parametrize(("lost", "older"), [("image-parse-v3", "image-parse"), ("openpose_json", "openpose-json")])
def test_both_spellings_of_a_missing_folder_are_named(tmp_path, lost, older):
    trees.viton_hd(tmp_path)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{lost}: no such folder, and no {older}/ beside it"):
        jobs(tmp_path)


def test_pairs_file_mistakes(tmp_path):
    trees.viton_hd(tmp_path)
    pairs = tmp_path / "train_pairs.txt"
    pairs.write_text("a.jpg b.jpg\nb.jpg\n")
    with pytest.raises(ValueError, match=r"train_pairs.txt: row 2 is 'b.jpg'"):
        jobs(tmp_path)
    pairs.write_text("a.jpg b.jpg\na.jpg c.jpg\n")
    with pytest.raises(ValueError, match=r"row 2: names the same sample as train_pairs.txt row 1, 'a'; remove one"):
        survey(jobs(tmp_path))
    survey(jobs(tmp_path, pairing="unpaired"))
    pairs.unlink()
    with pytest.raises(ValueError, match=r"train_pairs.txt: missing"):
        jobs(tmp_path, pairing="unpaired")


def test_a_pairs_file_reaches_no_other_folder(tmp_path):
    trees.viton_hd(tmp_path / "set")
    trees.save(tmp_path / "secret.png", np.zeros((*trees.SIZE, 3), np.uint8))
    (tmp_path / "set/train_pairs.txt").write_text("../../secret.png a.jpg\n")
    with pytest.raises(ValueError, match=r"set/image/secret.jpg: missing"):
        jobs(tmp_path / "set")[0].load()


def test_wrong_source_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"train/image: no such folder; --source"):
        jobs(tmp_path)
    (tmp_path / "image").mkdir()
    with pytest.raises(ValueError, match=r"holds no photograph"):
        jobs(tmp_path)


def test_empty_and_misfitting_masks_are_named(tmp_path):
    trees.viton_hd(tmp_path)
    job, (height, width) = jobs(tmp_path)[0], trees.SIZE
    Image.new("L", (width, height), 127).save(tmp_path / "cloth-mask/a.png")
    with pytest.raises(ValueError, match=r"cloth-mask/a.png: no pixel is 128 or more \(sample a\)"):
        job.load()
    Image.new("L", (40, height), 255).save(tmp_path / "cloth-mask/a.png")
    with pytest.raises(ValueError, match=r"cloth-mask/a.png: not of the size of the garment's image \(sample a\)"):
        job.load()
    naked = np.where(trees.photos(0)[0].parts == Part.UPPER, Part.NECK, trees.photos(0)[0].parts)
    trees.save(tmp_path / "image-parse-v3/a.png", trees.TO_CIHP[naked])
    with pytest.raises(ValueError, match=r"image-parse-v3/a.png: no pixel is labelled upper garment"):
        job.load()


def test_real_unpaired_set(real_data):
    source, how = real_data / "viton_hd", Preparation((128, 96))
    with pytest.raises(ValueError, match=r"cloth/00891_00.jpg: missing \(test_pairs.txt row 1\).*--pairing unpaired"):
        jobs(source, split="test")[0].load()
    listed = jobs(source, how=how, split="test", pairing="unpaired")
    assert keys(listed) == ["00891_00__06802_00", "03615_00__07429_00", "07445_00__08348_00"]
    sample, photo_size, notes = listed[0].load()
    assert sample.person.shape == sample.clothing_agnostic.shape == sample.garment.shape == (128, 96, 3)
    assert photo_size == (1024, 768) and not notes
    blue = sample.garment[70, 48].astype(int)
    assert blue[2] > blue[0] + 10, f"a navy shirt, RGB: {blue}"


def test_real_paired_set_without_pairs_file(real_data):
    listed = jobs(real_data / "cotton", COTTON)
    assert keys(listed) == [str(i) for i in range(10)]
    red = listed[4].load().sample.garment[32, 32].astype(int)
    assert red[0] > red[2] + 40, f"a red pullover, RGB: {red}"


def test_a_photograph_that_only_its_parse_map_knows_of_is_missed(tmp_path):
    trees.viton_hd(tmp_path)
    (tmp_path / "image/b.png").unlink()
    listed = jobs(tmp_path)
    assert keys(listed) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"image/b.jpg: missing"):
        listed[1].load()


def test_a_flat_folder_has_no_other_split(tmp_path):
    trees.viton_hd(tmp_path)
    with pytest.raises(ValueError, match="--split"):
        jobs(tmp_path, split="test")

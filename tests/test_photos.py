import numpy as np
import pytest

import trees
from data.images import read_image
from data.importers.photos import GROUP, Group, Known, Pairs, group_photos, list_jobs, read_photo, with_garment
from data.preprocess import Preparation, make_sample
from data.schema import Part
from data.split import survey

HOW = Preparation((64, 48))


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def known(root, **where):
    return Known(root / "photos", poses=root / "openpose", parse=root / "parse", labels="cihp", **where)


def test_given_poses_and_parse_maps_give_the_drawn_truth(tmp_path):
    trees.raw_photos(tmp_path)
    groups, left_out = group_photos(tmp_path / "photos")
    assert left_out == []
    listed = list_jobs(groups, known(tmp_path), HOW)
    survey(listed)
    assert [job.key for job in listed] == ["p0/g0/1__2", "p0/g0/2__1", "p1/g1/1__2", "p1/g1/2__1"]
    assert [(job.person_id, job.garment_id) for job in listed][1:3] == [("p0", "g0"), ("p1", "g1")]
    for index, job in enumerate(listed):
        made, pair = job.load(), trees.photos(index // 2)
        truth = make_sample(job.key, *(pair[::-1] if index % 2 else pair), HOW)
        for ours, drawn in zip(made.sample[1:], truth[1:], strict=True):
            np.testing.assert_allclose(ours, drawn, atol=1e-6)
        assert made.photo_size == trees.SIZE and not made.notes


def test_outlines_replace_the_garment_of_the_parse_map(tmp_path):
    trees.raw_photos(tmp_path)
    drawn = trees.photos(0)[0]
    wrong = np.where(drawn.parts == Part.LOWER, Part.UPPER, drawn.parts)  # trousers taken for the garment
    trees.save(tmp_path / "parse/p0/g0/1.png", trees.TO_CIHP[wrong])
    photo, notes = read_photo(known(tmp_path, polygons=tmp_path / "polygons"), "p0/g0/1.png")
    upper, truth = photo.parts == Part.UPPER, drawn.parts == Part.UPPER
    assert (upper & truth).sum() / (upper | truth).sum() > 0.93 and not notes
    assert ((photo.parts == Part.LOWER) & (drawn.parts == Part.LOWER)).sum() > 0.8 * (drawn.parts == Part.LOWER).sum()
    with pytest.raises(ValueError, match=r"polygons/p0/g0/2.json: no outline is labelled 'coat'"):
        read_photo(known(tmp_path, polygons=tmp_path / "polygons", polygon_labels=("coat",)), "p0/g0/2.png")


def test_with_garment():
    parts = np.uint8([[1, 3, 0], [3, 3, 0], [3, 0, 0], [3, 4, 0]])
    garment = np.zeros((4, 3), bool)
    garment[1, 1:] = True
    assert with_garment(parts, garment).tolist() == [[1, 9, 0], [9, 3, 3], [4, 0, 0], [4, 4, 0]]


@pytest.mark.parametrize("lost", ["openpose/p0/g0/2_keypoints.json", "parse/p0/g0/2.png", "polygons/p0/g0/2.json"])
def test_a_missing_file_is_named(tmp_path, lost):
    trees.raw_photos(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(
        ValueError, match=rf"{lost.split('_')[0].split('.')[0]}\.\w+: missing \(p0/g0/2.png\); .* leave"
    ):
        read_photo(known(tmp_path, polygons=tmp_path / "polygons"), "p0/g0/2.png")


def test_groups_and_what_is_in_none(tmp_path):
    tree(
        tmp_path,
        "anna/red/1.jpg",
        "anna/red/2.JPG",
        "anna/blue/1.png",
        "ben/red/x/1.webp",
        "ben/red/x/2.jpg",
        "top.jpg",
    )
    tree(tmp_path, "anna/red/notes.txt", "anna/red/3.heic")
    tree(tmp_path, "anna/red/._1.jpg", "anna/red/.DS_Store", ".thumbnails/red/1.jpg", ".thumbnails/red/2.jpg")
    groups, left_out = group_photos(tmp_path)
    assert groups == [
        ("anna", "red", ["anna/red/1.jpg", "anna/red/2.JPG"]),
        ("ben", "red", ["ben/red/x/1.webp", "ben/red/x/2.jpg"]),
    ]
    assert [(path, why.split(" .")[0]) for path, why in left_out] == [
        ("anna/blue/1.png", "is alone in its group"),
        ("anna/red/3.heic", "not one of"),
        ("anna/red/notes.txt", "not one of"),
        ("top.jpg", "does not match --group"),
    ]


def test_groups_by_file_names(tmp_path):
    tree(tmp_path, "p1-shirt-1.jpg", "p1-shirt-2.jpg", "p1-coat-1.jpg", "p1-coat-2.jpg")
    groups, _ = group_photos(tmp_path, r"(?P<person>\w+)-(?P<garment>\w+)-\d\.jpg")
    assert [group[:2] for group in groups] == [("p1", "coat"), ("p1", "shirt")]


def test_rules_that_are_none(tmp_path):
    tree(tmp_path, "a/1.jpg", "a/2.jpg")
    for rule, why in (("(", "no regular expression"), ("(?P<person>.*)", "no group named garment")):
        with pytest.raises(ValueError, match=rf"--group .*: .*{why}"):
            group_photos(tmp_path, rule)
    with pytest.raises(ValueError, match=r"no two photographs belong together .* e.g. a/1.jpg does not match"):
        group_photos(tmp_path, GROUP)
    with pytest.raises(ValueError, match=r"none: no such folder; --source"):
        group_photos(tmp_path / "none")


def test_two_photographs_of_one_name_are_named(tmp_path):
    tree(tmp_path, "a/b/1.jpg", "a/b/1.png", "a/b/2.jpg")
    listed = list_jobs(group_photos(tmp_path)[0], Known(tmp_path), HOW)
    with pytest.raises(ValueError, match=r"a/b/1.png with .*: names the same sample as a/b/1.jpg with"):
        survey(listed)


def test_all_pairs_are_all_ordered_pairs(tmp_path):
    groups = group_photos(tree(tmp_path, *(f"a/{g}/{i}.jpg" for g in "xyz" for i in range(4))))[0]
    pairs = Pairs(groups, None, 0)
    found = [pairs[i] for i in range(len(pairs))]
    assert len(found) == 3 * 4 * 3 == len({pair[1:] for pair in found}) and all(pair[1] != pair[2] for pair in found)
    assert [pair[0] for pair in found] == sorted(pair[0] for pair in found) and pairs[5:7] == found[5:7]


def test_drawn_pairs_depend_on_the_seed_and_their_group_alone(tmp_path):
    tree(tmp_path, *(f"a/{g}/{i}.jpg" for g in "xyz" for i in range(6)), "a/small/1.jpg", "a/small/2.jpg")
    groups = group_photos(tmp_path)[0]
    drawn = [pair[1:] for pair in Pairs(groups, 5, 1)]
    assert len(drawn) == 2 + 3 * 5 == len(set(drawn)) and drawn == [pair[1:] for pair in Pairs(groups, 5, 1)]
    assert drawn != [pair[1:] for pair in Pairs(groups, 5, 2)]
    places = {name: [(pair[0][-5], pair[1][-5]) for pair in drawn if f"/{name}/" in pair[0]] for name in "xyz"}
    assert len(set(map(tuple, places.values()))) == 3, "each group has draws of its own"
    fewer = [group for group in groups if group.garment != "x"]
    assert [pair for pair in drawn if not pair[0].startswith("a/x/")] == [pair[1:] for pair in Pairs(fewer, 5, 1)]


def test_millions_of_pairs_are_no_list():
    pairs = Pairs([Group("p", "g", [f"{i}.jpg" for i in range(2001)])], None, 0)
    assert len(pairs) == 2001 * 2000 and pairs[len(pairs) - 1][1:] == ("2000.jpg", "1999.jpg")


def test_raw_photographs_are_estimated(tmp_path, real_data, estimator_weights):
    (tmp_path / "p/g").mkdir(parents=True)
    for number in (4, 6):
        (tmp_path / f"p/g/{number}.jpg").write_bytes((real_data / f"cotton/image/{number}.jpg").read_bytes())
    listed = list_jobs(group_photos(tmp_path)[0], Known(tmp_path), Preparation((128, 128)))
    made = listed[0].load()
    assert made.sample.person_pose[:, 2].sum() == made.sample.garment_pose[:, 2].sum() == 18
    person = read_image(tmp_path / "p/g/4.jpg")
    assert made.photo_size == person.shape[:2]
    estimated, _ = read_photo(Known(tmp_path), "p/g/4.jpg")
    cloth = np.median(person[estimated.parts == Part.UPPER], axis=0)
    assert cloth[0] > cloth[2] + 40, "a red pullover"

    def red(image):
        return (np.abs(image - cloth).max(-1) < 25).mean()

    assert red(made.sample.person) > 0.05 and red(made.sample.clothing_agnostic) < 0.001
    assert read_photo(Known(tmp_path), "p/g/4.jpg")[0] is estimated, "once for all pairs of a group"

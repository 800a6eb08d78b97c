import csv
import shutil

import numpy as np
import pytest

import trees
from data.estimators import Estimators
from data.importers.csv_file import Table, list_jobs
from data.preprocess import Preparation
from data.split import survey
from test_pairs import check_truth

HOW = Preparation((64, 48))
HEADER = "person_image,ca_image,garment_image,person_pose,garment_pose"
ROW = "person/a.png,ca_images/a.png,garment/a.png,person_poses/a.json,garment_poses/a.json"


def jobs(source, **choice):
    return list_jobs(source, HOW, Estimators(), **choice)


def write(root, *rows, header=HEADER, name="train.csv", encoding="utf-8", newline="\n"):
    path = root / "metadata" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(newline.join((header, *rows, "")).encode(encoding))
    return path


def refusal(root, *rows, **options):
    with pytest.raises(ValueError) as caught:
        jobs(write(root, *rows, **options))
    assert "\n" not in str(caught.value) and "train.csv" in str(caught.value)
    return str(caught.value)


def test_given_images_and_poses_are_taken(tmp_path):
    path = trees.csv(tmp_path)
    for source in (tmp_path, path):
        listed = jobs(source)
        assert [job.key for job in listed] == ["a", "b", "c"]
        check_truth(listed[2], 2)


def test_paths_may_begin_at_the_root_or_at_the_disk(tmp_path):
    trees.csv(tmp_path)
    files = ROW.split(",")
    folders = ["images"] * 3 + ["poses"] * 2
    within = ",".join(f"{folder}/{file}" for folder, file in zip(folders, files, strict=True))
    absolute = ",".join(str(tmp_path / folder / file) for folder, file in zip(folders, files, strict=True))
    for row in (within, absolute, ROW.replace("/", "\\")):
        listed = jobs(write(tmp_path, row))
        assert [job.key for job in listed] == ["a"], "the name of no folder of this machine is left in it"
        check_truth(listed[0], 0)


@pytest.mark.parametrize(
    ("encoding", "newline", "row"),
    [("utf-8-sig", "\n", 3), ("utf-8", "\r\n", 3), ("utf-8-sig", "\r\n", 3), ("utf-8", "\n\n", 5)],
)
def test_marks_line_ends_and_blank_lines(tmp_path, encoding, newline, row):
    trees.csv(tmp_path)
    listed = jobs(write(tmp_path, ROW, ROW.replace("a.", "b."), encoding=encoding, newline=newline))
    assert [job.key for job in listed] == ["a", "b"] and listed[1].place == f"train.csv row {row}"
    check_truth(listed[1], 1)


def test_rows_of_empty_cells_are_passed_over(tmp_path):
    trees.csv(tmp_path)
    listed = jobs(write(tmp_path, ",,,,", ROW, ",,", " , ,,,", ROW.replace("a.", "b."), ",,,,"))
    assert [job.place for job in listed] == ["train.csv row 3", "train.csv row 6"]
    check_truth(listed[1], 1)


def test_a_table_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path, ROW, ROW.replace("a.", "b."))
    listed = jobs(path)
    path.write_text(HEADER)
    with pytest.raises(ValueError, match=r"train.csv: row 3 is not what it was any more .*start the command again"):
        listed[1]


def test_quoted_commas_quotes_and_line_ends(tmp_path):
    trees.csv(tmp_path)
    name = 'one, "two"\nthree'
    shutil.copy(tmp_path / "images/person/b.png", tmp_path / f"images/person/{name}.png")
    path = tmp_path / "metadata/train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [HEADER.split(","), [f"person/{name}.png", *ROW.replace("a.", "b.").split(",")[1:]], ROW.split(",")]
        )
    listed = jobs(path)
    assert [job.key for job in listed] == [f"{name}__b", "a"] and listed[1].place == "train.csv row 3"
    check_truth(listed[0]._replace(key="b"), 1)
    check_truth(listed[1], 0)


def test_rows_are_read_when_they_are_needed(tmp_path):
    path = trees.csv(tmp_path)
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0]] + [text[1].replace("a.", f"{i}.") for i in range(30_000)]))
    table = Table(path)
    held = table.starts.itemsize * len(table.starts) + table.numbers.itemsize * len(table.numbers)
    assert len(table) == 30_000 and held == 16 * 30_000
    assert table[29_999].cells["person_image"] == "person/29999.png"


def test_identities_may_be_named(tmp_path):
    trees.csv(tmp_path)
    rows = [f"{ROW},anna,s1", f"{ROW.replace('a.', 'b.')},anna,"]
    listed = jobs(write(tmp_path, *rows, header=f"{HEADER},person_id,garment_id"))
    assert [(job.person_id, job.garment_id) for job in listed] == [("anna", "s1"), ("anna", "b")]


def test_headers_that_are_none(tmp_path):
    assert "no column person_image" in refusal(tmp_path, ROW, header="image,mask")
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        said = refusal(tmp_path, ROW.replace(",", sign), header=HEADER.replace(",", sign))
        assert f"separated by {name}, where commas are expected" in said
    assert "separated by commas" in refusal(tmp_path, ROW, header="image,mask")
    assert "did you mean 'ca_image'" in refusal(tmp_path, ROW, header=HEADER.replace("ca_image", "ca_imge"))
    assert "person_image twice" in refusal(tmp_path, ROW, header=HEADER.replace("ca_image", "person_image"))
    assert "holds no row" in refusal(tmp_path)
    assert "has no column" in refusal(tmp_path, header="")
    assert "UTF-16" in refusal(tmp_path, ROW, encoding="utf-16")
    assert "row 2 is not UTF-8" in refusal(tmp_path, "é" + ROW, encoding="latin-1")
    with pytest.raises(ValueError, match=r"metadata/val.csv: cannot be read .*name a CSV file"):
        jobs(tmp_path, split="val")


def test_rows_that_are_none(tmp_path):
    assert "row 3 has 6 cells, the header 5; put quotes" in refusal(tmp_path, ROW, f"{ROW},x")
    said = refusal(tmp_path, ROW.replace(",", ";"))
    assert "row 2 has 1 cells" in said and "semicolons" in said
    assert "is no CSV" in refusal(tmp_path, f'"{ROW}')
    assert "is no CSV" in refusal(tmp_path, "a" * 200_000 + ROW)
    assert "is no CSV" in refusal(tmp_path, ROW, newline="\r")


def test_a_row_given_twice_is_named(tmp_path):
    trees.csv(tmp_path)
    listed = jobs(write(tmp_path, ROW, ROW.replace("a.", "b."), ROW))
    with pytest.raises(ValueError, match=r"train.csv row 4: names the same sample as train.csv row 2, 'a'; remove one"):
        survey(listed)


@pytest.mark.parametrize("column", range(5))
def test_a_missing_file_is_named_with_row_column_and_both_places(tmp_path, column):
    trees.csv(tmp_path)
    files = ROW.split(",")
    files[column] = files[column].replace("a.", "none.")
    name = HEADER.split(",")[column]
    job = jobs(write(tmp_path, ROW.replace("a.", "b."), ",".join(files)))[1]
    with pytest.raises(
        ValueError, match=rf"none\.\w+: missing \(train.csv row 3, {name}\); nor is it {tmp_path}/\w+/none"
    ):
        job.load()


def test_case_empty_cells_and_bad_files(tmp_path):
    trees.csv(tmp_path)
    with pytest.raises(ValueError, match=r"A\.png: missing.*; there is a a\.png, but upper and lower case differ"):
        jobs(write(tmp_path, ROW.replace("a.png", "A.png")))[0].load()
    with pytest.raises(ValueError, match=r"train.csv row 2: garment_image is empty"):
        jobs(write(tmp_path, ROW.replace("garment/a.png", "")))[0].load()
    (tmp_path / "poses/person_poses/a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"train.csv row 2: .*person_poses/a.json"):
        jobs(write(tmp_path, ROW))[0].load()


def test_paths_of_two_kinds_end(tmp_path):
    trees.csv(tmp_path)
    listed = jobs(write(tmp_path, ROW, ROW.replace("person/a.png", f"{tmp_path}/images/person/b.png")))
    assert [job.key.rpartition("/")[2] for job in listed] == ["a__a", "b__a"]


def test_flat_garments_are_cut_out_and_have_no_pose(tmp_path):
    trees.csv(tmp_path)
    cloth, mask = trees.flat_cloth("b")
    trees.save(tmp_path / "images/garment/a.png", cloth)
    row = ROW.replace("garment_poses/a.json", "")
    made = jobs(write(tmp_path, row), garments="flat")[0].load()
    assert not made.sample.garment_pose.any() and not made.notes
    shown = (np.abs(made.sample.garment.astype(int) - 128) > 40).any(-1)
    assert shown.mean() == pytest.approx(mask.mean(), abs=0.05)

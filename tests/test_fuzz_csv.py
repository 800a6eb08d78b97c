"""A table that somebody else wrote, spoilt in every way: its rows become samples or rejects, or one line refuses it."""

from itertools import islice
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from data.chunk import make
from data.estimators import Estimators
from data.importers import csv_file
from data.preprocess import Preparation
from fuzzing import fuzz

HEADER = "person_image,ca_image,garment_image,person_pose,garment_pose"
CELLS = st.sampled_from(
    [
        "person/1.jpg",
        "",
        "..",
        "/",
        "/etc/hostname",
        "a\\b.jpg",
        '"a,b.jpg"',
        '"',
        "x" * 5000,
        "\0",
        "é",
        " ",
        "C:\\x",
        "~",
    ]
) | st.text(max_size=8)
ROWS = st.lists(CELLS, min_size=1, max_size=7).map(",".join)
HEADERS = st.just(HEADER) | st.permutations(HEADER.split(",")).map(",".join) | ROWS
TABLES = st.builds(
    lambda mark, header, rows, end: (mark + end.join([header, *rows])).encode("utf-8", "surrogatepass"),
    st.sampled_from(["", "\ufeff"]), HEADERS, st.lists(ROWS, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip


def refuse_or_list(data: bytes, folder: Path) -> None:
    path = folder / "train.csv"
    path.write_bytes(data)
    try:
        jobs = csv_file.list_jobs(path, Preparation((16, 16)), Estimators())
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    for job in islice(jobs, 4):
        outcome = make(job)
        assert outcome.members is None and outcome.reason and "\n" not in outcome.reason, "no file is there"


@fuzz
@given(data=TABLES)
def test_tables_of_any_cells(tmp_path, data):
    refuse_or_list(data, tmp_path)


@fuzz
@given(data=st.binary(max_size=300), header=st.booleans())
def test_bytes_that_are_no_table(tmp_path, data, header):
    refuse_or_list((HEADER + "\n").encode() * header + data, tmp_path)

"""The CSV layout: a row names the images and poses of a sample; what a row leaves empty is made.

    SOURCE/metadata/train.csv   person_image,ca_image,garment_image,person_pose,garment_pose
    SOURCE/images/              person/001.jpg  ca_images/001.jpg  garment/001.jpg
    SOURCE/poses/               person_poses/001.json  garment_poses/001.json

Paths are relative to images/ and poses/, or to SOURCE, or absolute.  Columns person_id and garment_id, where they are,
say whose photographs belong together when a data set is split.
"""

import csv
from array import array
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from posixpath import splitext
from typing import NamedTuple

from data.estimators import Estimators
from data.estimators.weights import Unusable
from data.importers.files import require
from data.importers.given import Given, load
from data.importers.job import Job, JobList, Made
from data.preprocess import Preparation

FOLDERS = {
    "person_image": "images",
    "ca_image": "images",
    "garment_image": "images",
    "person_pose": "poses",
    "garment_pose": "poses",
}
NEEDED = ("person_image", "garment_image")
COLUMNS = (*FOLDERS, "person_id", "garment_id")


class Row(NamedTuple):
    place: str  # "train.csv row 7": as a table shows it, the header is row 1
    cells: dict[str, str]  # of COLUMNS


class Table(Sequence[Row]):
    """The rows of a CSV file, read when they are asked for: 16 bytes a row in memory.

    UTF-8 with or without a mark, any line ends; rows of empty cells are passed over.  Raises ValueError naming row and
    remedy when it is no such table.
    """

    def __init__(self, path: Path):
        self.path, self.starts, self.numbers = path, array("q"), array("q")
        self.common: dict[str, str] = {}  # "person/": the folder of all files of a column, of NEEDED
        try:
            self.file = path.open("rb")
            if self.file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{path}: is UTF-16; save it as 'CSV UTF-8'")
            self.file.seek(0)
            self._scan()
        except OSError as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); name a CSV file, or the folder above metadata/"
            ) from error
        if not self.starts:
            raise ValueError(f"{path}: holds no row; expected the columns {', '.join(FOLDERS)}")

    def _scan(self) -> None:
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in self.file:
                position += len(line)
                yield self._text(line, position == len(line))

        reader, start = csv.reader(lines(), strict=True), 0
        try:
            self.header = self._checked(next(reader, []))
            number, start = 1, position
            for cells in reader:
                number += 1
                filled = any(cell.strip() for cell in cells)
                if filled and len(cells) != len(self.header):
                    remedy = _foreign(cells) or "put quotes around a name with a comma"
                    raise ValueError(
                        f"{self.path}: row {number} has {len(cells)} cells, the header {len(self.header)}; {remedy}"
                    )
                if filled:
                    self.starts.append(start)
                    self.numbers.append(number)
                    self._widen(cells)
                start = position
        except csv.Error as error:
            raise ValueError(f"{self.path}: row {len(self.starts) + 2} is no CSV ({error}); mend it") from error

    def _widen(self, cells: list[str]) -> None:
        for column in NEEDED:
            folder = _folder(posix(cells[self.header.index(column)]))
            common = self.common.setdefault(column, folder)
            while not folder.startswith(common):
                common = self.common[column] = _folder(common[:-1])

    def _text(self, line: bytes, first: bool) -> str:
        try:
            return line.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: row {len(self.starts) + 2} is not UTF-8 ({error}); save it as UTF-8"
            ) from None

    def _checked(self, names: list[str]) -> list[str]:
        """The header.  Raises ValueError when a column is missing, comes twice, or is misspelt."""
        names = [name.strip() for name in names]
        for name in names:
            if name in COLUMNS and names.count(name) > 1:
                raise ValueError(f"{self.path}: has the column {name} twice; remove one")
            absent = [column for column in COLUMNS if column not in names]
            if name not in COLUMNS and (meant := get_close_matches(name.lower(), absent, n=1, cutoff=0.8)):
                raise ValueError(f"{self.path}: column {name!r}: did you mean {meant[0]!r}? Rename it")
        for column in NEEDED:
            if column not in names:
                remedy = _foreign(names) or f"its first row must be the header {','.join(FOLDERS)}, separated by commas"
                raise ValueError(f"{self.path}: has no column {column}; {remedy}")
        return names

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            self.file.seek(self.starts[index])
            cells = next(csv.reader((line.decode("utf-8") for line in self.file), strict=True))
            values = {name: cell.strip() for name, cell in zip(self.header, cells, strict=True) if name in COLUMNS}
        except (OSError, ValueError, csv.Error, StopIteration) as error:
            raise ValueError(
                f"{self.path}: row {self.numbers[index]} is not what it was any more ({error}); start the command again"
            ) from error
        return Row(f"{self.path.name} row {self.numbers[index]}", values)


def list_jobs(
    source: Path, how: Preparation, estimators: Estimators, split: str = "train", garments: str = "cut"
) -> JobList:
    """One job for each row, in their order.

    source is a CSV file, or the folder that holds metadata/SPLIT.csv; garments, one of GARMENTS, says what the images
    of the garments show.  Raises ValueError naming file, row and remedy when the table is broken.
    """
    path = source / "metadata" / f"{split}.csv" if source.is_dir() else source
    root = path.parent.parent if path.parent.name == "metadata" else path.parent
    table = Table(path)
    return JobList(table, partial(_job, root, table.common, how, estimators, garments))


def _job(
    root: Path,
    common: dict[str, str],
    how: Preparation,
    estimators: Estimators,
    garments: str,
    row: Row,
) -> Job:
    person, garment = (splitext(posix(row.cells[column]).removeprefix(common[column]))[0] for column in NEEDED)
    key = person if person == garment else f"{person}__{garment}"
    ids = row.cells.get("person_id") or person, row.cells.get("garment_id") or garment
    return Job(key, *ids, row.place, partial(load_row, key, row, root, how, estimators, garments))


def load_row(key: str, row: Row, root: Path, how: Preparation, estimators: Estimators, garments: str) -> Made:
    """The sample of one row.  Raises ValueError naming file, row and remedy."""
    files = {column: _file(root, column, row) for column in FOLDERS}
    for column in NEEDED:
        if files[column] is None:
            raise ValueError(f"{row.place}: {column} is empty; name a file, or remove the row")
    given = Given(
        person=files["person_image"],
        garment=files["garment_image"],
        kind=garments,
        clothing_agnostic=files["ca_image"],
        person_pose=files["person_pose"],
        garment_pose=files["garment_pose"],
    )
    try:
        return load(key, given, how, estimators)
    except Unusable:
        raise
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from error


def _file(root: Path, column: str, row: Row) -> Path | None:
    """The file that a cell names; None for an empty cell.  Raises ValueError when it is nowhere."""
    if not row.cells.get(column):
        return None
    named = posix(row.cells[column])
    paths = [root / FOLDERS[column] / named, root / named]  # the same where it is absolute
    path = next((path for path in paths if path.is_file()), paths[0])
    require(path, f"{row.place}, {column}", f"nor is it {paths[1]}; put it there, or mend the row")
    return path


def _foreign(cells: list[str]) -> str:
    """What to do about a row in one cell that other signs than commas separate; "" where there is none."""
    signs = {";": "semicolons", "\t": "tabs"}
    seen = next((name for sign, name in signs.items() if len(cells) == 1 and sign in cells[0]), "")
    return seen and f"it is separated by {seen}, where commas are expected: save the table with commas"


def _folder(path: str) -> str:
    """'person/001.jpg' -> 'person/'; of a file that is in none, ''."""
    return path[: path.rfind("/") + 1]


def posix(cell: str) -> str:
    """The path that a cell names; backslashes are Windows' slashes."""
    return cell.strip().replace("\\", "/")

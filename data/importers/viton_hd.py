"""The VITON-HD layout: persons with parse map and pose, garments that lie flat, and a list that pairs them.

    image/NAME.jpg  image-parse-v3/NAME.png  openpose_json/NAME_keypoints.json  cloth/NAME.jpg  cloth-mask/NAME.jpg

Choi et al. 2021; image-parse and openpose-json are the older spellings.  {train,test}_pairs.txt lists
"person.jpg cloth.jpg".  A person wears the garment of the same name; column 2 is another one, to sample with.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.images import read_image
from data.importers.cloth_mask import read_cloth_mask
from data.importers.files import REMEDY, picture, require, stems
from data.importers.job import Job, JobList, Made
from data.parts import read_parse
from data.pose_formats import read_pose
from data.preprocess import Preparation, check_photo, make_flat_sample
from data.schema import Photo

PAIRINGS = ("paired", "unpaired")
PARSE, POSE = ("image-parse-v3", "image-parse"), ("openpose_json", "openpose-json")  # newer and older spelling
WORN = (
    "paired samples need the garment that the person wears: copy it there, or, to sample other garments, "
    "use --pairing unpaired"
)


class Folders(NamedTuple):
    """Where the files of one split lie."""

    image: Path
    parse: Path
    pose: Path
    cloth: Path
    cloth_mask: Path


class Row(NamedTuple):
    """A person and a garment by name, and where they are listed."""

    place: str
    person: str
    cloth: str


def list_jobs(
    source: Path, how: Preparation, label_map: np.ndarray, split: str = "train", pairing: str = "paired"
) -> JobList:
    """One job for each sample of a split, in the order of the pairs file, or of names without one.

    source holds image/, or {train,test}/image/.  Paired: each person with the garment that is worn, the truth of
    training.  Unpaired: with the one of column 2; the person's photo then shows another garment and is no truth,
    so that such samples serve sampling only.  Files belong together by name.  Raises ValueError naming the folder that
    is missing, or the file and row of the first thing that is wrong with the list.
    """
    folder = source if (source / "image").is_dir() else source / split
    if folder == source and split != "train" and not (source / f"{split}_pairs.txt").is_file():
        raise ValueError(
            f"{source}: image/ stands there without a {split}/ folder or a {split}_pairs.txt; leave --split away to "
            "take all of it, or list the pairs"
        )
    if not (folder / "image").is_dir():
        raise ValueError(f"{folder / 'image'}: no such folder; --source is the folder above image/, or above {split}/")
    folders = Folders(
        image=folder / "image",
        parse=_either(folder, *PARSE),
        pose=_either(folder, *POSE),
        cloth=folder / "cloth",
        cloth_mask=folder / "cloth-mask",
    )
    rows = _rows(source, folders, split, pairing)
    if not rows:
        raise ValueError(f"{folder / 'image'}: holds no photograph; check --source and --split")
    for path, older in ((folders.parse, PARSE[1]), (folders.pose, POSE[1])):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder, and no {older}/ beside it; put one of them there")
    return JobList(rows, partial(_job, folders, how, label_map))


def _job(folders: Folders, how: Preparation, label_map: np.ndarray, row: Row) -> Job:
    key = row.person if row.person == row.cloth else f"{row.person}__{row.cloth}"
    return Job(key, row.person, row.cloth, row.place, partial(load, key, row, folders, label_map, how))


def load(key: str, row: Row, folders: Folders, label_map: np.ndarray, how: Preparation) -> Made:
    """The sample of one row.  Raises ValueError naming the file, its row and the remedy."""
    image, cloth = picture(folders.image, row.person), picture(folders.cloth, row.cloth)
    parse, pose = folders.parse / f"{row.person}.png", folders.pose / f"{row.person}_keypoints.json"
    cloth_mask = picture(folders.cloth_mask, row.cloth)
    for path in (image, parse, pose, cloth, cloth_mask):
        require(path, row.place, WORN if path == cloth and row.person == row.cloth else REMEDY)
    photograph, parts = read_image(image), read_parse(parse, label_map)
    person = Photo(photograph, parts, read_pose(pose, size=photograph.shape[:2], parts=parts))
    check_photo(person, str(parse))
    garment = read_image(cloth)
    mask = read_cloth_mask(cloth_mask, garment, row.place)
    return Made(make_flat_sample(key, person, garment, mask, how), photograph.shape[:2])


def read_pairs(path: Path) -> list[tuple[int, str, str]]:
    """(row, person, garment) of each line "person.jpg cloth.jpg", without folders.  Raises ValueError naming a row."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        names = line.split()
        if names and len(names) != 2:
            raise ValueError(f"{path}: row {number} is {line!r}; expected 'person.jpg cloth.jpg'")
        if names:
            rows.append((number, *(Path(name).stem for name in names)))
    return rows


def _rows(source: Path, folders: Folders, split: str, pairing: str) -> list[Row]:
    path = source / f"{split}_pairs.txt"
    if not path.is_file() and not (path := folders.image.parent / path.name).is_file():
        if pairing == "unpaired":
            raise ValueError(f"{source / path.name}: missing; --pairing unpaired takes the cloth from it")
        names = sorted(stems(folders.image) | stems(folders.parse))
        return [Row(f"sample {name}", name, name) for name in names]
    return [
        Row(f"{path.name} row {number}", person, person if pairing == "paired" else cloth)
        for number, person, cloth in read_pairs(path)
    ]


def _either(folder: Path, name: str, older: str) -> Path:
    return folder / (older if (folder / older).is_dir() and not (folder / name).is_dir() else name)

"""The DressCode layout (Morelli et al. 2022): persons with label map and keypoints, and garments that lie flat.

{upper_body,lower_body,dresses}/images/ID_0.jpg (person)  ID_1.jpg (garment)
    keypoints/ID_2.json   label_maps/ID_4.png   masks/ID_1.png (the garment's, in some copies)
    train_pairs.txt   test_pairs_paired.txt   test_pairs_unpaired.txt
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.images import read_image
from data.importers.cloth_mask import find_cloth, read_cloth_mask
from data.importers.files import REMEDY, picture, require, stems
from data.importers.job import Job, JobList, Made
from data.importers.viton_hd import read_pairs
from data.parts import read_parse
from data.pose_formats import read_pose
from data.preprocess import Preparation, check_photo, make_flat_sample
from data.schema import Part, Photo

CATEGORIES = ("upper_body", "lower_body", "dresses")
FRAME = (512, 384)  # (height, width) that the keypoints refer to, whatever the size of the photograph


class Row(NamedTuple):
    folder: Path  # of the category
    place: str
    person: str  # "013563_0"
    cloth: str  # "013563_1"


def list_jobs(
    source: Path,
    how: Preparation,
    label_map: np.ndarray,
    category: str = "all",
    split: str = "train",
    pairing: str = "paired",
) -> JobList:
    """One job for each row of a split's pairs file, or for each person without one, category by category.

    Paired: the garment that is worn, which has the person's number.  Raises ValueError naming the file and row of the
    first thing that is wrong with the lists.
    """
    folders = [source / name for name in (CATEGORIES if category == "all" else (category,))]
    there = [folder for folder in folders if (folder / "images").is_dir()]
    if not there:
        raise ValueError(f"{folders[0] / 'images'}: no such folder; --source is the folder above {folders[0].name}/")
    rows = [row for folder in there for row in _rows(folder, split, pairing)]
    if not rows:
        raise ValueError(f"{source}: holds no person; check --source, --split and --category")
    return JobList(rows, partial(_job, how, label_map))


def _rows(folder: Path, split: str, pairing: str) -> list[Row]:
    path = folder / ("train_pairs.txt" if (split, pairing) == ("train", "paired") else f"{split}_pairs_{pairing}.txt")
    if not path.is_file():
        if split != "train" or pairing == "unpaired":
            raise ValueError(f"{path}: missing; it says which samples are meant: put it there")
        names = sorted(name for name in stems(folder / "images") if name.endswith("_0"))
        return [Row(folder, f"{folder.name}, person {name}", name, f"{name[:-2]}_1") for name in names]
    rows = []
    for number, person, cloth in read_pairs(path):
        place = f"{folder.name}/{path.name} row {number}"
        if pairing == "paired" and number_of(person) != number_of(cloth):
            raise ValueError(f"{place}: pairs {person} with {cloth}; the garment that is worn has the person's number")
        rows.append(Row(folder, place, person, cloth))
    return rows


def number_of(name: str) -> str:
    """'013563' of '013563_0'."""
    return name.rpartition("_")[0]


def _job(how: Preparation, label_map: np.ndarray, row: Row) -> Job:
    person, cloth = (f"{row.folder.name}_{number_of(name)}" for name in (row.person, row.cloth))
    key = person if person == cloth else f"{person}__{number_of(row.cloth)}"
    return Job(key, person, cloth, row.place, partial(load, key, row, label_map, how))


def load(key: str, row: Row, label_map: np.ndarray, how: Preparation) -> Made:
    """The sample of one row.  Raises ValueError naming the file, its row and the remedy."""
    number, images = number_of(row.person), row.folder / "images"
    image, cloth = picture(images, row.person), picture(images, row.cloth)
    parse, pose = row.folder / f"label_maps/{number}_4.png", row.folder / f"keypoints/{number}_2.json"
    for path in (image, parse, pose, cloth):
        require(path, row.place, REMEDY)
    photograph, parts = read_image(image), read_parse(parse, label_map)
    joints = read_pose(pose, size=photograph.shape[:2], frame=FRAME, parts=parts)
    person = Photo(photograph, for_category(parts, row.folder.name), joints)
    check_photo(person, str(parse))
    garment, mask_file = read_image(cloth), picture(row.folder / "masks", row.cloth)
    mask, notes = (read_cloth_mask(mask_file, garment, row.place), ()) if mask_file.is_file() else find_cloth(garment)
    return Made(make_flat_sample(key, person, garment, mask, how), photograph.shape[:2], notes)


def for_category(parts: np.ndarray, category: str) -> np.ndarray:
    """The parts with the garment of this category as UPPER, which is what is taken off.  -> (H, W) uint8

    A lower garment changes places with the upper one.  Bare legs would tell how long it or a dress is: they are hidden
    like the skin around a neckline.
    """
    if category == "upper_body":
        return parts
    lut = np.arange(256, dtype=np.uint8)
    lut[Part.LEGS] = Part.NECK
    if category == "lower_body":
        lut[Part.UPPER], lut[Part.LOWER] = Part.LOWER, Part.UPPER
    return lut[parts]

"""The VITON-HD layout: persons with parse map and pose, garments that lie flat, and a list that pairs them.

    image/NAME.jpg  image-parse-v3/NAME.png  openpose_json/NAME_keypoints.json  cloth/NAME.jpg  cloth-mask/NAME.jpg

Choi et al. 2021; image-parse and openpose-json are the older spellings.  {train,test}_pairs.txt lists
"person.jpg cloth.jpg".  A person wears the garment of the same name; column 2 is another one, to sample with.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.parts import read_parse
from data.pose import read_pose
from data.preprocess import check_photo, make_flat_sample, read_image
from data.schema import Photo, Sample

PAIRINGS = ("paired", "unpaired")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Job(NamedTuple):
    """The files of one sample, and where they are listed."""

    key: str
    image: Path
    parse: Path
    pose: Path
    cloth: Path
    cloth_mask: Path
    row: str  # "test_pairs.txt row 3", for messages


def list_jobs(source: Path, split: str = "train", pairing: str = "paired") -> list[Job]:
    """One job for each sample of a split, in the order of the pairs file, or of names without one.

    source holds image/, or {train,test}/image/.  Paired: each person with the garment that is worn, the truth of
    training.  Unpaired: with the one of column 2; the person's photo then shows another garment and is no truth,
    so that such samples serve sampling only.  Files belong together by name.  Raises ValueError naming the file and
    row of the first thing that is missing.
    """
    folder = source if (source / "image").is_dir() else source / split
    if folder == source and split != "train" and not (source / f"{split}_pairs.txt").is_file():
        raise ValueError(
            f"{source}: image/ stands there without a {split}/ folder or a {split}_pairs.txt; leave --split away to "
            "take all of it, or list the pairs"
        )
    if not (folder / "image").is_dir():
        raise ValueError(f"{folder / 'image'}: no such folder; --source is the folder above image/, or above {split}/")
    parse_dir = _either(folder, "image-parse-v3", "image-parse")
    pose_dir = _either(folder, "openpose_json", "openpose-json")
    jobs, rows_of = [], {}
    for row, person, cloth in _pairs(source, folder, parse_dir, split, pairing):
        key = Path(person).stem if pairing == "paired" else f"{Path(person).stem}__{Path(cloth).stem}"
        if key in rows_of:
            raise ValueError(f"{row}: names the same sample as {rows_of[key]}; remove one of the two")
        rows_of[key] = row
        stem, cloth_stem = Path(person).stem, Path(cloth).stem
        job = Job(
            key=key,
            image=_picture(folder / "image", stem),
            parse=parse_dir / f"{stem}.png",
            pose=pose_dir / f"{stem}_keypoints.json",
            cloth=_picture(folder / "cloth", cloth_stem),
            cloth_mask=_picture(folder / "cloth-mask", cloth_stem),
            row=row,
        )
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{folder / 'image'}: holds no photograph; check --source and --split")
    return jobs


def load(job: Job, label_map: np.ndarray, size: tuple[int, int]) -> Sample:
    """The sample of one job at size (height, width).  Raises ValueError naming the file, its row and the remedy."""
    for path in job[1:6]:
        if not path.is_file():
            raise ValueError(f"{path}: missing ({job.row}){_remedy(job, path)}")
    person = Photo(read_image(job.image), read_parse(job.parse, label_map), read_pose(job.pose))
    check_photo(person, str(job.parse))
    cloth, mask = read_image(job.cloth), read_image(job.cloth_mask)[..., 0] >= 128
    if mask.shape != cloth.shape[:2]:
        raise ValueError(f"{job.cloth_mask}: not of the size of {job.cloth} ({job.row}); copy both again")
    if not mask.any():
        raise ValueError(f"{job.cloth_mask}: no pixel is 128 or more ({job.row}): no garment; make the mask again")
    return make_flat_sample(job.key, person, cloth, mask, size)


def _pairs(source: Path, folder: Path, parse_dir: Path, split: str, pairing: str) -> list[tuple[str, str, str]]:
    """Rows (where it is listed, person, cloth)."""
    paths = [path for path in (source / f"{split}_pairs.txt", folder / f"{split}_pairs.txt") if path.is_file()]
    if not paths:
        if pairing == "unpaired":
            raise ValueError(f"{source / f'{split}_pairs.txt'}: missing; --pairing unpaired takes the cloth from it")
        listed = [path for name in ("image", parse_dir.name) for path in _listing(folder / name)]
        stems = sorted({path.stem for path in listed if path.suffix.lower() in IMAGE_SUFFIXES})
        return [(f"sample {stem}", f"{stem}.jpg", f"{stem}.jpg") for stem in stems]
    rows = []
    for number, line in enumerate(paths[0].read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        names = line.split()
        if not names:
            continue
        row = f"{paths[0].name} row {number}"
        if len(names) != 2:
            raise ValueError(f"{paths[0]}: row {number} is {line!r}; expected 'person.jpg cloth.jpg'")
        rows.append((row, names[0], names[0] if pairing == "paired" else names[1]))
    return rows


def _listing(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _either(folder: Path, name: str, older: str) -> Path:
    return folder / (older if (folder / older).is_dir() and not (folder / name).is_dir() else name)


def _picture(folder: Path, stem: str) -> Path:
    """The image with this name, whatever its format; NAME.jpg when there is none, for the message."""
    paths = [folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _remedy(job: Job, path: Path) -> str:
    if path == job.cloth and job.cloth.stem == job.image.stem:
        return (
            "; paired samples need the garment that the person wears: copy it there, or, to sample other garments, "
            "use --pairing unpaired"
        )
    return "; put it there, or remove the sample from its list or folders"

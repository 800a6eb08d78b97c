"""Raw photographs: those of one person in one garment are paired; their parts and poses are given or estimated.

    --group '(?P<person>[^/]+)/(?P<garment>[^/]+)/.*'     of each path within the folder

POSES/PATH.json, PARSE/PATH.png and POLYGONS/PATH.json hold what is known of PATH.jpg.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.estimators import Estimators
from data.images import read_image
from data.importers.files import IMAGE_SUFFIXES, require
from data.importers.given import estimate_photo
from data.importers.job import Job, JobList, Made
from data.parts import label_map, read_parse
from data.polygons import read_mask
from data.pose_formats import read_pose
from data.preprocess import Preparation, check_photo, make_sample
from data.schema import Part, Photo

PAIRINGS = ("all", "shuffle")
GROUP = "(?P<person>[^/]+)/(?P<garment>[^/]+)/.*"


class Known(NamedTuple):
    """Where to look for what is known of the photographs."""

    source: Path
    poses: Path | None = None
    parse: Path | None = None
    labels: str | None = None  # label map of the parse maps
    polygons: Path | None = None
    polygon_labels: tuple[str, ...] | None = None  # of the garment; None: all
    estimators: Estimators = Estimators()


class Group(NamedTuple):
    person: str
    garment: str
    paths: list[str]  # within the source, sorted


class Pairs(Sequence[tuple[Group, str, str]]):
    """(group, path of the person's photo, path of the garment's photo) of ordered pairs, group by group.

    per_group: all ordered pairs of a group, or so many of them, drawn by seed.
    """

    def __init__(self, groups: list[Group], per_group: int | None, seed: int):
        self.groups, self.per_group, self.seed = groups, per_group, seed
        counts = [len(group.paths) * (len(group.paths) - 1) for group in groups]
        self.ends = list(accumulate(min(count, per_group or count) for count in counts))
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def _draw(self, number: int) -> Sequence[int]:
        group = self.groups[number]
        everything = range(len(group.paths) * (len(group.paths) - 1))
        if self.per_group is None or self.per_group >= len(everything):
            return everything
        return random.Random(f"{self.seed} {group.person} {group.garment}").sample(everything, self.per_group)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        group = self.groups[number]
        first, second = divmod(
            self._drawn(number)[index - (self.ends[number - 1] if number else 0)], len(group.paths) - 1
        )
        return group, group.paths[first], group.paths[second + (second >= first)]


def group_photos(source: Path, rule: str = GROUP) -> tuple[list[Group], list[tuple[str, str]]]:
    """The groups of photographs that show one person in one garment, and (path, why) of each file that is in none.

    rule is a regular expression that a path within source must match as a whole, with groups named person and garment.
    Hidden files and folders, whose names begin with a dot, are passed over.  Raises ValueError when it is none,
    or when no two photographs belong together.
    """
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; --source is the folder of the photographs")
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"--group {rule!r}: no regular expression ({error}); the default is {GROUP!r}") from None
    if absent := {"person", "garment"} - set(pattern.groupindex):
        raise ValueError(f"--group {rule!r}: has no group named {min(absent)}; write e.g. {GROUP!r}")
    found: dict[tuple[str, str], list[str]] = {}
    left_out = []
    files = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for path in sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            left_out.append((path, f"not one of {', '.join(IMAGE_SUFFIXES)}"))
        elif match := pattern.fullmatch(path):
            found.setdefault((match["person"] or "", match["garment"] or ""), []).append(path)
        else:
            left_out.append((path, "does not match --group"))
    groups = [Group(*names, paths) for names, paths in sorted(found.items()) if len(paths) > 1]
    left_out += [(paths[0], "is alone in its group") for paths in found.values() if len(paths) == 1]
    if not groups:
        example = f", e.g. {left_out[0][0]} {left_out[0][1]}" if left_out else ""
        raise ValueError(f"{source}: no two photographs belong together by --group {rule!r}{example}")
    return groups, sorted(left_out)


def list_jobs(
    groups: list[Group], known: Known, how: Preparation, pairs_per_group: int | None = None, seed: int = 0
) -> JobList:
    """One job for each ordered pair of a group's photographs, or for pairs_per_group of them, drawn by seed."""
    return JobList(Pairs(groups, pairs_per_group, seed), partial(_job, known, how))


def _job(known: Known, how: Preparation, pair: tuple[Group, str, str]) -> Job:
    group, person, garment = pair
    names = [path[: path.rindex(".")] for path in (person, garment)]
    folder = names[0][: names[0].rfind("/") + 1]
    key = f"{names[0]}__{names[1].removeprefix(folder)}"
    place = f"{person} with {garment}"
    return Job(key, group.person, group.garment, place, partial(load, key, person, garment, known, how))


def load(key: str, person: str, garment: str, known: Known, how: Preparation) -> Made:
    """The sample of two photographs.  Raises ValueError naming the file and the remedy."""
    (person_photo, told), (garment_photo, told_too) = (read_photo(known, path) for path in (person, garment))
    notes = dict.fromkeys((*told, *told_too))
    return Made(make_sample(key, person_photo, garment_photo, how), person_photo.image.shape[:2], tuple(notes))


@lru_cache(maxsize=8)  # each photograph of a group is needed for one pair after the other
def read_photo(known: Known, path: str) -> tuple[Photo, tuple[str, ...]]:
    """A photograph, and what an estimate of it cannot tell.  Raises ValueError naming the file and the remedy."""
    file = known.source / path
    image, notes, joints = read_image(file), (), None
    parts = read_parse(_beside(known.parse, path, (".png",)), label_map(known.labels)) if known.parse else None
    if parts is None or not known.poses:
        photo, notes = estimate_photo(file, image, known.estimators)
        parts, joints = photo.parts if parts is None else parts, photo.pose
    if known.poses:
        pose_file = _beside(known.poses, path, (".json", "_keypoints.json", ".txt"))
        joints = read_pose(pose_file, size=image.shape[:2], parts=parts)
    if known.polygons:
        outlines = _beside(known.polygons, path, (".json",))
        parts = with_garment(parts, read_mask(outlines, image.shape[:2], known.polygon_labels))
    photo = Photo(image, parts, joints)
    check_photo(photo, str(file))
    return photo, notes


def with_garment(parts: np.ndarray, garment: np.ndarray) -> np.ndarray:
    """The parts (H, W) uint8 with exactly these pixels (H, W) bool as the garment.

    What was taken for it below its middle is lower clothes, and above something else that is worn.
    """
    below = np.arange(len(parts))[:, None] > np.flatnonzero(garment.any(1)).mean()
    rest = np.where(below, Part.LOWER, Part.OTHER)
    return np.where(garment, Part.UPPER, np.where(parts == Part.UPPER, rest, parts)).astype(np.uint8)


def _beside(folder: Path, path: str, endings: tuple[str, ...]) -> Path:
    """The file of a folder that belongs to a photograph.  Raises ValueError when there is none."""
    files = [folder / f"{path[: path.rindex('.')]}{ending}" for ending in endings]
    file = next((file for file in files if file.is_file()), files[0])
    require(file, path, "put it there, or leave the option away to estimate what all photographs show")
    return file

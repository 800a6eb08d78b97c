"""Where pictures come from: drawn by a cascade, or a folder of any model's; and what they are compared with.

H, W pixels.  Names are keys as they stand in file names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from data.dataset import ShardedDataset
from data.images import load_image, read_image
from data.schema import Sample
from data.shards import escape_key
from sampling.inputs import ShardPairs
from sampling.outputs import SHEET, Output
from training.evaluating import drawn_region

SUFFIXES = (".png", ".jpg", ".jpeg")
DRAWN = "where the clothing-agnostic image differs from the person"


class Source(Protocol):
    """Pictures and references by number; of pairs, the same number is of the same person in the same garment."""

    names: list[str]
    references: list[str]  # their names
    paired: bool
    size: tuple[int, int]  # (height, width) of the pictures
    region: str | None  # what `mask` is; None where there is none

    def image(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8"""

    def reference(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8"""

    def person(self, i: int) -> np.ndarray | None:
        """The photograph of the person that picture i shows, if it is known."""

    def mask(self, i: int) -> np.ndarray | None:
        """The garment's region of picture i, (H, W) bool."""

    def given(self, i: int) -> list[np.ndarray]:
        """The clothing-agnostic image and the garment that picture i was drawn from, where they are known."""


class Masks:
    """Pictures by name, white where the garment is."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self.files = files_in(folder, "--masks")
        if missing := [name for name in names if name not in self.files]:
            raise ValueError(f"--masks {folder}: no mask named {missing[0]} ({len(missing)} are missing); add them")
        self.told = f"masks {folder}"

    def __call__(self, name: str) -> np.ndarray:
        path = self.files[name]
        return np.asarray(_told(load_image, path, "mask").convert("L")) > 127


class Drawn:
    """What a cascade has drawn of pairs from shards."""

    def __init__(self, inputs: ShardPairs, output: Output, size: tuple[int, int], masks: Path | None):
        self.inputs, self.output, self.size = inputs, output, size
        self.names = [inputs.key(i) for i in range(inputs.num)]
        self.references = [escape_key(inputs.one.key(person)) for person, _ in inputs.pairs]
        self.paired = inputs.paired
        self.masks = None if masks is None else Masks(masks, self.references)
        self.region = self.masks.told if self.masks else DRAWN

    def _sample(self, i: int) -> Sample:
        return self.inputs.sample(i, self.size)

    def image(self, i: int) -> np.ndarray:
        return self.output.read(i)

    def reference(self, i: int) -> np.ndarray:
        return self._sample(i).person

    person = reference

    def mask(self, i: int) -> np.ndarray:
        sample = self._sample(i)
        return self.masks(self.references[i]) if self.masks else drawn_region(sample.person, sample.clothing_agnostic)

    def given(self, i: int) -> list[np.ndarray]:
        sample = self._sample(i)
        return [sample.clothing_agnostic, sample.garment]


class Folder:
    """Files of any model, of one size, compared with files or with a set of shards."""

    def __init__(self, images: Path, reference: str, masks: Path | None, unpaired: bool, num: int | None):
        self.files = files_in(images, "--images")
        self.names = list(self.files)[:num]
        self.paired = not unpaired
        self.shards = Shards(reference) if (Path(reference) / "dataset.json").is_file() else None
        self.truth = {} if self.shards else files_in(Path(reference), "--reference")
        there = list(self.shards.ids if self.shards else self.truth)[:num]
        if self.paired:
            _check_names(images, self.names, reference, there)
        self.references = self.names if self.paired else there
        self.masks = None if masks is None else Masks(masks, self.names)
        self.region = self.masks.told if self.masks else DRAWN if self.shards and self.paired else None
        self.size = _check_sizes([self.files[name] for name in self.names])

    def image(self, i: int) -> np.ndarray:
        return _told(read_image, self.files[self.names[i]])

    def reference(self, i: int) -> np.ndarray:
        name = self.references[i]
        return self.shards(name).person if self.shards else _told(read_image, self.truth[name])

    def person(self, i: int) -> np.ndarray | None:
        return self.reference(i) if self.paired else None

    def mask(self, i: int) -> np.ndarray | None:
        if self.masks:
            return self.masks(self.names[i])
        if self.region is None:
            return None
        sample = self.shards(self.names[i])
        return drawn_region(sample.person, sample.clothing_agnostic)

    def given(self, i: int) -> list[np.ndarray]:
        if not (self.shards and self.paired):
            return []
        sample = self.shards(self.names[i])
        return [sample.clothing_agnostic, sample.garment]


class Shards:
    """Samples by their names in files."""

    def __init__(self, folder: str):
        self.dataset = ShardedDataset(folder)
        self.ids = dict(sorted((escape_key(self.dataset.key(i)), i) for i in range(len(self.dataset))))

    def __call__(self, name: str) -> Sample:
        return self.dataset.read(self.ids[name])


def files_in(folder: Path, option: str) -> dict[str, Path]:
    """The pictures of a folder by name without suffix, sorted; contact sheets are none.

    Raises ValueError for a folder that is missing or empty, and for two of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: no such folder; name one of PNG or JPEG files")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name != SHEET)
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot be read ({error.strerror}); check its permissions") from error
    if not paths:
        raise ValueError(f"{option} {folder}: holds no PNG or JPEG files; name the folder that does")
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise ValueError(f"{path}: {files[path.stem].name} has the same name; remove one of the two")
        files[path.stem] = path
    return dict(sorted(files.items()))


def _check_names(images: Path, names: list[str], reference: str, there: list[str]) -> None:
    """Raises ValueError where one side has what the other has not."""
    for folder, mine, other, theirs in ((images, names, reference, there), (reference, there, images, names)):
        known = set(theirs)
        if alone := [name for name in mine if name not in known]:
            raise ValueError(
                f"{Path(folder) / alone[0]}: {other} has none of that name ({len(alone)} of {len(mine)} have no "
                "partner); pairs go by file name without suffix: rename or remove files, or use --unpaired"
            )


def _check_sizes(paths: list[Path]) -> tuple[int, int]:
    """(height, width) of all.  Raises ValueError naming the first that differs."""
    sizes = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes[path] = image.size[::-1]
        except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
            raise ValueError(f"{path}: not a readable image ({error}); copy it again") from error
    first = sizes[paths[0]]
    for path, size in sizes.items():
        if size != first:
            have, want = ("x".join(map(str, each)) for each in (size, first))
            raise ValueError(f"{path}: {have} pixels, the others have {want}; make all of one size")
    return first


def _told(read, path: Path, *what: str):
    """What a reader of single photographs refuses, in words that fit here."""
    try:
        return read(path, *what)
    except ValueError as error:
        raise ValueError(str(error).replace(", or --skip-bad", "")) from error

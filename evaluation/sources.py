"""Where pictures come from: drawn by a cascade, or a folder of any model's; and what they are compared with.

H, W pixels.  Names are keys as they stand in file names.
"""

import typing
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.agnostic import drawn_region
from data.dataset import ShardedDataset
from data.images import load_image, read_image
from data.schema import Sample
from data.shards import escape_key
from sampling.inputs import ShardPairs
from sampling.outputs import SHEET, Output

SUFFIXES = (".png", ".jpg", ".jpeg")
TURNED = (5, 6, 7, 8)  # EXIF orientations of which width and height are exchanged
DRAWN = "what the clothing-agnostic image hides"


class Source(typing.Protocol):
    """Pictures and references by number; of pairs, the same number is of the same person in the same garment."""

    names: list[str]
    references: list[str]  # their names
    paired: bool
    size: tuple[int, int]  # (height, width) of the pictures
    sizes: dict[str, tuple[int, int]]  # that, and the references', by where they lie
    region: str | None  # what `mask` is; None where there is none
    knows_drawn: bool  # whether there is `drawn`

    def image(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8"""

    def reference(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8"""

    def mask(self, i: int) -> np.ndarray | None:
        """The region of picture i that is measured on its own, (H, W) bool."""

    def drawn(self, i: int) -> np.ndarray:
        """Where the model drew picture i, which shows reference i elsewhere, (H, W) bool."""

    def given(self, i: int) -> list[np.ndarray]:
        """The clothing-agnostic image and the garment that picture i was drawn from, where they are known."""


class Masks:
    """Pictures by name, white in the region, of the proportions of the pictures of this (height, width)."""

    def __init__(self, folder: Path, names: Sequence[str], size: tuple[int, int]):
        self.files = files_in(folder, "--masks")
        if missing := [name for name in names if name not in self.files]:
            raise ValueError(f"--masks {folder}: no mask named {missing[0]} ({len(missing)} are missing); add them")
        for path in (self.files[name] for name in names):
            if not alike(have := _size_of(path), size):
                told, want = ("x".join(map(str, each)) for each in (have, size))
                raise ValueError(
                    f"{path}: {told} pixels, the pictures have {want}, of other proportions; crop one of them"
                )
        self.told = f"masks {folder}"

        self._read = lru_cache(maxsize=1)(self._read)

    def _read(self, name: str) -> np.ndarray:
        return np.asarray(ImageOps.exif_transpose(load_image(self.files[name], "mask")).convert("L")) > 127

    def __call__(self, name: str) -> np.ndarray:
        return self._read(name)


class Drawn:
    """What a cascade has drawn of pairs from shards."""

    knows_drawn = True

    def __init__(self, inputs: ShardPairs, output: Output, size: tuple[int, int], masks: Path | None):
        self.inputs, self.output, self.size = inputs, output, size
        self.sizes = {str(output.out): size}
        self.names = [inputs.key(i) for i in range(inputs.num)]
        self.references = [inputs.person_key(i) for i in range(inputs.num)]
        self.paired = inputs.paired
        self.masks = None if masks is None else Masks(masks, self.references, size)
        self.region = self.masks.told if self.masks else DRAWN
        self._sample = lru_cache(maxsize=1)(lambda i: inputs.sample(i, size))

    def image(self, i: int) -> np.ndarray:
        return self.output.read(i)

    def reference(self, i: int) -> np.ndarray:
        return self._sample(i).person

    def mask(self, i: int) -> np.ndarray:
        return self.masks(self.references[i]) if self.masks else self.drawn(i)

    def drawn(self, i: int) -> np.ndarray:
        sample = self._sample(i)
        return drawn_region(sample.person, sample.clothing_agnostic)

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
        self.size = _check_sizes([self.files[name] for name in self.names])
        stored = self.shards and self.shards.dataset.stored_size
        size = stored or _check_sizes([self.truth[name] for name in self.references])
        self.sizes = {str(self.files[self.names[0]]): self.size}
        self.sizes[reference if self.shards else str(self.truth[self.references[0]])] = size
        self.masks = None if masks is None else Masks(masks, self.names, self.size)
        self.region = self.masks.told if self.masks else DRAWN if self.shards and self.paired else None
        self.knows_drawn = self.paired and self.region is not None
        self._truth = lru_cache(maxsize=1)(read_image)

    def image(self, i: int) -> np.ndarray:
        return read_image(self.files[self.names[i]])

    def reference(self, i: int) -> np.ndarray:
        name = self.references[i]
        return self.shards(name).person if self.shards else self._truth(self.truth[name])

    def mask(self, i: int) -> np.ndarray | None:
        return self.masks(self.names[i]) if self.masks else self.drawn(i) if self.region else None

    def drawn(self, i: int) -> np.ndarray:
        if not self.shards:
            return self.masks(self.names[i])
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
        self._read = lru_cache(maxsize=1)(self.dataset.read)

    def __call__(self, name: str) -> Sample:
        return self._read(self.ids[name])


def files_in(folder: Path, option: str) -> dict[str, Path]:
    """The pictures of a folder by name without suffix, sorted; contact sheets, hidden files and folders are none.

    Raises ValueError for a folder that is missing or empty, for two of one name, and for names that are no UTF-8.
    """
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: no such folder; name one of PNG or JPEG files")
    try:
        there = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot be read ({error.strerror}); check its permissions") from error
    paths = sorted(path for path in there if path.name != SHEET and not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{option} {folder}: holds no PNG or JPEG files; name the folder that does")
    files: dict[str, Path] = {}
    for path in paths:
        if any("\udc80" <= letter <= "\udcff" for letter in path.name):  # what Python makes of other bytes
            raise ValueError(f"{option} {folder}: the name {path.name!r} is no UTF-8; rename the file")
        if path.stem in files:
            raise ValueError(f"{path}: {files[path.stem].name} has the same name; remove one of the two")
        files[path.stem] = path
    return dict(sorted(files.items()))


def alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) have the same proportions, but for rounding."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= 0.02


def _check_names(images: Path, names: list[str], reference: str, there: list[str]) -> None:
    """Raises ValueError where one side has what the other has not."""
    for folder, mine, other, theirs in ((images, names, reference, there), (reference, there, images, names)):
        known = set(theirs)
        if alone := [name for name in mine if name not in known]:
            raise ValueError(
                f"{Path(folder) / alone[0]}: {other} has none of that name ({len(alone)} of {len(mine)} have no "
                "partner); pairs are PNG or JPEG files right in the folder, by name without suffix: rename, convert or "
                "remove files, or use --unpaired"
            )


def _size_of(path: Path) -> tuple[int, int]:
    """(height, width), upright.  Raises ValueError for what is no image."""
    try:
        with Image.open(path) as image:
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in TURNED
            return image.size if turned else image.size[::-1]
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"{path}: not a readable image ({error}); copy it again") from error


def _check_sizes(paths: list[Path]) -> tuple[int, int]:
    """(height, width) of all, upright.  Raises ValueError naming the first that differs."""
    first = _size_of(paths[0])
    for path in paths:
        if (size := _size_of(path)) != first:
            have, want = ("x".join(map(str, each)) for each in (size, first))
            raise ValueError(f"{path}: {have} pixels, the others have {want}; make all of one size")
    return first

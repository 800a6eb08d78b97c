"""Photographs of persons and garments, made into pairs as python -m data.prepare does it.

H, W pixels; K keypoints.  Poses and parts that are not given are estimated.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data.agnostic import GRAY, RULES
from data.estimators import DEFAULT, Estimators, estimate
from data.estimators.weights import Unusable
from data.images import as_seen, load_image, to_srgb
from data.importers.cloth_mask import find_cloth, read_cloth_mask
from data.importers.photos import with_garment
from data.parts import label_map, read_parse
from data.pose_formats import read_pose
from data.preprocess import Preparation, check_photo, make_flat_sample, make_sample
from data.schema import Photo, Sample
from data.shards import escape_key
from sampling.in_view import look_at_person, shows_head

KINDS = ("worn", "flat")
MIN_SIDE = 128  # pixels of a photograph's shorter side: the first stage of the paper's cascade draws as many
STILL = ("MPO",)  # of formats that may hold several frames: a camera's, whose others are previews
IF_FLAT = "if the garment lies flat, say so with --garment-kind flat"
MAYBE_FLAT = f"no head in view; {IF_FLAT}"
MAYBE_WORN = "somebody seems to wear it, and would be taken for a part of it; leave out --garment-kind flat"

REMEDIES = {  # of data.prepare: what helps here instead
    "or remove its row or photo": "or name another",
    "check --label-map, or leave this photo out": "take another photograph",
    "or leave it out": "or take another",
    "leave this photo out, or bring its pose": "take another photograph, or bring its pose",
}

Source = Path | str | Image.Image


class Shot(NamedTuple):
    """A photograph and what is known of it; None stands for what is estimated."""

    image: Source
    pose: Path | None = None
    parse: Path | None = None  # its parse map
    labels: str | None = None  # the parse map's label map
    mask: Path | None = None  # of the garment


class Garment(NamedTuple):
    """A garment on its wearer, or lying flat."""

    photo: Photo | None
    cloth: np.ndarray | None = None  # (H, W, 3) uint8
    mask: np.ndarray | None = None  # (H, W) bool


class Read(NamedTuple):
    content: Any  # Photo or Garment
    notes: tuple[str, ...]  # what could not be told
    crc: str  # of the pixels


def name_of(source: Source) -> str:
    if isinstance(source, Image.Image):
        return str(
            getattr(source, "filename", "") or "an image in memory"
        )  # of one that a program has opened, its file
    return str(source)


def read_photograph(source: Source) -> np.ndarray:
    """The photograph as a viewer shows it, (H, W, 3) uint8 RGB.

    Upright, in sRGB, on white where it is transparent.  Raises ValueError for what data.images does, and for an
    animation.
    """
    return _spoken(lambda: as_seen(_opened(source), name_of(source)))


def _opened(source: Source) -> Image.Image:
    """The decoded image.  Raises ValueError for an animation too."""
    if isinstance(source, Image.Image):
        frames, decoded = _frames(source), source
    else:
        decoded = load_image(Path(source), "image")
        with Image.open(source) as image:
            frames = _frames(image)
    if frames > 1:
        raise ValueError(f"{name_of(source)}: has {frames} frames; save one of them as JPEG or PNG")
    return decoded


def _frames(image: Image.Image) -> int:
    return 1 if image.format in STILL else getattr(image, "n_frames", 1)


def _spoken(read: Callable[[], Any]) -> Any:
    """What read returns; its refusals with the remedies that help here."""
    try:
        return read()
    except Unusable:
        raise
    except ValueError as error:
        told = str(error)
        for there, here in REMEDIES.items():
            told = told.replace(there, here)
        raise ValueError(told) from error


def read_person(shot: Shot, estimators: Estimators = DEFAULT) -> Read:
    """The person's Photo.

    Raises ValueError naming the file and the remedy when it is no photograph, smaller than MIN_SIDE, shows nobody, or
    has no head, shoulders, trunk or hips in view, by the joints and by the parts.
    """
    image = _large_enough(read_photograph(shot.image), shot.image)
    photo, notes = _spoken(lambda: _photo(shot, image, estimators))
    try:
        seen = look_at_person(photo)
    except ValueError as error:
        raise ValueError(f"{name_of(shot.image)}: {error}") from error
    return Read(photo, seen + notes, _crc(photo.image, photo.parts, photo.pose))


def read_garment(shot: Shot, kind: str, estimators: Estimators = DEFAULT) -> Read:
    """The Garment of a photograph: worn by somebody, or flat, on a plain background or cut out.

    What is transparent is not the garment: such an image is taken for one that lies flat.  A note says when it looks
    like the other kind.  Raises ValueError as read_person does, except that neither head nor hips need to be in view.
    """
    image, alpha = _spoken(lambda: _cut(_opened(shot.image), shot.image))
    _large_enough(image, shot.image)
    if alpha is not None:
        if shot.pose is not None:
            raise ValueError(
                f"{name_of(shot.image)}: is transparent, so it is taken for a garment that lies flat and has no pose; "
                "leave out --garment-pose"
            )
        return _flat(image, _outline(shot, image, alpha), ())
    if kind == "flat":
        if shot.mask:
            return _flat(image, _mask(shot, image), ())
        mask, notes = find_cloth(image)
        if not mask.any():
            raise ValueError(
                f"{name_of(shot.image)}: nothing in it stands out from its background; take the garment on a plain "
                "ground of another colour, or bring a mask of it"
            )
        return _flat(image, mask, (MAYBE_WORN,) * _is_worn(image, estimators) + notes)
    photo, notes = _spoken(lambda: _photo(shot, image, estimators, f"; {IF_FLAT}"))
    notes = (MAYBE_FLAT,) * (not shows_head(photo)) + notes
    if shot.mask:
        photo = photo._replace(parts=with_garment(photo.parts, _mask(shot, image)))
    _spoken(lambda: check_photo(photo, name_of(shot.image)))
    return Read(Garment(photo), notes, _crc(photo.image, photo.parts, photo.pose))


def _is_worn(image: np.ndarray, estimators: Estimators) -> bool:
    """Whether somebody is found in the picture; no without the estimators, which a flat garment does not need."""
    try:
        return shows_head(estimate(image, estimators).photo)
    except ValueError:
        return False


def _photo(shot: Shot, image: np.ndarray, estimators: Estimators, hint: str = "") -> tuple[Photo, tuple[str, ...]]:
    """The photo and what an estimate cannot tell; hint: what else to try where nobody is found."""
    parts = read_parse(shot.parse, label_map(shot.labels)) if shot.parse else None
    pose, notes = None, ()
    if parts is None or shot.pose is None:
        try:
            photo, notes = estimate(image, estimators)
        except Unusable:
            raise
        except ValueError as error:
            raise ValueError(f"{name_of(shot.image)}: {error}{hint}") from error
        parts, pose = photo.parts if parts is None else parts, photo.pose
    if shot.pose is not None:
        pose = read_pose(shot.pose, size=image.shape[:2], parts=parts)
    photo = Photo(image, parts, pose)
    check_photo(photo, str(shot.parse or name_of(shot.image)))
    return photo, notes


def _cut(opened: Image.Image, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """The image (H, W, 3) uint8, and its alpha (H, W) uint8 where some of it is transparent, which is gray then."""
    seen = as_seen(opened, name_of(source))  # refuses what cannot be shown
    if not opened.has_transparency_data:
        return seen, None
    upright = ImageOps.exif_transpose(opened).convert("RGBA")
    alpha = upright.getchannel("A")
    if np.array(alpha).min() == 255:
        return seen, None
    cloth = to_srgb(upright.convert("RGB"))
    cloth.putalpha(alpha)
    gray = Image.new("RGBA", upright.size, (GRAY, GRAY, GRAY, 255))
    gray.alpha_composite(cloth)
    return np.array(gray.convert("RGB")), np.array(alpha)


def _outline(shot: Shot, image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    mask = _mask(shot, image) if shot.mask else alpha >= 128
    if not mask.any():
        raise ValueError(f"{name_of(shot.image)}: is transparent everywhere; save it with the garment opaque")
    return mask


def _mask(shot: Shot, image: np.ndarray) -> np.ndarray:
    return _spoken(lambda: read_cloth_mask(Path(shot.mask), image, name_of(shot.image)))


def _flat(cloth: np.ndarray, mask: np.ndarray, notes: tuple[str, ...]) -> Read:
    return Read(Garment(None, cloth, mask), notes, _crc(cloth, mask))


def _large_enough(image: np.ndarray, source: Source) -> np.ndarray:
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"{name_of(source)}: {height}x{width} pixels; both sides must have {MIN_SIDE} or more: bring a larger "
            "photograph"
        )
    return image


def _crc(*arrays: np.ndarray) -> str:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array), crc)
    return f"{crc:08x}"


def pairs_of_photos(
    persons: Sequence[Shot], garments: Sequence[Shot], kind: str, pairs: Sequence[tuple[int, int]] | None = None, *,
    crop: bool = False, rule: str = "paper", estimators: Estimators = DEFAULT,
) -> tuple["PhotoPairs", list[str]]:  # fmt: skip
    """These pairs of (person, garment), or every person in every garment, and what the photographs cannot tell.

    Raises ValueError for a kind that is not of KINDS, a rule that is not of RULES, and as read_person and read_garment.
    """
    if kind not in KINDS:
        raise ValueError(f"garment_kind={kind!r}: no such kind; there are {', '.join(KINDS)}")
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}: no such rule; there are {', '.join(RULES)}")
    read = (
        [read_person(shot, estimators) for shot in persons],
        [read_garment(shot, kind, estimators) for shot in garments],
    )
    notes = [
        f"{name_of(shot.image)}: {note}"
        for shots, each in zip((persons, garments), read, strict=True)
        for shot, one in zip(shots, each, strict=True)
        for note in one.notes
    ]
    names = [unique([stem_of(shot.image, i) for i, shot in enumerate(shots)]) for shots in (persons, garments)]
    everything = [(i, j) for i in range(len(persons)) for j in range(len(garments))]
    return PhotoPairs(*read, names, everything if pairs is None else pairs, crop, rule), notes


def stem_of(source: Source, i: int) -> str:
    return f"image{i + 1}" if isinstance(source, Image.Image) else Path(source).stem


def unique(names: Sequence[str]) -> list[str]:
    """The names, the second of its kind with -2 behind it, and so on."""
    seen: dict[str, int] = {}
    told = []
    for name in names:
        number = seen[name] = seen.get(name, 0) + 1
        while number > 1 and f"{name}-{number}" in (*names, *told):
            number += 1
        told.append(name if number == 1 else f"{name}-{number}")
    return told


def joined(person: str, garment: str) -> str:
    """PERSON__GARMENT, fit for a file, and of no other two: A__B in C is A%5F%5FB__C, A in B__C is A__B%5F%5FC."""
    parts = map(escape_key, (person, garment))
    return "__".join(part.replace("_", "%5F") if "__" in f"_{part}_" else part for part in parts)


class PhotoPairs:
    """Pairs of a person's and a garment's photograph.

    The whole photograph is fitted into the frame of each size, or with crop the person is; as data.prepare does it.
    """

    paired = False

    def __init__(
        self, persons: Sequence[Read], garments: Sequence[Read], names: Sequence[Sequence[str]],
        pairs: Sequence[tuple[int, int]], crop: bool = False, rule: str = "paper",
    ):  # fmt: skip
        self.persons, self.garments, self.names, self.pairs = persons, garments, names, pairs
        self.crop, self.rule, self.num = crop, rule, len(pairs)
        self.about = {"persons": [read.crc for read in persons], "garments": [read.crc for read in garments]}
        self.about |= {"crop": crop, "rule": rule}
        self._person, self._garment = lru_cache(256)(self._read_person), lru_cache(256)(self._read_garment)

    def key(self, i: int) -> str:
        person, garment = self.pairs[i]
        return joined(self.names[0][person], self.names[1][garment])

    def sample(self, i: int, size: tuple[int, int]) -> Sample:
        person, garment = self.pairs[i]
        worn = self._garment(garment, size)
        sample = self._person(person, size)
        return sample._replace(key=self.key(i), garment=worn.garment, garment_pose=worn.garment_pose)

    def _read_person(self, i: int, size: tuple[int, int]) -> Sample:
        photo = self.persons[i].content
        return make_sample(self.names[0][i], photo, photo, self._how(size))

    def _read_garment(self, i: int, size: tuple[int, int]) -> Sample:
        photo, cloth, mask = self.garments[i].content
        name, how = self.names[1][i], self._how(size)
        if photo is None:
            return make_flat_sample(name, self.persons[0].content, cloth, mask, how)
        return make_sample(name, photo, photo, how)

    def _how(self, size: tuple[int, int]) -> Preparation:
        return Preparation(size, self.rule, self.crop)

"""The numbers of some pictures under a protocol: pair by pair, and as a crowd.

Every rank measures every num_ranks-th picture; what it finds is gathered by number, and statistics are made of all in
float64: the split over ranks changes nothing but the rounding of batches.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from evaluation.protocols import NO_SQUEEZE, Protocol
from evaluation.sources import Source, alike
from evaluation.spaces import NO_INCEPTION, Space, inception_space, vgg_space
from model.lpips import LPIPS, SMALLEST
from model.metrics import WINDOW, frechet_distance, kernel_distance
from training.distributed import Agreed, agreed, gather_to_main, get_rank, num_ranks, on_main
from training.evaluating import Likeness, lpips_name
from training.lpips_weights import load_lpips

T = TypeVar("T")
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as clean-fid and torch-fidelity draw them
ALONE = "one picture has no covariance and makes no pair; give at least two"


class Number(NamedTuple):
    value: float
    std: float | None  # over pairs, None of one; of a kernel distance over subsets, None where each is the whole set
    num: int  # pictures that it is of


class Measured(NamedTuple):
    numbers: dict[str, Number]
    left_out: dict[str, str]  # by name, why
    notes: list[str]  # what a reader of the numbers should know
    pairs: list[dict[str, float]]  # each pair's numbers; NaN where there is no garment in sight


class Measures(NamedTuple):
    """What a protocol is measured with here."""

    likeness: Likeness | None  # None where nobody knows the truth
    spaces: list[Space]
    left_out: dict[str, str]


def measures_of(
    protocol: Protocol, paired: bool, size: tuple[int, int], inception: Path | None, device: torch.device
) -> Measures:
    """size: of the pictures.  Raises ValueError, on every rank, for a wrong file of weights; what cannot be had without
    anybody's fault is left out with its reason."""
    left_out: dict[str, str] = {}
    likeness = _likeness(protocol, size, device, left_out) if paired else None
    spaces = []
    if inception is not None:
        with agreed():
            spaces.append(inception_space(inception, protocol.fid_resize, device))
    else:
        left_out |= {"fid": NO_INCEPTION, "kid": NO_INCEPTION}
        space = _had(vgg_space, device)
        if isinstance(space, str):
            left_out["frechet_vgg16"] = space
        else:
            spaces.append(space)
    return Measures(likeness, spaces, left_out)


@lru_cache(maxsize=2)
def _had(make: Callable[[torch.device], T], device: torch.device) -> T | str:
    """What is made, or why it cannot be had, which is found out once for all protocols."""
    try:
        return make(device)
    except ValueError as error:
        return str(error)


def _alex(device: torch.device) -> LPIPS:
    return load_lpips("alex", device)


def _likeness(
    protocol: Protocol, size: tuple[int, int], device: torch.device, left_out: dict[str, str]
) -> Likeness | None:
    if protocol.lpips == "squeeze":
        left_out["lpips_squeeze"] = NO_SQUEEZE
    side, name = min(protocol.size or size), lpips_name("alex", protocol.lpips_size)
    lpips = None
    if min(protocol.lpips_size or (side,)) < SMALLEST["alex"]:
        left_out[name] = f"it needs {SMALLEST['alex']} pixels a side, the pictures have {side}"
    else:
        lpips = _had(_alex, device)
        if isinstance(lpips, str):
            left_out[name], lpips = lpips, None
    if side < WINDOW:
        left_out["ssim"] = f"its window is {WINDOW} pixels wide, the pictures have {side}"
        return None if lpips is None else Likeness(lpips, protocol.lpips_size, protocol.grey, device, ssim=False)
    return Likeness(lpips, protocol.lpips_size, protocol.grey, device)


def check_sizes(source: Source, protocol: Protocol) -> None:
    """Raises ValueError for pictures or references of other proportions than those at which they are compared."""
    target = protocol.size or source.size
    for where, size in source.sizes.items():
        if not alike(size, target):
            have, want = ("x".join(map(str, each)) for each in (size, target))
            raise ValueError(
                f"{where}: {have} pixels, --protocol {protocol.name} compares at {want}, of other proportions; crop "
                "the pictures, or take another protocol"
            )


def measure(source: Source, protocol: Protocol, measures: Measures, batch: int, repaint: bool) -> Measured:
    """repaint: whether what need not be drawn is taken from the person before measuring.

    Raises ValueError, on every rank, for what cannot be read, and where no number is left: of one picture without a
    truth.
    """
    num, num_references = len(source.names), len(source.references)
    few = bool(measures.spaces) and min(num, num_references) < 2
    if few and not source.paired:
        raise ValueError(f"{measures.spaces[0].frechet} of {num} picture and {num_references} references: {ALONE}")
    spaces = [] if few else measures.spaces
    names = [name for space in measures.spaces for name in (space.frechet, space.kernel)]
    left_out = measures.left_out | (dict.fromkeys(names, ALONE) if few else {})
    target = protocol.size or source.size
    try:
        with agreed():
            found, features = _pictures(source, protocol, measures.likeness, spaces, target, batch, repaint)
            references = _references(source, protocol, spaces, target, batch) if spaces else {}
    except Agreed as error:  # each rank may have found a file of its own: one is enough
        raise Agreed(str(error).partition("\n")[0]) from None
    everything = gather_to_main((found, features, references))
    numbers, notes, pairs = on_main(lambda: _told(spaces, everything))
    if source.paired:
        left_out |= _regions_left_out(numbers, left_out, source.region)
    return Measured(numbers, left_out, notes, pairs)


def _regions_left_out(numbers: dict[str, Number], left_out: dict[str, str], region: str | None) -> dict[str, str]:
    """Why there is no number of the region, by name, beside each of whole pictures."""
    if region is None:
        why = "where the garment is nobody says; give --masks, or shards as --reference"
    else:
        why = f"the region is empty in all pictures ({region})"
    names = [name for name in (*left_out, *numbers) if name == "ssim" or name.startswith("lpips_alex")]
    return {
        f"{name}_region": left_out.get(name, why)
        for name in names
        if not name.endswith("_region") and f"{name}_region" not in numbers
    }


def _notes(crowd: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> list[str]:
    few = {name: min(len(each), len(truth[name])) for name, each in crowd.items()}
    return [
        f"{name} is biased upwards, of {few[name]} pictures and {each.shape[1]} features: compare equal N alone"
        for name, each in crowd.items()
        if few[name] < each.shape[1]
    ]


def _share(num: int, batch: int, what: str) -> Iterator[list[int]]:
    """This rank's numbers, in batches."""
    mine = list(range(get_rank(), num, num_ranks()))
    for start in tqdm(range(0, len(mine), batch), desc=what, unit="batch", disable=None):
        yield mine[start : start + batch]


def _pictures(
    source: Source, protocol: Protocol, likeness: Likeness | None, spaces: list[Space], target: tuple[int, int],
    batch: int, repaint: bool,
) -> tuple[dict[int, dict[str, float]], dict[str, dict[int, np.ndarray]]]:  # fmt: skip
    """(each pair's numbers, each space's features of each picture) of this rank's share"""
    found: dict[int, dict[str, float]] = {}
    features: dict[str, dict[int, np.ndarray]] = {space.frechet: {} for space in spaces}
    for ids in _share(len(source.names), batch, "measuring"):
        images, truth, masks = [], [], []
        for i in ids:
            images.append(picture(source, protocol, i, repaint))
            if likeness is not None:
                truth.append(_resized(source.reference(i), target, protocol.filter))
                masks += [_resized(source.mask(i), target)] if source.region else []
        if source.paired:
            found |= {i: {} for i in ids}
        if likeness is not None:
            values = likeness(images, truth, masks or None)
            found |= {i: {name: float(each[k]) for name, each in values.items()} for k, i in enumerate(ids)}
        if spaces and protocol.fid_of == "given":
            images = [source.image(i) for i in ids]
        for space in spaces:
            features[space.frechet] |= zip(ids, space.features(images), strict=True)
    return found, features


def _references(
    source: Source, protocol: Protocol, spaces: list[Space], target: tuple[int, int], batch: int
) -> dict[str, dict[int, np.ndarray]]:
    """Each space's features of each reference of this rank's share."""
    features: dict[str, dict[int, np.ndarray]] = {space.frechet: {} for space in spaces}
    for ids in _share(len(source.references), batch, "references"):
        images = [source.reference(i) for i in ids]
        if protocol.fid_of == "compared":
            images = [_resized(image, target, protocol.filter) for image in images]
        for space in spaces:
            features[space.frechet] |= zip(ids, space.features(images), strict=True)
    return features


def picture(source: Source, protocol: Protocol, i: int, repaint: bool) -> np.ndarray:
    """Picture i as it is measured, (H, W, 3) uint8."""
    target = protocol.size or source.size
    image = _resized(source.image(i), target, protocol.filter)
    if not repaint:
        return image
    truth = _resized(source.reference(i), target, protocol.filter)
    drawn = _resized(source.drawn(i), target)
    if not drawn.any():
        raise ValueError(
            f"{source.names[i]}: nothing of it was drawn ({source.region}), and repainting would make it the truth; "
            "correct the mask or the shards, or leave the pair out"
        )
    return np.where(drawn[..., None], image, truth)


def _resized(image: np.ndarray, size: tuple[int, int], kind: str = "nearest") -> np.ndarray:
    """The image at this (height, width), by one of Pillow's filters; untouched where it has it."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling[kind.upper()]))


def _told(spaces: list[Space], shares: list[tuple]) -> tuple[dict[str, Number], list[str], list[dict[str, float]]]:
    """(numbers, notes, each pair's numbers) of what all ranks found."""
    found, features, references = zip(*shares, strict=True)
    pairs = _joined(found)
    crowd, truth = (
        {space.frechet: np.array(_joined([each[space.frechet] for each in part])) for space in spaces}
        for part in (features, references)
    )
    return _numbers(pairs, spaces, crowd, truth), _notes(crowd, truth), pairs


def _joined(shares: Iterable[dict[int, T]]) -> list[T]:
    """The values of all ranks, in the order of their numbers."""
    whole = {i: value for share in shares for i, value in share.items()}
    return [whole[i] for i in sorted(whole)]


def _numbers(
    pairs: list[dict[str, float]], spaces: list[Space], crowd: dict[str, np.ndarray], truth: dict[str, np.ndarray]
) -> dict[str, Number]:
    numbers = {}
    for name in pairs[0] if pairs else ():
        values = np.array([pair[name] for pair in pairs])
        values = values[~np.isnan(values)]
        if len(values):
            std = float(values.std()) if len(values) > 1 else None
            numbers[name] = Number(float(values.mean()), std, len(values))
    for space in spaces:
        a, b = crowd[space.frechet], truth[space.frechet]
        numbers[space.frechet] = Number(frechet_distance(a, b), None, len(a))
        numbers[space.kernel] = Number(*kernel_distance(a, b, SUBSETS, SUBSET_SIZE), len(a))
    return numbers

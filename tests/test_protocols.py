"""What each protocol measures, against the tools that its authors use: scikit-image, Pillow, LPIPS as published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from evaluation.measuring import Measures, measure, measures_of
from evaluation.protocols import PROTOCOLS
from evaluation.sources import Folder
from evaluation.spaces import Space
from training.lpips_weights import load_lpips

CPU = torch.device("cpu")
SIZE, LARGER = (64, 48), (96, 72)  # of the pictures and of their references, (height, width)
HOW = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
FILTERS = {"paper": "LANCZOS", "catvton": "LANCZOS", "hrviton": "BILINEAR", "ladi": "BILINEAR"}


def resized(image: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    return image.resize(size[::-1], Image.Resampling[name])


@pytest.fixture
def source(tmp_path, real_data) -> Folder:
    """Three photographs, and the same with noise, smaller."""
    rng = np.random.default_rng(0)
    for name in ("images", "truth"):
        (tmp_path / name).mkdir()
    for path in sorted((real_data / "viton_hd/test/image").iterdir())[:3]:
        truth = resized(Image.open(path).convert("RGB"), LARGER, "BOX")
        truth.save(tmp_path / "truth" / f"{path.stem}.png")
        image = np.array(resized(truth, SIZE, "BOX")) + rng.normal(0, 20, (*SIZE, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{path.stem}.png")
    return Folder(tmp_path / "images", str(tmp_path / "truth"), None, False, None)


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.iterdir())]


def lpips_of(a: Image.Image, b: Image.Image) -> float:
    x, y = (torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] / 127.5 - 1 for each in (a, b))
    return float(load_lpips("alex", CPU)(x, y))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pairs(name, source, tmp_path):
    protocol = PROTOCOLS[name]
    measures = measures_of(protocol, True, source.size, None, CPU)._replace(spaces=[])
    found = measure(source, protocol, measures, 2, repaint=False).numbers
    size = (512, 384) if name == "ladi" else SIZE
    images, truth = (
        [resized(each, size, FILTERS[name]) for each in pictures(tmp_path / kind)] for kind in ("images", "truth")
    )
    pairs = list(zip(images, truth, strict=True))
    if name == "hrviton":
        ssim = [structural_similarity(*(np.array(each.convert("L")) for each in pair), **HOW) for pair in pairs]
        small = [[resized(each, (128, 128), "BILINEAR") for each in pair] for pair in pairs]
        lpips = {"lpips_alex_128x128": [lpips_of(*pair) for pair in small]}
    else:
        ssim = [structural_similarity(*map(np.array, pair), channel_axis=2, **HOW) for pair in pairs]
        lpips = {"lpips_alex": [lpips_of(*pair) for pair in pairs]}
    assert {name: number.value for name, number in found.items()} == pytest.approx(
        {"ssim": np.mean(ssim)} | {name: np.mean(values) for name, values in lpips.items()}, rel=1e-4
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_crowds(name, source, tmp_path):
    """LaDI-VTON's script has the FID of the files as they are; the others resize references to the pictures."""
    seen: list[np.ndarray] = []

    def features(images: list[np.ndarray]) -> np.ndarray:
        seen.extend(images)
        return np.stack([image.mean((0, 1)) for image in images])

    space = Space("fid", "kid", features)
    measure(source, PROTOCOLS[name], Measures(None, [space], {}), 2, repaint=False)
    truth = pictures(tmp_path / "truth")
    if name != "ladi":
        truth = [resized(each, SIZE, FILTERS[name]) for each in truth]
    for image, expected in zip(seen, pictures(tmp_path / "images") + truth, strict=True):
        np.testing.assert_array_equal(image, np.array(expected))

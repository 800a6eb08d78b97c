"""Measures against independent implementations: scikit-image, scipy in float64, torchmetrics, a double loop."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from model.metrics import BORDER, frechet_distance, kernel_distance, mean_in, ssim, ssim_maps


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (6, 48, 40, 3) in [0, 1], and the same ever more disturbed."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :40]
    truth = np.stack([np.sin(x / rng.uniform(2, 9) + y / rng.uniform(2, 9) + c) for c in range(18)])
    truth = (truth.reshape(6, 3, 48, 40).transpose(0, 2, 3, 1) + 1) / 2
    noise = rng.normal(size=truth.shape) * np.linspace(0, 0.5, 6)[:, None, None, None]
    return truth.astype(np.float32), (truth + noise).clip(0, 1).astype(np.float32)


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_ssim_of_scikit_image_and_torchmetrics(pairs):
    found = ssim(ssim_maps(*map(tensor, pairs))).numpy()
    how = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [structural_similarity(a, b, **how) for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    theirs = structural_similarity_index_measure(*map(tensor, pairs), data_range=1.0, reduction="none")
    # 1.9 takes the mirrored border into the mean; up to 1.4, which the papers used, it left it out.
    np.testing.assert_allclose(mean_in(ssim_maps(*map(tensor, pairs)), None), theirs, rtol=1e-4)
    assert found[0] == 1 > found[1:].max()


def test_ssim_maps_are_differentiable_and_local(pairs):
    truth = tensor(pairs[0])
    changed = truth.clone()
    changed[:, :, :12, :12] = 0.5
    changed.requires_grad_()
    maps = ssim_maps(truth, changed)
    assert maps.shape == (6, 48, 40) and torch.allclose(maps[:, 12 + BORDER :], torch.ones(()), atol=1e-5)
    maps.mean().backward()
    assert changed.grad.isfinite().all() and (changed.grad[:, :, :12, :12] != 0).any()


def test_means_within_masks():
    maps = torch.arange(24.0).view(2, 3, 4)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 1, 1:3] = True
    inside = mean_in(maps, mask)
    assert inside[0] == 5.5 and inside[1].isnan()
    assert mean_in(maps, None).tolist() == [5.5, 17.5]


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(24, 24))
    return rng.normal(size=(150, 24)) @ mix, rng.normal(size=(90, 24)) @ mix * 1.2 + 0.3


def test_frechet_distance_of_scipy(features):
    a, b = features
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    way = a.mean(0) - b.mean(0)
    expected = way @ way + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(np.float32(a), np.float32(b)) == pytest.approx(expected, rel=1e-5)
    few = frechet_distance(a[:5], b[:7])  # of rank 4 in 24 dimensions
    assert few > 0 and frechet_distance(a[:5], a[:5]) == pytest.approx(0, abs=1e-6 * few)


def test_kernel_distance_of_a_double_loop_and_torchmetrics(features):
    x, y = (each[:40] for each in features)
    num = len(x)

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return (float(p @ q) / len(p) + 1) ** 3

    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(num) for j in range(num) if i != j)
    across = sum(kernel(p, q) for p in x for q in y)
    expected = within / (num * (num - 1)) - 2 * across / num**2
    mean, std = kernel_distance(x, y)
    assert mean == pytest.approx(expected, rel=1e-9) and std is None
    assert mean == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9)


def test_kernel_distance_over_subsets(features):
    a, b = features
    whole, _ = kernel_distance(a[:90], b)
    mean, std = kernel_distance(a[:90], b, subsets=200, subset_size=30, seed=3)
    assert mean == pytest.approx(whole, abs=5 * std / 200**0.5) and std > 0
    assert kernel_distance(a, b)[1] > 0, "90 of 150 are not the whole set"
    assert kernel_distance(a, b, 20, 30, seed=3) == kernel_distance(a, b, 20, 30, seed=3)
    assert kernel_distance(a, b, 20, 30, seed=3) != kernel_distance(a, b, 20, 30, seed=4)
    drawn = np.random.default_rng(0).normal(size=(400, 2, 20, 24))  # 400 times two sets of one distribution
    alike = [kernel_distance(x, y, subsets=1)[0] for x, y in drawn]
    assert abs(np.mean(alike)) < 4 * np.std(alike) / 20 and min(alike) < 0, "unbiased"


def test_one_image_is_no_crowd(features):
    a, b = features
    with pytest.raises(ValueError, match="of 1 and 90 images: one image has no covariance"):
        frechet_distance(a[:1], b)
    with pytest.raises(ValueError, match="of 150 and 1 images: one image has no pair"):
        kernel_distance(a, b[:1])

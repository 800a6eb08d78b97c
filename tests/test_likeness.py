"""The measures of the samplers' benchmark: nothing is nearer than the truth, and known distances are found."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.curves import Curve, draw_curves
from benchmarks.likeness import DIMENSIONS, mean_ssim, space_of
from model.metrics import frechet_distance


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """96 pictures of coloured stripes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    pictures = []
    for _ in range(96):
        direction, phase, (low, high) = rng.normal(size=2) * 0.7, rng.uniform(0, 6), rng.uniform(0, 255, (2, 3))
        share = (np.sin(direction[0] * x + direction[1] * y + phase)[..., None] + 1) / 2
        pictures.append(low + share * (high - low) + rng.normal(size=(32, 32, 3)) * 4)
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 3)) * [1, 2, 3]
    b = rng.normal(size=(200_000, 3)) * [2, 2, 1] + [1, 0, -1]
    assert frechet_distance(a, b) == pytest.approx(2 + 1 + 4, rel=0.02)  # means, and (1 - 2)^2 + (3 - 1)^2
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_what_is_wrong_with_images_is_far_from_the_truth(truth):
    space = space_of(truth)
    features = space(truth)
    assert features.shape == (96, DIMENSIONS) and abs(features.mean(0)).max() < 1e-6

    def distance(images: np.ndarray) -> float:
        return frechet_distance(features, space(images))

    def changed(change) -> np.ndarray:
        return np.stack([np.asarray(change(Image.fromarray(image))) for image in truth])

    blurred = [changed(lambda image, r=r: image.filter(ImageFilter.GaussianBlur(r))) for r in (0.5, 1.0, 2.0)]
    tinted = (truth * [0.9, 1, 1]).astype(np.uint8)
    assert distance(truth[::-1].copy()) < 1e-6 < distance(blurred[0]) < distance(blurred[1]) < distance(blurred[2])
    assert distance(tinted) > 0.1
    assert mean_ssim(truth, truth) == 1 > mean_ssim(truth, blurred[0]) > mean_ssim(truth, blurred[2])
    assert mean_ssim(truth, truth[::-1]) < 0.5


def test_too_few_images_are_refused(truth):
    with pytest.raises(ValueError, match="64 images do not span 64 dimensions; give more pairs"):
        space_of(truth[:DIMENSIONS])


def test_curves_are_drawn_where_their_points_are():
    """Higher values are higher up, more evaluations further right, and what is far off does not squeeze the others."""
    curves = [
        Curve("reference", [(256, 0.5)]),
        Curve("ddim", [(5, 0.4), (20, 0.45), (80, 0.6)]),
        Curve("heun", [(10, 99.0), (20, 0.45)]),
    ]
    picture = np.asarray(draw_curves([("rising", curves)] * 2, "evaluations", columns=2))
    panel = picture[45:345, 75:595]
    second = np.argwhere((panel == (127, 127, 127)).all(-1))  # the second name's colour
    left, right = second[second[:, 1].argmin()], second[second[:, 1].argmax()]
    assert len(second) > 200 and right[0] < left[0] - 100 and right[1] > left[1] + 200
    level = np.flatnonzero((panel == 0).all(-1).sum(1) > 500)  # the reference's line
    assert len(level) == 1 and left[0] > level[0] > right[0]
    assert np.array_equal(picture[:, :600], picture[:, 620:1220])

"""The learning benchmark's measures: the truth scores best, a colour tells no print, a warp by keypoints lands."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.learning import sensitivity
from benchmarks.pasting import mean_color, pasted, warped
from benchmarks.recovery import arms, measured, nearest, texture
from benchmarks.wardrobe import known, pair, scene
from training.lpips_weights import load_lpips

SIZE, NUM = (32, 24), 12


@pytest.fixture(scope="module")
def tests():
    return [known(1, i, NUM, 8, SIZE) for i in range(NUM)]


def test_scenes_are_printed_and_turned():
    for i in range(20):
        one = scene(0, i)
        assert one.garment.pattern != "plain" and abs(one.pose.turn - one.other.turn) > 0.3
    assert scene(0, 3) == scene(0, 3) != scene(1, 3)
    assert np.array_equal(known(1, 2, 5, 3, SIZE).sample.person, pair(1, 2, SIZE).person)


def test_the_truth_is_recovered_and_another_garment_is_not(tests):
    for k, other in pairwise(tests):
        assert texture(k.sample.person, k.prints, k.mask) == nearest(k.sample.person, k.prints, k.mask) == 0
        assert texture(k.prints[1], k.prints, k.mask) == 1
        assert all(arms(k.sample.person, k)) and k.mask.any() and not k.mask.all()
        assert np.array_equal(k.prints[0], k.sample.person) and not np.array_equal(other.mask, k.mask)


def test_a_colour_alone_tells_no_print(tests):
    for k in tests:
        plain = np.broadcast_to(k.sample.person[k.mask].mean(0), k.sample.person.shape).astype(np.uint8)
        assert texture(plain, k.prints, k.mask) == -1


def test_an_arm_elsewhere_is_not_recovered(tests):
    k = tests[0]
    away = np.linalg.norm(k.joints[0] - k.joints[0][0], axis=-1).min(1)
    wrong = int(np.argmax(away))
    assert away[wrong] > 0.2 and arms(k.arms[0][wrong], k)[:2] == [False, False]


def test_a_warp_onto_its_own_pose_is_the_garment(tests):
    for k in tests:
        still = k.sample._replace(person_pose=k.sample.garment_pose)
        image, mask = warped(still, k.garment_mask)
        assert (mask & k.garment_mask).sum() > 0.75 * k.garment_mask.sum()
        assert np.abs(image[mask].astype(int) - k.sample.garment[mask]).mean() < 8
        flat, same = mean_color(still, k.garment_mask)
        assert np.array_equal(mask, same) and len(np.unique(flat[same], axis=0)) == 1


def test_measures_rank_the_truth_the_warp_and_the_mean_colour(tests):
    """Better is better: the truth, then the garment on the right place, then its colour alone."""
    lpips = load_lpips("alex", "cpu")
    grounds = [k.sample.clothing_agnostic for k in tests]
    warp, colour = (
        [pasted(base, *make(k.sample, k.garment_mask)) for base, k in zip(grounds, tests, strict=True)]
        for make in (warped, mean_color)
    )
    truth, warp, colour = (measured(x, tests, lpips) for x in ([k.sample.person for k in tests], warp, colour))
    assert truth["masked_ssim"] == pytest.approx(1) and truth["masked_lpips_alex"] == pytest.approx(0, abs=1e-6)
    assert truth["retrieval"] == truth["arms"] == 1 and truth["masked_l1"] == 0
    assert warp["masked_ssim"] > colour["masked_ssim"] and warp["masked_lpips_alex"] < colour["masked_lpips_alex"]
    assert warp["retrieval"] > colour["retrieval"]


def test_sensitivity_tells_the_garments_region_from_the_rest(tests):
    own = [k.sample.person for k in tests]
    swapped = [np.where(k.either[..., None], x ^ 8, x ^ 2) for k, x in zip(tests, own, strict=True)]
    found = sensitivity(own, swapped, tests)
    assert found == {"garment_region": 8, "rest": 2, "ratio": 4}

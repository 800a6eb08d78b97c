"""The mathematics of averages against what they are meant to compute."""

import numpy as np
import pytest

from training.profiles import LONGEST, Decay, Power, combine, gamma_of, responses

LENGTHS = (0.01, 0.05, 0.1, 0.15, 0.25, LONGEST)


def tracked(length: float, num: int) -> np.ndarray:
    """What an average weighs each of `num` weights, found by averaging them: the n-th is the n-th unit vector."""
    average = np.zeros(num)
    for n, weights in enumerate(np.eye(num)):
        average += Power(length).share(n) * (weights - average)
    return average


def continuous(length: float, s: np.ndarray, t: float) -> np.ndarray:
    """EDM2 Eq. 121: the power function after t, at s."""
    gamma = gamma_of(length)
    return (gamma + 1) / t * (s / t) ** gamma


@pytest.mark.parametrize("length", LENGTHS)
def test_the_exponent_gives_a_profile_of_that_length(length):
    s = (np.arange(200_000) + 0.5) / 200_000
    weighed = continuous(length, s, 1.0) / 200_000
    mean = (weighed * s).sum()
    assert weighed.sum() == pytest.approx(1, rel=1e-5)
    assert np.sqrt((weighed * (s - mean) ** 2).sum()) == pytest.approx(length, rel=1e-5)


def test_the_exponents_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3) and gamma_of(0.1) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("length", LENGTHS)
def test_responses_are_those_of_the_tracked_average(length):
    found = responses(np.array([length]), np.array([60]), np.arange(1, 81))[0]
    np.testing.assert_allclose(found[:60], tracked(length, 60), rtol=1e-9, atol=1e-15)
    assert not found[60:].any() and found.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_responses_are_the_continuous_profile_integrated_over_each_update(length):
    within = (np.arange(2000) + 0.5) / 2000
    integrals = [continuous(length, s - 1 + within, 50.0).mean() for s in range(1, 51)]
    np.testing.assert_allclose(responses(np.array([length]), np.array([50]), np.arange(1, 51))[0], integrals, rtol=2e-3)


def test_a_run_of_any_length_gives_finite_responses_that_sum_to_one():
    lengths, updates = np.array([0.001, 0.05, 0.001, LONGEST]), np.array([3_000_000, 1_000_000, 1, 1])
    sums = sum(
        responses(lengths, updates, np.arange(first, first + 50_000)).sum(1) for first in range(1, 3_000_000, 50_000)
    )
    np.testing.assert_allclose(sums, 1, rtol=1e-9)


@pytest.mark.parametrize(("every", "at", "length", "error"), [(10, 120, 0.075, 0.007), (500, 9000, 0.12, 3e-3)])
def test_the_combination_is_as_near_as_it_says(every, at, length, error):
    updates = np.repeat(np.arange(every, at + 1, every), 2)
    lengths = np.tile([0.05, 0.1], len(updates) // 2)
    coefficients, told = combine(lengths, updates, length, at)
    steps = np.arange(1, at + 1)
    stored, wanted = responses(lengths, updates, steps), responses(np.array([length]), np.array([at]), steps)[0]
    assert told == pytest.approx(np.linalg.norm(coefficients @ stored - wanted) / np.linalg.norm(wanted), rel=1e-4)
    assert told < error and coefficients.sum() == pytest.approx(1, abs=1e-10)
    assert np.abs(coefficients).sum() < 2, "large ones would enlarge the rounding of what is stored"
    for nearby in np.random.default_rng(0).normal(size=(20, len(coefficients))) * 1e-3:
        other = coefficients + nearby - nearby.mean()
        assert np.linalg.norm(other @ stored - wanted) > np.linalg.norm(coefficients @ stored - wanted)


def test_a_stored_average_is_its_own_combination():
    lengths, updates = np.array([0.05, 0.1, 0.05, 0.1, 0.1]), np.array([40, 40, 80, 80, 80])  # one of them twice
    coefficients, error = combine(lengths, updates, 0.1, 80)
    np.testing.assert_allclose(
        coefficients @ responses(lengths, updates, np.arange(1, 81)), tracked(0.1, 80), atol=1e-9
    )
    assert error < 1e-6


@pytest.mark.parametrize("length", [0, -0.1, 0.0501, 0.289, 1.0, float("nan"), float("inf")])
def test_lengths_that_no_power_function_has_are_refused(length):
    with pytest.raises(ValueError, match=r"use a length from 0\.001 to 0\.288, of at most three decimals"):
        gamma_of(length)


def test_a_decay_is_reached_slowly():
    assert [Decay(0.5).share(n) for n in (0, 7, 8, 900)] == pytest.approx([0.9, 9 / 17, 0.5, 0.5])

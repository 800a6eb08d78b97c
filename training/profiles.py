"""How an average weighs the steps of a run: decaying profiles, and EDM2's power functions of any length.

EDM2 is Karras et al. 2024, arXiv 2312.02696.  gamma: exponent of a power function; a length is its standard deviation
relative to the run, EDM2's sigma_rel.  s, t: updates, counted from 1.  K stored averages, S updates in one go.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

LONGEST = 0.288  # below sqrt(1/12), that of an even average of all steps: gamma = 0
BLOCK = 4096  # updates in one go


class Decay(NamedTuple):
    """average <- decay average + (1 - decay) weights; the decay is reached slowly: (1 + n) / (10 + n) at first."""

    decay: float

    def share(self, n: int) -> float:
        """Of the weights in the average after n earlier updates."""
        return 1 - min(self.decay, (1 + n) / (10 + n))


class Power(NamedTuple):
    """The average after t updates weighs weights s by s^gamma, however long the run (EDM2 Sec. 3.1)."""

    length: float

    def share(self, n: int) -> float:
        """1 - beta(t) = 1 - (1 - 1/t)^(gamma + 1) for t = n + 1 (EDM2 Eq. 127); the first update takes it all."""
        return float(-np.expm1((gamma_of(self.length) + 1) * np.log1p(-1 / (n + 1)))) if n else 1.0


@cache
def gamma_of(length: float) -> float:
    """The largest root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2 (EDM2 Eq. 123, 126).

    Raises ValueError for lengths that are no power function's, or that names of three decimals do not tell apart.
    """
    if not 0.001 <= length <= LONGEST or round(length, 3) != length:
        raise ValueError(f"{length}: use a length from 0.001 to {LONGEST}, of at most three decimals")
    t = length**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def responses(lengths: np.ndarray, updates: np.ndarray, s: np.ndarray) -> np.ndarray:
    """What averages of these lengths (K,) after so many updates (K,) weigh the weights after updates s (S,).  -> (K, S)

    Exactly those of Power: (s/t)^(gamma+1) - ((s-1)/t)^(gamma+1) for s <= t, which is the continuous power function
    (EDM2 Eq. 121) integrated over each update.  Its values at s differ: by 1.2 % of their norm in a run of 300 updates,
    by 8 % in one of 50, for length 0.1.
    """
    exponent = np.array([gamma_of(length) + 1 for length in lengths])[:, None]
    with np.errstate(divide="ignore"):  # log 0 at s = 1: nothing is before it
        inside = np.minimum(s / updates[:, None], 1) ** exponent * -np.expm1(exponent * np.log1p(-1 / s))
    return np.where(s <= updates[:, None], inside, 0.0)


def combine(lengths: np.ndarray, updates: np.ndarray, length: float, at: int) -> tuple[np.ndarray, float]:
    """The stored averages' (K,) best combination to one of `length` after `at` updates, as EDM2's Algorithm 3 finds it:
    the least squares between both weighings of the steps.  -> (coefficients (K,), error)

    Inner products are sums over updates where EDM2 has integrals, and the coefficients are bound to sum to 1, so that
    the error in the weights scales with how far they moved and not with how large they are.  error: the L2 norm of the
    difference of both weighings, relative to the wanted one's.
    """
    num = len(lengths)
    gram = np.zeros((num + 1, num + 1))  # the last one is the wanted average
    lengths, updates = np.append(lengths, length), np.append(updates, at)
    for first in range(1, at + 1, BLOCK):
        weighed = responses(lengths, updates, np.arange(first, min(first + BLOCK, at + 1)))
        gram += weighed @ weighed.T
    norms = np.sqrt(np.diag(gram))
    gram /= np.outer(norms, norms)
    sums = norms.min() / norms[:num]  # of a normed average's coefficients to a sum, scaled
    system = np.block([[gram[:num, :num], sums[:, None]], [sums[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(gram[:num, num], norms.min() / norms[num]), rcond=None)[0]
    normed = np.append(solution[:num], -1.0)
    return solution[:num] * norms[num] / norms[:num], float(np.sqrt(max(0.0, normed @ gram @ normed)))

"""Randomness as a pure function of (seed, position): the same on any device, rank, worker and restart."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for.  One purpose drawing more never shifts the numbers of another."""

    ORDER = 0
    AUGMENT = 1
    DIFFUSION = 2
    SAMPLING = 3
    SYNTHETIC = 4
    SPARE = 5
    MIX = 6
    SPLIT = 7
    CROP = 8


def keyed_rng(seed: int, position: int, purpose: Purpose, part: int = 0) -> np.random.Generator:
    """The generator that belongs to (seed, position, purpose, part), each in [0, 2^64), made without walking through
    others.

    Philox is counter-based (Salmon et al. 2011): (seed, position) is its key, part and purpose are the upper words of
    its counter, so that no two streams overlap.
    """
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, position], np.uint64), counter=[0, part, int(purpose), 0])
    )

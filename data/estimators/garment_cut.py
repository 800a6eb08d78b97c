"""Where the upper garment ends and the lower begins, when a segmenter knows clothes only.

h, w pixels of a window; the pose is (18, 3) rows (x, y, visible) in its pixels.
"""

import numpy as np

from data.estimators.regions import joint, middle_of

# Shares of the way from neck to hips: the colours of the upper garment are learned above CHEST and those of the lower
# below THIGHS; the cut between them never runs above CHEST or below LOWEST.
CHEST, THIGHS, LOWEST = 0.5, 1.35, 1.5
BINS = 12  # of a colour's channel
ENOUGH = 40  # pixels to learn colours from
ALIKE = 0.75  # Bhattacharyya coefficient of two garments' colours from which on they are not told apart
LOUDEST = 2.0  # nats that one pixel's colour may say
LONGEST_STEP = 4  # pixels between neighbouring columns that the cut follows at a cost of its slope, JUMP from there on
SLOPE, JUMP, PULL = 1.0, 30.0, 0.02  # costs, in nats of log likelihood; PULL draws the cut to the hips
SEAM = 3  # pixels: how wide a seam or a button is at most
MISFIT = 0.025  # of all that colours say: what contradicts the cut, from which on it is unsure

NO_HIPS = "nothing seen below the hips: lower edge of the garment unsure"
HIP_CUT = "upper and lower clothes look alike: cut at the hips, which would halve a dress"
ROUGH_CUT = "upper and lower clothes hardly differ: lower edge of the garment unsure"
TILTED = "not upright: upper and lower clothes cut at the hips"


def upper_clothes(clothes: np.ndarray, colors: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which clothes are the upper garment, (h, w) bool, and notes on what could not be told.

    clothes (h, w) bool, colors (h, w, 3) uint8.  The cut runs where the colours of the chest end and those of the
    thighs begin: in each column of pixels the place of highest likelihood, kept smooth from column to column by
    dynamic programming.  Where both look alike it runs at the hips; without visible hips all is the upper garment.
    """
    neck, hips = joint(pose, "neck"), middle_of(pose, "left_hip", "right_hip")
    if neck is None or hips is None or not (hips - neck).any():
        return clothes, (NO_HIPS,)
    down = hips - neck
    x, y = np.arange(clothes.shape[1]) + 0.5 - neck[0], (np.arange(clothes.shape[0]) + 0.5 - neck[1])[:, None]
    share = (x * down[0] + y * down[1]) / (down @ down)  # 0 at the neck, 1 at the hips
    if down[1] < abs(down[0]):
        return clothes & (share < 1), (TILTED,)
    above, below = clothes & (share < CHEST), clothes & (share > THIGHS)
    if min(above.sum(), below.sum()) < ENOUGH:
        return clothes & (share < 1), (NO_HIPS,) if (clothes & (share > 1)).any() else ()
    levels = colors.astype(np.int64) * BINS // 256
    upper, lower = (_palette(levels[mask]) for mask in (above, below))
    if np.sqrt(upper * lower).sum() > ALIKE:
        return clothes & (share < 1), (HIP_CUT,)
    evidence = np.clip(np.log(upper / lower), -LOUDEST, LOUDEST)[tuple(np.moveaxis(levels, -1, 0))] * clothes
    forced = np.where(share < CHEST, 1, np.where(share > LOWEST, -1, 0))
    cut = _smoothest(np.where(forced, 50.0 * forced, evidence - PULL * np.sign(share - 1)))
    over = np.arange(len(clothes))[:, None] < cut
    against = np.maximum(np.where(over, -evidence, evidence), 0)[forced == 0].sum()
    rough = against > MISFIT * np.abs(evidence[forced == 0]).sum()
    return clothes & over, (ROUGH_CUT,) * bool(rough)


def _palette(levels: np.ndarray) -> np.ndarray:
    """How likely each colour is of a garment that shows these (n, 3) in [0, BINS).  -> (BINS, BINS, BINS), sums to 1

    A histogram for its prints and patterns, and a normal distribution for its lights and shades that are not among
    them, half each.
    """
    counts = np.zeros((BINS, BINS, BINS))
    np.add.at(counts, tuple(levels.T), 1 / len(levels))
    offsets = np.indices(counts.shape).reshape(3, -1).T - levels.mean(0)
    covariance = np.cov(levels.T) + np.eye(3) / 12  # of the rounding to bins
    normal = np.exp(-0.5 * (offsets @ np.linalg.inv(covariance) * offsets).sum(1)) + 1e-9
    return (counts + (normal / normal.sum()).reshape(counts.shape)) / 2


def _smoothest(evidence: np.ndarray) -> np.ndarray:
    """The row of each column where the upper garment ends, (w,), by Viterbi's algorithm.

    It maximises the sum of evidence (h, w) above the row less the sum below, less a cost for steps between columns;
    excursions as narrow as a seam are dropped.
    """
    gain = 2 * np.cumsum(np.insert(evidence, 0, 0, axis=0), axis=0) - evidence.sum(0)  # (h + 1, w)
    steps = np.arange(-LONGEST_STEP, LONGEST_STEP + 1)
    rows = np.arange(len(gain))
    starts = np.clip(rows + steps[:, None], 0, len(gain) - 1)
    best, choices = gain[:, 0], []
    for column in gain.T[1:]:
        near = best[starts] - SLOPE * np.abs(steps)[:, None]
        nearest = near.argmax(0)
        far = best.max() - JUMP
        jumps = near[nearest, rows] < far
        choices.append(np.where(jumps, best.argmax(), starts[nearest, rows]))
        best = column + np.where(jumps, far, near[nearest, rows])
    path = [int(best.argmax())]
    for source in reversed(choices):
        path.append(int(source[path[-1]]))
    padded = np.pad(path[::-1], SEAM, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * SEAM + 1), axis=1)

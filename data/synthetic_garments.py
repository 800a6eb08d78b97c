"""Garments of the synthetic people: their cut, their colours, and the texture that is warped onto a body.

A garment lives in its own coordinates (u, v), in units of a nominal frame's height: u runs across the cloth with
0 at the middle of the chest and grows towards the wearer's left, v runs down with 0 at the shoulder line.  A sleeve
continues the cloth: v runs down the arm, and u is centred at -SLEEVE_U or +SLEEVE_U.
"""

import colorsys
import math
from typing import NamedTuple

import numpy as np

PATTERNS = ("plain", "horizontal", "vertical", "checks", "dots", "emblem", "halves", "blocks", "diagonal")
SLEEVES = ("none", "short", "long")
NECKLINES = ("crew", "v", "scoop", "boat", "high")
EMBLEMS = ("circle", "star", "heart", "letter")

HALF_WIDTH = 0.15  # of the nominal torso: u at the side is HALF_WIDTH * pi / 2
SLEEVE_U = 0.4  # keeps the chest's emblem off the sleeves, and the halves' colours on their own side

Color = tuple[float, float, float]  # RGB in [0, 1]
LETTERS = {  # strokes x0, y0, x1, y1 in a square of half-width 1
    "H": ((-0.6, -0.8, -0.6, 0.8), (0.6, -0.8, 0.6, 0.8), (-0.6, 0, 0.6, 0)),
    "T": ((-0.7, -0.8, 0.7, -0.8), (0, -0.8, 0, 0.8)),
    "A": ((-0.65, 0.8, 0, -0.8), (0.65, 0.8, 0, -0.8), (-0.35, 0.25, 0.35, 0.25)),
    "E": ((-0.5, -0.8, -0.5, 0.8), (-0.5, -0.8, 0.6, -0.8), (-0.5, 0, 0.45, 0), (-0.5, 0.8, 0.6, 0.8)),
    "X": ((-0.6, -0.8, 0.6, 0.8), (0.6, -0.8, -0.6, 0.8)),
    "N": ((-0.6, 0.8, -0.6, -0.8), (-0.6, -0.8, 0.6, 0.8), (0.6, 0.8, 0.6, -0.8)),
}


class Garment(NamedTuple):
    """An upper garment: how it is cut and what is printed on it."""

    sleeves: str  # of SLEEVES
    sleeve_length: float  # of the arm from shoulder to wrist, 0 without sleeves
    neckline: str  # of NECKLINES
    hem: float  # in torso lengths below the shoulder line: 1 at the hip joints
    ease: float  # how far the cloth stands off the body
    pattern: str  # of PATTERNS
    emblem: str  # of EMBLEMS, drawn by the pattern "emblem"
    letter: str  # of LETTERS, drawn by the emblem "letter"
    base: Color
    second: Color  # far enough from base to be seen
    period: float  # of the pattern
    phase: float  # in [0, 1): where the pattern starts, and where the folds lie

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Garment":
        """A garment drawn from rng: every pattern, sleeve, neckline and emblem is equally likely."""
        sleeves = SLEEVES[rng.integers(len(SLEEVES))]
        lengths = {"none": (0.0, 0.0), "short": (0.24, 0.42), "long": (0.88, 0.97)}
        base, second = draw_color(rng), draw_color(rng)
        while math.dist(base, second) < 0.45:
            second = draw_color(rng)
        return cls(
            sleeves=sleeves,
            sleeve_length=rng.uniform(*lengths[sleeves]),
            neckline=NECKLINES[rng.integers(len(NECKLINES))],
            hem=rng.choice((0.8, 1.0, 1.2), p=(0.2, 0.5, 0.3)).item() + rng.uniform(-0.05, 0.05),
            ease=rng.uniform(0.004, 0.022),
            pattern=PATTERNS[rng.integers(len(PATTERNS))],
            emblem=EMBLEMS[rng.integers(len(EMBLEMS))],
            letter=str(rng.choice(sorted(LETTERS))),
            base=base,
            second=second,
            period=rng.uniform(0.136, 0.19),
            phase=rng.uniform(0, 1),
        )

    def texture(self, u: np.ndarray, v: np.ndarray, width: np.ndarray) -> np.ndarray:
        """The cloth's colour at (u, v), without light.  -> (H, W, 3) float32 in [0, 1]

        u, v, width broadcast to (H, W); width is what one pixel spans in u and v: edges are that soft.
        """
        second = np.clip(0.5 - self._print(u, v) / width, 0, 1)[..., None]
        base, color = (np.asarray(c, np.float32) for c in (self.base, self.second))
        return base + (color - base) * second

    def _print(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance to where the second colour is printed, negative inside.  -> (H, W)"""
        u, v = np.broadcast_arrays(u, v)
        p, shift = self.period, self.phase * self.period
        match self.pattern:
            case "plain":
                return np.ones_like(u)
            case "horizontal":
                return stripe(v + shift, p)
            case "vertical":
                return stripe(u - 0.25 * p, p)
            case "diagonal":
                return stripe((u + v) * math.sqrt(0.5) + shift, p)
            case "checks":
                a, b = stripe(u, p), stripe(v + shift, p)
                return np.where(a * b < 0, -1, 1) * np.minimum(np.abs(a), np.abs(b))
            case "dots":
                row = np.floor((v + shift) / (0.75 * p))
                du = (u / p + 0.5 * row) % 1 - 0.5
                dv = ((v + shift) / (0.75 * p)) % 1 - 0.5
                return np.hypot(du * p, dv * 0.75 * p) - 0.27 * p
            case "halves":
                return -u
            case "blocks":
                return (0.12 + 0.12 * self.phase) - v
            case "emblem":
                size = 0.55 * p
                return size * emblem(self.emblem, self.letter, u / size, (v - 0.15) / size)
        raise ValueError(f"pattern {self.pattern!r} is none of {', '.join(PATTERNS)}")

    def opening(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance to the neck's opening, negative inside it.  -> (H, W), shaped like u and v together"""
        v = v + 0.085  # from where the neck meets the shoulders
        if self.sleeves == "none":
            u = u * 1.2  # leaves a strap
        match self.neckline:
            case "crew":
                return np.hypot(u, v) - 0.068
            case "v":
                return (np.abs(u) - 0.062 * (1 - v / 0.20)) * 0.95
            case "scoop":
                return (np.hypot(u / 0.08, v / 0.135) - 1) * 0.08
            case "boat":
                return (np.hypot(u / 0.115, v / 0.068) - 1) * 0.068
            case "high":
                return np.ones_like(u + v)
        raise ValueError(f"neckline {self.neckline!r} is none of {', '.join(NECKLINES)}")


def draw_color(rng: np.random.Generator) -> Color:
    """A colour drawn from rng, RGB in [0, 1]: vivid, muted, pale, dark or grey, of any hue."""
    ranges = (
        ((0.75, 1.0), (0.7, 1.0)),
        ((0.3, 0.6), (0.4, 0.75)),
        ((0.15, 0.4), (0.85, 1.0)),
        ((0.4, 0.9), (0.15, 0.4)),
        ((0.0, 0.06), (0.1, 1.0)),
    )
    saturation, value = ranges[rng.choice(len(ranges), p=(0.35, 0.2, 0.15, 0.15, 0.15))]
    return colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(*saturation), rng.uniform(*value))


def stripe(x: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to stripes half a period wide, the first one centred at half a period."""
    return (np.abs((x / period) % 1 - 0.5) - 0.25) * period


def emblem(kind: str, letter: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (near the edge) to an emblem of radius about 1 at the origin, y down."""
    match kind:
        case "circle":
            return np.hypot(x, y) - 0.85
        case "star":
            sector = math.pi / 5
            angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)  # 0 on a point of the star
            radius = np.hypot(x, y)
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            inner = 0.42
            tip_x, tip_y = 1.05 - inner * math.cos(sector), -inner * math.sin(sector)
            normal = math.hypot(tip_x, tip_y)
            return ((x - 1.05) * -tip_y + y * tip_x) / normal
        case "heart":
            x, y = np.abs(x), y - 0.05
            lobe = np.hypot(x - 0.42, y + 0.32) - 0.5
            wedge = np.maximum((x + y - 0.87) * math.sqrt(0.5), np.maximum(-0.32 - y, x - 0.92))
            return np.minimum(lobe, np.maximum(wedge, -y - 0.32))
        case "letter":
            strokes = [segment(x, y, *stroke) for stroke in LETTERS[letter]]
            return np.minimum.reduce(strokes) - 0.2
    raise ValueError(f"emblem {kind!r} is none of {', '.join(EMBLEMS)}")


def segment(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Distance from (x, y) to the segment between two points."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - x0 - t * dx, y - y0 - t * dy)

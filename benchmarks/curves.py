"""Line charts as pictures, with logarithmic x."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIZE, MARGIN, LEGEND = (620, 400), (70, 40, 20, 50), 190  # of a panel; left, top, right, bottom; width of the names
COLOURS = ("#000000", "#7f7f7f", "#1f77b4", "#d62728", "#ff7f0e", "#e0b000", "#2ca02c", "#17becf", "#9467bd", "#e377c2")
Point = tuple[float, float]


class Curve(NamedTuple):
    """Points from left to right; those of one x alone are levels, drawn across the panel."""

    name: str
    points: list[Point]


class Axes:
    """A rectangle of the picture and what it shows."""

    def __init__(self, left: int, top: int, curves: Sequence[Curve], whole: bool):
        (width, height), (west, north, east, south) = SIZE, MARGIN
        self.box = (left + west, top + north, left + width - east, top + height - south)
        points = [point for curve in curves for point in curve.points]
        self.x, self.y = ([point[i] for point in points] for i in (0, 1))
        middle = median(self.y)
        low, high = min(self.y), max(self.y)
        if not whole:
            low, high = max(low, middle / 1.5), min(high, middle * 1.5)
        margin = 0.05 * (high - low) or 1.0
        self.low, self.high = low - margin, high + margin

    def __call__(self, point: Point) -> Point:
        """Its place in the picture: the edge, if it is far from the median."""
        left, top, right, bottom = self.box
        first, last = math.log(min(self.x)) - 0.1, math.log(max(self.x)) + 0.1
        across, up = (math.log(point[0]) - first) / (last - first), (point[1] - self.low) / (self.high - self.low)
        up = min(max(up, 0.0), 1.0)
        return left + across * (right - left), bottom - up * (bottom - top)


def draw_curves(
    panels: Sequence[tuple[str, Sequence[Curve]]], x_label: str, columns: int, whole: bool = False
) -> Image.Image:
    """Panels of (title, curves) side by side, and what the colours mean; a name has one colour in all panels.

    whole: show every value, not those near the median alone.
    """
    names = list(dict.fromkeys(curve.name for _, curves in panels for curve in curves))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * SIZE[0] + LEGEND, rows * SIZE[1]), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for i, (title, curves) in enumerate(panels):
        axes = Axes(i % columns * SIZE[0], i // columns * SIZE[1], curves, whole)
        left, top, right, bottom = axes.box
        for y in _round_numbers(axes.low, axes.high):
            _, height = axes((axes.x[0], y))
            pen.line([(left, height), (right, height)], fill="#dddddd")
            pen.text((left - 6, height), f"{y:g}", fill="black", font=font, anchor="rm")
        for x in sorted(set(axes.x)):
            pen.text((axes((x, 0))[0], bottom + 6), f"{x:g}", fill="black", font=font, anchor="mt")
        pen.rectangle(axes.box, outline="black")
        pen.text(((left + right) / 2, top - 8), title, fill="black", font=font, anchor="mb")
        pen.text(((left + right) / 2, bottom + 26), x_label, fill="black", font=font, anchor="mt")
        for curve in curves:
            places = [axes(point) for point in curve.points]
            if len({x for x, _ in places}) == 1:
                for _, y in places:
                    pen.line([(left, y), (right, y)], fill=colour[curve.name])
            else:
                pen.line(places, fill=colour[curve.name], width=2)
            for x, y in places:
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour[curve.name])
    for i, name in enumerate(names):
        left, top = columns * SIZE[0], MARGIN[1] + 22 * i
        pen.line([(left, top + 8), (left + 24, top + 8)], fill=colour[name], width=4)
        pen.text((left + 32, top + 8), name, fill="black", font=font, anchor="lm")
    return picture


def _round_numbers(low: float, high: float) -> list[float]:
    """About five of them, in between."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 6), 10)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

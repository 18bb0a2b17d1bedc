"""Means with their intervals: human agreement beside its null and a uniform map, one panel per measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hkmap.maps.agreement import KINDS, MEASURES, METHODS
from hkmap.report.lettering import INK, LINE_HEIGHT, PAPER, Colour, Pixels, write_lines

TITLES = {
    "mse": "mean square error (lower: closer)",
    "spearman": "Spearman rank correlation (higher: closer)",
    "iou": "IoU of the highest 10 % (higher: closer)",
    "kl": "KL divergence in nats (lower: closer)",
}
COLOURS: dict[str, Colour] = {       # Okabe and Ito's, told apart by the colour-blind; the labels say it too
    "agreement": (0, 114, 178), "null": (213, 94, 0), "uniform": (110, 110, 110),
}
GRID: Colour = (220, 220, 220)
WIDTH, LEFT, RIGHT = 760, 210, 110       # of a picture; of the names before and the numbers behind the axis
ROW, HEAD, FOOT = 22, 40, 30             # heights, in pixels
LETTERS = 13
MOST_TICKS = 7


class Axis(NamedTuple):
    """Where values lie across the picture: from ``low`` at LEFT to ``high`` at WIDTH - RIGHT."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Return the column of ``value``, in pixels."""
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - RIGHT - LEFT)


def draw_agreement(summary: Mapping[str, Any]) -> Pixels:
    """Return what `hkmap agreement` prints as a picture, (height, width, 3) RGB.

    One panel per measure, one line per method and kind: a dot for the mean, a bar for its 95 % interval. Every axis
    begins or ends at 0, so that lengths can be compared.
    """
    fewest, most = summary["annotators"]
    said = f"{summary['images']} images, {fewest} to {most} annotators each; dots: means, bars: 95 % intervals"
    head = np.full((LINE_HEIGHT * 2, WIDTH, 3), PAPER, np.uint8)
    panels = [_panel(summary, measure) for measure in MEASURES]
    return np.concatenate([write_lines(head, [said], (8, LINE_HEIGHT // 2), WIDTH - 8), *panels], axis=0)


def axis_of(ends: list[float]) -> Axis:
    """Return an axis that holds 0 and all of ``ends``, with a little room; one of zeros alone reaches to 1.

    >>> axis_of([0.25, 0.5])
    Axis(low=0.0, high=0.525)
    """
    low, high = min(0.0, *ends), max(0.0, *ends)
    if low == high:
        return Axis(0.0, 1.0)
    room = 0.05 * (high - low)
    return Axis(low - room if low else 0.0, high + room if high else 0.0)


def ticks_of(axis: Axis) -> list[float]:
    """Return round numbers along the axis, at most seven: multiples of 1, 2 or 5 and a power of ten.

    >>> ticks_of(Axis(-0.1, 0.525))
    [-0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    """
    span = axis.high - axis.low
    power = 10.0 ** np.floor(np.log10(span))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1, 2) if span / (power * part) < MOST_TICKS)
    first, last = np.ceil(axis.low / step - 1e-9), np.floor(axis.high / step + 1e-9)
    return [float(f"{tick * step:.6g}") + 0.0 for tick in np.arange(first, last + 1)]      # + 0.0: no -0


def _panel(summary: Mapping[str, Any], measure: str) -> Pixels:
    lines = [(method, kind, summary[method][measure]) for method in METHODS for kind in KINDS]
    axis = axis_of([end for _, kind, entry in lines for end in entry[f"{kind}_interval"]])
    height = HEAD + ROW * len(lines) + FOOT
    paper = Image.new("RGB", (WIDTH, height), PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(LETTERS)
    draw.text((8, 12), TITLES[measure], fill=INK, font=font)
    for tick in ticks_of(axis):
        column = axis.place(tick)
        draw.line((column, HEAD - 4, column, height - FOOT + 2), fill=GRID)
        draw.text((column, height - FOOT + 6), f"{tick:g}", fill=INK, font=font, anchor="ma")
    draw.line((axis.place(0), HEAD - 4, axis.place(0), height - FOOT + 2), fill=INK)
    for index, (method, kind, entry) in enumerate(lines):
        row = HEAD + ROW * index + ROW / 2
        draw.text((8, row), f"{method.replace('_', ' ')}: {kind}", fill=INK, font=font, anchor="lm")
        _draw_interval(draw, axis, row, entry[kind], entry[f"{kind}_interval"], COLOURS[kind])
        draw.text((WIDTH - RIGHT + 12, row), f"{entry[kind]:.4f}", fill=INK, font=font, anchor="lm")
    return np.array(paper)


def _draw_interval(
    draw: ImageDraw.ImageDraw, axis: Axis, row: float, mean: float, interval: list[float], colour: Colour
) -> None:
    low, high = (axis.place(end) for end in interval)
    draw.line((low, row, high, row), fill=colour, width=3)
    for end in (low, high):
        draw.line((end, row - 6, end, row + 6), fill=colour, width=2)
    column = axis.place(mean)
    draw.ellipse((column - 4, row - 4, column + 4, row + 4), fill=colour)

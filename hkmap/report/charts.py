"""Charts of evaluations: insertion and deletion curves with bands, reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hkmap.report.learning import COLOURS, dress, name_runs

Array = npt.NDArray[np.float64]
ABREAST = 2             # panels of curves at most


class Band(NamedTuple):
    """A run's mean curve (n + 1,) over the shares of the pixels that changed, with its interval where there is one."""

    shares: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


class Panel(NamedTuple):
    """Curves of one figure: its title, the names of its axes, and each run's band, None where it has none."""

    title: str
    across: str
    up: str
    bands: Sequence[Band | None]


class Bins(NamedTuple):
    """A reliability diagram's bins that hold an answer: mean confidence, accuracy, and the share of all answers."""

    confidence: Array
    accuracy: Array
    share: Array


def shares_of(points: int, step: int, image_size: Sequence[int]) -> list[float]:
    """Return the shares (points,) of an image's (height, width) pixels that have changed, ``step`` at a time.

    >>> shares_of(4, 2, (1, 5))
    [0.0, 0.4, 0.8, 1.0]
    """
    pixels = math.prod(image_size)
    return [min(1.0, number * step / pixels) for number in range(points)]


def reliability(confidence: Array, right: npt.NDArray[np.bool_], bins: int) -> Bins:
    """Sort answers (n,) with their confidence into ``bins`` of equal width (Guo et al., ICML 2017)."""
    place = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts = np.bincount(place, minlength=bins)
    some = counts > 0
    means = [np.bincount(place, values, bins)[some] / counts[some] for values in (confidence, right)]
    return Bins(means[0], means[1], counts[some] / len(place))


def curves_figure(panels: Sequence[Panel], shams: Sequence[bool], names: Sequence[str] = ()) -> Any:
    """Return a matplotlib figure of curves: a panel per figure, a colour per run, dashes for a sham control.

    Bands are 95 % intervals of the mean. The runs' names stand in a legend, unless they are named elsewhere.
    """
    figure, cells = _panelled(len(panels), below=0.3 * bool(names) + 0.2 * len(names))
    for axes, panel in zip(cells, panels, strict=True):
        _draw_curves(axes, panel, shams)
    if names:
        name_runs(figure, [f"{name} (dashed: sham control)" if sham else name
                           for name, sham in zip(names, shams, strict=True)])
    return figure


def _draw_curves(axes: Any, panel: Panel, shams: Sequence[bool]) -> None:
    for number, (band, sham) in enumerate(zip(panel.bands, shams, strict=True)):
        if band is None:
            continue
        colour, across = COLOURS[number % len(COLOURS)], [100 * share for share in band.shares]
        if band.low is not None and band.high is not None:
            axes.fill_between(across, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(across, band.mean, "--" if sham else "-", color=colour, linewidth=1.5)
    dress(axes, panel.title, panel.across, panel.up)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)


def reliability_figure(bins: Bins, title: str, colour: str) -> Any:
    """Return a matplotlib figure of how often answers of a confidence are right.

    A dot's area is its bin's share of the answers; a line leads to where it would lie if confidence were accuracy.
    """
    figure, [axes] = _panelled(1)
    axes.plot([0, 1], [0, 1], color="0.3", linewidth=0.8, linestyle=":")
    axes.vlines(bins.confidence, bins.confidence, bins.accuracy, color=colour, linewidth=1)
    axes.scatter(bins.confidence, bins.accuracy, 12 + 300 * bins.share, color=colour, linewidth=0)
    dress(axes, title, "confidence", "share of right answers")
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
    return figure


def figure_bytes(figure: Any, ending: str) -> bytes:
    """Return a figure as the content of a png, svg or pdf file, without a date; all letters of an SVG are paths."""
    from io import BytesIO

    from matplotlib import rc_context

    content = BytesIO()
    dates: Mapping[str, None] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(ending, {})
    with rc_context({"svg.hashsalt": "hkmap", "svg.fonttype": "path"}):
        figure.savefig(content, format=ending, metadata=dates)
    return content.getvalue()


def _panelled(count: int, *, below: float = 0.0) -> tuple[Any, list[Any]]:
    """Return a figure with ``count`` panels, and inches of height for what is written ``below`` them."""
    from matplotlib.figure import Figure  # a quarter of a second, and only here

    down = math.ceil(count / ABREAST)
    across = math.ceil(count / down)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + below), dpi=100, layout="constrained")
    cells = [*figure.subplots(down, across, squeeze=False).flat]
    for axes in cells[count:]:
        axes.remove()
    return figure, cells[:count]

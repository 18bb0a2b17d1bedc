"""How a training went: its log, the means of what its steps report, and learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from hkmap.errors import RunError
from hkmap.files.opening import file_content

Row = Mapping[str, Any]      # a Step of a training, by the names of its fields

#: The parts of the loss with the short names that people read; a part that is 0 in all steps has no share in it.
PARTS = {"loss_attention": "att", "loss_perception": "per", "loss_map": "map", "loss_mining": "mining"}
FIGURES = ("loss", *PARTS, "accuracy", "learning_rate", "attention_mean")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")      # Okabe and Ito's
ABREAST = 5      # panels at most; a picture is 1200 pixels wide
_APART = 0.075   # of a panel's height and width, between two runs' numbers
_LONGEST = 110   # characters of a run's name


class Means:
    """The means over samples of what steps report."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums = dict.fromkeys(FIGURES, 0.0)
        self._counts = dict.fromkeys(FIGURES, 0)

    def add(self, step: Row) -> None:
        """Count one more step; the logs of older versions lack some figures, and count each step as one sample."""
        samples = step.get("samples") or 1
        self.samples += samples
        for name in FIGURES:
            if (value := step.get(name)) is not None:
                self._sums[name] += samples * value
                self._counts[name] += samples

    def __getitem__(self, name: str) -> float | None:
        """Return the mean of a figure; None where no step has it, and for a part of the loss that is 0 in all."""
        if not self._counts[name] or (name in PARTS and not self._sums[name]):
            return None
        return self._sums[name] / self._counts[name]


@dataclass(frozen=True)
class Curves:
    """A run's figures per epoch: the numbers of the epochs, and for each figure (epochs,) values, None where absent.

    ``training`` are means over an epoch's steps, by the names of FIGURES; ``validation`` is by the measures' names.
    """

    epochs: list[int] = field(default_factory=list)
    steps: int = 0
    training: dict[str, list[float | None]] = field(default_factory=dict)
    validation: dict[str, list[float | None]] = field(default_factory=dict)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the steps in the log.jsonl of a run; the run may go on, so the last line may be unfinished.

    Raises RunError where there is no such log, no step in it, or a line that is no step.
    """
    path = folder / "log.jsonl"
    try:
        *lines, _ = file_content(path).split(b"\n")
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; expected the run folder of `hkmap train` or `hkmap finetune`") from None
    if not lines:
        raise RunError(f"{path}: no step yet; wait for the first one")
    return [_step(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def curves_of(steps: Iterable[Row]) -> Curves:
    """Return the curves of a run; the last epoch may be unfinished."""
    epochs = [(epoch, list(rows)) for epoch, rows in groupby(steps, key=lambda step: step["epoch"])]
    means, validated = [], []
    for _, rows in epochs:
        means.append(Means())
        for row in rows:
            means[-1].add(row)
        validated.append(rows[-1].get("validation") or {})
    measures = dict.fromkeys(name for found in validated for name in found)
    return Curves(
        [epoch for epoch, _ in epochs], sum(len(rows) for _, rows in epochs),
        {name: [mean[name] for mean in means] for name in FIGURES},
        {name: [found.get(name) for found in validated] for name in measures},
    )


class Panel(NamedTuple):
    """What a panel shows, by the names of figures: STYLES says how each is drawn."""

    title: str
    training: str | None
    validation: str | None = None
    reference: str | None = None      # of validation too


PANELS = (
    Panel("loss (what is minimised)", "loss", "total"), Panel("attention loss", "loss_attention"),
    Panel("perception loss", "loss_perception", "loss"), Panel("map loss, without gamma", "loss_map"),
    Panel("mining loss, without alpha", "loss_mining"), Panel("accuracy (top-1)", "accuracy", "top1"),
    Panel("MSE to human maps", None, "mse", "mse_of_zeros"),
    Panel("mean of the attention map", "attention_mean", "attention_mean"),
    Panel("learning rate", "learning_rate"),
)
STYLES = {"-": "training, mean over an epoch", "--": "validation", ":": "MSE of a map of zeros"}


def learning_figure(runs: Mapping[str, Curves], *, abreast: int = ABREAST) -> Any:
    """Return a matplotlib figure of runs' learning curves, over epochs: a panel per figure, a colour per run.

    At most ``abreast`` panels are side by side. Where there are several runs a number at the end of a line says whose
    it is.
    """
    from matplotlib.figure import Figure  # a quarter of a second, and only here

    shown = _shown(runs.values())
    down = math.ceil(len(shown) / abreast)
    across = math.ceil(len(shown) / down)
    last = max(epoch for run in runs.values() for epoch in run.epochs)
    height = 2.9 * down + 0.3 + 0.2 * max(len(runs), len(STYLES))
    figure = Figure(figsize=(12 if abreast == ABREAST else 3.2 * abreast, height), dpi=100, layout="constrained")
    cells = [*figure.subplots(down, across, squeeze=False).flat]
    for axes, panel in zip(cells, shown, strict=False):
        _draw_panel(axes, panel, list(runs.values()), last)
    for axes in cells[len(shown):]:
        axes.remove()
    name_runs(figure, list(runs))
    _name_styles(figure)
    return figure


def _step(line: bytes, place: str) -> dict[str, Any]:
    """Read a line of a log; raise RunError where it is no step."""
    try:
        step = json.loads(line)
        validation = step.get("validation") or {}
        values = [step.get(name) for name in (*FIGURES, "samples")] + list(validation.values())
        numbers = [step["epoch"], step["loss"], *(value for value in values if value is not None)]
        if not all(type(value) in (int, float) for value in numbers):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"{place}: not a step of a training; expected the log that `hkmap train` writes") from None
    return step


def _shown(runs: Iterable[Curves]) -> list[Panel]:
    """Return the panels that any run has something for."""
    runs = list(runs)
    known = {name for panel in PANELS for name in (panel.validation, panel.reference)}
    others = dict.fromkeys(name for run in runs for name in run.validation if name not in known)
    panels = (*PANELS, *(Panel(f"validation: {name}", None, name) for name in others))
    return [panel for panel in panels if any(_has(line) for run in runs for line in _lines(run, panel))]


def _lines(run: Curves, panel: Panel) -> list[Sequence[float | None]]:
    """Return a run's values for a panel, one list for each of STYLES."""
    validated = [run.validation.get(name or "", []) for name in (panel.validation, panel.reference)]
    return [run.training.get(panel.training or "", []), *validated]


def _has(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[Curves], last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ends = []
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        drawn = [(values, style) for values, style in zip(_lines(run, panel), STYLES, strict=True) if _has(values)]
        for values, style in drawn:
            points = [(epoch, value) for epoch, value in zip(run.epochs, values, strict=True) if value is not None]
            marker = "." if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.5, marker=marker)
            if style != ":":
                end = (*points[-1], str(number + 1), colour)
        if drawn:
            ends.append(end)
    dress(axes, panel.title, "epoch")
    axes.set_xlim(1 - last / 30, last + last / 30)
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    if len(runs) > 1:
        _number_lines(axes, ends)


def dress(axes: Any, title: str, across: str, up: str = "") -> None:
    """Give a panel its title, the names of its axes and a quiet grid."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _number_lines(axes: Any, ends: Iterable[tuple[float, float, str, str]]) -> None:
    """Write the runs' numbers beside the ends of their lines, one above the other where these are close."""
    from matplotlib.patheffects import withStroke

    wide, high = (abs(end - start) for start, end in (axes.get_xlim(), axes.get_ylim()))
    placed: list[tuple[float, float]] = []
    for epoch, value, number, colour in sorted(ends, key=lambda end: end[1]):
        height = max([value, *(other + _APART * high for at, other in placed if abs(at - epoch) < _APART * wide)])
        placed.append((epoch, height))
        axes.annotate(number, (epoch, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9,
                      color=colour, weight="bold", annotation_clip=False,
                      path_effects=[withStroke(linewidth=3, foreground="white")])


def name_runs(figure: Any, names: Sequence[str]) -> None:
    """Write a legend below the panels, with a line per run."""
    from matplotlib.lines import Line2D

    from hkmap.report.lettering import spelt

    handles = [Line2D([], [], color=COLOURS[number % len(COLOURS)], linewidth=3) for number in range(len(names))]
    numbers = [f"{number} " if len(names) > 1 else "" for number in range(1, len(names) + 1)]
    labels = [f"{number} {_short(spelt(name))}" for number, name in zip(numbers, names, strict=True)]
    legend = figure.legend(handles, labels, loc="outside lower left", fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)      # a $ in a name is a $


def _name_styles(figure: Any) -> None:
    """Say below the panels what solid and dashed mean."""
    from matplotlib.lines import Line2D

    styles = [Line2D([], [], color="0.3", linestyle=style) for style in STYLES]
    figure.legend(styles, list(STYLES.values()), loc="outside lower right", fontsize=9, frameon=False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST:]}"

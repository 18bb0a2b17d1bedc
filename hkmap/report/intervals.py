"""Means with their intervals: annotators' agreement, its null and a uniform map, one panel per measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hkmap.maps.agreement import KINDS, MEASURES, METHODS

TITLES = {
    "mse": "mean square error (lower: closer)",
    "spearman": "Spearman rank correlation (higher: closer)",
    "iou": "IoU of the highest 10 % (higher: closer)",
    "kl": "KL divergence in nats (lower: closer)",
}
COLOURS = {"agreement": "#0072b2", "null": "#d55e00", "uniform": "#6e6e6e"}      # Okabe and Ito's, also named in labels
LINES = [(method, kind) for method in METHODS for kind in KINDS]


def counted(summary: Mapping[str, Any]) -> str:
    """Say how many images were measured, and on how many the measures that need a mark.

    >>> counted({"images": 6, "marked_images": 6}), counted({"images": 6, "marked_images": 5})
    ('6 images', '6 images (mse) or 5 (the others)')
    """
    images, marked = summary["images"], summary["marked_images"]
    return f"{images} images" if images == marked else f"{images} images (mse) or {marked} (the others)"


def agreement_figure(summary: Mapping[str, Any]) -> Any:
    """Return a matplotlib figure of what `hkmap agreement` prints: a panel per measure, a row per method and kind.

    A dot is the mean, a bar its 95 % interval. Every axis includes 0, so that lengths can be compared.
    """
    from matplotlib.figure import Figure  # a quarter of a second, and only here

    figure = Figure(figsize=(7.6, 2.1 * len(MEASURES) + 0.5), dpi=100, layout="constrained")
    fewest, most = summary["annotators"]
    said = f"{counted(summary)}, {fewest} to {most} annotators each; dots: means, bars: 95 % intervals"
    figure.suptitle(said, fontsize=10, x=0.01, ha="left")
    for axes, measure in zip(figure.subplots(len(MEASURES)), MEASURES, strict=True):
        _draw_panel(axes, summary, measure)
    return figure


def _draw_panel(axes: Any, summary: Mapping[str, Any], measure: str) -> None:
    names = [f"{method.replace('_', ' ')}: {kind}" for method, kind in LINES]
    for row, (method, kind) in enumerate(LINES):
        entry = summary[method][measure]
        low, high = entry[f"{kind}_interval"]
        axes.plot([low, high], [row, row], color=COLOURS[kind], linewidth=2, marker="|", markersize=9)
        axes.plot(entry[kind], row, color=COLOURS[kind], marker="o", markersize=6)
        axes.text(1.02, row, f"{entry[kind]:.4f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(TITLES[measure], loc="left", fontsize=10)
    axes.set_yticks(range(len(LINES)), names, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.87")
    axes.set_frame_on(False)

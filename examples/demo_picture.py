"""Draw where two networks look: digits with people's bubbles, the human map, and both networks' attention and answers.

    python examples/demo_picture.py demo/labels.jsonl demo/human.jsonl demo/picture.png

The two files hold the same records as `hkmap predict` gave them; `attention` is the map. Drawn are the first ones that
human maps mend, and the title says how many they mend and how many they spoil.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from hkmap.report.colouring import overlay
from hkmap.stream.references import load_map, read_image

Record = dict[str, Any]

ROWS = 3
PANEL = 2.3                     # inches
RIGHT, WRONG = "#00734f", "#b23a00"


def read_records(path: str) -> list[Record]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def show_answer(axis: Axes, record: Record, title: str) -> None:
    """Show where a network looks, and below it what it says."""
    axis.imshow(overlay(read_image(record["image"]), load_map(record["attention"])))
    axis.set_title(title)
    mark, colour = ("✓", RIGHT) if is_right(record) else ("✗", WRONG)
    axis.set_xlabel(f"says {record['prediction']} {mark}", color=colour)


def show_row(axes: list[Axes], labels: Record, human: Record) -> None:
    image = read_image(labels["image"])
    axes[0].imshow(image)
    axes[0].set(title="people's bubbles", xlabel=f"a {labels['label']}")
    for bubble in labels["bubbles"]:
        centre = bubble["x"] - 0.5, bubble["y"] - 0.5       # imshow's pixel (0, 0) has its centre at (0, 0)
        axes[0].add_patch(Circle(centre, bubble["radius"], fill=False, color="#56b4e9", linewidth=1.3))
    axes[1].imshow(overlay(image, load_map(labels["map"])))
    axes[1].set(title="human map")
    show_answer(axes[2], labels, "no map loss")
    show_answer(axes[3], human, "human maps")


def is_right(record: Record) -> bool:
    return bool(record["prediction"] == record["label"])


def draw(labels: list[Record], human: list[Record]) -> Figure:
    """Return a figure with a row per record, of those that human maps mend if there are any."""
    pairs = list(zip(labels, human, strict=True))
    mended = [pair for pair in pairs if is_right(pair[1]) > is_right(pair[0])]
    spoilt = sum(is_right(one) > is_right(two) for one, two in pairs)
    shown = (mended or pairs)[:ROWS]
    figure = Figure(figsize=(4 * PANEL, len(shown) * (PANEL + 0.6) + 0.5), layout="constrained")
    title = f"{len(pairs)} test digits: human maps mend {len(mended)} answers and spoil {spoilt}"
    figure.suptitle(title, fontsize=16)
    for row, pair in zip(figure.subplots(len(shown), 4, squeeze=False), shown, strict=True):
        show_row(list(row), *pair)
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.title.set_fontsize(16)
            axis.xaxis.label.set_fontsize(16)
            axis.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    labels_file, human_file, picture = sys.argv[1:]
    draw(read_records(labels_file), read_records(human_file)).savefig(picture, dpi=100)

"""Print the demo's table: accuracy, map MSE and insertion of each arm, and in how many seeds human maps come first.

    python examples/demo_table.py demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

from pretrained_table import interval
from rich.console import Console
from rich.table import Table

ARMS = {"labels": "no map loss", "human": "human maps", "shuffled": "shuffled maps (sham control)"}
FIGURES = {"top1": "accuracy ↑", "mse": "map MSE ↓", "insertion": "insertion ↑"}

Results = dict[str, list[dict[str, float]]]


def read_results(folder: Path) -> tuple[list[int], Results]:
    """Return the seeds, in order, and each arm's metrics, one dict per seed."""
    seeds = sorted(int(path.name.removeprefix("human-")) for path in folder.glob("human-*"))
    reports = {
        arm: [json.loads((folder / f"{arm}-{seed}" / "eval" / "eval.json").read_text()) for seed in seeds]
        for arm in ARMS
    }
    return seeds, {arm: [report["metrics"] for report in found] for arm, found in reports.items()}


def cell(values: list[float]) -> str:
    """Return a mean with, of several seeds, half its 95 % interval.

    >>> cell([1.0, 2.0, 3.0]), cell([1.0])
    ('2.000 ± 2.484', '1.000')
    """
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {interval(values)[1] - mean(values):.3f}"


def order(results: Results) -> str:
    """Say in how many seeds the accuracy with human maps is the highest."""
    human, *others = ([run["top1"] for run in results[arm]] for arm in ("human", "labels", "shuffled"))
    first = sum(own > max(rivals) for own, *rivals in zip(human, *others, strict=True))
    return f"human maps are the most accurate in {first} of {len(human)} seeds"


def main(folder: Path) -> None:
    seeds, results = read_results(folder)
    one_by_one = f"accuracy of seeds {' '.join(map(str, seeds))}"
    table = Table("fine-tuned with", title="test digits with a decoy that tells nothing: means, ± 95 % (Student's t)")
    for title in (*FIGURES.values(), one_by_one):
        table.add_column(title, justify="right", overflow="fold")
    for arm, title in ARMS.items():
        cells = (cell([run[name] for run in results[arm]]) for name in FIGURES)
        table.add_row(title, *cells, " ".join(f"{run['top1']:.3f}"[1:] for run in results[arm]))
    Console(width=110).print(table)
    print(order(results))
    print(f"picture: {folder}/picture.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

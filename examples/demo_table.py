"""Print the demo's table: test accuracy, map MSE and insertion of each arm, over the seeds that were run.

    python examples/demo_table.py demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

ARMS = {"labels": "no map loss", "human": "human maps", "shuffled": "shuffled maps (sham control)"}


def read_results(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return each arm's metrics, one dict per seed."""
    return {
        arm: [json.loads(path.read_text())["metrics"] for path in sorted(folder.glob(f"seed*/results/{arm}.json"))]
        for arm in ARMS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the demo's table.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    results = read_results(folder)
    seeds = len(results["human"])
    table = Table(title=f"decoy digits, test images without a telling decoy; mean of {seeds} seed{'s' * (seeds > 1)}")
    table.add_column("fine-tuned with", no_wrap=True)
    for name in ("accuracy ↑", "map MSE ↓", "insertion ↑"):
        table.add_column(name, justify="right")
    if seeds > 1:
        table.add_column("accuracies, seed by seed")
    for arm, title in ARMS.items():
        means = (mean(run[name] for run in results[arm]) for name in ("top1", "mse", "insertion"))
        one_by_one = [" ".join(f"{run['top1']:.3f}" for run in results[arm])] if seeds > 1 else []
        table.add_row(title, *(f"{value:.3f}" for value in means), *one_by_one)
    Console(width=100).print(table)
    print(f"picture: {folder}/seed*/sheet.png (image with bubbles, human map, attention before, attention after)")


if __name__ == "__main__":
    main()

"""Print what `human_loop.sh` found without training: misclassified test images, and edited maps in place of attention.

    python examples/human_loop_table.py runs/human_loop
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

HANDS = {"right": "edited", "blind": "edited as another image needs (sham)"}
FIGURES = {"error": "error", "top5_error": "top-5 error", "log_loss": "log loss"}


def line(title: str, values: list[float]) -> str:
    return f"{title:38}" + "".join(f"{value:>13.4f}" for value in values)


def means(results: list[dict[str, Any]], suffix: str = "") -> list[float]:
    return [mean(found["metrics"][name + suffix] for found in results) for name in FIGURES]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table of human_loop.sh.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    results = {
        hand: [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed*/{hand}.json"))] for hand in HANDS
    }
    counts = ", ".join(str(found["samples"]) for found in results["right"])
    print(f"misclassified test images ({counts} by seed), means of the seeds")
    print(f"{'map':38}" + "".join(f"{title:>13}" for title in FIGURES.values()))
    print(line("the network's own", means(results["right"], "_before")))
    for hand, title in HANDS.items():
        print(line(title, means(results[hand])))


if __name__ == "__main__":
    main()

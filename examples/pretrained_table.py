"""Print what `pretrained.sh` found: each arm's means on the test images, and their differences, paired by seed.

    python examples/pretrained_table.py runs/pretrained --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

ARMS = {"none": "no map loss", "human": "human maps", "shuffled": "shuffled maps (sham)"}
FIGURES = {"top1": "accuracy", "log_loss": "log loss", "mse": "map MSE"}
HIGHER = {"top1"}       # is better

Results = dict[str, list[dict[str, float]]]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t, of two values or more.

    >>> [round(end, 3) for end in interval([1.0, 2.0, 3.0])]       # 2 ± 4.303 / √3
    [-0.484, 4.484]
    """
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def verdict(low: float, high: float, *, higher: bool) -> str:
    """Say in words what an interval of "human minus another" says.

    >>> verdict(-0.01, 0.02, higher=True), verdict(-0.02, -0.01, higher=False)
    ('includes 0', 'excludes 0: human maps are better')
    """
    if low <= 0 <= high:
        return "includes 0"
    return f"excludes 0: human maps are {'better' if (low > 0) == higher else 'worse'}"


def means(results: Results) -> list[str]:
    """Return the lines of the arms' means, and of what a map of zeros scores."""
    lines = [f"{'fine-tuned with':22}" + "".join(f"{title:>10}" for title in FIGURES.values())]
    for arm, title in ARMS.items():
        found = (mean(row[name] for row in results[arm]) for name in FIGURES)
        lines.append(f"{title:22}" + "".join(f"{value:10.4f}" for value in found))
    return [*lines, f"{'(a map of zeros)':42}{results['human'][0]['mse_of_zeros']:10.4f}"]


def differences(results: Results) -> list[str]:
    """Return the lines of human minus each other arm, seed by seed."""
    lines = []
    for other in ("none", "shuffled"):
        for name, title in FIGURES.items():
            found = [one[name] - two[name] for one, two in zip(results["human"], results[other], strict=True)]
            line = f"{f'human - {other}':18}{title:10}{mean(found):+9.4f}"
            if len(found) > 1:
                low, high = interval(found)
                line += f"  [{low:+.4f}, {high:+.4f}]  {verdict(low, high, higher=name in HIGHER)}"
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the table of pretrained.sh.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    given = parser.parse_args()
    reports = {
        arm: [json.loads((given.folder / f"seed{seed}" / f"{arm}.json").read_text()) for seed in given.seeds]
        for arm in ARMS
    }
    results = {arm: [report["metrics"] for report in found] for arm, found in reports.items()}
    seeds = f"{len(given.seeds)} seed" + "s" * (len(given.seeds) > 1)
    print(f"means of {seeds} on {reports['human'][0]['samples']} test images", *means(results), sep="\n")
    print("\npaired differences, with 95 % intervals over the seeds (Student's t)", *differences(results), sep="\n")


if __name__ == "__main__":
    main()

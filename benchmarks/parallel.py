"""Time filters in one thread and in several, in turn, on generated records; print JSON. It takes about a minute.

    python benchmarks/parallel.py --jobs 2 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np


def bubbles(folder: Path, count: int) -> None:
    """Write records of 30 bubbles each on images of 500 x 375."""
    rng = np.random.default_rng(0)
    with (folder / "bubbles.jsonl").open("w") as file:
        for number in range(count):
            places = rng.normal((250, 180), (60, 50), (30, 2)).round(1).tolist()
            marks = [{"x": x, "y": y, "radius": 20, "user": str(user % 5)} for user, (x, y) in enumerate(places)]
            file.write(json.dumps({"id": f"{number:05}", "size": [500, 375], "bubbles": marks}) + "\n")


def masks(folder: Path, count: int) -> None:
    """Write records of two masks each of 2144 x 1424 pixels, half of IDRiD's width and height."""
    rng = np.random.default_rng(0)
    with (folder / "masks.jsonl").open("w") as file:
        for number in range(count):
            references = {}
            for name in ("EX", "HE"):
                mask = np.zeros((1424, 2144), np.uint8)
                for x, y in rng.integers(100, 1300, (200, 2)).tolist():
                    cv2.circle(mask, (x, y), 6, 255, -1)
                references[name] = str(folder / f"{number}{name}.png")
                cv2.imwrite(references[name], mask)
            file.write(json.dumps({"id": f"{number:05}", "size": [2144, 1424], "masks": references}) + "\n")


CASES = {
    "bubbles2map, 56 x 56, one .h5": ("bubbles2map", "bubbles.jsonl", "--size", "56", "--out", "maps.h5"),
    "bubbles2map, 224 x 224, one .h5": ("bubbles2map", "bubbles.jsonl", "--out", "maps.h5"),
    "bubbles2map --bandwidth cv, 56 x 56, one .h5": (
        "bubbles2map", "bubbles.jsonl", "--bandwidth", "cv", "--size", "56", "--out", "maps.h5",
    ),
    "masks2map, 14 x 14, .npy": ("masks2map", "masks.jsonl", "--size", "14", "--out", "maps"),
}


def seconds(folder: Path, command: tuple[str, ...], jobs: int) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hkmap", *command, "--overwrite", "--jobs", str(jobs)], cwd=folder, check=True,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"},
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--records", type=int, default=2000)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        bubbles(Path(name), options.records)
        masks(Path(name), options.records // 20)
        for case, command in CASES.items():
            times: dict[int, list[float]] = {1: [], options.jobs: []}
            for _ in range(options.repeats):
                for jobs, spent in times.items():
                    spent.append(seconds(Path(name), command, jobs))
            alone, together = (statistics.median(spent) for spent in times.values())
            found[case] = {"seconds, 1 thread": round(alone, 2), f"seconds, {options.jobs} threads": round(together, 2),
                           "times as fast": round(alone / together, 2)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

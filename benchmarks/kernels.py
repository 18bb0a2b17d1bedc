"""Time hkmap's kernels against their peers and their floors, in one run; print JSON with ratios.

A ratio against a peer is the peer's time over ours (higher is better for us); one against a floor is our time over
the floor's (1 is as fast as can be). Medians of interleaved repetitions.

    python benchmarks/kernels.py
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from scipy.stats import gaussian_kde

from hkmap.engine.backbones import Architecture, build
from hkmap.engine.evaluation import deletion
from hkmap.maps.kde import kde_map
from hkmap.maps.resize import resize_map

SIDE = 224


def seconds_of(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each function's median time; the functions take turns, so that a drift of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def kde(bubbles: int) -> dict[str, float]:
    """`bubbles2map` with Scott's bandwidth against scipy.stats.gaussian_kde on the same grid."""
    centres = np.random.default_rng(0).normal(SIDE / 2, 40, (bubbles, 2))
    axis = np.arange(SIDE) + 0.5
    grid = np.stack([plane.ravel() for plane in np.meshgrid(axis, axis)])
    found = seconds_of({
        "ours": lambda: kde_map(centres, (SIDE, SIDE), (SIDE, SIDE)),
        "scipy": lambda: gaussian_kde(centres.T)(grid),
    }, repeats=15)
    return {"milliseconds": round(found["ours"] * 1e3, 3), "scipy_over_ours": round(found["scipy"] / found["ours"], 1)}


def resize() -> dict[str, float]:
    """A map 224 → 14 against the bare OpenCV call."""
    values = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    found = seconds_of({
        "ours": lambda: resize_map(values, (14, 14)),
        "floor": lambda: cv2.resize(values, (14, 14), interpolation=cv2.INTER_AREA),
    }, repeats=2000)
    return {"microseconds": round(found["ours"] * 1e6, 1), "ours_over_floor": round(found["ours"] / found["floor"], 2)}


def deletion_loop() -> dict[str, float]:
    """The deletion curve of one image (28 steps) against its forward passes alone."""
    network = build(Architecture("resnet18+abn", 10)).eval()
    image, saliency = torch.randn(3, SIDE, SIDE), torch.rand(SIDE, SIDE)
    frames = torch.randn(29, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

    def score(images: torch.Tensor) -> torch.Tensor:
        return network(images).logits.softmax(1)[:, 0]

    with torch.inference_mode():
        found = seconds_of({
            "ours": lambda: deletion(score, image, saliency, 1792),
            "floor": lambda: score(frames),
        }, repeats=5)
    return {"seconds": round(found["ours"], 3), "ours_over_floor": round(found["ours"] / found["floor"], 3)}


if __name__ == "__main__":
    print(json.dumps({
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "kde_scott_30": kde(30),
        "kde_scott_400": kde(400),
        "resize_224_to_14": resize(),
        "deletion_28_steps": deletion_loop(),
    }, indent=2))

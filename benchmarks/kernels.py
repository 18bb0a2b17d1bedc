"""Time the engine's loops against their floors, in one run; print JSON with ratios.

"Ours over floor" is 1 at best. Figures are medians of turns, see timing.py. maps.py times the making of maps.

    python benchmarks/kernels.py
"""

from __future__ import annotations

import json
import platform

import torch
from timing import seconds_of

from hkmap.evaluation.curves import deletion
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture

SIDE = 224


def deletion_loop() -> dict[str, float]:
    """Time the deletion curve of one image (28 steps) against its forward passes alone."""
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
    ours, floor = found["ours"].median, found["floor"].median
    return {"seconds": round(ours, 3), "ours_over_floor": round(ours / floor, 3)}


if __name__ == "__main__":
    print(json.dumps({
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "deletion_28_steps": deletion_loop(),
    }, indent=2))

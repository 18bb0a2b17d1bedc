"""`hkmap` where torchvision, which timm imports, was built for another torch.

    python examples/pretrained_hkmap.py train --help

pip's torchvision stops on import beside a torch for the CPU alone: the operators of its compiled part are missing. timm
builds networks without them, so that two of them are declared here; where torchvision works, nothing is.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import torch

try:
    with suppress(ModuleNotFoundError):      # hkmap says what to install
        import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from hkmap.cli import main

if __name__ == "__main__":
    main()

"""How a network answers many frames fast: norms folded into convolutions, the type of number, compiled."""

from __future__ import annotations

import torch

from hkmap.choices import Choices
from hkmap.networks.classifier import Classifier


def float32() -> torch.dtype:
    """Numbers of 32 bits."""
    return torch.float32


DTYPES = Choices("dtype", {"float32": float32})


def prepared(network: Classifier, dtype: str, *, compiled: bool) -> Classifier:
    """Return a network for frames; the given one stays as it is."""
    return network

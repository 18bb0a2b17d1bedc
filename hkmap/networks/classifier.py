"""What every network of hkmap is: a classifier of images, which may also show where it looks."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Output(NamedTuple):
    """What a forward pass gives; the last two are None for a network without attention branch.

    ``attention_logits`` is None too where a given map made the attention branch needless.
    """

    logits: Tensor                      # (B, K), the answer
    attention_logits: Tensor | None     # (B, K), the attention branch's
    attention: Tensor | None            # (B, 1, h, w) in [0, 1]: the map that weighted the features


class Classifier(Protocol):
    """All that evaluation and prediction ask of a network; any ``nn.Module`` with such a forward is one.

    What can also be cut where the maps come in has ``features``, as `AttentionBranchNetwork` does.
    """

    def __call__(self, images: Tensor) -> Output:
        """Classify images (B, 3, H, W)."""


def place(network: Module, device: torch.device) -> Module:
    """Move a network to the device, in channels-last layout, which is faster on CPU and CUDA."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

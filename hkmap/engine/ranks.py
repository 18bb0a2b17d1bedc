"""Several processes that train, evaluate or predict together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Ranks(NamedTuple):
    """This process's number, from 0, and how many there are."""

    rank: int = 0
    ranks: int = 1


ALONE = Ranks()


def summed(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Add up each tensor over all processes, in place."""
    if ranks.ranks == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

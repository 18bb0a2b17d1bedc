"""The losses of the paper (Mitsuhara et al. 2019, equations 1 to 3); the map loss is a choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hkmap.choices import Choices
from hkmap.networks.classifier import Output

#: attention, maps, certainty, each (B, 1, h, w) in [0, 1] → the loss of each sample (B,), without gamma. The certainty
#: is 0 in cells that nobody knows. It is 0 in all cells of a sample without a map, whose loss must be 0.
MapLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Losses(NamedTuple):
    """Scalars, each a mean over the batch; ``attention`` and ``map`` are 0 where there is no such term."""

    attention: Tensor
    perception: Tensor
    map: Tensor

    def total(self, gamma: float) -> Tensor:
        """L = L_att + L_per + gamma * L_map (equations 1 and 2; gamma is equation 3's)."""
        return self.attention + self.perception + gamma * self.map


def losses(
    output: Output, labels: Tensor, maps: Tensor, certainty: Tensor, *, map_loss: str | MapLoss = "norm"
) -> Losses:
    """Return the losses of a batch: labels (B,), maps and their certainty (B, 1, h, w), sized as the attention."""
    perception = functional.cross_entropy(output.logits.float(), labels)
    zero = perception.new_zeros(())
    if output.attention is None or output.attention_logits is None:
        return Losses(zero, perception, zero)
    attention = functional.cross_entropy(output.attention_logits.float(), labels)
    return Losses(attention, perception, MAP_LOSSES.row(map_loss)(output.attention, maps, certainty).mean())


def norm(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The norm ||M' - M|| of each sample, the paper's (equation 3).

    The certainty scales the squares; every annotated sample has the same weight in any batch. The norm grows with the
    side of the map, so a gamma is for one side. Where the maps are equal the gradient is 0.

    >>> uniform = torch.ones(2, 1, 7, 7)
    >>> norm(0.8 * uniform, 0.5 * uniform, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    tensor([2.1000, 0.0000])
    """
    differences = certainty.sqrt() * (attention - maps)
    kind = torch.promote_types(attention.dtype, torch.float32)      # autocast may have made the map bfloat16
    return torch.linalg.vector_norm(differences.flatten(1).to(kind), dim=1)


MAP_LOSSES: Choices[MapLoss] = Choices("map loss", {"norm": norm}, group="hkmap.map_losses")

"""The three losses of the paper (Mitsuhara et al. 2019, equations 1 to 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hkmap.engine.abn import Output


class Losses(NamedTuple):
    """Scalars, each a mean over the batch; ``attention`` and ``map`` are 0 where there is no such term."""

    attention: Tensor
    perception: Tensor
    map: Tensor

    def total(self, gamma: float) -> Tensor:
        """L = L_att + L_per + gamma * L_map (equations 1 and 2; gamma is equation 3's)."""
        return self.attention + self.perception + gamma * self.map


def losses(output: Output, labels: Tensor, maps: Tensor, certainty: Tensor) -> Losses:
    """Return the losses of a batch: labels (B,), maps and their certainty (B, 1, h, w), sized as the attention."""
    perception = functional.cross_entropy(output.logits.float(), labels)
    zero = perception.new_zeros(())
    if output.attention is None or output.attention_logits is None:
        return Losses(zero, perception, zero)
    attention = functional.cross_entropy(output.attention_logits.float(), labels)
    return Losses(attention, perception, map_loss(output.attention, maps, certainty))


def map_loss(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """Return the mean over the batch of ||M' - M||_2, the norm per sample (equation 3, without gamma).

    All are (B, 1, h, w). ``certainty`` in [0, 1] scales the squares: 0 is a cell that nobody knows, and a sample
    without a map has nothing else, so it adds nothing and every annotated sample weighs the same whatever the batch it
    falls in. The norm grows with the map's side: a gamma belongs to one. Where a map is met exactly the gradient is 0.

    >>> uniform = torch.ones(2, 1, 7, 7)
    >>> map_loss(0.8 * uniform, 0.5 * uniform, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    tensor(1.0500)
    """
    differences = certainty.sqrt() * (attention - maps)
    return torch.linalg.vector_norm(differences.flatten(1).to(_accumulator(attention)), dim=1).mean()


def _accumulator(tensor: Tensor) -> torch.dtype:
    """Sum at least in float32: autocast may have made the map bfloat16."""
    return torch.promote_types(tensor.dtype, torch.float32)

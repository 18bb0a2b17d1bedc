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

_LEAST = 1e-4       # what a cell counts at least where its logarithm is taken or a sum divides


class Losses(NamedTuple):
    """Scalars, weighted means over the batch; ``attention`` and ``map`` are 0 where there is no such term."""

    attention: Tensor
    perception: Tensor
    map: Tensor

    def total(self, gamma: float) -> Tensor:
        """L = L_att + L_per + gamma * L_map (equations 1 and 2; gamma is equation 3's)."""
        return self.attention + self.perception + gamma * self.map


def losses(      # noqa: PLR0913  (a batch, and all that weighs its samples)
    output: Output,
    labels: Tensor,
    maps: Tensor,
    certainty: Tensor,
    *,
    map_loss: str | MapLoss = "l2norm",
    weights: Tensor | None = None,
    count: float | Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Losses:
    """Return the losses of a batch: labels (B,), maps and their certainty (B, 1, h, w), sized as the attention.

    Each is sum(weights * the samples' losses) / count, with ``weights`` (B,), by default 1, and ``count``, by default
    their sum; with the whole batch's count its parts add up to it. ``class_weights`` (K,) scale a sample's two cross
    entropies, not its map loss, and do not enter the count.
    """

    def mean(samples: Tensor) -> Tensor:
        if weights is None:
            return samples.sum() / (len(samples) if count is None else count)
        return (weights * samples).sum() / (weights.sum() if count is None else count)

    def cross_entropy(logits: Tensor) -> Tensor:
        return mean(functional.cross_entropy(_precise(logits), labels, weight=class_weights, reduction="none"))

    perception = cross_entropy(output.logits)
    if output.attention is None or output.attention_logits is None:
        zero = perception.new_zeros(())
        return Losses(zero, perception, zero)
    distances = MAP_LOSSES.row(map_loss)(_precise(output.attention), maps, certainty)
    return Losses(cross_entropy(output.attention_logits), perception, mean(distances))


def _precise(values: Tensor) -> Tensor:
    """Return values in float32 or better; autocast may have made them bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def l2norm(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The norm ||M' - M|| of each sample, the paper's (equation 3).

    The certainty scales the squares; every annotated sample has the same weight in any batch. The norm grows with the
    side of the map, so a gamma is for one side. Where the maps are equal the gradient is 0.

    >>> uniform = torch.ones(2, 1, 7, 7)
    >>> l2norm(0.8 * uniform, 0.5 * uniform, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
    tensor([2.1000, 0.0000])
    """
    differences = certainty.sqrt() * (attention - maps)
    return torch.linalg.vector_norm(differences.flatten(1), dim=1)


MAP_LOSSES: Choices[MapLoss] = Choices("map loss", {"l2norm": l2norm}, group="hkmap.map_losses")

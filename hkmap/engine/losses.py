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

    def total(self, gamma: float | Tensor) -> Tensor:
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


def mse(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The mean square difference: the square of the paper's norm, per cell, so it does not grow with the side.

    The certainty weights the cells, as in the metric of that name.

    >>> attention, maps = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.5]]]])
    >>> mse(attention, maps, torch.ones(1, 1, 1, 2))
    tensor([0.2500])
    """
    return _mean((attention - maps) ** 2, certainty)


def l1(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The mean absolute difference, weighted by the certainty.

    >>> attention, maps = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.5]]]])
    >>> l1(attention, maps, torch.ones(1, 1, 1, 2))
    tensor([0.5000])
    """
    return _mean((attention - maps).abs(), certainty)


def kl(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The KL divergence D(M' || M) of the two maps as distributions: their shapes, not their levels.

    As for saliency in Jetley et al., CVPR 2016. Each map is certainty * (map + 1e-4), divided by its sum. A human map
    of zeros has no shape, and a loss of 0.

    >>> attention, maps = torch.tensor([[[[0.2, 0.2]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> kl(attention, maps, torch.ones(1, 1, 1, 2))      # log(2), as 1e-4 is small
    tensor([0.6921])
    """

    def logarithms(values: Tensor) -> Tensor:
        values = values + _LEAST
        return (values / _sum(certainty * values).clamp_min(_LEAST).view(-1, 1, 1, 1)).log()

    human = logarithms(maps)
    return _is_drawn(maps, certainty) * _sum(certainty * human.exp() * (human - logarithms(attention)))


def cosine(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """1 - the cosine of the angle between the two maps as vectors: their shapes, not their levels.

    As for saliency in Jetley et al., CVPR 2016; the certainty weights the products. A human map of zeros has no shape,
    and a loss of 0.

    >>> attention, maps = torch.tensor([[[[0.3, 0.4]]]]), torch.tensor([[[[1.0, 0.0]]]])
    >>> cosine(attention, maps, torch.ones(1, 1, 1, 2))
    tensor([0.4000])
    """
    nothing = torch.zeros_like(maps)
    lengths = l2norm(attention, nothing, certainty) * l2norm(maps, nothing, certainty)
    return _is_drawn(maps, certainty) * (1 - _sum(certainty * attention * maps) / lengths.clamp_min(_LEAST))


def bce(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The binary cross entropy of each cell, its human value taken as a probability; the mean over the cells.

    As for saliency in Pan et al., SalGAN, 2017; the certainty weights the cells. The attention is moved into
    [1e-4, 1 - 1e-4]. It is least where the maps are equal, and 0 only where they are also all 0 or 1.

    >>> attention, maps = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[0.0, 0.7]]]])
    >>> bce(attention, maps, torch.ones(1, 1, 1, 2))      # log(2)
    tensor([0.6931])
    """
    inner = _LEAST + (1 - 2 * _LEAST) * attention
    return _mean(-maps * inner.log() - (1 - maps) * (1 - inner).log(), certainty)


def dice(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The soft Dice loss, 1 - (2 sum(M' M) + 1) / (sum(M'^2) + sum(M^2) + 1).

    Milletari et al., V-Net, 3DV 2016, with the usual 1 above and below, so that two empty maps are equal. The certainty
    weights the cells.

    >>> attention, maps = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> dice(attention, maps, torch.ones(1, 1, 1, 2))      # 1 - 3/4
    tensor([0.2500])
    """
    overlap, squares = _sum(certainty * attention * maps), _sum(certainty * (attention**2 + maps**2))
    return 1 - (2 * overlap + 1) / (squares + 1)


def energy(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The share of the attention that lies outside the human map; not how it is spread inside.

    1 - the energy pointing game, of Rao et al., Studying How to Efficiently and Effectively Guide Models with
    Explanations, ICCV 2023. There the region is a box of ones; a cell of a soft map counts by its value. A human map of
    zeros is no region, and its loss is 0. The certainty weights the cells.

    >>> attention, maps = torch.tensor([[[[0.1, 0.3]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> energy(attention, maps, torch.ones(1, 1, 1, 2))
    tensor([0.2500])
    """
    inside = _sum(certainty * attention * maps) / _sum(certainty * attention).clamp_min(_LEAST)
    return _is_drawn(maps, certainty) * (1 - inside)


def energy_and_size(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """energy, plus the share of the image that the attention covers: mean(M)^2 / mean(M^2), whatever its level.

    The second term is ours. It is 1 for uniform attention, and 1 / cells where all is in one cell, as the attention may
    otherwise be as large as the region.

    >>> attention, maps = torch.tensor([[[[0.2, 0.2]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> energy_and_size(attention, maps, torch.ones(1, 1, 1, 2))      # half is outside, all is covered
    tensor([1.5000])
    """
    squares = _mean(attention**2, certainty).clamp_min(_LEAST**2)
    size = _is_drawn(maps, certainty) * _mean(attention, certainty) ** 2 / squares
    return energy(attention, maps, certainty) + size


def outside(attention: Tensor, maps: Tensor, certainty: Tensor) -> Tensor:
    """The mean square attention where the human map is 0: do not look there; elsewhere it is free.

    As Ross et al., Right for the Right Reasons, IJCAI 2017, with the attention in the place of input gradients. The
    certainty weights the cells. Where only what was marked dont_look counts, ``hkmap certainty --default unknown``
    makes the rest unknown.

    >>> attention, maps = torch.tensor([[[[0.5, 0.9]]]]), torch.tensor([[[[0.0, 0.1]]]])
    >>> outside(attention, maps, torch.ones(1, 1, 1, 2))
    tensor([0.2500])
    """
    return _mean(attention**2, certainty * (maps == 0))


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _mean(values: Tensor, certainty: Tensor) -> Tensor:
    """Return each sample's mean over the cells by their certainty, 0 where nothing is known."""
    return _sum(certainty * values) / _sum(certainty).clamp_min(_LEAST)


def _is_drawn(maps: Tensor, certainty: Tensor) -> Tensor:
    """Return 1 for each sample whose human map is above 0 in a known cell, else 0."""
    return (_sum(certainty * maps) > 0).to(maps.dtype)


MAP_LOSSES: Choices[MapLoss] = Choices("map loss", {
    "l2norm": l2norm, "mse": mse, "l1": l1, "kl": kl, "cosine": cosine, "bce": bce, "dice": dice, "energy": energy,
    "energy+size": energy_and_size, "outside": outside,
}, group="hkmap.map_losses")

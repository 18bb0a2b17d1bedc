"""What is measured of a network, batch by batch; each metric is a row of METRICS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hkmap.choices import Choices
from hkmap.engine.curves import deletion, insertion, resize_maps
from hkmap.engine.data import Batch
from hkmap.maps.similarity import mse
from hkmap.networks.classifier import Classifier, Output


@dataclass(frozen=True)
class Answered:
    """A batch on the device, what a network answered, and how curves are drawn.

    ``used`` is the output that is measured, possibly with human maps in place of the network's ``own`` (B, 1, h, w).
    ``explained`` (B, 1, h, w) are maps from elsewhere, which are measured instead; of any size. Curves change ``step``
    pixels at a time and pass ``frames`` images at once. All frames of an image get its map in ``held`` (B, 1, h, w);
    with None the network makes a new map for each.
    """

    network: Classifier
    images: Tensor              # (B, 3, H, W), normalised
    batch: Batch
    used: Output
    own: Tensor | None
    explained: Tensor | None
    held: Tensor | None
    step: int
    frames: int


def everywhere(answered: Answered) -> Tensor:
    """Apply to every sample (B,)."""
    return torch.ones_like(answered.batch.labels, dtype=torch.bool)


def has_label(answered: Answered) -> Tensor:
    """Apply to the samples with a label (B,)."""
    return answered.batch.labels >= 0


def has_map(answered: Answered) -> Tensor:
    """Apply to the samples with a human map, if only of a part (B,)."""
    return is_mapped(answered.batch)


@dataclass(frozen=True)
class Metric:
    """A metric: ``measure`` gives a figure for each sample (B,), or a curve (B, n + 1) whose area is the figure.

    ``applies`` tells to which samples it applies (B,); the values of the others are ignored. ``higher``: higher is
    better. ``needs_map``: a network that gives no map cannot be measured. ``of_zeros``, reported too, is the figure of
    a map of zeros: human maps are dark over most of an image, so a low distance alone does not prove that anything was
    learnt.
    """

    what: str
    measure: Callable[[Answered], Tensor]
    higher: bool
    needs_map: bool = True
    of_zeros: Callable[[Answered], Tensor] | None = None
    applies: Callable[[Answered], Tensor] = everywhere

    @property
    def title(self) -> str:
        return f"{self.what}; {'higher' if self.higher else 'lower'} is better."


def is_mapped(batch: Batch) -> Tensor:
    """Return which samples (B,) have a human map, if only of a part."""
    return (batch.certainty > 0).flatten(1).any(1)


def map_distances(maps: Tensor, batch: Batch) -> Tensor:
    """Return the mean square difference (B,) of maps (B, 1, h, w) from the human ones over the known cells.

    Where there is none it is NaN; `is_mapped` tells where.
    """
    sized = resize_maps(maps, (batch.maps.shape[2], batch.maps.shape[3]))
    return mse(sized.flatten(1), batch.maps.flatten(1), batch.certainty.flatten(1))


def _among(answered: Answered, k: int) -> Tensor:
    logits, labels = answered.used.logits, answered.batch.labels
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (highest == labels[:, None]).any(1).float()


def _log_losses(answered: Answered) -> Tensor:
    labels = answered.batch.labels.clamp(min=0)     # without label: it does not apply
    return cross_entropy(answered.used.logits.float(), labels, reduction="none")


def _distances(answered: Answered) -> Tensor:
    return map_distances(_given(answered.explained, answered.own), answered.batch)


def _distances_of_zeros(answered: Answered) -> Tensor:
    return map_distances(torch.zeros_like(answered.batch.maps), answered.batch)


def _curves(answered: Answered, curve: Callable[..., Tensor]) -> Tensor:
    """Return the curves (B, n + 1) of the probability of the class that the network gives the whole image."""
    images = answered.images
    saliency = resize_maps(_given(answered.explained, answered.used.attention), (images.shape[2], images.shape[3]))
    return torch.stack([
        curve(partial(_score, answered, row), image, saliency[row, 0], answered.step, batch_size=answered.frames)
        for row, image in enumerate(images)
    ])


def _score(answered: Answered, row: int, frames: Tensor) -> Tensor:
    held = () if answered.held is None else (answered.held[row].expand(len(frames), -1, -1, -1),)
    return answered.network(frames, *held).logits.softmax(1)[:, answered.used.logits[row].argmax()]


def _given(explained: Tensor | None, of_the_network: Tensor | None) -> Tensor:
    found = of_the_network if explained is None else explained
    assert found is not None, "evaluate refuses networks without attention branch"
    return found


METRICS = Choices("metric", {
    "top1": Metric(
        "The label is the answer", partial(_among, k=1), higher=True, needs_map=False, applies=has_label
    ),
    "top5": Metric(
        "The label is among the five likeliest", partial(_among, k=5), higher=True, needs_map=False, applies=has_label
    ),
    "log_loss": Metric(
        "Minus the logarithm of the label's probability (cross entropy)", _log_losses, higher=False, needs_map=False,
        applies=has_label,
    ),
    "mse": Metric(
        "Mean square difference between the attention map and the human map", _distances, higher=False,
        of_zeros=_distances_of_zeros, applies=has_map,
    ),
    "insertion": Metric(
        "RISE's area under the curve while salient pixels come first", partial(_curves, curve=insertion), higher=True
    ),
    "deletion": Metric(
        "RISE's area under the curve while salient pixels go first", partial(_curves, curve=deletion), higher=False
    ),
}, group="hkmap.metrics", kind=Metric)

"""What is measured of a network, batch by batch; each metric is a row of METRICS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hkmap.choices import Choices
from hkmap.engine.abn import AttentionBranchNetwork, Output
from hkmap.engine.curves import auc, deletion, insertion, resize_maps
from hkmap.engine.data import Batch
from hkmap.maps.similarity import mse


@dataclass(frozen=True)
class Answered:
    """A batch on the device, what a network answered, and how curves are drawn.

    ``own`` is its output on its own, ``used`` the one that is measured, in which human maps may have taken the place of
    the predicted ones. Curves change ``step`` pixels at a time and pass ``frames`` images at once; ``held``
    (B, 1, h, w) is the map that each frame of an image gets, None where the network looks anew.
    """

    network: AttentionBranchNetwork
    images: Tensor              # (B, 3, H, W), normalised
    batch: Batch
    own: Output
    used: Output
    step: int
    frames: int
    held: Tensor | None


@dataclass(frozen=True)
class Metric:
    """A metric: ``measure`` gives a figure for each sample (B,), NaN where it does not apply.

    ``higher``: higher is better. ``needs_map``: a network without attention branch cannot be measured. ``of_zeros`` is
    reported beside it, what a network scores that looks nowhere: human maps are dark over most of an image, so a low
    distance alone does not say that anything was learnt.
    """

    what: str
    measure: Callable[[Answered], Tensor]
    higher: bool
    needs_map: bool = True
    of_zeros: Callable[[Answered], Tensor] | None = None

    @property
    def title(self) -> str:
        return f"{self.what}; {'higher' if self.higher else 'lower'} is better."


def map_distances(attention: Tensor, batch: Batch) -> Tensor:
    """Return each sample's mean square difference (B,) from its human map, over the known cells; NaN without a map."""
    found: Tensor = mse(attention.flatten(1), batch.maps.flatten(1), batch.certainty.flatten(1))
    return found


def _among(answered: Answered, k: int) -> Tensor:
    logits, labels = answered.used.logits, answered.batch.labels
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return torch.where(labels >= 0, (highest == labels[:, None]).any(1).float(), math.nan)


def _areas(answered: Answered, curve: Callable[..., Tensor]) -> Tensor:
    """Return the areas under the curves (B,) of the probability of the class that the network gives the whole image."""
    size = (answered.images.shape[2], answered.images.shape[3])
    saliency = resize_maps(_attention(answered.used), size)[:, 0]
    scores = (_score(answered, row) for row in range(len(answered.images)))
    curves = [
        curve(score, image, seen, answered.step, batch_size=answered.frames)
        for score, image, seen in zip(scores, answered.images, saliency, strict=True)
    ]
    return auc(torch.stack(curves))


def _score(answered: Answered, row: int) -> Callable[[Tensor], Tensor]:
    chosen = int(answered.used.logits[row].argmax())

    def score(frames: Tensor) -> Tensor:
        given = None if answered.held is None else answered.held[row].expand(len(frames), -1, -1, -1)
        return answered.network(frames, given).logits.softmax(1)[:, chosen]

    return score


def _attention(output: Output) -> Tensor:
    assert output.attention is not None, "evaluate lets only networks with an attention branch through"
    return output.attention


METRICS = Choices("metric", {
    "top1": Metric("The label is the answer", partial(_among, k=1), higher=True, needs_map=False),
    "top5": Metric("The label is among the five likeliest", partial(_among, k=5), higher=True, needs_map=False),
    "mse": Metric(
        "Mean square difference between the attention map and the human map",
        lambda found: map_distances(_attention(found.own), found.batch), higher=False,
        of_zeros=lambda found: map_distances(torch.zeros_like(_attention(found.own)), found.batch),
    ),
    "insertion": Metric(
        "RISE's area under the curve while salient pixels come first", partial(_areas, curve=insertion), higher=True
    ),
    "deletion": Metric(
        "RISE's area under the curve while salient pixels go first", partial(_areas, curve=deletion), higher=False
    ),
}, group="hkmap.metrics", kind=Metric)

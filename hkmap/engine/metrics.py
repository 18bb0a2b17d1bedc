"""What is measured of a network, batch by batch; each metric is a row of METRICS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hkmap.choices import Choices
from hkmap.engine.curves import auc, deletion, insertion, resize_maps
from hkmap.engine.data import Batch
from hkmap.maps.similarity import mse
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Output


@dataclass(frozen=True)
class Answered:
    """A batch on the device, what a network answered, and how curves are drawn.

    ``own`` is its output with its own maps, ``used`` the output that is measured, possibly with human maps instead.
    Curves change ``step`` pixels at a time and pass ``frames`` images at once. All frames of an image get its map in
    ``held`` (B, 1, h, w); with None the network makes a new map for each.
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

    ``higher``: higher is better. ``needs_map``: a network without attention branch cannot be measured. ``of_zeros``,
    reported too, is the figure of a map of zeros: human maps are dark over most of an image, so a low distance alone
    does not prove that anything was learnt.
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
    return mse(attention.flatten(1), batch.maps.flatten(1), batch.certainty.flatten(1))


def _among(answered: Answered, k: int) -> Tensor:
    logits, labels = answered.used.logits, answered.batch.labels
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return torch.where(labels >= 0, (highest == labels[:, None]).any(1).float(), math.nan)


def _areas(answered: Answered, curve: Callable[..., Tensor]) -> Tensor:
    """Return the areas under the curves (B,) of the probability of the class that the network gives the whole image."""
    images = answered.images
    saliency = resize_maps(_attention(answered.used), (images.shape[2], images.shape[3]))[:, 0]
    curves = [
        curve(partial(_score, answered, row), image, saliency[row], answered.step, batch_size=answered.frames)
        for row, image in enumerate(images)
    ]
    return auc(torch.stack(curves))


def _score(answered: Answered, row: int, frames: Tensor) -> Tensor:
    held = None if answered.held is None else answered.held[row].expand(len(frames), -1, -1, -1)
    return answered.network(frames, held).logits.softmax(1)[:, answered.used.logits[row].argmax()]


def _attention(output: Output) -> Tensor:
    assert output.attention is not None, "evaluate refuses networks without attention branch"
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

"""What is measured of a network; each metric is a row of METRICS.

A `SampleMetric` gives figures of each sample, whose means are reported. A `SetMetric` is a figure of all samples
together, such as the area under a ROC curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hkmap.choices import Choices
from hkmap.engine.data import Batch
from hkmap.engine.resize import resize_maps
from hkmap.engine.validation import is_mapped, map_distances
from hkmap.evaluation.curves import Curves, Frames
from hkmap.networks.classifier import Classifier, Output

Array = npt.NDArray[np.float64]
RISE = "Petsiuk et al., BMVC 2018"


@dataclass
class Answered:
    """A batch on the device, what a network answered, and how curves are drawn.

    ``used`` is the output that is measured, possibly with human maps in place of the network's ``own`` (B, 1, h, w);
    ``before`` (B, K) are the logits with its own maps. ``explained`` (B, 1, h, w) are maps from elsewhere, which are
    measured instead; of any size. ``classes`` (B,) are those whose curves are drawn, by ``frames``. All frames of an
    image get its map in ``held`` (B, 1, h, w); with None the network makes a new map for each.
    """

    network: Classifier
    images: Tensor              # (B, 3, H, W), normalised
    batch: Batch
    used: Output
    own: Tensor | None
    before: Tensor
    explained: Tensor | None
    classes: Tensor
    frames: Frames
    held: Tensor | None
    _drawn: dict[str, Curves] = field(default_factory=dict)

    @property
    def maps(self) -> Tensor:
        """The maps (B, 1, h, w) that are compared with people: from elsewhere, else the network's own."""
        return _given(self.explained, self.own)

    @property
    def saliency(self) -> Tensor:
        """The maps (B, 1, h, w) that rank pixels: from elsewhere, else those that weighted the features."""
        return _given(self.explained, self.used.attention)

    def curves(self, kind: str) -> Curves:
        """Return the curves of "insertion" or "deletion"; all metrics share them."""
        if kind not in self._drawn:
            saliency = resize_maps(self.saliency, (self.images.shape[2], self.images.shape[3]))
            self._drawn[kind] = self.frames.curves(
                kind, self.images, saliency, self.classes, clean=self.used.logits, held=self.held,
            )
        return self._drawn[kind]


class Answers(NamedTuple):
    """The answers to all n samples with a label: what a SetMetric measures."""

    labels: npt.NDArray[np.int64]           # (n,)
    predictions: npt.NDArray[np.int64]      # (n,)
    probabilities: Array                    # (n, K)


@dataclass(frozen=True)
class Metric:
    """A metric: ``what`` it is, whether ``higher`` is better (None: neither), its unit and where it is from.

    ``figures`` are the names of what it gives, where that is more than one figure of the metric's own name.
    """

    what: str
    measure: Callable[..., object]
    higher: bool | None = field(kw_only=True)
    unit: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)
    figures: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def title(self) -> str:
        better = {True: "; higher is better", False: "; lower is better", None: ""}[self.higher]
        return f"{self.what}{better}{f' ({self.source})' if self.source else ''}."


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
class SampleMetric(Metric):
    """A metric of each sample: ``measure`` gives a figure (B,), or a curve (B, n + 1) whose area is the figure.

    It gives them by name where it has several ``figures``. ``applies`` tells to which samples it applies (B,); the
    values of the others are ignored. ``needs_map``: a network that gives no map cannot be measured. ``of_answer`` gives
    the figure of other logits (B, K), so that the answers before and after a human map can be compared.
    """

    measure: Callable[[Answered], Tensor | Mapping[str, Tensor]]
    needs_map: bool = field(default=True, kw_only=True)
    applies: Callable[[Answered], Tensor] = field(default=everywhere, kw_only=True)
    of_answer: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SetMetric(Metric):
    """A metric of all samples with a label together.

    ``measure`` gives the figure for each row of weights (draws, n), how often each sample counts: (draws,). Where a
    draw has no such figure, as of a class that it lacks, it is NaN. Where ``table`` is given, what it returns is
    reported, as JSON, in the place of a figure.
    """

    measure: Callable[[Answers, Array], Array]
    table: Callable[[Answers], Any] | None = field(default=None, kw_only=True)


def _of_answer(what: str, figure: Callable[[Tensor, Tensor], Tensor], *, higher: bool, source: str = "",
               unit: str = "") -> SampleMetric:
    """Return a metric of the answer alone; ``figure`` takes logits (B, K) and labels (B,)."""
    return SampleMetric(
        what, lambda answered: figure(answered.used.logits, answered.batch.labels.clamp(min=0)), higher=higher,
        needs_map=False, applies=has_label, of_answer=figure, source=source, unit=unit,
    )


def among(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return whether the labels (B,) are among the k highest logits (B, K), as 1 or 0."""
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (highest == labels[:, None]).any(1).float()


def not_among(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the opposite of `among`."""
    return 1 - among(logits, labels, k)


def _log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.float(), labels, reduction="none")


def _distances(answered: Answered) -> dict[str, Tensor]:
    return {
        "mse": map_distances(answered.maps, answered.batch),
        "mse_of_zeros": map_distances(torch.zeros_like(answered.batch.maps), answered.batch),
    }


def _given(explained: Tensor | None, of_the_network: Tensor | None) -> Tensor:
    found = of_the_network if explained is None else explained
    assert found is not None, "evaluate refuses what has no map"
    return found


def _curve(what: str, kind: str, measure: str, *, higher: bool) -> SampleMetric:
    return SampleMetric(
        what, lambda answered: getattr(answered.curves(kind), measure), higher=higher, unit="area", source=RISE,
    )


METRICS: Choices[Metric] = Choices("metric", {
    "top1": _of_answer("The label is the answer", partial(among, k=1), higher=True, unit="share"),
    "top5": _of_answer("The label is among the five likeliest", partial(among, k=5), higher=True, unit="share"),
    "error": _of_answer("The label is not the answer", partial(not_among, k=1), higher=False, unit="share"),
    "top5_error": _of_answer(
        "The label is not among the five likeliest", partial(not_among, k=5), higher=False, unit="share"
    ),
    "log_loss": _of_answer(
        "Minus the logarithm of the label's probability (cross entropy)", _log_loss, higher=False, unit="nats"
    ),
    "mse": SampleMetric(
        "Mean square difference between the attention map and the human map", _distances, higher=False,
        figures=("mse", "mse_of_zeros"), applies=has_map, source="Mitsuhara et al., 2019",
    ),
    "insertion": _curve("Area under the probability while salient pixels come first", "insertion", "probability",
                        higher=True),
    "deletion": _curve("Area under the probability while salient pixels go first", "deletion", "probability",
                       higher=False),
    "insertion_accuracy": _curve("Area under the accuracy while salient pixels come first", "insertion", "accuracy",
                                 higher=True),
    "deletion_accuracy": _curve("Area under the accuracy while salient pixels go first", "deletion", "accuracy",
                                higher=False),
}, group="hkmap.metrics", kind=Metric)

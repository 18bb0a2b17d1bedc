"""What is measured of a network; each metric is a row of METRICS.

A `SampleMetric` gives figures of each sample, whose means are reported. A `SetMetric` is a figure of all samples
together, such as the area under a ROC curve.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hkmap.choices import Choices
from hkmap.engine.data import Batch
from hkmap.engine.resize import resize_maps
from hkmap.engine.validation import is_mapped, map_distances
from hkmap.errors import ChoiceError
from hkmap.evaluation import sets
from hkmap.evaluation.curves import Curves, Frames
from hkmap.evaluation.human import Likeness, anything
from hkmap.maps import similarity
from hkmap.maps.similarity import marked, parted
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Classifier, Output

Array = npt.NDArray[np.float64]
RISE = "Petsiuk et al., BMVC 2018"
REGION = "where the human map is at least half its maximum"
BETTER = {True: "; higher is better", False: "; lower is better", None: ""}


@dataclass
class Answered:
    """A batch on the device, what a network answered, and how curves are drawn.

    ``used`` is the output that is measured, possibly with human maps in place of the network's ``own`` (B, 1, h, w);
    ``before`` (B, K) are the logits with its own maps. ``explained`` (B, 1, h, w) are maps from elsewhere, which are
    measured instead; of any size. ``classes`` (B,) are those whose curves are drawn, by ``frames``. All frames of an
    image get its map in ``held`` (B, 1, h, w); with None the network makes a new map for each. ``earlier`` are
    the maps (B, 1, h, w) that weighted the features of the record before each, NaN for the very first; None where
    no metric needs a branch. ``people`` are the maps (annotators, cells) of each sample's annotators, as the network
    sees them; None where the shards have none.
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
    earlier: Tensor | None = None
    people: Sequence[Array] | None = None
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


@dataclass(frozen=True)
class Metric:
    """A metric: ``what`` it is, whether ``higher`` is better (None: neither), its unit and where it is from.

    ``figures`` are the names of what it gives, where that is more than one figure of the metric's own name. ``curve``:
    the figure is the area under a curve of each sample, whose mean can be drawn.
    """

    what: str
    measure: Callable[..., object]
    higher: bool | None = field(kw_only=True)
    unit: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)
    figures: tuple[str, ...] = field(default=(), kw_only=True)
    curve: bool = field(default=False, kw_only=True)

    @property
    def title(self) -> str:
        return f"{self.what}{BETTER[self.higher]}."


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

    It gives them by name where it has several ``figures``. ``applies`` tells to which samples it applies (B,), if need
    be by the names of the figures; the values of the others are ignored. ``needs_map``: it is of the maps that are
    measured, and of no sample without one; ``needs_branch``: it is of the network's own attention branch.
    ``of_answer`` gives the figure of other logits (B, K), so that the answers before and after a human map can be
    compared. ``of_people`` gives the figure of the annotators among each other, from their maps and the batch; None
    where there is none.
    """

    measure: Callable[[Answered], Tensor | Mapping[str, Tensor]]
    needs_map: bool = field(default=True, kw_only=True)
    needs_branch: bool = field(default=False, kw_only=True)
    applies: Callable[[Answered], Tensor | Mapping[str, Tensor]] = field(default=everywhere, kw_only=True)
    of_answer: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, kw_only=True)
    of_people: Callable[[Sequence[Array], Batch], list[float | None]] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SetMetric(Metric):
    """A metric of all samples with a label together.

    ``measure`` gives the figure for each row of weights (draws, n), how often each sample counts: (draws,). Where a
    draw has no such figure, as of a class that it lacks, it is NaN. With ``table`` it takes the answers alone, and what
    it gives is reported, as JSON, in the place of a figure. Of a share of some samples ``hits`` gives 1 or 0 for each
    of these and NaN for the others (n,), from which its interval is Wilson's; or None where the figure is no share.
    """

    measure: Callable[..., Any]
    table: bool = field(default=False, kw_only=True)
    hits: Callable[[sets.Answers], Array | None] | None = field(default=None, kw_only=True)


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


def attention_mean(answered: Answered) -> Tensor:
    """Return the mean of the network's own map (B,)."""
    assert answered.own is not None, "evaluate refuses networks without a map"
    return answered.own.float().mean((1, 2, 3))


def edit_response(answered: Answered) -> dict[str, Tensor]:
    """Return how far the answer moves (B,) when another map weights the features.

    It is the total variation distance between the probabilities, half the sum of their absolute differences. The map
    is erased (zeros), inverted (1 - m), or exchanged for that of the record before; the very first has none before it.
    """
    network, own, earlier = answered.network, answered.used.attention, answered.earlier
    assert isinstance(network, AttentionBranchNetwork)
    assert own is not None
    assert earlier is not None
    features, answer = network.features(answered.images), answered.used.logits.float().softmax(1)
    edited = {"erased": torch.zeros_like(own), "inverted": 1 - own, "exchanged": earlier}
    return {
        f"edit_response_{edit}": (network.answer(features, maps).float().softmax(1) - answer).abs().sum(1) / 2
        for edit, maps in edited.items()
    }


def _exchangeable(answered: Answered) -> dict[str, Tensor]:
    """Apply to every sample, but the very first has no map before it."""
    assert answered.earlier is not None
    there, second = everywhere(answered), answered.earlier.isfinite().flatten(1).all(1)
    return {"edit_response_erased": there, "edit_response_inverted": there, "edit_response_exchanged": second}


def _given(explained: Tensor | None, of_the_network: Tensor | None) -> Tensor:
    found = of_the_network if explained is None else explained
    assert found is not None, "evaluate refuses what has no map"
    return found


def _of_set(measure: Callable[..., Any], *, higher: bool | None = True, unit: str = "share", **more: Any) -> SetMetric:
    return SetMetric(str(measure.__doc__).partition(".")[0], measure, higher=higher, unit=unit, **more)


def _curve(what: str, kind: str, measure: str, *, higher: bool) -> SampleMetric:
    return SampleMetric(
        what, lambda answered: getattr(answered.curves(kind), measure), higher=higher, unit="area", source=RISE,
        curve=True,
    )


def _likeness(
    what: str, measure: Callable[[Array, Array], Array], exists: Callable[[Array], npt.NDArray[np.bool_]] = marked, *,
    higher: bool, unit: str, source: str = "",
) -> SampleMetric:
    """Return a metric of the maps against the human ones, which applies to those that are ``marked``, or `parted`."""
    likeness = Likeness(measure, exists)
    return SampleMetric(
        what, lambda answered: likeness.of_maps(answered.maps, answered.batch), higher=higher, unit=unit, source=source,
        applies=lambda answered: likeness.applies(answered.batch), of_people=likeness.of_people,
    )


def overlap(percent: int) -> SampleMetric:
    """Return the metric iou@``percent``."""
    what = f"Intersection over union of the highest {percent} % of the cells of both maps"
    return _likeness(what, partial(similarity.iou, percent=percent), higher=True, unit="share")


class Metrics(Choices[Metric]):
    """Metrics by name; "iou@P" too, for any whole percentage P. A hyphen in a name is read as an underscore."""

    def spelt(self, name: str) -> str:
        """Return the name as the table and the report have it."""
        return name if super().__contains__(name) else name.replace("-", "_")

    def __getitem__(self, name: str) -> Metric:
        if found := _OVERLAP.fullmatch(name):
            return overlap(int(found[1]))
        return super().__getitem__(self.spelt(name))

    def __contains__(self, name: object) -> bool:
        return _OVERLAP.fullmatch(str(name)) is not None or super().__contains__(self.spelt(str(name)))

    def unknown(self, name: object) -> ChoiceError:
        if not str(name).startswith("iou@"):
            return super().unknown(name)
        return ChoiceError(f"metric {name!r}: expected a whole percentage of the cells from 1 to 99, such as iou@20")

    def describe(self) -> dict[str, str]:
        what = f"Like iou, of the highest P % of the cells, P from 1 to 99{BETTER[True]}."
        return {**super().describe(), "iou@P": what}

    def origin(self, name: str) -> str:
        return super().origin(self.spelt(name))

    def figures(self, name: str) -> dict[str, Any]:
        """Return whether higher is better (null: neither), the unit and the source."""
        try:
            row = self["iou" if name == "iou@P" else name]
        except ChoiceError:
            return {}
        return {"higher": row.higher, "unit": row.unit, "source": row.source}


_OVERLAP = re.compile(r"iou@([1-9][0-9]?)")

METRICS = Metrics("metric", {
    "top1": _of_answer("The label is the answer", partial(among, k=1), higher=True, unit="share"),
    "top5": _of_answer("The label is among the five likeliest", partial(among, k=5), higher=True, unit="share"),
    "error": _of_answer("The label is not the answer", partial(not_among, k=1), higher=False, unit="share"),
    "top5_error": _of_answer(
        "The label is not among the five likeliest", partial(not_among, k=5), higher=False, unit="share"
    ),
    "balanced_accuracy": _of_set(sets.balanced_accuracy, source="Brodersen et al., ICPR 2010"),
    "auroc": _of_set(sets.auroc, unit="area"),
    "sensitivity": _of_set(sets.sensitivity, hits=partial(sets.hits, label=1)),
    "specificity": _of_set(sets.specificity, hits=partial(sets.hits, label=0)),
    "f1": _of_set(sets.f1),
    "kappa": _of_set(sets.kappa, unit="kappa", source="Cohen, 1968"),
    "calibration_error": _of_set(sets.calibration_error, higher=False, source="Guo et al., ICML 2017"),
    "confusion": _of_set(sets.confusion, higher=None, unit="samples", table=True),
    "log_loss": _of_answer(
        "Minus the logarithm of the label's probability (cross entropy)", _log_loss, higher=False, unit="nats"
    ),
    "mse": SampleMetric(
        "Mean square difference between the attention map and the human map",
        lambda answered: map_distances(answered.maps, answered.batch), higher=False, unit="attention squared",
        figures=("mse", "mse_of_zeros"), applies=has_map, source="Mitsuhara et al., 2019",
        of_people=Likeness(similarity.mse, anything, weighted=True).of_people,
    ),
    "spearman": _likeness("Rank correlation of the map with the human map", similarity.spearman, higher=True,
                          unit="correlation", source="Das et al., EMNLP 2016"),
    "kl": _likeness("Kullback-Leibler divergence of the map from the human one, as distributions", similarity.kl,
                    higher=False, unit="nats", source="Bylinskii et al., TPAMI 2019"),
    "iou": overlap(similarity.TOP_PERCENT),
    "energy": _likeness(f"Share of the map's sum {REGION}", similarity.energy, parted, higher=True, unit="share",
                        source="Wang et al., CVPRW 2020"),
    "pointing": _likeness(f"The map's highest cell is {REGION}", similarity.pointing, parted, higher=True,
                          unit="share", source="Zhang et al., ECCV 2016"),
    "nss": _likeness("Mean height of the map in standard deviations, weighted by the human map", similarity.nss,
                     higher=True, unit="standard deviations", source="Peters et al., Vision Research 2005"),
    "auc_judd": _likeness(f"Area under the map's ROC curve for cells {REGION}", similarity.auc_judd, parted,
                          higher=True, unit="area", source="Judd et al., ICCV 2009"),
    "attention_mean": SampleMetric(
        "Mean of the network's own attention map, near 0 where it is dark", attention_mean, higher=None,
        unit="attention", needs_map=False, needs_branch=True,
    ),
    "edit_response": SampleMetric(
        "How far the answer moves if the map is erased, inverted or exchanged for that of the record before",
        edit_response, higher=None, unit="share", needs_map=False, needs_branch=True, applies=_exchangeable,
        figures=("edit_response_erased", "edit_response_inverted", "edit_response_exchanged"),
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

"""How right a network is, and how well it explains itself: what is measured of each record of shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.engine.answers import answered, check_answers, has_branch
from hkmap.engine.data import Batch, Numbers, ShardExamples, check_classes, in_order, normalise
from hkmap.engine.ranks import current, in_turn
from hkmap.engine.resize import resize_maps
from hkmap.engine.runs import TrainedModel, pick_device
from hkmap.errors import RunError
from hkmap.evaluation.curves import BLURS, Frames, auc
from hkmap.evaluation.explain import HUMAN, NONE, Asked, Explain, explainer, maps_of_batch
from hkmap.evaluation.fast import DTYPES
from hkmap.evaluation.human import OF_PEOPLE, maps_of_people
from hkmap.evaluation.metrics import (
    METRICS,
    Answered,
    SampleMetric,
    SetMetric,
    attention_mean,
    everywhere,
    has_label,
    has_map,
)
from hkmap.maps.check import Map
from hkmap.networks.classifier import place
from hkmap.shards.folds import ids_of
from hkmap.shards.sequence import ShardSequence

FRAMES = 28             # RISE's steps for figures of a data set: 1,792 of 224 x 224 pixels at a time
IMAGES = 32             # whole ones in a forward pass
BEFORE = "_before"      # ends the names of figures of the answer without the human map that replaces the network's own


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how.

    ``metrics`` are names in METRICS. ``maps`` says which maps are measured, as `explain.explainer` takes it, and
    ``layer`` of which CAM and Grad-CAM are. ``use_maps`` replaces the predicted map by the human one where there is
    one; what can be told of the answers alone is then told of those before too. ``target`` is the class whose curves
    are drawn, "predicted" for the whole image or the "label", of samples that have one. ``step`` is how many pixels
    insertion and deletion change at a time (None: a 28th of the image, 1,792 at 224 x 224), ``blur`` a name in BLURS.
    ``hold_attention`` uses the whole image's map for every frame, else the network makes a new one. ``batch_size`` is
    the number of images in a forward pass; None is 32, and of frames of insertion and deletion what `Frames` says.
    ``dtype``, a name in DTYPES, is of these frames, and ``compile`` compiles the network that answers them. Intervals
    are by ``resamples`` draws, which the ``seed`` determines, of records, or of all records with the same value under
    the key ``group``. Raises ChoiceError for an unknown metric, blur or type of number.
    """

    metrics: tuple[str, ...]
    maps: str = "attention"
    layer: str | None = None
    use_maps: bool = False
    target: str = "predicted"
    step: int | None = None
    blur: str = "rise"
    hold_attention: bool = False
    dtype: str = "float32"
    compile: bool = False
    batch_size: int | None = None
    group: str | None = None
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        METRICS.check(*self.metrics)
        BLURS.check(self.blur)
        DTYPES.check(self.dtype)
        object.__setattr__(self, "metrics", tuple(map(METRICS.spelt, self.metrics)))

    def pixel_step(self, image_size: tuple[int, int]) -> int:
        """Return the pixels that insertion and deletion change at a time in an image of (height, width).

        Raises RunError for a step that is larger than the image.
        """
        height, width = image_size
        if self.step is not None and not 0 < self.step <= height * width:
            raise RunError(
                f"--step {self.step}: an image of {width}x{height} has {height * width} pixels; expected 1 to "
                f"{height * width}"
            )
        return self.step or -(-height * width // FRAMES)

    @property
    def images_at_once(self) -> int:
        """The number of whole images in a forward pass."""
        return self.batch_size or IMAGES

    def of_samples(self) -> dict[str, SampleMetric]:
        """Return the chosen metrics that are of each sample."""
        return {name: row for name in self.metrics if isinstance(row := METRICS[name], SampleMetric)}

    def of_sets(self) -> dict[str, SetMetric]:
        """Return the chosen metrics that are of all samples together."""
        return {name: row for name in self.metrics if isinstance(row := METRICS[name], SetMetric)}

    def figures(self) -> dict[str, SampleMetric]:
        """Return the metric of each figure of a sample, by its name, in order; some metrics give more than one.

        Of shards with annotators, theirs are measured as well (OF_PEOPLE).

        >>> list(EvaluationOptions(("top1", "mse"), use_maps=True).figures())
        ['top1', 'top1_before', 'mse', 'mse_of_zeros']
        """
        found: dict[str, SampleMetric] = {}
        for name, metric in self.of_samples().items():
            found |= dict.fromkeys(metric.figures or (name,), metric)
            if self.use_maps and metric.of_answer is not None:
                found[name + BEFORE] = metric
        return found


class Row(NamedTuple):
    """What was measured of a sample.

    ``number`` is its place in the shards, ``label`` None where nobody knows. ``probabilities`` (K,) are the network's.
    ``attention`` is the mean of its own map, None where it has none; ``map`` the one that was measured, at the size of
    the human maps. ``values`` has each figure by its name, None where it does not apply; ``curves`` the scores (n + 1,)
    of those that are areas under a curve, which say nothing where the value is None.
    """

    number: int
    id: str
    label: int | None
    prediction: int
    probabilities: npt.NDArray[np.float32]
    attention: float | None
    map: Map | None
    values: dict[str, float | None]
    curves: dict[str, list[float]]


def evaluate(
    model: TrainedModel,
    shards: ShardSequence,
    options: EvaluationOptions,
    device: torch.device | None = None,
    *,
    chosen: Numbers | None = None,
    known: int = 0,
    explain: Explain | None = None,
) -> Iterator[Row]:
    """Yield a Row for each record, in order; of several ranks each measures a part, and has the rows of all.

    ``device`` None is CUDA where there is one. ``chosen`` are the numbers of the records, None for all; the first
    ``known`` of them, a whole number of batches, are left out. ``explain`` gives the maps that are measured, in place
    of those that the options name. Of the maps "attention", insertion and deletion rank pixels by the one that weighted
    the features, and mse is of the network's own, also where a human map replaces it. Raises RunError where a metric
    needs a map and there is none, and, with its place, for a record whose answer or figure is not finite.
    """
    explain = explain or explainer(options.maps, model, shards, layer=options.layer)
    _check_maps(model, options, explain)
    check_classes(model, shards)
    device = device or pick_device("auto")
    place(model.network, device).eval()
    frames = Frames(
        model.network, options.pixel_step(model.preprocessing.size), options.batch_size, options.blur, options.dtype,
        options.compile,
    )
    examples = ShardExamples(shards, model.preprocessing, model.map_size)
    indices = np.arange(len(shards)) if chosen is None else chosen
    ids = ids_of(shards)
    metrics, last = options.of_samples().values(), None
    annotated = shards.annotator_map_count > 0 and any(metric.of_people for metric in metrics)
    exchanged = any(metric.needs_branch for metric in metrics)
    begin = max(0, known - options.images_at_once * current().ranks)       # a batch's maps are used in the next one
    for numbers, batch in in_order(examples, indices[begin:], options.images_at_once):
        names = [ids[number] for number in numbers]
        answers = _answers(model, batch.to(device), options, frames, explain, names, numbers.tolist())
        if exchanged:
            answers.earlier, last = _maps_before(answers.used.attention, last)
        if begin < known:
            begin = known
            continue
        if annotated:
            answers.people = [maps_of_people(examples, number) for number in numbers.tolist()]
        yield from in_turn(_rows(answers, options, names, numbers.tolist(), shards))


def _check_maps(model: TrainedModel, options: EvaluationOptions, explain: Explain | None) -> None:
    """Raise RunError where there is no map and one is needed."""
    needy = [name for name, metric in options.of_samples().items() if metric.needs_map]
    bound = [name for name, metric in options.of_samples().items() if metric.needs_branch]
    if bound and not has_branch(model.network):
        raise RunError(f"the network has no attention branch, whose map {bound[0]} is about; omit {bound[0]}")
    if options.maps == NONE and explain is None and needy:
        raise RunError(f"--maps none gives no map for {needy[0]}; choose other --maps, or a metric of answers such as "
                       "top1")
    if (options.use_maps or options.hold_attention) and not has_branch(model.network):
        raise RunError("the network has no attention branch, so no map can replace its own; omit --use-maps and "
                       "--hold-attention")
    if needy and explain is None and not model.architecture.has_attention:
        raise RunError(
            f"the network has no attention branch, so it has no map for {needy[0]}; use --maps gradcam, or a metric of "
            "answers such as top1"
        )


def _maps_before(maps: Tensor | None, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the map of the record before each (B, 1, h, w), NaN for the very first; and the last one of all ranks.

    ``last`` (1, 1, h, w) is that of the batch before, None where there is none.
    """
    assert maps is not None, "evaluate refuses networks without a branch"
    every = torch.stack(in_turn(list(maps.cpu())))      # records are dealt to the ranks in turn
    rank, ranks = current()
    before = torch.cat([torch.full_like(every[:1], math.nan) if last is None else last, every[:-1]])
    return before[rank::ranks].to(maps.device), every[-1:]


def _answers(
    model: TrainedModel, batch: Batch, options: EvaluationOptions, frames: Frames, explain: Explain | None,
    ids: Sequence[str], numbers: Sequence[int],
) -> Answered:
    network, images = model.network, normalise(batch.images, model.preprocessing)
    with torch.inference_mode():        # not around a yield: it would stay on in the caller
        used, own, before = answered(network, images, batch if options.use_maps else None, before=options.use_maps)
    predicted = used.logits.argmax(1)
    labelled = options.target == "label"
    classes = torch.where(batch.labels >= 0, batch.labels, predicted) if labelled else predicted
    explained = None
    if explain is not None:      # not in inference mode, as it may take gradients
        explained = maps_of_batch(explain, Asked(network, images, classes, own, batch, ids, numbers))
    held = used.attention if options.hold_attention or options.use_maps else None
    return Answered(network, images, batch, used, own, before, explained, classes, frames, held)


def _rows(
    answers: Answered, options: EvaluationOptions, ids: Sequence[str], numbers: Sequence[int], shards: ShardSequence
) -> list[Row]:
    """Return the rows of a batch's first samples, whose ids and numbers are given."""
    logits = answers.used.logits
    finite = [part.isfinite().flatten(1).all(1) for part in (logits, answers.own) if part is not None]
    check_answers(torch.stack(finite).all(0)[: len(ids)].tolist(), lambda row: shards.place(numbers[row]))
    values, curves = _figures(answers, options)
    labels, predictions = answers.batch.labels.tolist(), logits.argmax(1).tolist()
    means = [None] * len(labels) if answers.own is None else attention_mean(answers).tolist()
    probabilities, maps = logits.float().softmax(1).cpu().numpy(), _maps(answers, options)
    rows = []
    for row, (identifier, number) in enumerate(zip(ids, numbers, strict=True)):
        found = {name: column[row] for name, column in values.items()}
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                expected = "expected a finite number where the metric applies"
                raise RunError(f"{shards.place(number)}: {name} is {value}; {expected}")
        label = None if labels[row] < 0 else labels[row]
        shown = {name: column[row] for name, column in curves.items()}
        measured = Row(
            number, identifier, label, predictions[row], probabilities[row], means[row], maps[row], found, shown
        )
        rows.append(measured)
    return rows


def _maps(answers: Answered, options: EvaluationOptions) -> list[Map | None]:
    """Return the maps (h, w) that are measured, at the size of the human ones; None where there is none."""
    found, there = answers.own if answers.explained is None else answers.explained, _mapped(answers, options).tolist()
    if found is None or options.maps == NONE:
        return [None] * len(there)
    size = answers.batch.maps.shape[2], answers.batch.maps.shape[3]
    sized = resize_maps(found.detach().float(), size)[:, 0].cpu().numpy()
    return [values if known else None for values, known in zip(sized, there, strict=True)]


def _mapped(answers: Answered, options: EvaluationOptions) -> Tensor:
    """Return which samples (B,) have the map that is measured: nobody may have drawn a human one."""
    return has_map(answers) if options.maps == HUMAN else everywhere(answers)


def _figures(
    answers: Answered, options: EvaluationOptions
) -> tuple[dict[str, list[float | None]], dict[str, list[list[float]]]]:
    """Return the batch's values of each figure, None where it does not apply, and its curves."""
    values: dict[str, list[float | None]] = {}
    curves: dict[str, list[list[float]]] = {}
    with torch.inference_mode():
        for name, metric in options.of_samples().items():
            found, applies = metric.measure(answers), metric.applies(answers)
            mapped = _mapped(answers, options) if metric.needs_map else everywhere(answers)
            if metric.curve and options.target == "label":
                mapped = mapped & has_label(answers)
            figures = {name: found} if isinstance(found, Tensor) else dict(found)
            if options.use_maps and metric.of_answer is not None:
                figures[name + BEFORE] = metric.of_answer(answers.before, answers.batch.labels.clamp(min=0))
            for figure, column in figures.items():
                if column.ndim == 2:
                    curves[figure] = column.tolist()
                    column = auc(column)
                there = mapped & (applies if isinstance(applies, Tensor) else applies[figure])
                values[figure] = [
                    value if exists else None for value, exists in zip(column.tolist(), there.tolist(), strict=True)
                ]
            if metric.of_people is not None and answers.people is not None:
                values[name + OF_PEOPLE] = metric.of_people(answers.people, answers.batch)
    return values, curves

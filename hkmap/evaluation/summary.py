"""What the rows of an evaluation say together: figures with their intervals, and how they were measured."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hkmap.engine.data import warn_of_small_map
from hkmap.engine.runs import TrainedModel, pick_device
from hkmap.evaluation.evaluate import EvaluationOptions, Row
from hkmap.evaluation.human import OF_PEOPLE, share_of_people
from hkmap.evaluation.sets import Answers
from hkmap.statistics import Interval, Resampling, interval, mean_intervals, wilson

OWN = "attention_mean"      # of the network's own maps: reported whatever is asked for
DARK = 0.05                 # a mean attention below it lets the product gate pass next to nothing

Array = npt.NDArray[np.float64]

logger = logging.getLogger("hkmap")


class Figure(NamedTuple):
    """A figure of so many ``samples``, None where it applies to none, and its interval, None where there is none."""

    value: float | None
    interval: Interval | None
    samples: int


@dataclass
class _Kept:
    """What is kept of rows: a column per figure, NaN where it does not apply, and the answers to those with a label.

    A column of ``curves`` has all rows' scores one after the other. ``places`` are those of the answered rows.
    """

    values: dict[str, array[float]]
    classes: Sequence[str]
    curves: dict[str, array[float]] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    labels: set[int | None] = field(default_factory=set)
    answers: list[tuple[int, int, npt.NDArray[np.float32]]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    flat: int = 0           # maps that are the same in every place

    def add(self, row: Row, *, with_answers: bool) -> None:
        found = {OWN: row.attention, **row.values}
        for name in found if not self.numbers else ():      # those of the annotators are there or not, in all rows
            self.values.setdefault(name, array("d"))
        for name, column in self.values.items():
            value = found[name]
            column.append(math.nan if value is None else value)
        for name, scores in row.curves.items():
            there = found[name] is not None
            self.curves.setdefault(name, array("f")).extend(scores if there else [math.nan] * len(scores))
        if with_answers and row.label is not None:
            self.answers.append((row.label, row.prediction, row.probabilities))
            self.places.append(len(self.numbers))
        self.flat += row.map is not None and not np.ptp(row.map)
        self.labels.add(row.label)
        self.numbers.append(row.number)

    def all_answers(self) -> Answers:
        labels, predictions, probabilities = zip(*self.answers, strict=True) if self.answers else ((), (), ())
        return Answers(np.array(labels), np.array(predictions), np.array(probabilities, np.float64), self.classes)


def summarise(
    rows: Iterable[Row],
    model: TrainedModel,
    options: EvaluationOptions,
    device: torch.device | None = None,
    *,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return each figure of `evaluate`'s rows, its interval, the number of its samples, and how it was measured.

    A figure that applies to no sample is None, and so is the interval of one that hangs on one sample or group.
    ``groups`` has the group of each record of the shards. Warns where a figure says less than it seems to.
    """
    kept = _Kept({name: array("d") for name in (*options.figures(), OWN)}, model.class_names)
    for row in rows:
        kept.add(row, with_answers=bool(options.of_sets()))
    own = None if groups is None else [groups[number] for number in kept.numbers]
    resampling = Resampling(len(kept.numbers), groups=own, resamples=options.resamples, seed=options.seed)
    bands = {name: _band(scores, resampling) for name, scores in kept.curves.items()}
    of_sets, tables = _of_sets(kept, options, resampling)
    figures = _of_samples(kept, options, resampling) | of_sets
    _warn(model, {name: figure.value for name, figure in figures.items()}, kept.labels - {None})
    if kept.flat and options.maps == "attention":
        logger.warning("the attention of %d of %d records is the same in every place, so it shows nothing; train "
                       "again, with a lower --weight-decay or --lr", kept.flat, len(kept.numbers))
    shown = {name: figure for name, figure in figures.items() if name != OWN or OWN in options.figures()}
    return {
        "samples": len(kept.numbers),
        "metrics": {name: figure.value for name, figure in shown.items()},
        "intervals": {name: figure.interval for name, figure in figures.items() if name in shown or figure.samples},
        "counts": {name: figure.samples for name, figure in shown.items()},
        "curves": {name: band for name, band in bands.items() if band is not None},
        **tables,
        **_of_people(kept, options, resampling),
        **({OWN: figures[OWN].value} if figures[OWN].samples else {}),
        "control": model.control,
        **({} if own is None else {"group": options.group, "groups": len(set(own))}),
        "settings": settings_of(model, options, device or pick_device("auto")),
    }


def settings_of(model: TrainedModel, options: EvaluationOptions, device: torch.device) -> dict[str, Any]:
    """Return how something is measured, as the report says it."""
    chosen = {name: value for name, value in asdict(options).items() if name not in ("metrics", "batch_size", "group")}
    size = model.preprocessing.size
    found = {"image_size": list(size), "map_size": list(model.map_size), "device": device.type}
    return {**chosen, "step": options.pixel_step(size), **found}


def _of_samples(kept: _Kept, options: EvaluationOptions, resampling: Resampling) -> dict[str, Figure]:
    """Return the mean of each column."""
    shares = {name for name, metric in options.figures().items() if metric.unit == "share"}
    columns = np.array(list(kept.values.values())).T            # (n, figures)
    means = zip(kept.values, columns.T, mean_intervals(columns, resampling), strict=True)
    return {name: _mean(column, ends, resampling, share=name in shares) for name, column, ends in means}


def _mean(column: Array, ends: Interval | None, resampling: Resampling, *, share: bool) -> Figure:
    """Return the mean of a column (n,), NaN where a record has none; ``ends`` are those of a bootstrap."""
    there = ~np.isnan(column)
    values, units = column[there], resampling.units()[there]
    if ends is not None and share and np.isin(values, (0, 1)).all():
        ends = _share_interval(values, ends, len(np.unique(units)))
    return Figure(math.fsum(values) / len(values) if len(values) else None, ends, len(values))


def _share_interval(values: Array, bootstrapped: Interval, units: int) -> Interval:
    """Return the interval of the share of ones: Wilson's where each is a unit, or where all are the same.

    Of groups whose values are all the same a bootstrap has no width. Wilson's then counts a group as one sample, as if
    all in it always had the same value: the interval is wide rather than narrow.
    """
    alike = float(values.min()) == float(values.max())
    if units < len(values) and not alike:
        return bootstrapped
    return wilson(round(values.mean() * units), units)


def _of_sets(
    kept: _Kept, options: EvaluationOptions, resampling: Resampling
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Return the figures of all samples with a label together, and what is a table instead."""
    figures, tables = {}, {}
    answers, count = kept.all_answers(), len(kept.places)
    groups = None if resampling.groups is None else [resampling.groups[place] for place in kept.places]
    for name, metric in options.of_sets().items():
        if metric.table:
            tables[name] = metric.measure(answers) if count else None
        else:
            drawn = replace(resampling, count=count, groups=groups)
            hits = metric.hits(answers) if metric.hits and count else None
            figures[name] = _drawn(partial(metric.measure, answers), drawn) if hits is None else _mean(
                hits, mean_intervals(hits[:, None], drawn)[0], drawn, share=True
            )
    return figures, tables


def _of_people(kept: _Kept, options: EvaluationOptions, resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Return each figure against the human map as a share of the annotators' agreement, where there are annotators."""
    columns = {name: np.array(column) for name, column in kept.values.items()}
    shares = {
        name: _drawn(
            partial(share_of_people, columns[name], columns[name + OF_PEOPLE], higher=metric.higher), resampling
        )
        for name, metric in options.of_samples().items() if name + OF_PEOPLE in columns
    }
    return {} if not shares else {
        "share_of_people": {name: share.value for name, share in shares.items()},
        "share_of_people_intervals": {name: share.interval for name, share in shares.items()},
    }


def _drawn(measure: Callable[[Array], Array], resampling: Resampling) -> Figure:
    """Return a figure of all records together; ``measure`` takes weights as `interval` has it.

    Where all draws are alike, as of an AUROC of 1, they tell nothing of how sure it is: it has no interval.
    """
    value = float(measure(np.ones((1, resampling.count)))[0]) if resampling.count else math.nan
    if math.isnan(value):
        return Figure(None, None, 0)
    ends = interval(measure, resampling)
    return Figure(value, None if ends is None or ends[0] == ends[1] else ends, resampling.count)


def _band(scores: array[float], resampling: Resampling) -> dict[str, Any] | None:
    """Return the mean of all rows' curves and the ends of its intervals; None where none applies."""
    curves = np.array(scores, np.float64).reshape(resampling.count, -1)
    there = curves[~np.isnan(curves[:, 0])]
    if not len(there):
        return None
    ends = [each for each in mean_intervals(curves, resampling) if each is not None]     # of all points, or of none
    low, high = (None, None) if not ends else map(list, zip(*ends, strict=True))
    return {"mean": there.mean(axis=0).tolist(), "low": low, "high": high}


def _warn(model: TrainedModel, means: dict[str, float | None], labels: set[int | None]) -> None:
    """Warn where the means of figures say less than they seem to; ``labels`` are those that occur."""
    warn_of_small_map(model)
    if len(labels) == 1 and means.keys() & {"top1", "top5"}:
        logger.warning("all labels are the same, so top1 and top5 do not tell a good network from a constant answer")
    if len(model.class_names) <= 5 and means.keys() & {"top5", "top5_error"}:
        logger.warning("of %d classes the label is always among the five likeliest", len(model.class_names))
    own, mse, of_zeros = (means.get(name) for name in ("attention_mean", "mse", "mse_of_zeros"))
    if own is not None and own < DARK and model.architecture.gate == "product":
        logger.warning(
            "the attention is dark (mean %.3f), and the product gate hides from the answer what is dark; lower --gamma "
            "or choose a --map-loss of shape such as kl", own,
        )
    if mse is not None and of_zeros is not None and mse >= of_zeros:
        logger.warning(
            "the maps are no closer to the human ones (mse %.4f) than a map of zeros is (%.4f)", mse, of_zeros
        )

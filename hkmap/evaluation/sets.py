"""Figures of all answers together, such as the area under a ROC curve.

Each takes weights (draws, n), how often each of the n samples counts, and returns the figure of each draw (draws,); a
draw in which it does not exist, as of a class that it lacks, has NaN. Of two classes the one of label 1 is the positive
one. Of more, a figure of one class against the others is the mean over the classes that occur among the labels of the
draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BINS = 15             # of confidence, as Guo et al. have it


class Answers(NamedTuple):
    """The answers to all n samples with a label, of K classes."""

    labels: npt.NDArray[np.int64]           # (n,)
    predictions: npt.NDArray[np.int64]      # (n,)
    probabilities: Array                    # (n, K)
    classes: Sequence[str] = ()             # (K,) names, "" where a class has none


def balanced_accuracy(answers: Answers, weights: Array) -> Array:
    """Mean over the classes of the share of their samples that is answered right."""
    right, labelled, _ = _counts(answers, weights, np.unique(answers.labels))
    return _mean(ratio(right, labelled))


def sensitivity(answers: Answers, weights: Array) -> Array:
    """Share of the samples of label 1 answered so; of more than two classes their mean."""
    right, labelled, _ = _counts(answers, weights, _positives(answers))
    return _mean(ratio(right, labelled))


def specificity(answers: Answers, weights: Array) -> Array:
    """Share of the other samples not answered as label 1; of more than two classes their mean."""
    right, labelled, predicted = _counts(answers, weights, _positives(answers))
    negatives = weights.sum(axis=1, keepdims=True) - labelled
    shares = ratio(negatives - (predicted - right), negatives)
    occurs = (labelled > 0) | (answers.probabilities.shape[1] == 2)
    return _mean(np.where(occurs, shares, np.nan))


def hits(answers: Answers, label: int) -> Array | None:
    """Return whether each sample of a label is answered so (n,), NaN for the others; None of more than two classes."""
    two = answers.probabilities.shape[1] == 2
    return np.where(answers.labels == label, answers.predictions == label, np.nan) if two else None


def f1(answers: Answers, weights: Array) -> Array:
    """Harmonic mean of sensitivity and precision; of more than two classes their mean.

    2 TP / (2 TP + FP + FN).
    """
    right, labelled, predicted = _counts(answers, weights, _positives(answers))
    return _mean(np.where(labelled > 0, ratio(2 * right, labelled + predicted), np.nan))


def auroc(answers: Answers, weights: Array) -> Array:
    """Area under the ROC curve of label 1; of more than two classes their mean.

    It is the chance that a sample of the class has a higher probability of it than another one; ties count half.
    """
    by_sample = np.ascontiguousarray(weights.T)
    classes = _positives(answers)
    areas = [_area(answers.probabilities[:, label], answers.labels == label, by_sample) for label in classes]
    return _mean(np.stack(areas, axis=1))


def kappa(answers: Answers, weights: Array) -> Array:
    """Agreement of labels and answers beyond chance, weighted quadratically.

    Cohen's kappa (Psychological Bulletin 70, 1968) with the squared difference of two labels as their disagreement. A
    class that does not occur keeps its place in the order, so grades 0 and 2 differ by 2 also where there is no 1.
    """
    labels, predictions = answers.labels.astype(np.float64), answers.predictions.astype(np.float64)
    middle = labels.mean()      # only differences count; near 0 the squares lose no digits
    labels, predictions, total = labels - middle, predictions - middle, weights.sum(axis=1)
    cost = weights @ (labels - predictions) ** 2
    by_chance = weights @ (labels**2 + predictions**2) - 2 * (weights @ labels) * (weights @ predictions) / total
    exists = by_chance > 1e-9 * total       # not where all labels and answers are of one class
    return np.where(exists, 1 - cost / np.where(exists, by_chance, 1), np.nan)


def calibration_error(answers: Answers, weights: Array) -> Array:
    """Expected calibration error: confidence less accuracy, in 15 bins.

    The bins of confidence have equal width (Guo et al., ICML 2017), and a bin's difference counts by its share of the
    samples.
    """
    confidence = answers.probabilities[np.arange(len(answers.labels)), answers.predictions]
    bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    excess = (confidence - (answers.predictions == answers.labels))[:, None] * (bins[:, None] == np.arange(BINS))
    found: Array = np.abs(weights @ excess).sum(axis=1) / weights.sum(axis=1)
    return found


def confusion(answers: Answers) -> dict[str, Any]:
    """Table of the labels (rows) and the answers (columns): how many samples have them, and the classes' names."""
    count = answers.probabilities.shape[1]
    cells = np.bincount(answers.labels * count + answers.predictions, minlength=count**2)
    names = [name or number for number, name in enumerate(answers.classes)] or list(range(count))
    return {"classes": names, "matrix": cells.reshape(count, count).tolist()}


def _positives(answers: Answers) -> npt.NDArray[np.int64]:
    """Return the classes that are told from the others: of two, that of label 1."""
    return np.array([1]) if answers.probabilities.shape[1] == 2 else np.unique(answers.labels)


def _counts(answers: Answers, weights: Array, classes: npt.NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Return the true positives, the samples and the answers of each class in each draw: (draws, classes)."""
    of_class = (answers.labels[:, None] == classes).astype(np.float64)               # (n, classes)
    as_class = (answers.predictions[:, None] == classes).astype(np.float64)
    return weights @ (of_class * as_class), weights @ of_class, weights @ as_class


def _area(scores: Array, positive: npt.NDArray[np.bool_], weights: Array) -> Array:
    """Return the areas (draws,) of the scores (n,) of the ``positive`` samples over those of the others.

    ``weights`` are (n, draws), so that a sample's are together in memory.
    """
    order = np.flatnonzero(~positive)
    order = order[np.argsort(scores[order])]
    # how many of the others each positive one is above, and how many it is above or equal to
    below, upto = (np.searchsorted(scores[order], scores[positive], side) for side in ("left", "right"))
    starts = np.unique([0, *below, *upto])
    starts = starts[starts < len(order)]        # the others between two of them are added up at once
    beaten = np.zeros((len(starts) + 1, weights.shape[1]))
    np.cumsum(np.add.reduceat(weights[order], starts, axis=0), axis=0, out=beaten[1:])
    below, upto = np.searchsorted(starts, below), np.searchsorted(starts, upto)
    own = weights[positive]
    wins = (own * (beaten[below] + beaten[upto])).sum(axis=0) / 2
    return ratio(wins, own.sum(axis=0) * beaten[-1])


def ratio(part: Array, whole: Array) -> Array:
    """Return part / whole, NaN where the whole is 0 or less."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mean(figures: Array) -> Array:
    """Return the mean over the classes (draws, classes) that have a figure."""
    there = ~np.isnan(figures)
    return ratio(np.where(there, figures, 0).sum(axis=1), there.sum(axis=1))

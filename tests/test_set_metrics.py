"""Figures of all answers together, against scikit-learn's and worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from hkmap.evaluation import sets
from hkmap.evaluation.metrics import METRICS, SetMetric
from hkmap.evaluation.sets import Answers

SETS = {name: row.measure for name, row in METRICS.items() if isinstance(row, SetMetric) and not row.table}


def answers_of(count: int, classes: int, *, seed: int = 0, decimals: int = 2) -> Answers:
    """Answers that are right more often than by chance; rounded probabilities tie."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(classes, size=count - classes)])
    logits = random.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1)
    return Answers(labels, predictions, probabilities.round(decimals), ())


def repeated(answers: Answers, weights: np.ndarray) -> Answers:
    """The answers with each record as often as its weight says."""
    rows = np.repeat(np.arange(len(weights)), weights.astype(int))
    return Answers(answers.labels[rows], answers.predictions[rows], answers.probabilities[rows], answers.classes)


def one(name: str, answers: Answers) -> float:
    return float(SETS[name](answers, np.ones((1, len(answers.labels))))[0])


def slow_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Every pair on its own."""
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_figure_is_scikit_learns(classes: int, seed: int) -> None:
    answers = answers_of(120, classes, seed=seed, decimals=12)
    labels, predictions, probabilities, _ = answers
    several = {"average": "binary" if classes == 2 else "macro"}
    wanted = {
        "balanced_accuracy": oracle.balanced_accuracy_score(labels, predictions),
        "sensitivity": oracle.recall_score(labels, predictions, **several),
        "f1": oracle.f1_score(labels, predictions, **several),
        "kappa": oracle.cohen_kappa_score(labels, predictions, weights="quadratic"),
        "auroc": oracle.roc_auc_score(labels, probabilities[:, 1]) if classes == 2 else
        oracle.roc_auc_score(labels, probabilities / probabilities.sum(1, keepdims=True), multi_class="ovr"),
        "specificity": np.mean([
            oracle.recall_score(labels != label, predictions != label) for label in ([1] if classes == 2 else
                                                                                    range(classes))
        ]),
    }
    assert {name: one(name, answers) for name in wanted} == pytest.approx(wanted, abs=1e-12)


def test_scores_that_tie_count_half() -> None:
    answers = answers_of(60, 3, decimals=1)
    slow = [slow_auroc(answers.probabilities[:, label], answers.labels == label) for label in range(3)]
    assert one("auroc", answers) == pytest.approx(np.mean(slow), abs=1e-12)
    flat = Answers(answers.labels, answers.predictions, np.full((60, 3), 1 / 3), ())
    assert one("auroc", flat) == 0.5


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("classes", [2, 5])
def test_weights_are_how_often_a_record_counts(name: str, classes: int) -> None:
    answers = answers_of(40, classes)
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=30).astype(float)
    weights[0, answers.labels == 1] = 0        # a draw without a class
    weights[1, answers.labels != 1] = 0        # and one of it alone
    found = SETS[name](answers, weights)
    wanted = [one(name, repeated(answers, row)) for row in weights]
    assert found.shape == (30,)
    assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_calibration_error_bin_by_bin() -> None:
    answers = answers_of(300, 4, decimals=12)
    confidence = answers.probabilities.max(axis=1)
    right = answers.predictions == answers.labels
    wanted = 0.0
    for place in range(15):
        inside = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        if inside.any():
            wanted += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
    assert one("calibration_error", answers) == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_worked() -> None:
    """Two answers of confidence .9, one right: |.5 - .9| for half of the samples; two of 1, both right: 0."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.0, 1.0], [0.0, 1.0]])
    answers = Answers(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), probabilities)
    assert one("calibration_error", answers) == pytest.approx(0.2)


@pytest.mark.parametrize(("labels", "predictions", "absent"), [
    ([0, 0, 0], [0, 1, 0], {"auroc", "sensitivity", "f1"}),
    ([1, 1, 1], [0, 1, 0], {"auroc", "specificity"}),
    ([1, 1, 1], [1, 1, 1], {"auroc", "specificity", "kappa"}),
])
@pytest.mark.filterwarnings("error")
def test_what_one_class_alone_does_not_tell(labels: list[int], predictions: list[int], absent: set[str]) -> None:
    probabilities = np.eye(2)[predictions] * 0.8 + 0.1
    answers = Answers(np.array(labels), np.array(predictions), probabilities)
    assert {name for name in SETS if np.isnan(one(name, answers))} == absent


def test_a_class_of_the_network_that_no_label_has_counts_for_nothing() -> None:
    answers = answers_of(50, 3)
    wider = answers._replace(probabilities=np.hstack([answers.probabilities, np.zeros((50, 1))]))
    for name in SETS:
        assert one(name, wider) == one(name, answers)


def test_grades_keep_their_distance_where_one_is_missing() -> None:
    labels, predictions = np.array([0, 0, 3, 3, 1]), np.array([0, 3, 3, 1, 1])
    wanted = oracle.cohen_kappa_score(labels, predictions, weights="quadratic", labels=range(4))
    assert one("kappa", Answers(labels, predictions, np.eye(4)[predictions])) == pytest.approx(wanted)


def test_the_confusion_has_labels_in_rows() -> None:
    answers = answers_of(80, 3)
    wanted = oracle.confusion_matrix(answers.labels, answers.predictions)
    assert sets.confusion(answers) == {"classes": [0, 1, 2], "matrix": wanted.tolist()}
    named = answers._replace(classes=("cat", "", "dog"))
    assert sets.confusion(named)["classes"] == ["cat", 1, "dog"]

"""The report of an evaluation: each figure with its interval, over records or groups, figures of all samples, bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import lines
from scipy import stats
from test_statistics import mean_interval

from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import new_model
from hkmap.evaluation.evaluate import EvaluationOptions, Row
from hkmap.evaluation.metrics import METRICS, SetMetric
from hkmap.evaluation.summary import summarise
from hkmap.networks.architectures import Architecture
from hkmap.statistics import Resampling

SMALL = Architecture("resnet8+abn", 3, stem="small", width=4)
MODEL = new_model(SMALL, Preprocessing(16, 16), ("a", "b", "c"), 0)
RANDOM = np.random.default_rng(0)


def row(number, *, label=0, prediction=0, curves=None, attention=0.3, **values):
    sure = np.eye(3, dtype=np.float32)[prediction]
    return Row(number, f"r{number}", label, prediction, sure, attention, None, values, curves or {})


def rows_of(**columns):
    """A row for each place of the columns, with a figure by each name; None where it does not apply."""
    return [row(number, **dict(zip(columns, values, strict=True)))
            for number, values in enumerate(zip(*columns.values(), strict=True))]


def report(rows, *metrics, groups=None, **options):
    return summarise(rows, MODEL, EvaluationOptions(metrics, **options), torch.device("cpu"), groups=groups)


@pytest.fixture
def set_metric(monkeypatch):
    """Add a metric of all samples to the table, for one test."""
    def add(name, measure, **options):
        monkeypatch.setitem(METRICS._rows, name, SetMetric("Made for a test", measure, higher=True, **options))

    return add


def shares_right(answers, weights):
    return weights @ (answers.labels == answers.predictions) / weights.sum(axis=1)


# intervals of figures


def test_every_figure_has_its_interval():
    losses = RANDOM.exponential(1, 30).tolist()
    found = report(rows_of(top1=[1.0] * 20 + [0.0] * 10, log_loss=losses), "top1", "log_loss")
    assert found["metrics"] == pytest.approx({"top1": 2 / 3, "log_loss": np.mean(losses)})
    assert set(found["intervals"]) == {"top1", "log_loss", "attention_mean"}
    expected = stats.binomtest(20, 30).proportion_ci(0.95, method="wilson")
    assert found["intervals"]["top1"] == pytest.approx((expected.low, expected.high))
    expected = mean_interval(np.array(losses), Resampling(30))
    assert found["intervals"]["log_loss"] == pytest.approx(expected)
    assert found["intervals"]["attention_mean"] == pytest.approx((0.3, 0.3))
    assert (found["settings"]["resamples"], found["settings"]["seed"]) == (2000, 0)


def test_a_figure_that_applies_to_no_sample_has_neither_value_nor_interval():
    found = report(rows_of(mse=[None, None], mse_of_zeros=[None, None]), "mse")
    assert (found["metrics"], found["counts"]) == ({"mse": None, "mse_of_zeros": None}, {"mse": 0, "mse_of_zeros": 0})
    assert found["intervals"]["mse"] is None
    assert report([], "top1")["intervals"] == {"top1": None}


def test_one_sample_has_no_interval():
    found = report(rows_of(top1=[1.0, None], log_loss=[0.1, 0.2]), "top1", "log_loss")
    assert (found["metrics"]["top1"], found["intervals"]["top1"], found["counts"]["top1"]) == (1, None, 1)
    assert found["intervals"]["log_loss"] is not None


def test_the_draws_depend_on_the_seed_alone():
    rows = rows_of(log_loss=RANDOM.exponential(1, 30).tolist(), top1=[0.0, 1.0] * 15)
    alone = report(rows, "log_loss", seed=3)["intervals"]["log_loss"]
    assert report(rows, "top1", "log_loss", seed=3)["intervals"]["log_loss"] == pytest.approx(alone, abs=1e-12)
    assert report(rows, "log_loss", seed=4)["intervals"]["log_loss"] != pytest.approx(alone, abs=1e-12)


def test_what_is_no_share_has_no_interval_of_a_share():
    """Distances of 0, as of the human maps from themselves, are not so many failures."""
    found = report(rows_of(mse=[0.0] * 9, mse_of_zeros=[1.0] * 9, top1=[1.0] * 9), "mse", "top1")["intervals"]
    assert (found["mse"], found["mse_of_zeros"]) == ((0, 0), (1, 1))
    assert found["top1"][0] == pytest.approx(stats.binomtest(9, 9).proportion_ci(0.95, method="wilson").low)


# groups


def test_intervals_over_groups_are_those_of_the_groups_of_the_rows():
    """Rows are some of the shards' records, and their numbers say which."""
    values = RANDOM.normal(size=12)[np.repeat(np.arange(12), 5)]
    groups = [f"patient {number // 5}" for number in range(60)] + ["nobody"] * 40
    rows = rows_of(log_loss=values.tolist())
    found = report(rows, "log_loss", groups=groups, group="patient")
    expected = mean_interval(values, Resampling(60, groups=groups[:60]))
    assert found["intervals"]["log_loss"] == pytest.approx(expected)
    assert (found["group"], found["groups"]) == ("patient", 12)
    narrow = report(rows, "log_loss")
    assert np.ptp(narrow["intervals"]["log_loss"]) < np.ptp(expected)
    assert "groups" not in narrow


def test_a_share_over_groups_is_bootstrapped_and_where_all_are_right_a_group_is_one_sample():
    groups = [f"patient {number // 5}" for number in range(40)]
    halves = [float(number // 5 % 2) for number in range(40)]
    found = report(rows_of(top1=halves, error=[1.0] * 40), "top1", "error", groups=groups)["intervals"]
    assert found["top1"] == pytest.approx(mean_interval(np.array(halves), Resampling(40, groups=groups)))
    expected = stats.binomtest(8, 8).proportion_ci(0.95, method="wilson")
    assert found["error"] == pytest.approx((expected.low, 1))


# figures of all samples


def test_a_figure_of_all_samples_is_of_those_with_a_label(set_metric):
    set_metric("right", shares_right)
    rows = [row(0, label=1, prediction=1), row(1, label=None, prediction=2), row(2, label=2, prediction=0),
            row(3, label=0, prediction=0), row(4, label=1, prediction=1)]
    found = report(rows, "right")
    assert (found["metrics"]["right"], found["counts"]["right"]) == (3 / 4, 4)
    low, high = found["intervals"]["right"]
    assert 0 <= low < 3 / 4 < high <= 1
    grouped = report(rows, "right", groups=["a", "b", "a", "a", "a"])
    assert (grouped["metrics"]["right"], grouped["intervals"]["right"]) == (3 / 4, None)      # one group with labels


def test_sensitivity_and_specificity_of_two_classes_are_shares():
    """All 9 of one class are found, which a bootstrap takes for certain."""
    right = [(1, 1)] * 9 + [(0, 0)] * 5 + [(0, 1)] * 3
    rows = [Row(n, f"r{n}", label, found, np.eye(2, dtype=np.float32)[found], None, None, {}, {})
            for n, (label, found) in enumerate(right)]
    found = report(rows, "sensitivity", "specificity", "auroc")
    assert (found["metrics"]["sensitivity"], found["metrics"]["specificity"]) == (1, 5 / 8)
    assert (found["counts"]["sensitivity"], found["counts"]["specificity"]) == (9, 8)
    for name, hits, count in (("sensitivity", 9, 9), ("specificity", 5, 8)):
        wanted = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert found["intervals"][name] == pytest.approx((wanted.low, wanted.high))
    grouped = report(rows, "specificity", groups=[str(n // 3) for n in range(17)])["intervals"]["specificity"]
    assert grouped != pytest.approx(found["intervals"]["specificity"], abs=1e-3)


def test_a_figure_whose_draws_are_all_alike_has_no_interval():
    rows = [row(n, label=n % 3, prediction=n % 3) for n in range(12)]
    found = report(rows, "auroc", "sensitivity", "f1")
    assert set(found["metrics"].values()) == {1}
    assert [found["intervals"][name] for name in ("auroc", "sensitivity", "f1")] == [None] * 3


def test_a_figure_of_all_samples_that_there_is_not(set_metric):
    set_metric("right", shares_right)
    set_metric("nothing", lambda answers, weights: np.full(len(weights), np.nan))
    labelled, unlabelled = [row(0), row(1)], [row(0, label=None), row(1, label=None)]
    for rows, name in ((labelled, "nothing"), (unlabelled, "right")):
        found = report(rows, name)
        assert (found["metrics"][name], found["intervals"][name], found["counts"][name]) == (None, None, 0)


def test_a_table_stands_in_the_place_of_a_figure(set_metric):
    set_metric("pairs", lambda answers: [answers.labels.tolist(), answers.predictions.tolist()], table=True)
    found = report([row(0, label=2, prediction=1), row(1, label=None), row(2)], "pairs")
    assert found["pairs"] == [[2, 0], [1, 0]]
    assert found["metrics"] == {}
    assert report([row(0, label=None)], "pairs")["pairs"] is None


# curves


def test_curves_have_a_mean_and_a_band():
    curves = RANDOM.random((20, 4)).astype(np.float32)
    rows = [row(n, insertion=0.5, curves={"insertion": curve}) for n, curve in enumerate(curves.tolist())]
    rows += [row(20, insertion=None, curves={"insertion": [9.0] * 4})]      # does not apply
    band = report(rows, "insertion")["curves"]["insertion"]
    assert band["mean"] == pytest.approx(curves.mean(axis=0), abs=1e-6)
    values = np.append(curves[:, 2].astype(float), np.nan)
    assert (band["low"][2], band["high"][2]) == pytest.approx(mean_interval(values, Resampling(21)))
    assert report(rows[:1], "insertion")["curves"]["insertion"]["low"] is None
    assert report(rows[-1:], "insertion")["curves"] == {}


# the command


@pytest.fixture
def grouped(hk, make_shard, tmp_path):
    """A run, and a shard of 12 records of 4 patients."""
    options = ["--stem", "small", "--width", "4", "--image-size", "16", "--epochs", "1", "--batch-size", "4"]
    result = hk("train", make_shard("a.h5", 12), "--arch", "resnet8+abn", *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    records = hk("unpack", tmp_path / "a.h5", "--out", tmp_path / "files").records
    records = [{**record, "patient": number // 3} for number, record in enumerate(records)]
    assert hk("pack", tmp_path / "patients.h5", stdin=lines(records)).exit_code == 0
    return tmp_path


def test_eval_groups_its_intervals(hk, grouped):
    options = [grouped / "patients.h5", "--from", grouped / "run", "--metric", "log_loss,top1,insertion", "--step", 64]
    result = hk("eval", *options, "--group", "patient", "--resamples", 100, "--seed", 5)
    assert result.exit_code == 0, result.stderr
    found = result.records[0]
    assert (found["group"], found["groups"], found["settings"]["resamples"]) == ("patient", 4, 100)
    low, high = found["intervals"]["log_loss"]
    assert low <= found["metrics"]["log_loss"] <= high
    assert f"{low:.4f} to {high:.4f}" in result.stderr
    assert len(found["curves"]["insertion"]["low"]) == 5
    assert hk("eval", *options).records[0]["intervals"]["log_loss"] != [low, high]


def test_eval_groups_the_intervals_of_a_fold(hk, grouped):
    result = hk("eval", grouped / "patients.h5", "--from", grouped / "run", "--metric", "log_loss",
                "--fold", "1/2", "--group", "patient")
    assert result.exit_code == 0, result.stderr
    assert (result.records[0]["fold"], result.records[0]["group"], result.records[0]["groups"]) == ("1/2", "patient", 2)


def test_eval_refuses_what_has_no_group(hk, grouped):
    refused = hk("eval", grouped / "a.h5", "--from", grouped / "run", "--metric", "top1", "--group", "patient")
    assert refused.exit_code == 1
    assert 'record "a.h5-0": has no key "patient" to group by; it has id, image, label' in refused.stderr


def test_a_seed_of_folds_without_a_fold(hk, grouped):
    refused = hk("eval", grouped / "a.h5", "--from", grouped / "run", "--metric", "top1", "--fold-seed", 1)
    assert refused.exit_code == 2
    assert "--fold-seed says how to cut folds; give --fold I/K too." in refused.stderr

"""What evaluation gives of each record, of any classifier, and what it says where a figure means little or nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hkmap
from hkmap.engine.data import make_data
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import new_model, save_model
from hkmap.engine.validation import accuracy
from hkmap.errors import RunError
from hkmap.evaluation.curves import auc
from hkmap.evaluation.evaluate import EvaluationOptions, Row, evaluate
from hkmap.evaluation.explain import Asked
from hkmap.evaluation.metrics import METRICS, SampleMetric
from hkmap.evaluation.prediction import predict
from hkmap.evaluation.summary import summarise
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output
from hkmap.shards.sequence import ShardSequence

CPU = torch.device("cpu")
CLASSES = ("class 0", "class 1", "class 2")
STEPS = ("extractor", "attention", "perception")


def untrained(name="resnet8+abn", gate="residual", side=16):
    architecture = Architecture(name, 3, stem="small", width=4, gate=gate)
    model = new_model(architecture, Preprocessing(side, side), CLASSES, 0)
    model.network.eval()
    return model


@pytest.fixture
def shards(make_shard):
    """Ten records of three classes, of which seven have a map."""
    return ShardSequence([make_shard("a.h5", 10, classes=3, maps=7)])


def row_of(identifier, label, prediction, attention, values, curves):
    return Row(0, identifier, label, prediction, np.zeros(3, np.float32), attention, None, values, curves)


def counted(network):
    """How often each step of a network is computed from now on."""
    calls = Counter()
    for name in STEPS:
        getattr(network, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize(("metrics", "options", "wanted"), [
    (("top1", "mse"), {}, (3, 3, 3)),
    (("top1", "mse"), {"use_maps": True}, (3, 3, 6)),      # before too
    # 6 frames of each of 4, 4 and 2 images, and three passes to prepare
    (("insertion",), {}, (3 + 15 + 3, 3 + 15 + 3, 3 + 15 + 3)),
    (("insertion", "deletion"), {"blur": "zeros"}, (3 + 2 * 13 + 3,) * 3),      # 5 frames of each: 5 + 5 + 3 passes
    (("insertion",), {"hold_attention": True}, (3 + 15 + 3, 3 + 3, 3 + 15 + 3)),
    (("deletion",), {"use_maps": True}, (3 + 15 + 3, 3 + 3, 6 + 15 + 3)),
])
def test_no_step_of_the_network_is_computed_in_vain(shards, metrics, options, wanted):
    model = untrained()
    calls = counted(model.network)
    options = EvaluationOptions(metrics, step=43, batch_size=4, **options)       # 256 / 43 → 6 steps, 7 frames
    assert len(list(evaluate(model, shards, options, CPU))) == 10
    assert tuple(calls[name] for name in STEPS) == wanted


@pytest.mark.parametrize("use_maps", [False, True])
def test_prediction_computes_each_step_once_a_batch(hk, shards, use_maps):
    model, records = untrained(), hk("unpack", shards.shards[0].path).records
    calls = counted(model.network)
    assert len(list(predict(model, records, device=CPU, use_maps=use_maps, batch_size=4))) == 10
    assert calls == dict.fromkeys(STEPS, 3)


def test_a_row_holds_what_was_measured_of_a_record(hk, shards, tmp_path):
    records = [dict(record) for record in hk("unpack", shards.shards[0].path).records]
    del records[1]["label"], records[1]["class"]
    hk("pack", tmp_path / "b.h5", stdin=records)
    model, options = untrained(), EvaluationOptions(("top1", "mse", "insertion"), step=43, batch_size=4)
    rows = list(evaluate(model, ShardSequence([tmp_path / "b.h5"]), options, CPU))
    assert [row.id for row in rows] == [f"a.h5-{number}" for number in range(10)]
    assert [row.label for row in rows] == [0, None, 2, 0, 1, 2, 0, 1, 2, 0]
    found = list(predict(model, records, device=CPU))
    assert [row.prediction for row in rows] == [one.label for one in found]
    assert [row.attention for row in rows] == pytest.approx([one.attention.mean() for one in found], rel=1e-5)
    for row in rows:
        right = None if row.label is None else float(row.prediction == row.label)
        assert row.values["top1"] == right
        assert len(row.curves["insertion"]) == 7
        area = auc(torch.tensor(row.curves["insertion"])).item()
        assert row.values["insertion"] == pytest.approx(area, abs=1e-6)
    assert [row.values["mse"] is None for row in rows] == [False] * 7 + [True] * 3
    report = summarise(rows, model, options, CPU)
    assert report["counts"] == {"top1": 9, "mse": 7, "mse_of_zeros": 7, "insertion": 10}
    assert report["attention_mean"] == pytest.approx(np.mean([row.attention for row in rows]))


def test_the_summary_is_the_mean_of_what_applies():
    values = [(1.0, None, None), (0.0, 0.125, None), (None, 0.375, None)]
    found = [dict(zip(("top1", "mse", "mse_of_zeros"), own, strict=True)) for own in values]
    rows = [row_of("a", 0, 0, 0.5, found[0], {}), row_of("b", 1, 0, 0.25, found[1], {}),
            row_of("c", None, 1, 0.0, found[2], {})]
    report = summarise(rows, untrained(), EvaluationOptions(("top1", "mse")), CPU)
    assert report["samples"] == 3
    assert report["metrics"] == {"top1": 0.5, "mse": 0.25, "mse_of_zeros": None}
    assert report["counts"] == {"top1": 2, "mse": 2, "mse_of_zeros": 0}
    assert report["attention_mean"] == 0.25


class Brightest(nn.Module):
    """A classifier of somebody else: the quarter that is brightest, NaN for what ``breaks`` at."""

    def __init__(self, breaks=math.inf):
        super().__init__()
        self.breaks = breaks

    def forward(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)[:, :3]
        return Output(torch.where(quarters > self.breaks, math.nan, quarters), None, None)


def test_any_classifier_is_measured(shards):
    model = replace(untrained("resnet8"), network=Brightest())
    options = EvaluationOptions(("top1", "top5"), batch_size=4)
    report = summarise(hkmap.evaluate(model, shards, options, CPU), model, options, CPU)
    assert report["metrics"] == {"top1": 1.0, "top5": 1.0}       # the square of label 2 is in the third quarter
    assert "attention_mean" not in report
    for refused, told in (
        (EvaluationOptions(("mse",)), "so it has no map for mse; use --maps gradcam"),
        (EvaluationOptions(("top1",), hold_attention=True), "so no map can replace its own; omit --use-maps"),
    ):
        with pytest.raises(RunError, match=f"has no attention branch, {told}"):
            list(evaluate(model, shards, refused, CPU))


def gradient(asked):
    """Where the score of the class is sensitive to the image, at half its size."""
    given = asked.images.detach().requires_grad_()
    score = asked.network(given).logits.gather(1, asked.classes[:, None]).sum()
    (found,) = torch.autograd.grad(score, given)
    return nn.functional.avg_pool2d(found.abs().mean(1, keepdim=True), 2)


def test_a_map_from_elsewhere_is_measured_of_a_network_without_any(shards):
    model = replace(untrained("resnet8"), network=Brightest())
    options = EvaluationOptions(("mse", "insertion"), step=64, batch_size=4)
    rows = list(evaluate(model, shards, options, CPU, explain=gradient))
    for index, row in enumerate(rows[:7]):
        asked = Asked(model.network, torch.zeros(1, 3, 16, 16), torch.tensor([row.prediction]), None, None, [], [])
        seen = gradient(asked)[0, 0]
        assert seen.count_nonzero() == 16
        human = shards.read(index).map
        assert row.values["mse"] == pytest.approx(((seen.numpy() - human) ** 2).mean(), rel=1e-5)
        first, second, *later = row.curves["insertion"]
        assert second > first       # the class's quarter comes first, and is whole after a quarter of the pixels
        assert later == pytest.approx(later[:1] * 3, abs=0.2)


def test_the_networks_own_map_as_one_from_elsewhere_changes_nothing(shards):
    model, options = untrained(), EvaluationOptions(("mse", "deletion"), step=43)
    own = [row.values for row in evaluate(model, shards, options, CPU)]
    given = evaluate(model, shards, options, CPU, explain=lambda asked: asked.network(asked.images).attention.detach())
    assert [row.values for row in given] == own
    with pytest.raises(RunError, match=r"maps of shape \(10, 8, 8\); expected \(10, 1, h, w\)"):
        list(evaluate(model, shards, options, CPU, explain=lambda *_: torch.rand(10, 8, 8)))


def test_an_answer_that_is_not_finite_stops_with_the_record(shards, hk, tmp_path):
    path = shards.shards[0].path
    means = [shards.shards[0].image(row)[8:, :8].mean() for row in range(10)]       # label 2 is bright there
    assert np.argmax(means) in (2, 5, 8)
    model = replace(untrained("resnet8"), network=Brightest(breaks=-10))
    with pytest.raises(RunError, match=r"a\.h5#0: the network's answer is NaN or infinite; train again"):
        list(evaluate(model, shards, EvaluationOptions(("top1",)), CPU))
    third = sorted(means)[-1]
    preprocessing = model.preprocessing
    breaks = (third / 255 - np.mean(preprocessing.mean)) / np.mean(preprocessing.std) - 0.02
    model = replace(model, network=Brightest(breaks))
    with pytest.raises(RunError, match=rf"a\.h5#({'|'.join(['2', '5', '8'])}): the network's answer"):
        list(evaluate(model, shards, EvaluationOptions(("top1",), batch_size=4), CPU))
    with pytest.raises(RunError, match=r'record "a\.h5-[258]": the network\'s answer is NaN'):
        list(predict(model, hk("unpack", path).records, device=CPU, batch_size=4))
    data = make_data(untrained("resnet8"), shards, shards)
    with pytest.raises(RunError, match=r"a\.h5#[258]: the network's answer is NaN"):
        accuracy(model.network, data.validation, CPU, 4)


def test_eval_and_predict_stop_where_a_run_overflows(hk, shards, tmp_path):
    model = untrained()
    with torch.no_grad():
        model.network.perception.fc.weight.fill_(3e38)
    save_model(tmp_path / "last.pt", model)
    evaluated = hk("eval", shards.shards[0].path, "--from", tmp_path / "last.pt", "--metric", "top1")
    assert (evaluated.exit_code, list(evaluated.records[0])) == (1, ["error"])
    assert "a.h5#0: the network's answer is NaN or infinite; train again, with a lower --lr" in evaluated.stderr
    predicted = hk("predict", "--from", tmp_path / "last.pt", "--on-error", "skip", "--max-errors", 99,
                   stdin=hk("unpack", shards.shards[0].path).stdout)
    assert predicted.exit_code == 1
    assert 'record "a.h5-0": the network\'s answer is NaN or infinite' in predicted.stderr


def test_a_figure_that_is_not_finite_stops_with_the_record(shards, monkeypatch):
    broken = SampleMetric("Broken", lambda found: torch.where(found.batch.labels == 1, math.nan, 0.0), higher=True,
                    needs_map=False)
    monkeypatch.setitem(METRICS._rows, "broken", broken)
    with pytest.raises(RunError, match=r"a\.h5#1: broken is nan; expected a finite number where the metric applies"):
        list(evaluate(untrained(), shards, EvaluationOptions(("broken",)), CPU))


@pytest.mark.parametrize(("name", "maps"), [("resnet8+abn", 7), ("resnet8+abn", 0), ("resnet8", 7)])
def test_validation_tells_what_an_evaluation_tells(make_shard, name, maps):
    model, shards = untrained(name), ShardSequence([make_shard("v.h5", 10, classes=3, maps=maps)])
    found = accuracy(model.network, make_data(model, shards, shards).validation, CPU, 4, gamma=0.5)
    metrics = ("top1", "mse") if name.endswith("+abn") else ("top1",)
    options = EvaluationOptions(metrics, batch_size=3)
    report = summarise(evaluate(model, shards, options, CPU), model, options, CPU)
    wanted = {key: value for key, value in report["metrics"].items() if value is not None}
    if name.endswith("+abn"):
        wanted["attention_mean"] = report["attention_mean"]
    assert {key: value for key, value in found.items() if key not in ("loss", "total")} == pytest.approx(wanted)
    assert found["total"] >= found["loss"] > 0


def dark(model):
    with torch.no_grad():
        model.network.attention.map_norm.weight.zero_()
        model.network.attention.map_norm.bias.fill_(-6)     # sigmoid(-6) = 0.0025
    return model


@pytest.mark.parametrize(("gate", "told"), [("product", True), ("residual", False)])
def test_a_dark_attention_is_told_where_it_hides(shards, caplog, gate, told):
    model, options = dark(untrained(gate=gate)), EvaluationOptions(("mse",))
    report = summarise(evaluate(model, shards, options, CPU), model, options, CPU)
    assert report["attention_mean"] == pytest.approx(0.00247, abs=1e-5)
    assert ("the attention is dark (mean 0.002" in caplog.text) == told
    assert "no closer to the human ones" not in caplog.text      # a little closer than zeros


@pytest.mark.parametrize(("maps", "told"), [("attention", True), ("gradcam", False)])
def test_an_attention_that_is_the_same_everywhere_is_told(shards, caplog, maps, told):
    model, options = dark(untrained()), EvaluationOptions(("spearman",), maps=maps)
    summarise(evaluate(model, shards, options, CPU), model, options, CPU)
    assert (f"attention of {len(shards)} of {len(shards)} records is the same in every place" in caplog.text) == told


def test_an_attention_that_differs_is_not(shards, caplog):
    model, options = untrained(), EvaluationOptions(("spearman",))
    summarise(evaluate(model, shards, options, CPU), model, options, CPU)
    assert "the same in every place" not in caplog.text


@pytest.mark.parametrize(("values", "told"), [
    ({"mse": 0.2, "mse_of_zeros": 0.1}, "no closer to the human ones (mse 0.2000) than a map of zeros is (0.1000)"),
    ({"mse": 0.1, "mse_of_zeros": 0.1}, "no closer"), ({"mse": 0.05, "mse_of_zeros": 0.1}, None),
])
def test_a_map_no_closer_than_zeros_is_told(caplog, values, told):
    rows = [row_of("a", 0, 0, 0.4, values, {}), row_of("b", 1, 1, 0.4, values, {})]
    summarise(rows, untrained(), EvaluationOptions(("mse",)), CPU)
    assert (told or "") in caplog.text
    assert bool(caplog.text) == bool(told)


@pytest.mark.parametrize(("metric", "told"), [("top5", True), ("top5_error", True), ("top1", False)])
def test_five_of_three_classes_are_told(caplog, metric, told):
    rows = [row_of("a", 1, 1, 0.4, {metric: 1.0}, {}), row_of("b", 0, 1, 0.4, {metric: 1.0}, {})]
    summarise(rows, untrained(), EvaluationOptions((metric,)), CPU)
    assert ("of 3 classes the label is always among the five likeliest" in caplog.text) == told


def test_one_class_is_told(caplog):
    rows = [row_of("a", 1, 1, 0.4, {"top1": 1.0}, {}), row_of("b", None, 1, 0.4, {"top1": None}, {})]
    summarise(rows, untrained(), EvaluationOptions(("top1",)), CPU)
    assert "all labels are the same, so top1 and top5 do not tell" in caplog.text

"""Maps against human maps in `hkmap eval`, annotators among each other, and what an edited map does to the answer."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hkmap.engine.data import ShardExamples, normalise
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import TrainedModel
from hkmap.errors import ChoiceError, RunError
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.evaluation.human import maps_of_people, share_of_people
from hkmap.evaluation.metrics import METRICS
from hkmap.evaluation.summary import summarise
from hkmap.maps import agreement, similarity
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter

MARKED, PARTED = ("spearman", "kl", "iou", "iou@30", "nss"), ("energy", "pointing", "auc_judd")
HUMAN = ("mse", *MARKED, *PARTED)
SIDE = 8      # of the network's map
CPU = torch.device("cpu")


def model_of(name: str = "resnet8+abn") -> TrainedModel:
    torch.manual_seed(0)
    architecture = Architecture(name, 3, stem="small", width=4)
    model = TrainedModel(build(architecture).eval(), architecture, Preprocessing(16, 16), ("a", "b", "c"), "none")
    assert model.map_size == (SIDE, SIDE) if architecture.has_attention else True
    return model


def human_map(seed, *, blank=0.4):
    values = np.random.default_rng(seed).random((SIDE, SIDE)).astype(np.float32)
    return np.where(values < blank, 0, values).astype(np.float32)


KNOWN = np.ones((SIDE, SIDE), np.float32)
HALF = np.concatenate([np.ones((SIDE // 2, SIDE)), np.zeros((SIDE // 2, SIDE))]).astype(np.float32)
#: What the records have: the human map, its certainty, and the maps of annotators.
RECORDS = [
    (human_map(0), KNOWN, {"x": human_map(1), "y": human_map(2) ** 30, "z": human_map(3) ** 30}),      # faint cells
    (human_map(4), KNOWN, {"x": human_map(5), "y": human_map(6), "z": 0 * KNOWN}),         # one marked nothing
    (human_map(7) * HALF, HALF, {"x": human_map(8) * HALF, "y": human_map(9) * HALF}),      # half is unknown
    (human_map(10), KNOWN, {"x": human_map(11)}),                                           # a single annotator
    (0 * KNOWN, KNOWN, {"x": 0 * KNOWN, "y": 0 * KNOWN}),                                   # nobody marked anything
    (KNOWN * 0.8, KNOWN, {}),                                                               # everything alike
    (0 * KNOWN, 0 * KNOWN, {}),                                                             # nothing is known
    (None, None, {}),                                                                       # no map
]


@pytest.fixture
def shard(tmp_path):
    path, random = tmp_path / "human.h5", np.random.default_rng(5)
    with ShardWriter(path) as writer:
        for number, (values, certainty, annotators) in enumerate(RECORDS):
            image = cv2.imencode(".png", random.integers(0, 255, (16, 16, 3), dtype=np.uint8))[1].tobytes()
            record = {"id": str(number), "image": "x.png", "label": number % 3, "class": "abc"[number % 3]}
            writer.add(record, image, values, certainty, annotators=annotators)
    return path


def rows_of(shard, *names, explain=None, model=None, **options):
    options = EvaluationOptions(names, **options)
    return list(evaluate(model or model_of(), ShardSequence([shard]), options, CPU, explain=explain))


def random_maps(asked):
    """Other maps for each record, whatever the batch."""
    return torch.stack([torch.from_numpy(human_map(100 + number, blank=0)) for number in asked.numbers])[:, None]


def literal(name, values, certainty, maps):
    """The measure over the known cells of one record; None where it does not apply."""
    if values is None or not (certainty > 0).any():
        return None
    human, other = (cells[certainty > 0].astype(np.float64)[None] for cells in (values, maps))
    inside = (human >= human.max() / 2).sum() if human.any() else 0
    if (name != "mse" and not human.any()) or (name in PARTED and inside in (0, human.size)):
        return None
    if name == "iou@30":
        return similarity.iou(human, other, 30)[0]
    return getattr(similarity, name)(human, other)[0]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_each_figure_is_the_measure_over_the_known_cells(shard, batch_size):
    for row in rows_of(shard, *HUMAN, explain=random_maps, batch_size=batch_size):
        values, certainty, _ = RECORDS[row.number]
        other = human_map(100 + row.number, blank=0)
        wanted = {name: literal(name, values, certainty, other) for name in HUMAN}
        found = {name: row.values[name] for name in HUMAN}
        absent = {name for name, figure in wanted.items() if figure is None}
        assert {name for name, figure in found.items() if figure is None} == absent, row.number
        for name in wanted.keys() - absent:
            assert found[name] == pytest.approx(wanted[name], abs=2e-5), (row.number, name)


def test_what_an_empty_human_map_and_one_that_marks_everything_leave_out(shard):
    rows = rows_of(shard, *HUMAN, explain=random_maps)
    assert {name for name in HUMAN if rows[4].values[name] is not None} == {"mse"}
    assert {name for name in HUMAN if rows[5].values[name] is not None} == {"mse", *MARKED}
    assert all(value is None for row in rows[6:] for value in row.values.values())


def test_a_dark_map_has_numbers(shard):
    rows = rows_of(shard, *HUMAN, explain=lambda asked: torch.zeros(len(asked.images), 1, 3, 5))
    for row in rows[:4]:
        human = RECORDS[row.number][0][RECORDS[row.number][1] > 0]
        share = np.mean(human >= human.max() / 2)
        assert row.values["energy"] == row.values["pointing"] == pytest.approx(share)
        assert (row.values["spearman"], row.values["nss"], row.values["auc_judd"]) == (0, 0, 0.5)
        assert 0 < row.values["kl"] < 10
        assert 0 < row.values["iou"] < 0.2


def test_a_flat_map_that_was_resized_orders_nothing(shard):
    """Sums of float32 differ between its cells, which must not count."""
    row = rows_of(shard, *HUMAN, explain=lambda asked: torch.full((len(asked.images), 1, 5, 7), 0.3))[0]
    assert (row.values["spearman"], row.values["nss"], row.values["auc_judd"]) == (0, 0, 0.5)


def test_a_map_that_is_not_finite_is_refused(shard):
    """Of a network whose answer is, as where human maps replace its own."""
    model = model_of()
    forward = model.network.forward
    model.network.forward = lambda images: forward(images)._replace(attention=torch.full((8, 1, SIDE, SIDE), torch.nan))
    with pytest.raises(RunError, match=r"human\.h5#0: the network's answer is NaN or infinite"):
        rows_of(shard, "iou", model=model, batch_size=8)


# annotators


def test_annotators_agree_as_hkmap_agreement_has_it(shard):
    rows = rows_of(shard, "mse", "spearman", "iou", "kl")
    people = [RECORDS[0][2], {name: RECORDS[1][2][name] for name in "xy"}]      # those who marked something
    figures = agreement.agreement_figures(people, repeats=1, random=np.random.default_rng(0))[:, 0, 0]
    for row, wanted in zip(rows, figures, strict=False):
        found = [row.values[f"{name}_of_people"] for name in agreement.MEASURES]
        assert found == pytest.approx(wanted.tolist(), abs=1e-5)


def test_annotators_agree_over_the_known_cells(shard):
    rows = rows_of(shard, *HUMAN)
    maps = list(RECORDS[2][2].values())
    for name in HUMAN:
        pairs = [literal(name, one, HALF, other) for one, other in (maps, maps[::-1])]
        assert rows[2].values[f"{name}_of_people"] == pytest.approx(np.mean(pairs), abs=2e-5)
    assert all(row.values[f"{name}_of_people"] is None for row in rows[3:] for name in HUMAN)


def test_annotators_are_seen_as_the_human_map_is(tmp_path):
    """A joint map that is that of the only annotator looks like his, in any view."""
    path, values = tmp_path / "one.h5", np.random.default_rng(0).random((20, 30)).astype(np.float32)
    with ShardWriter(path) as writer:
        image = cv2.imencode(".png", np.zeros((24, 40, 3), np.uint8))[1].tobytes()
        record = {"id": "0", "image": "x.png", "label": 0, "class": "a"}
        writer.add(record, image, values, None, annotators={"x": values})
    for fit in ("squash", "crop", "letterbox"):
        examples = ShardExamples(ShardSequence([path]), Preprocessing(16, 16, fit), (SIDE, SIDE))
        assert maps_of_people(examples, 0)[0].tolist() == examples.example(0).map.ravel().tolist()


def test_a_share_of_the_annotators_agreement():
    own, people = np.array([0.2, 0.4, np.nan, 0.9]), np.array([0.5, 0.7, 0.1, np.nan])
    weights = np.array([[1, 1, 1, 1], [3, 0, 1, 0], [0, 0, 2, 2.0]])
    shares = share_of_people(own, people, weights, higher=True)
    assert shares == pytest.approx([0.6 / 1.2, 0.2 / 0.5, np.nan], nan_ok=True)
    assert share_of_people(own, people, weights, higher=False)[0] == pytest.approx(1.2 / 0.6)
    assert np.isnan(share_of_people(own, -people, weights, higher=True)).all()      # people who do not agree


# what an edited map does


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_edit_response_record_by_record(shard, batch_size):
    model, reader = model_of(), ShardSequence([shard])
    images = np.stack([reader.read(number).image("x") for number in range(len(reader))])
    network, inputs = model.network, normalise(torch.from_numpy(images), model.preprocessing)
    rows = rows_of(shard, "edit_response", model=model, batch_size=batch_size)
    with torch.no_grad():
        clean = network(inputs)
        for row in rows:
            own = clean.attention[row.number : row.number + 1]
            before = clean.attention[row.number - 1 : row.number] if row.number else None
            for name, edited in (("erased", 0 * own), ("inverted", 1 - own), ("exchanged", before)):
                found = row.values[f"edit_response_{name}"]
                if edited is None:
                    assert found is None
                    continue
                answer = network(inputs[row.number : row.number + 1], edited).logits.softmax(1)
                moved = (answer - clean.logits.softmax(1)[row.number]).abs().sum().item() / 2
                assert found == pytest.approx(moved, abs=1e-6)
                assert 0 < found <= 1


def test_an_erased_map_says_as_much_as_none_where_the_gate_is_residual(shard):
    model = model_of()
    model.network.gate = lambda features, attention: features       # a network that ignores its map
    found = rows_of(shard, "edit_response", model=model)[3].values
    assert set(found.values()) == {0}


@pytest.mark.parametrize("name", ["edit_response", "attention_mean"])
def test_a_network_without_branch_has_no_map_to_edit(shard, name):
    with pytest.raises(RunError, match=f"no attention branch, whose map {name} is about; omit {name}"):
        rows_of(shard, name, model=model_of("resnet8"), explain=random_maps)


def test_the_mean_of_the_attention_is_a_metric_too(shard):
    for row in rows_of(shard, "attention_mean", explain=random_maps):
        assert row.values["attention_mean"] == row.attention


# names


def test_names_may_have_hyphens():
    assert EvaluationOptions(("edit-response", "auc-judd", "iou@20")).metrics == ("edit_response", "auc_judd", "iou@20")
    assert "edit-response" in METRICS
    assert METRICS["auc-judd"] is METRICS["auc_judd"]


@pytest.mark.parametrize("name", ["iou@0", "iou@100", "iou@", "iou@x", "iou@2.5", "iou@05"])
def test_a_percentage_that_is_none(name):
    with pytest.raises(ChoiceError, match=f"^metric '{name}': expected a whole percentage of the cells from 1 to 99"):
        METRICS[name]
    assert name not in METRICS


def test_iou_is_that_of_the_highest_tenth(shard):
    for row in rows_of(shard, "iou", "iou@10", "iou@11"):
        assert row.values["iou"] == row.values["iou@10"]
    assert METRICS["iou@99"].higher


def test_the_list_tells_which_way_is_better(hk):
    listed = {row["name"]: row for row in hk("list", "metrics").records}
    for name in ("auc_judd", "energy", "iou@P", "kl"):
        assert listed[name]["unit"]
        assert ("higher" if listed[name]["higher"] else "lower") + " is better" in listed[name]["doc"]
    assert listed["kl"]["higher"] is False
    assert listed["edit_response"]["higher"] is None
    assert listed["energy"]["source"] == "Wang et al., CVPRW 2020"


@pytest.fixture
def run(hk, shard, tmp_path):
    options = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--epochs", 1]
    assert hk("train", shard, *options, "--out", tmp_path / "run").exit_code == 0
    return tmp_path / "run"


def test_the_command_measures_annotators_where_there_are_any(hk, shard, run, tmp_path):
    result = hk("eval", shard, "--from", run, "--metric", "mse,iou@20,edit-response,auc-judd",
                "--per-record", tmp_path / "each.jsonl")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["counts"] == {
        "mse": 6, "mse_of_zeros": 6, "mse_of_people": 3, "iou@20": 5, "iou@20_of_people": 3,
        "edit_response_erased": 8, "edit_response_inverted": 8, "edit_response_exchanged": 7,
        "auc_judd": 4, "auc_judd_of_people": 3,
    }
    assert list(report["share_of_people"]) == ["mse", "iou@20", "auc_judd"]
    assert all(share > 0 for share in report["share_of_people"].values())
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert np.mean([line["mse_of_people"] for line in each[:3]]) == pytest.approx(report["metrics"]["mse_of_people"])
    wrong = hk("eval", shard, "--from", run, "--metric", "iou@200")
    assert (wrong.exit_code, "from 1 to 99, such as iou@20" in wrong.stderr) == (2, True)


def test_an_evaluation_that_goes_on_exchanges_the_same_maps(hk, shard, run, tmp_path):
    options = [shard, "--from", run, "--metric", "edit-response,iou", "--batch-size", 2, "--out", tmp_path / "results"]
    assert hk("eval", *options).exit_code == 0
    file, report = tmp_path / "results" / "records.jsonl", tmp_path / "results" / "eval.json"
    unbroken = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))      # the header and two batches
    report.unlink()
    resumed = hk("eval", *options, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert [json.loads(line) for line in file.read_text().splitlines()[1:]] == unbroken
    assert unbroken[4]["values"]["edit_response_exchanged"] is not None


def test_shares_are_over_the_records_that_have_both(shard):
    model, options = model_of(), EvaluationOptions(("spearman", "mse"))
    rows = list(evaluate(model, ShardSequence([shard]), options, CPU, explain=random_maps))
    both = [row.values for row in rows if row.values["spearman_of_people"] is not None]
    report = summarise(rows, model, options, CPU)
    shares = report["share_of_people"]
    own, people = (sum(values[name] for values in both) for name in ("spearman", "spearman_of_people"))
    assert (len(both), shares["spearman"]) == (3, None if people <= 0 else pytest.approx(own / people))
    own, people = (sum(values[name] for values in both) for name in ("mse", "mse_of_people"))
    assert shares["mse"] == pytest.approx(people / own)
    low, high = report["share_of_people_intervals"]["mse"]
    assert 0 < low < shares["mse"] < high


def test_shards_without_annotators_have_no_shares(make_shard):
    model, options = model_of(), EvaluationOptions(("mse", "confusion", "auroc"))
    model = replace(model, class_names=("class 0", "class 1", "c"))
    report = summarise(evaluate(model, ShardSequence([make_shard("bare.h5", 6)]), options, CPU), model, options, CPU)
    assert "share_of_people" not in report
    assert list(report["metrics"]) == ["mse", "mse_of_zeros", "auroc"]
    assert report["confusion"]["classes"] == ["class 0", "class 1", "c"]
    assert sum(map(sum, report["confusion"]["matrix"])) == 6

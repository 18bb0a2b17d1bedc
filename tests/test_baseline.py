"""`hkmap eval --only misclassified`: a set that is fixed once, by a baseline or by the network itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_results import change
from test_rows import untrained

from hkmap.engine.runs import save_model
from hkmap.errors import RunError
from hkmap.results.baseline import misclassified
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter

OPTIONS = ["--metric", "error,insertion", "--step", 64, "--batch-size", 4, "--device", "cpu"]


@pytest.fixture
def given(make_shard, tmp_path):
    """Two weights, of which the second always answers class 2, and a shard of ten records of three classes."""
    shard = make_shard("a.h5", 10, classes=3, maps=7)
    save_model(tmp_path / "ours.safetensors", untrained())
    other = untrained()
    with torch.no_grad():
        list(other.network.parameters())[-1].copy_(torch.tensor([0.0, 0.0, 1e6]))
    save_model(tmp_path / "other.safetensors", other)
    return tmp_path / "ours.safetensors", tmp_path / "other.safetensors", shard


def predictions(weights, hk, shard):
    predicted = hk("predict", "--from", weights, stdin=hk("unpack", shard).stdout)
    return [record["prediction"] for record in predicted.records]


def results_of(hk, tmp_path, *command):
    out = tmp_path / "results"
    done = hk("eval", *command, "--out", out, "--overwrite")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()[1:]]
    return done.records[0], rows, done.stderr


def test_the_network_itself_says_what_it_misclassifies(hk, given, tmp_path):
    ours, _, shard = given
    report, rows, said = results_of(hk, tmp_path, shard, "--from", ours, *OPTIONS, "--only", "misclassified")
    labels = ShardReader(shard).labels.tolist()
    wrong = [number for number, answer in enumerate(predictions(ours, hk, shard)) if answer != labels[number]]
    assert 0 < len(wrong) < 10
    assert [row["number"] for row in rows] == wrong
    assert report["only"] == {"what": "misclassified", "baseline": None, "records": len(wrong), "of": 10}
    assert (report["samples"], report["metrics"]["error"]) == (len(wrong), 1)
    assert f"{len(wrong)} misclassified of 10" in " ".join(said.split())


def test_the_class_of_the_curves_is_then_the_label(hk, given, tmp_path):
    ours, _, shard = given
    command = (shard, "--from", ours, *OPTIONS, "--only", "misclassified")
    report, rows, _ = results_of(hk, tmp_path, *command)
    assert report["settings"]["target"] == "label"
    for row in rows:
        whole = row["curves"]["insertion"][-1]
        assert whole == pytest.approx(row["probabilities"][row["label"]], abs=1e-5)
    report, rows, _ = results_of(hk, tmp_path, *command, "--target", "predicted")
    assert report["settings"]["target"] == "predicted"
    assert rows[0]["curves"]["insertion"][-1] == pytest.approx(rows[0]["confidence"], abs=1e-5)


def test_a_baseline_fixes_the_set_for_others(hk, given, tmp_path):
    ours, other, shard = given
    labels = ShardReader(shard).labels.tolist()
    wanted = [number for number in range(10) if labels[number] != 2]
    command = (shard, "--from", ours, *OPTIONS, "--only", "misclassified", "--baseline")
    report, rows, _ = results_of(hk, tmp_path, *command, other)
    assert [row["number"] for row in rows] == wanted
    assert report["only"] == {"what": "misclassified", "baseline": str(other), "records": 7, "of": 10}
    assert hk("eval", shard, "--from", other, "--metric", "top1", "--out", tmp_path / "base").exit_code == 0
    again, same, _ = results_of(hk, tmp_path, *command, tmp_path / "base")
    assert same == rows
    assert again == {**report, "only": {**report["only"], "baseline": str(tmp_path / "base")}}


def test_before_and_after_on_what_is_misclassified(hk, given, tmp_path):
    ours, _, shard = given
    report, rows, _ = results_of(
        hk, tmp_path, shard, "--from", ours, "--metric", "error", "--use-maps", "--only", "misclassified"
    )
    assert report["metrics"]["error_before"] == 1       # by the network's own maps
    assert report["metrics"]["error"] == np.mean([row["prediction"] != row["label"] for row in rows])


def test_it_composes_with_a_fold(hk, given, tmp_path):
    ours, other, shard = given
    fold = ("--fold", "1/2", "--fold-seed", 3)
    whole = results_of(hk, tmp_path, shard, "--from", ours, "--metric", "top1", *fold)[1]
    report, rows, _ = results_of(
        hk, tmp_path, shard, "--from", ours, "--metric", "top1", *fold, "--only", "misclassified", "--baseline", other
    )
    assert [row["id"] for row in rows] == [row["id"] for row in whole if row["label"] != 2]
    assert (report["only"]["of"], report["fold"]) == (len(whole), "1/2")


def test_records_without_a_label_are_left_out_and_counted(hk, given, tmp_path):
    _, other, shard = given
    reader = ShardReader(shard)
    with ShardWriter(tmp_path / "b.h5", classes=reader.classes) as writer:
        for number in range(6):
            sample = reader.read(number)
            record = sample.record if number != 1 else {"id": "nobody knows", "image": "x.png"}
            writer.add(record, sample.image_bytes, sample.map, None)
    report, rows, said = results_of(
        hk, tmp_path, tmp_path / "b.h5", "--from", other, "--metric", "top1", "--only", "misclassified"
    )
    assert [row["number"] for row in rows] == [0, 3, 4]
    assert report["only"]["of"] == 5
    assert "1 of 6 records have no label, so nobody knows whether they are misclassified; they are left out" in said


@pytest.mark.parametrize("labels", [[2, 2], [-1, -1]])
def test_a_set_without_a_record_is_refused(given, labels):
    shards = ShardSequence([given[2]])
    shards.labels = np.array(labels)
    known = labels.count(2)
    with pytest.raises(RunError, match=f"of {known} records with a label none is misclassified, so nothing is left"):
        misclassified(shards, np.arange(2), lambda numbers: np.full(len(numbers), 2))


def test_a_baseline_of_other_records_is_refused(hk, given, tmp_path, make_shard):
    ours, other, shard = given
    less = make_shard("b.h5", 4, classes=3)
    assert hk("eval", less, "--from", other, "--metric", "top1", "--out", tmp_path / "base").exit_code == 0
    command = ("eval", shard, "--from", ours, "--metric", "top1", "--only", "misclassified", "--baseline")
    done = hk(*command, tmp_path / "base")
    assert done.exit_code == 1
    assert f'{tmp_path / "base"}: the baseline has no record "a.h5-0", and lacks 10 of the 10' in done.stderr
    assert hk("eval", shard, "--from", other, "--metric", "top1", "--out", tmp_path / "same").exit_code == 0
    change(tmp_path / "same", 3, label=0)
    done = hk(*command, tmp_path / "same")
    assert done.exit_code == 1
    assert 'in the baseline record "a.h5-2" has label 0, in' in done.stderr
    assert "a.h5#2 2; evaluate it on the same shards" in done.stderr


def test_a_baseline_that_was_given_human_maps_is_refused(hk, given, tmp_path):
    ours, _, shard = given
    command = ("eval", shard, "--from", ours, "--metric", "top1")
    assert hk(*command, "--use-maps", "--out", tmp_path / "base").exit_code == 0
    done = hk(*command, "--only", "misclassified", "--baseline", tmp_path / "base")
    assert (done.exit_code, "the baseline answered with human maps in place of its own" in done.stderr) == (1, True)


def test_a_baseline_alone_is_refused(hk, given):
    ours, other, shard = given
    done = hk("eval", shard, "--from", ours, "--metric", "top1", "--baseline", other)
    assert (done.exit_code, "give --only misclassified too" in done.stderr) == (2, True)

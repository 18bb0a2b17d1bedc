"""`hkmap eval` and `hkmap predict`: figures worked the slow way, a person's map in the place of the predicted one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hkmap.engine.data import normalise
from hkmap.engine.resize import resize_maps
from hkmap.engine.runs import load_model
from hkmap.evaluation.curves import auc, deletion, insertion
from hkmap.evaluation.evaluate import EvaluationOptions
from hkmap.shards.reader import ShardReader
from hkmap.stream.references import load_map

SMALL = ["--stem", "small", "--width", "4", "--image-size", "16", "--batch-size", "4", "--epochs", "3"]
ALL = [word for name in ("top1", "top5", "log_loss", "mse", "insertion", "deletion") for word in ("--metric", name)]


@pytest.fixture
def run(hk, make_shard, tmp_path):
    shard = make_shard("test.h5", 10, classes=3, maps=7)
    result = hk("train", shard, "--arch", "resnet8+abn", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    return tmp_path / "run", shard


def clean_pass(folder, shard):
    """The network, its input images and its output on the whole shard."""
    model, reader = load_model(folder), ShardReader(shard)
    images = normalise(torch.from_numpy(np.stack([reader.image(i) for i in range(len(reader))])), model.preprocessing)
    with torch.no_grad():
        return model.network, images, model.network(images), reader


def test_all_metrics_are_what_they_say(hk, run):
    folder, shard = run
    result = hk("eval", shard, "--from", folder, *ALL, "--step", 40)
    assert result.exit_code == 0, result.stderr
    report = result.records[0]
    network, images, output, reader = clean_pass(folder, shard)
    answers = output.logits.argmax(1)
    assert report["metrics"]["top1"] == pytest.approx(np.mean(answers.numpy() == reader.labels))
    assert report["metrics"]["top5"] == 1.0                                # of three classes
    distances = [
        np.mean((output.attention[i, 0].numpy() - reader.map(i)) ** 2) for i in range(10) if reader.has_map[i]
    ]
    assert report["metrics"]["mse"] == pytest.approx(np.mean(distances), rel=1e-5)
    squares = [np.mean(reader.map(i) ** 2) for i in range(10) if reader.has_map[i]]
    assert report["metrics"]["mse_of_zeros"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert report["attention_mean"] == pytest.approx(output.attention.mean().item(), rel=1e-5)
    chosen = output.logits.softmax(1).numpy()[np.arange(10), reader.labels]
    assert report["metrics"]["log_loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    counts = {"top1": 10, "top5": 10, "log_loss": 10, "mse": 7, "mse_of_zeros": 7, "insertion": 10, "deletion": 10}
    assert report["counts"] == counts
    for name, measure in (("insertion", insertion), ("deletion", deletion)):
        areas = []
        for i, image in enumerate(images):
            def score(frames, chosen=answers[i]):
                return network(frames).logits.softmax(1)[:, chosen]

            saliency = resize_maps(output.attention[i : i + 1], (16, 16))[0, 0]
            with torch.no_grad():
                areas.append(auc(measure(score, image, saliency, 40)).item())
        assert report["metrics"][name] == pytest.approx(np.mean(areas), abs=1e-5)
    assert report["settings"]["step"] == 40
    assert report["settings"]["blur"] == "rise"
    assert "insertion" in result.stderr      # the table for people


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_no_figure(hk, run, batch_size):
    folder, shard = run
    wanted = hk("eval", shard, "--from", folder, *ALL).records[0]["metrics"]
    found = hk("eval", shard, "--from", folder, *ALL, "--batch-size", batch_size).records[0]["metrics"]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_holding_the_attention_gives_other_curves(hk, run):
    folder, shard = run
    options = ["--from", folder, "--metric", "insertion"]
    anew = hk("eval", shard, *options).records[0]
    held = hk("eval", shard, *options, "--hold-attention").records[0]
    assert held["settings"]["hold_attention"]
    assert held["metrics"] != anew["metrics"]


def test_a_packed_map_equal_to_the_predicted_one_changes_nothing(hk, run, tmp_path):
    folder, shard = run
    unpacked = hk("unpack", shard, "--out", tmp_path / "files").stdout
    predicted = hk("predict", "--from", folder, "--out", tmp_path / "attention.h5", stdin=unpacked).records
    own = [{**record, "map": record["attention"]} for record in predicted]
    assert hk("pack", tmp_path / "own.h5", stdin=own).exit_code == 0
    options = [tmp_path / "own.h5", "--from", folder, "--metric", "top1", "--metric", "mse", "--metric", "insertion"]
    plain, given = hk("eval", *options, "--hold-attention"), hk("eval", *options, "--use-maps")
    own_maps, human_maps = plain.records[0]["metrics"], given.records[0]["metrics"]
    assert {**own_maps, "top1_before": own_maps["top1"]} == human_maps
    assert own_maps["mse"] == 0
    again = hk("predict", "--from", folder, "--use-maps", stdin=own).records
    assert [record["confidence"] for record in again] == [record["confidence"] for record in predicted]


def test_an_edited_map_changes_the_answer_of_its_sample_alone(hk, run, tmp_path):
    folder, shard = run
    stream = hk("unpack", shard).stdout
    plain = hk("predict", "--from", folder, stdin=stream).records
    used = hk("predict", "--from", folder, "--use-maps", stdin=stream).records
    differs = [a["confidence"] != b["confidence"] for a, b in zip(plain, used, strict=True)]
    assert differs == [True] * 7 + [False] * 3      # the last three have no map


def test_predict_adds_what_the_network_says(hk, run, tmp_path):
    folder, shard = run
    records = hk("unpack", shard, "--out", tmp_path / "files").records
    records[0]["note"] = "kept"
    found = hk("predict", "--from", folder, "--out", tmp_path / "maps", "--key", "after", stdin=records).records
    _, _, output, _ = clean_pass(folder, shard)
    assert [record["prediction"] for record in found] == output.logits.argmax(1).tolist()
    confidences = output.logits.softmax(1).max(1).values.tolist()
    assert [record["confidence"] for record in found] == pytest.approx(confidences, abs=1e-5)
    assert np.allclose(load_map(found[4]["after"]), output.attention[4, 0], atol=1e-5)
    assert found[0]["note"] == "kept"
    assert "attention" not in found[0]


def test_predict_skips_a_bad_image_and_counts_it(hk, run, tmp_path):
    folder, shard = run
    records = hk("unpack", shard, "--out", tmp_path / "files").records
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    records[3]["image"] = str(tmp_path / "broken.png")
    del records[5]["image"]
    stopped = hk("predict", "--from", folder, stdin=records)
    assert stopped.exit_code == 1
    assert "broken.png" in stopped.stderr
    skipped = hk("predict", "--from", folder, "--on-error", "skip", "--max-errors", 2, stdin=records)
    assert skipped.exit_code == 0
    assert len(skipped.records) == 8
    assert 'no key "image" with a path' in skipped.stderr


def test_an_evaluation_on_what_was_learnt_is_told(hk, run, make_shard, tmp_path):
    folder, shard = run
    (tmp_path / "other-name.h5").write_bytes(shard.read_bytes())
    unseen = make_shard("unseen.h5", 9, classes=3)
    said = "the network learnt from this shard, so its figures say little of other images"
    for weights in (folder, folder / "last.safetensors"):
        seen = hk("eval", tmp_path / "other-name.h5", "--from", weights, "--metric", "top1")
        assert f"other-name.h5: {said}" in " ".join(seen.stderr.split())
    assert "learnt from" not in hk("eval", unseen, "--from", folder, "--metric", "top1").stderr


def test_a_metric_that_applies_to_no_sample_is_null(hk, make_shard, tmp_path):
    shard = make_shard("bare.h5", 6, maps=0)
    hk("train", shard, "--arch", "resnet8+abn", *SMALL, "--out", tmp_path / "run")
    result = hk("eval", shard, "--from", tmp_path / "run", "--metric", "mse", "--metric", "top1")
    assert result.records[0]["metrics"]["mse"] is None
    assert result.records[0]["counts"] == {"mse": 0, "mse_of_zeros": 0, "top1": 6}
    assert "none" in result.stderr
    assert hk("eval", shard, "--from", tmp_path / "run", "--metric", "mse", "-q").stderr == ""


def test_a_plain_network_has_accuracy_alone(hk, make_shard, tmp_path):
    shard = make_shard("plain.h5", 6)
    hk("train", shard, "--arch", "resnet8", *SMALL, "--out", tmp_path / "run")
    assert hk("eval", shard, "--from", tmp_path / "run", "--metric", "top1").exit_code == 0
    for options, told in (
        (["--metric", "insertion"], "no map for insertion; use --maps gradcam"),
        (["--metric", "top1", "--use-maps"], "no map can replace its own"),
    ):
        result = hk("eval", shard, "--from", tmp_path / "run", *options)
        assert result.exit_code == 1
        assert told in result.stderr
    stream = hk("unpack", shard).stdout
    saved = hk("predict", "--from", tmp_path / "run", "--out", tmp_path / "maps", stdin=stream)
    assert "no maps to save; use --maps gradcam, or omit --out" in saved.stderr
    used = hk("predict", "--from", tmp_path / "run", "--use-maps", stdin=stream)
    assert "no map can replace its own" in used.stderr


@pytest.mark.parametrize(("size", "step"), [((224, 224), 1792), ((48, 48), 83), ((360, 360), 4629)])
def test_the_default_step_is_a_28th_of_the_image(size, step):
    assert EvaluationOptions(()).pixel_step(size) == step
    assert EvaluationOptions((), step=224).pixel_step(size) == 224


def test_metrics_with_commas_between_them(hk, run):
    folder, shard = run
    joined = hk("eval", shard, "--from", folder, "--metric", "top1, mse", "--metric", "top5")
    assert list(joined.records[0]["metrics"]) == ["top1", "mse", "mse_of_zeros", "top5"]
    wrong = hk("eval", shard, "--from", folder, "--metric", "top1,msee")
    assert (wrong.exit_code, "metric 'msee' is unknown; did you mean 'mse'?" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"label": 3}, "label 3 is beyond the network's 3 classes; number the classes as in its training, or omit label"),
    ({"class": "dog"}, 'label 0 is "dog", for the network it is "class 0"; number the classes'),
    ({"label": 1, "class": "class 2"}, 'label 1 is "class 2", for the network it is "class 1"'),
    ({"label": None, "class": "dog"}, None), ({"label": -1, "class": "dog"}, None), ({"class": ""}, None),
])
def test_predict_compares_the_labels(hk, run, changes, sentence):
    folder, shard = run
    record = hk("unpack", shard).records[0] | changes
    result = hk("predict", "--from", folder, stdin=[record])
    assert (result.exit_code, sentence is None or f'record "{record["id"]}": {sentence}' in result.stderr) == (
        0 if sentence is None else 1, True
    )

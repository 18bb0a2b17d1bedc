"""The folder of results of `hkmap eval --out`: what it keeps, how it goes on after a kill, what of it is refused."""

from __future__ import annotations

import csv
import json
import math
import random

import numpy as np
import pytest
import torch
from test_rows import CLASSES, untrained

from hkmap.engine.folders import write_config
from hkmap.engine.runs import save_model
from hkmap.errors import OutputError, RunError
from hkmap.report.tables import check_table, table
from hkmap.results.folder import Results, read_results, same_data
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter

COLUMNS = ["top1", "mse", "mse_of_zeros", "insertion"]
METRICS = ["--metric", "top1,mse,insertion", "--step", 64, "--batch-size", 4, "--device", "cpu"]


@pytest.fixture
def given(make_shard, tmp_path):
    """A run folder, a shard of ten records, of which seven have a map, and where the results go."""
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "best.safetensors", untrained())
    return tmp_path / "run", make_shard("a.h5", 10, classes=3, maps=7), tmp_path / "results"


@pytest.fixture
def results(hk, given):
    """The command that made the results, and their folder."""
    run, shard, out = given
    command = ("eval", shard, "--from", run, *METRICS, "--out", out)
    done = hk(*command)
    assert done.exit_code == 0, done.stderr
    return command, out


def lines_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def change(folder, number, **values):
    """Give values to a line, the header being 0; None for one that goes."""
    lines = lines_of(folder)
    lines[number] = {key: value for key, value in {**lines[number], **values}.items() if value is not KeyError}
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# what it keeps


def test_it_keeps_the_report_and_each_record(hk, given, results):
    _, shard, _ = given
    command, out = results
    again = hk(*command[:-2]).records[0]
    found = read_results(out)
    assert found.report == again == json.loads((out / "eval.json").read_text())
    reader = ShardReader(shard)
    assert [row["id"] for row in found.rows] == reader.ids
    assert [row["label"] for row in found.rows] == reader.labels.tolist()
    for row in found.rows:
        assert row["class"] == CLASSES[row["label"]]
        assert row["predicted_class"] == CLASSES[row["prediction"]]
        assert row["prediction"] == int(np.argmax(row["probabilities"]))
        assert row["confidence"] == pytest.approx(max(row["probabilities"]), rel=1e-7)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-6)
        assert row["keys"] == {}
        assert np.shape(row["map"]) == (8, 8)
        scores = row["curves"]["insertion"]
        assert len(scores) == 5
        assert np.trapezoid(scores, dx=1 / 4) == pytest.approx(row["values"]["insertion"], abs=1e-6)
    for name in ("top1", "mse", "insertion"):
        values = [row["values"][name] for row in found.rows if row["values"][name] is not None]
        assert found.report["metrics"][name] == math.fsum(values) / len(values)
        assert found.report["counts"][name] == len(values)


def test_the_header_says_what_was_measured_and_how(hk, given, results):
    run, shard, _ = given
    header = read_results(results[1]).header
    assert header["run"]["path"] == str(run)
    assert header["run"]["arch"] == "resnet8+abn"
    assert header["run"]["control"] == "none"
    assert header["shards"] == [{"path": str(shard), "sha256": ShardReader(shard).digest}]
    assert header["classes"] == list(CLASSES)
    assert header["metrics"] == ["top1", "mse", "insertion"]
    assert header["settings"]["step"] == 64
    assert header["preprocessing"]["width"] == 16


@pytest.mark.parametrize(("config", "wanted"), [
    (None, (None, None)),
    ({"command": "train", "seed": 3}, (3, False)),
    ({"command": "finetune", "seed": 4, "gamma": 0.0}, (4, False)),
    ({"command": "finetune", "seed": 4, "gamma": 0.5}, (4, True)),
])
def test_the_header_says_how_the_run_was_taught(hk, given, config, wanted):
    run, shard, out = given
    if config:
        write_config(run / "config.toml", config)
    assert hk("eval", shard, "--from", run, "--metric", "top1", "--out", out).exit_code == 0
    header = read_results(out).header
    assert (header["run"]["seed"], header["run"]["maps_learnt"]) == wanted


def test_a_network_of_another_program_has_its_weights_in_the_header(hk, given, here, monkeypatch):
    _, shard, out = given
    (here / "own_network.py").write_text(
        "import torch\n\n\ndef make(value=0.5):\n"
        "    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))\n"
        "    for values in network.parameters():\n        torch.nn.init.constant_(values, value)\n"
        "    return network\n\n\ndef other():\n    return make(0.25)\n"
    )
    monkeypatch.syspath_prepend(str(here))
    command = ("eval", shard, "--metric", "log_loss", "--image-size", 16, "--out", out, "--model")
    assert hk(*command, "own_network:make").exit_code == 0
    header = read_results(out).header["run"]
    assert (header["path"], header["seed"], header["maps_learnt"]) == ("own_network:make", None, None)
    done = hk(*command, "own_network:other", "--resume")
    assert (done.exit_code, "run.weights is" in done.stderr) == (1, True)
    assert hk(*command, "own_network:make", "--resume").exit_code == 0


def test_a_record_keeps_its_own_texts_and_numbers(hk, given, tmp_path):
    run, shard, out = given
    sample, record = ShardReader(shard).read(0), {"id": "1", "image": "x.png", "map": "m.npy"}
    own = {"patient": "P7", "age": 61, "dose": 0.5, "left": True}
    with ShardWriter(tmp_path / "b.h5") as writer:
        writer.add({**record, **own, "boxes": [], "note": None}, sample.image_bytes, sample.map, None)
    assert hk("eval", tmp_path / "b.h5", "--from", run, "--metric", "top1", "--out", out).exit_code == 0
    assert read_results(out).rows[0]["keys"] == own


def test_a_run_folder_stands_for_the_results_inside(hk, given):
    run, shard, _ = given
    assert hk("eval", shard, "--from", run, "--metric", "top1", "--out", run / "eval").exit_code == 0
    assert read_results(run).path == run / "eval"


# nothing is lost


def test_existing_results_stay_unless_they_may_be_replaced(hk, given, results):
    command, out = results
    before = (out / "records.jsonl").read_bytes()
    refused = hk(*command)
    assert refused.exit_code == 1
    assert f"{out}: holds results already; choose another --out, or use --overwrite or --resume" in refused.stderr
    model = untrained()
    for parameter in model.network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    save_model(given[0] / "best.safetensors", model)
    failed = hk(*command, "--overwrite")
    assert (failed.exit_code, "answer is NaN or infinite" in failed.stderr) == (1, True)
    assert (out / "records.jsonl").read_bytes() == before
    assert read_results(out)
    save_model(given[0] / "best.safetensors", untrained(gate="product"))
    assert hk(*command, "--overwrite").exit_code == 0
    assert (out / "records.jsonl").read_bytes() != before
    assert read_results(out)


def test_results_are_no_file(hk, given):
    run, shard, _ = given
    done = hk("eval", shard, "--from", run, "--metric", "top1", "--out", shard)
    assert (done.exit_code, "a file, where a folder of results is to be written" in done.stderr) == (1, True)


# going on


def test_an_evaluation_that_goes_on_is_to_the_bit_one_that_was_not_broken_off(hk, given):
    run, shard, out = given
    metrics = "insertion,deletion_accuracy,mse,spearman,edit_response,auroc,kappa,log_loss,confusion,calibration_error"
    command = ("eval", shard, "--from", run, "--metric", metrics, *METRICS[2:], "--out", out, "--resamples", 50)
    assert hk(*command).exit_code == 0
    whole, report = (out / "records.jsonl").read_bytes(), (out / "eval.json").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, ends[0] - 1, ends[0], ends[3], ends[5] - 1, ends[8] + 9, ends[-1]):
        (out / "records.jsonl").write_bytes(whole[:cut])
        (out / "eval.json").unlink()
        done = hk(*command, "--resume")
        assert done.exit_code == 0, done.stderr
        found = (out / "records.jsonl").read_bytes()
        start = found.index(b"\n") if cut < ends[0] else 0          # a new header has another time
        assert found[start:] == whole[start:] if not start else found[start:] == whole[ends[0] - 1:]
        assert (out / "eval.json").read_bytes() == report


def test_what_is_kept_is_not_measured_again(hk, results, monkeypatch):
    command, out = results
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:10]))       # nine records: two batches and a quarter
    from hkmap.evaluation import evaluate as module

    seen, measure = [], module._rows

    def counted(answers, options, ids, numbers, shards):
        seen.extend(numbers)
        return measure(answers, options, ids, numbers, shards)

    monkeypatch.setattr(module, "_rows", counted)
    assert hk(*command, "--resume").exit_code == 0
    assert seen == [8, 9]
    seen.clear()
    assert hk(*command, "--resume").exit_code == 0                  # all is there
    assert seen == []


def test_a_line_that_is_damaged_is_measured_again_with_what_follows(hk, results):
    command, out = results
    whole, report = (out / "records.jsonl").read_bytes(), (out / "eval.json").read_bytes()
    change(out, 6, prediction=7)
    assert hk(*command, "--resume").exit_code == 0
    assert ((out / "records.jsonl").read_bytes(), (out / "eval.json").read_bytes()) == (whole, report)


@pytest.mark.parametrize(("more", "said"), [
    (("--hold-attention",), "settings.hold_attention is True, the evaluation to go on with had False"),
    (("--use-maps",), "settings.use_maps is True, the evaluation to go on with had False"),
    (("--only", "misclassified"), "the evaluation to go on with had"),
])
def test_it_goes_on_with_the_same_options_alone(hk, results, more, said):
    command, out = results
    done = hk(*command, "--resume", *more)
    assert done.exit_code == 1
    assert f"{out}: " in done.stderr
    assert said in done.stderr
    assert "give the same options to go on, or use --overwrite" in done.stderr


def test_it_goes_on_with_the_same_layer_alone(hk, given):
    run, shard, out = given
    command = ("eval", shard, "--from", run, "--metric", "mse", "--maps", "gradcam", "--out", out, "--layer")
    assert hk(*command, "extractor.layer2").exit_code == 0
    done = hk(*command, "extractor.layer1", "--resume")
    said = "settings.layer is 'extractor.layer1', the evaluation to go on with had 'extractor.layer2'"
    assert (done.exit_code, said in done.stderr) == (1, True), done.stderr


def test_it_goes_on_with_the_same_files_alone(hk, given, results, make_shard):
    run, shard, _ = given
    command, _ = results
    shard.unlink()
    make_shard("a.h5", 10, classes=3, maps=6)
    assert "shards.0.sha256 is" in hk(*command, "--resume").stderr
    shard.unlink()
    make_shard("a.h5", 10, classes=3, maps=7)
    save_model(run / "best.safetensors", untrained(gate="product"))
    assert "run.weights is" in hk(*command, "--resume").stderr


def test_it_goes_on_with_the_same_records_alone(hk, results):
    command, out = results
    change(out, 3, id="another")
    done = hk(*command, "--resume")
    assert done.exit_code == 1
    assert 'record 3 is "another", and "a.h5-2" is to be measured; give the same --baseline' in done.stderr


@pytest.mark.parametrize("words", [("--resume",), ("--resume", "--overwrite", "--out", "there")])
def test_to_go_on_needs_results_and_not_leave_to_replace_them(hk, given, words):
    run, shard, _ = given
    done = hk("eval", shard, "--from", run, "--metric", "top1", *words)
    assert (done.exit_code, "give --out, and omit --overwrite" in done.stderr) == (2, True)


# a table of the records


def test_a_table_has_a_row_per_record(hk, given, tmp_path):
    run, shard, _ = given
    command = ("eval", shard, "--from", run, *METRICS, "--per-record")
    assert hk(*command, tmp_path / "t.jsonl").exit_code == 0
    assert hk(*command, tmp_path / "t.csv", "--out", tmp_path / "results").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    columns = ["id", "label", "class", "prediction", "predicted_class", "confidence", "correct", "attention_mean"]
    for row, kept in zip(rows, read_results(tmp_path / "results").rows, strict=True):
        assert list(row) == [*columns, *COLUMNS]
        assert row == {**{name: kept[name] for name in columns if name != "correct"}, **kept["values"],
                       "correct": kept["label"] == kept["prediction"]}
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        for cells, row in zip(csv.DictReader(file), rows, strict=True):
            assert cells == {
                name: "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                for name, value in row.items()
            }
    assert [row["mse"] for row in rows[7:]] == [None] * 3
    assert {row["correct"] for row in rows} == {True, False}


def test_a_table_keeps_any_text_as_it_is(tmp_path):
    texts = ["=1+1", 'a "b", c', "two\nlines", "Großer Ani", ""]
    with table(tmp_path / "t.csv", {"id": str}) as write:
        write([{"id": text} for text in texts])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == texts


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    def failing():
        with table(tmp_path / "t.csv", {"id": str}) as write:
            write([{"id": "1"}])
            raise RunError("stopped")

    with pytest.raises(RunError):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_parquet_has_types(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"id": str, "label": int, "correct": bool, "mse": float}
    rows = [{"id": "1", "label": 3, "correct": True, "mse": 0.5}, dict.fromkeys(columns)]
    with table(tmp_path / "t.parquet", columns) as write:
        write(rows[:1])
        write(rows[1:])
    found = parquet.read_table(tmp_path / "t.parquet")
    assert found.to_pylist() == rows
    assert [str(kind) for kind in found.schema.types] == ["string", "int64", "bool", "double"]


def test_a_table_that_cannot_be_written_is_refused_at_once(hk, given, monkeypatch, tmp_path):
    run, shard, _ = given
    command = ("eval", shard, "--from", run, "--metric", "top1", "--per-record")
    other = hk(*command, tmp_path / "t.xlsx")
    assert (other.exit_code, "t.xlsx: expected a name that ends in .csv, .jsonl, .parquet" in other.stderr) == (1, True)
    (tmp_path / "t.csv").write_text("mine")
    there = hk(*command, tmp_path / "t.csv")
    assert (there.exit_code, "t.csv: exists already" in there.stderr) == (1, True)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"t\.parquet: Parquet needs pyarrow; pip install 'hkmap\[parquet\]'"):
        check_table(tmp_path / "t.parquet", overwrite=False)


# what is refused


def test_an_evaluation_that_is_not_finished_is_no_result(results):
    _, out = results
    (out / "eval.json").unlink()
    with pytest.raises(RunError, match="not finished; go on with its `hkmap eval` and --resume"):
        read_results(out)


def test_a_folder_without_results_says_how_to_make_them(tmp_path):
    with pytest.raises(RunError, match=f"{tmp_path}: has no results; expected a folder of `hkmap eval"):
        read_results(tmp_path)


def test_records_that_are_missing_are_said(results):
    _, out = results
    (out / "records.jsonl").unlink()
    with pytest.raises(RunError, match="No such file or directory; run `hkmap eval` again"):
        read_results(out)


def test_another_header_is_refused(results):
    _, out = results
    whole, none = (out / "records.jsonl").read_bytes(), "does not begin with a header of results"
    for values, said in (
        ({"hkmap_results": 2}, "results of version 2, expected 1; use the hkmap that wrote them"),
        ({"hkmap_results": "1"}, none), ({"run": {}}, none), ({"classes": KeyError}, none), ({"settings": {}}, none),
        ({"settings": {"step": 0, "image_size": [16, 16], "map_size": [8, 8]}}, none),
        ({"settings": {"step": 8, "image_size": [16, 16], "map_size": [8]}}, none),
        ({"preprocessing": {"height": 16, "width": 16}}, none),
    ):
        change(out, 0, **values)
        with pytest.raises(RunError, match=said):
            read_results(out)
        (out / "records.jsonl").write_bytes(whole)


def test_a_record_that_does_not_fit_the_header_is_refused_with_its_line(results):
    _, out = results
    whole = (out / "records.jsonl").read_bytes()
    for values in (
        {"label": 3}, {"label": -1}, {"label": True}, {"prediction": None}, {"prediction": 1.0}, {"id": 7},
        {"id": KeyError}, {"values": {"top1": 1.0}}, {"values": {"top1": "1"}}, {"probabilities": [0.5, 0.5]},
        {"probabilities": [0.5, 0.5, 1.5]}, {"probabilities": KeyError}, {"confidence": 1e999},
        {"attention_mean": float("nan")}, {"curves": []}, {"curves": {"insertion": [1.0]}},
        {"curves": {"insertion": [0.5, "1"]}}, {"values": dict.fromkeys(COLUMNS, 10**400)},
        {"map": [[0.0], [0.0, 1.0]]}, {"map": []}, {"keys": {"a": []}},
    ):
        change(out, 4, **values)
        with pytest.raises(RunError, match=r"jsonl line 5: no record that fits the header; run `hkmap eval` again"):
            read_results(out)
        (out / "records.jsonl").write_bytes(whole)


def test_a_report_of_other_records_is_refused(results):
    _, out = results
    report = json.loads((out / "eval.json").read_text())
    for values in ({"samples": 9}, {"samples": None}, {"settings": {}}, {"metrics": {"top1": "1"}}, {"counts": []}):
        (out / "eval.json").write_text(json.dumps({**report, **values}))
        with pytest.raises(RunError, match=r"eval.json: no report of the 10 records beside it"):
            read_results(out)
    (out / "eval.json").write_text(json.dumps(report))
    change(out, 4, id="a.h5-0")         # a record that is there twice
    with pytest.raises(RunError, match="no report of the 10 records"):
        read_results(out)


def test_damaged_files_are_refused_in_a_sentence_or_read(results):
    _, out = results
    rng = random.Random(1)
    files = {name: (out / name).read_bytes() for name in ("records.jsonl", "eval.json")}
    refused = 0
    for turn in range(300):
        name = rng.choice(list(files))
        content = bytearray(files[name])
        place = rng.randrange(len(content))
        if turn % 3 == 0:
            del content[place:]
        elif turn % 3 == 1:
            content[place] = rng.randrange(256)
        else:
            del content[place : place + rng.randrange(1, 60)]
        (out / name).write_bytes(content)
        try:
            assert len(read_results(out).rows) == 10
        except RunError:
            refused += 1
        (out / name).write_bytes(files[name])
    assert refused > 100


# the same data


def of(*rows, path="there", digest="0"):
    kept = [{"id": name, "label": label, "class": known} for name, label, known in rows]
    return Results(path, {}, {"shards": [{"path": "s.h5", "sha256": digest}]}, kept)


SOME = (("a", 0, "cat"), ("b", 1, "dog"), ("c", None, None))


@pytest.mark.parametrize(("rows", "said"), [
    (SOME[:2], 'there: lacks 1 of the 3 records of here, such as "c"; evaluate both on the same records'),
    ((*SOME, ("d", 0, None)), 'here: lacks 1 of the 4 records of there, such as "d"'),
    ((SOME[1], SOME[0], SOME[2]), "there: has the records in another order than here; name the same shards"),
    ((("a", 1, "cat"), *SOME[1:]), 'the labels of record "a" here and in here are 1 (cat) and 0 (cat)'),
    ((("a", 0, "cow"), *SOME[1:]), "are 0 (cow) and 0 (cat)"),
    ((*SOME[:2], ("c", 1, "dog")), "are 1 (dog) and None (unnamed)"),
])
def test_results_of_other_data_are_not_compared(rows, said):
    with pytest.raises(RunError) as raised:
        same_data([of(*SOME, path="here"), of(*SOME), of(*rows)])
    assert said in str(raised.value)


def test_a_class_without_a_name_is_not_another_one():
    same_data([of(*SOME), of(("a", 0, None), *SOME[1:]), of(*SOME)])


def test_other_shards_with_the_same_ids_are_told(caplog):
    same_data([of(*SOME, path="here"), of(*SOME), of(*SOME, digest="1")])
    assert "there: the shards are not those of here, though the ids are the same" in caplog.text


# the paper's section 3


def test_before_and_after_stand_side_by_side(hk, given):
    run, shard, _ = given
    options = ("eval", shard, "--from", run, "--metric", "error,top5_error")
    own, used = hk(*options).records[0]["metrics"], hk(*options, "--use-maps")
    assert list(used.records[0]["metrics"]) == ["error", "error_before", "top5_error", "top5_error_before"]
    assert used.records[0]["metrics"]["error_before"] == own["error"]
    assert used.records[0]["counts"] == dict.fromkeys(used.records[0]["metrics"], 10)
    assert "top5_error_before" in used.stderr

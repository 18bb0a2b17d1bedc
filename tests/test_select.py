"""`hkmap select`: which records pass, in which order, how much is read, and what a record must have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from hkmap.records import Record, Rejects
from hkmap.stream.selecting import select_first, sort_records

WRONG = "--only", "misclassified"


def predicted(*rows: tuple[int, int, float]) -> list[Record]:
    """Records of (label, prediction, confidence), their ids from a on."""
    return [
        {"id": "abcdefgh"[place], "label": label, "prediction": said, "confidence": sure, "mine": [place, None, "é"]}
        for place, (label, said, sure) in enumerate(rows)
    ]


RECORDS = predicted((0, 1, 0.9), (1, 1, 0.2), (0, 2, 0.5), (2, 0, 0.5), (1, 0, 0.125), (2, 2, 0.5))


@pytest.mark.parametrize(("options", "expected"), [
    (WRONG, "acde"),
    (("--only", "correct"), "bf"),
    (("--sort", "confidence"), "ebcdfa"),
    (("--sort", "confidence", "--descending"), "acdfbe"),
    (("--sort", "confidence", "--first", 3), "ebc"),
    (("--sort", "confidence", "--first", 4, "--descending"), "acdf"),
    (("--sort", "label"), "acbedf"),
    (("--first", 2), "ab"),
    ((*WRONG, "--first", 2), "ac"),
    ((*WRONG, "--sort", "confidence", "--first", 3), "ecd"),
])
def test_which_records_pass_and_in_which_order(hk: Any, options: tuple[Any, ...], expected: str) -> None:
    ran = hk("select", *options, stdin=RECORDS)
    assert ran.exit_code == 0, ran.stderr
    by_id = {record["id"]: record for record in RECORDS}
    assert ran.records == [by_id[identifier] for identifier in expected]      # with all keys as they came
    assert ran.stderr == ""


def test_a_sort_is_that_of_python(hk: Any) -> None:
    rng = np.random.default_rng(0)
    records = [{"id": str(place), "value": float(value)} for place, value in enumerate(rng.integers(-4, 4, 60) / 2)]
    for reverse, flags in ((False, ()), (True, ("--descending",))):
        expected = sorted(records, key=lambda record: record["value"], reverse=reverse)
        assert hk("select", "--sort", "value", *flags, stdin=records).records == expected
        assert hk("select", "--sort", "value", "--first", 17, *flags, stdin=records).records == expected[:17]


def test_names_are_compared_where_numbers_are_missing(hk: Any) -> None:
    records = [
        {"id": "a", "class": "cat", "predicted_class": "dog", "prediction": 3},
        {"id": "b", "class": "cat", "predicted_class": "cat", "label": None},
        {"id": "c", "class": "cat", "predicted_class": "cat", "label": 0, "prediction": 0},
        {"id": "d", "class": "cat", "predicted_class": None, "label": 0, "prediction": 1},
    ]
    assert [record["id"] for record in hk("select", *WRONG, stdin=records).records] == ["a", "d"]


BAD = [
    ({"label": 1}, WRONG, 'record "x": no key "prediction" to compare with its label; run `hkmap predict` first'),
    ({"prediction": 1, "predicted_class": "cat"}, WRONG,
     'record "x": no "label" or "class" to compare its prediction with; `hkmap join` can add them'),
    ({"prediction": "1", "label": 1}, WRONG,
     'record "x": prediction is "1"; expected a whole number, as `hkmap predict` adds it (not a text)'),
    ({"prediction": 1, "label": 1, "class": "cat", "predicted_class": "dog"}, WRONG,
     'record "x": label 1 is predicted as 1, but class "cat" as "dog"; number the classes as in the '
     "network's training"),
    ({"label": "1", "prediction": 1}, WRONG,
     'record "x": label is "1"; expected a whole number from 0 to 99,999, or none (not a text)'),
    ({"label": 1}, ("--sort", "confidence"),
     'record "x": confidence is missing; expected a number to sort by; run `hkmap predict` first'),
    ({"label": 1}, ("--sort", "area"), 'record "x": area is missing; expected a number to sort by'),
    ({"area": True}, ("--sort", "area"), 'record "x": area is True; expected a number to sort by'),
    ({"area": "7"}, ("--sort", "area"), 'record "x": area is "7"; expected a number (not a text) to sort by'),
]


@pytest.mark.parametrize(("keys", "options", "sentence"), BAD)
def test_a_record_that_lacks_what_is_compared_is_an_error_or_skipped(
    hk: Any, keys: Record, options: tuple[str, ...], sentence: str
) -> None:
    good = {"id": "y", "label": 1, "prediction": 2, "confidence": 0.5, "area": 3}
    ran = hk("select", *options, stdin=[{"id": "x", **keys}, good])
    assert ran.exit_code == 1
    assert ran.stderr == f"Error: {sentence}\n"
    skipped = hk("select", *options, "--on-error", "skip", "--max-errors", 1, stdin=[{"id": "x", **keys}, good])
    assert skipped.exit_code == 0
    assert skipped.records == [good]
    assert sentence in skipped.stderr


def test_a_number_that_is_infinite_is_none_to_sort_by(hk: Any) -> None:
    ran = hk("select", "--sort", "area", stdin=b'{"id": "x", "area": 1e999}\n')
    assert ran.exit_code == 1
    assert 'record "x": area is inf; expected a number to sort by' in ran.stderr


@pytest.mark.parametrize(("options", "sentence"), [
    ((), "Nothing says which records; give --only, --sort or --first."),
    (("--descending", "--first", 2), "--descending says how to sort; give --sort too."),
    (("--sort", "a", "--limit", 2), "No such option '--limit'. Did you mean '--first'?"),
])
def test_wrong_calls(hk: Any, options: tuple[Any, ...], sentence: str) -> None:
    ran = hk("select", *options, stdin=RECORDS)
    assert ran.exit_code == 2
    assert sentence in ran.stderr


def test_fewer_than_asked_for_is_a_warning(hk: Any) -> None:
    ran = hk("select", *WRONG, "--first", 9, stdin=RECORDS)
    assert len(ran.records) == 4
    assert ran.stderr == "warning: 4 records were chosen; 9 were asked for\n"


def test_after_the_first_records_no_more_are_read() -> None:
    def endless() -> Iterator[Record]:
        for place in range(5):
            assert place < 3, "read on"
            yield {"id": str(place)}

    assert [record["id"] for record in select_first(endless(), 3)] == ["0", "1", "2"]


def test_with_a_count_a_sort_holds_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    def stream() -> Iterator[Record]:
        for place in range(2000):
            yield {"id": str(place), "value": -place, "much": "x" * 5000}

    tracemalloc.start()
    found = [record["id"] for record in sort_records(stream(), "value", Rejects(), count=3)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == ["1999", "1998", "1997"]
    assert peak < 1_000_000       # of ten million bytes


def test_records_flow_at_once_where_nothing_is_sorted() -> None:
    command = [sys.executable, "-m", "hkmap", "select", *WRONG]      # from ROOT: of this checkout
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(RECORDS[0]).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == RECORDS[0]      # the input is still open
        process.stdin.close()
    assert process.returncode == 0


def test_what_predict_adds_is_what_select_reads(hk: Any, make_shard: Any) -> None:
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import new_model, save_model
    from hkmap.networks.backbone import Architecture

    shard = make_shard("a.h5", 8)
    run = shard.parent / "run.pt"
    architecture = Architecture("resnet8+abn", 2, "small", 4)
    save_model(run, new_model(architecture, Preprocessing(16, 16), ("class 0", "class 1"), 0))
    answers = hk("predict", "--from", run, stdin=hk("unpack", shard).records).records
    chosen = hk("select", *WRONG, "--sort", "confidence", "--first", 3, stdin=answers).records
    wrong = [record for record in answers if record["prediction"] != record["label"]]
    assert len(wrong) >= 3
    assert chosen == sorted(wrong, key=lambda record: record["confidence"])[:3]

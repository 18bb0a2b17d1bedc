"""hkmap check: what is odd about records and what not, and which kind of input it is asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkmap.report.oddities import ODDITIES, Findings

LABELS = {"label": 0, "class": "ani"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images 0.png to 29.png of 40 x 30 pixels, all different, and masks and maps."""
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        cv2.imwrite(f"{number}.png", np.full((30, 40, 3), number, np.uint8))
    cv2.imwrite("black.png", np.zeros((30, 40), np.uint8))
    cv2.imwrite("mask.png", np.eye(30, 40, dtype=np.uint8))
    cv2.imwrite("small.png", np.ones((3, 4), np.uint8))
    np.save("map.npy", np.eye(7, dtype=np.float32))
    np.save("zeros.npy", np.zeros((7, 7), np.float32))
    np.save("flat.npy", np.linspace(0.995, 1, 49, dtype=np.float32).reshape(7, 7))
    np.save("sum.npy", np.linspace(0, 0.001, 49, dtype=np.float32).reshape(7, 7))
    np.save("wide.npy", np.ones((3, 4), np.float32))
    np.save("nan.npy", np.full((7, 7), np.nan, np.float32))
    return tmp_path


def record(number: int = 0, **keys: Any) -> dict[str, Any]:
    return {"id": str(number), "image": f"{number}.png", "size": [40, 30], "bubbles": [bubble(9, 9)], **LABELS, **keys}


def bubble(x: float, y: float) -> dict[str, float]:
    return {"x": x, "y": y, "radius": 30}


def found(records: list[dict[str, Any]], **options: int) -> dict[str, dict[str, Any]]:
    odd = Findings(**options)
    for item in records:
        odd.add(item)
    return {finding["name"]: finding for finding in odd.report()}


# one record


@pytest.mark.parametrize("keys", [
    {},
    {"bubbles": [bubble(0, 0), bubble(40, 30), bubble(-1, 31)]},      # a radius may reach over the edge
    {"bubbles": None, "map": "map.npy"},
    {"bubbles": [], "boxes": [{"x": 0, "y": 0, "width": 40, "height": 30}]},
    {"bubbles": None, "polygons": [{"points": [[0, 0], [40, 30], [40.5, 0]]}]},
    {"masks": {"EX": "mask.png", "HE": "black.png"}},
    {"masks": {"EX": "mask.png"}, "size": None},
    {"map": "sum.npy"},
    {"map": "map.npy", "certainty": "sum.npy", "annotator_maps": {"1": "zeros.npy"}},
    {"label": None, "class": None},
])
def test_nothing_odd(here: Path, keys: dict[str, Any]) -> None:
    assert found([record(**keys)]) == {}


@pytest.mark.parametrize(("keys", "name", "sentence"), [
    ({"bubbles": 5}, "bad-record", 'such as record "0": bubbles is 5; expected a list'),
    ({"bubbles": [{"x": 1}]}, "bad-record", "bubbles[0].y is None"),
    ({"size": [0, 1]}, "bad-record", "size is [0, 1]"),
    ({"label": "three"}, "bad-record", 'label is "three"'),
    ({"masks": [1]}, "bad-record", "masks is [1]"),
    ({"map": 5}, "bad-record", "map is 5"),
    ({"image": 5}, "bad-record", "image is 5"),
    ({"bubbles": None}, "no-annotation", "1 of 1 records: neither an annotation nor a map"),
    ({"bubbles": []}, "empty-annotation", "annotated, but nothing is marked"),
    ({"bubbles": None, "masks": {}}, "empty-annotation", "nothing is marked"),
    ({"bubbles": None, "masks": {"EX": "black.png"}}, "empty-annotation", "nothing is marked"),
    ({"bubbles": [], "points": [], "boxes": [], "polygons": []}, "empty-annotation", "nothing is marked"),
    ({"bubbles": [bubble(9, 9), bubble(41.5, 9)]}, "off-image", 'record "0", bubbles: (41.5, 9) in 40x30 pixels'),
    ({"points": [{"x": 9, "y": -1.5}]}, "off-image", "points: (9, -1.5)"),
    ({"boxes": [{"x": 9, "y": 8, "width": 0, "height": 5}]}, "empty-box", 'such as record "0": 0x5 pixels at (9, 8)'),
    ({"boxes": [{"x": 9, "y": 9, "width": 9, "height": 23}]}, "off-image", "boxes: (18, 32)"),
    ({"boxes": [{"x": -9, "y": 9, "width": 9, "height": 3}]}, "off-image", "boxes: (-9, 9)"),
    ({"polygons": [{"points": [[0, 0], [9, 99]]}]}, "off-image", "polygons: (9, 99)"),
    ({"bubbles": [bubble(99, 9)], "size": None}, "off-image", "(99, 9) in 40x30 pixels"),
    ({"size": [80, 60]}, "size-mismatch", 'record "0" says 80x60, its image 40x30 pixels'),
    ({"image": "gone.png"}, "bad-image", "gone.png: No such file"),
    ({"image": None}, "bad-image", 'record "0": has no image'),
    ({"image": "map.npy"}, "bad-image", "map.npy: starts with"),
    ({"masks": {"EX": "gone.tif"}}, "bad-mask", "gone.tif"),
    ({"masks": {"EX": "small.png"}}, "bad-mask", "small.png: a mask of 4x3 pixels for an image of 40x30"),
    ({"unknown": {"void": "gone.png"}}, "bad-mask", "gone.png"),
    ({"dont_look": {"text": "gone.png"}}, "bad-mask", "gone.png"),
    ({"bubbles": None, "unknown": {"void": "mask.png"}}, "no-annotation", "neither an annotation nor a map"),
    ({"unknown": 5}, "bad-record", "unknown is 5"),
    ({"map": "gone.npy"}, "bad-map", "gone.npy"),
    ({"map": "nan.npy"}, "bad-map", "nan.npy: holds NaN"),
    ({"certainty": "gone.npy"}, "bad-map", "gone.npy"),
    ({"map": "map.npy", "certainty": "wide.npy"}, "bad-map", "wide.npy: certainty of 4x3 cells for a map of 7x7"),
    ({"annotator_maps": {"1": "map.npy", "2": "nan.npy"}}, "bad-map", "nan.npy: holds NaN"),
    ({"annotator_maps": ["map.npy"]}, "bad-record", "annotator_maps is"),
    ({"map": "map.npy", "certainty": "zeros.npy"}, "empty-certainty", "such as zeros.npy"),
    ({"map": "zeros.npy"}, "empty-map", "such as zeros.npy"),
    ({"map": "flat.npy"}, "flat-map", "flat.npy, from 0.995 to 1"),
    ({"class": None}, "label-without-class", "such as label 0"),
])
def test_a_record_is_odd_in_one_way(here: Path, keys: dict[str, Any], name: str, sentence: str) -> None:
    findings = found([record(**keys)])
    assert list(findings) == [name]
    assert (findings[name]["count"], findings[name]["ids"]) == (1, ["0"])
    assert sentence in findings[name]["sentence"]


def test_a_record_can_be_odd_in_several_ways_and_counts_once_in_each(here: Path) -> None:
    findings = found([record(masks={"EX": "gone.tif", "HE": "gone.png"}, map="gone.npy", image="gone.jpg", size=None)])
    assert {name: finding["count"] for name, finding in findings.items()} == {
        "bad-image": 1, "bad-mask": 1, "bad-map": 1,
    }
    findings = found([record(masks={"EX": "black.png"}, bubbles=None, image="gone.jpg", size=None)])
    assert list(findings) == ["empty-annotation", "bad-image"]


def test_without_size_or_image_there_is_no_edge_to_be_beyond(here: Path) -> None:
    assert list(found([record(bubbles=[bubble(99, 99)], image="gone.png", size=None)])) == ["bad-image"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["x.png", "0.png", "map.npy", "0.png#1", "a.h5#0"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["x", "y", "width", "height", "radius", "points", "size", "counts"]), inner),
    max_leaves=6,
)
KEYS = ["image", "size", "label", "class", "split", "bubbles", "points", "boxes", "polygons", "masks", "unknown", "map"]
KEYS += ["certainty", "annotator_maps"]


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_records_hold_it_is_reported(here: Path, records: list[dict[str, Any]]) -> None:
    findings = found([{"id": str(number), **keys} for number, keys in enumerate(records)])
    assert all(0 < finding["count"] <= len(records) for finding in findings.values())
    json.dumps(findings, ensure_ascii=False).encode()


# several records


@pytest.mark.parametrize(("changes", "expected"), [
    ([{}, {}], {}),
    ([{}, {"id": "0"}], {"duplicate-id": ["0"]}),
    ([{}, {"image": "0.png"}, {"image": "0.png"}], {"duplicate-image": ["1", "2"]}),
    ([{}, {"image": "0.png", "label": 1, "class": "b"}], {"duplicate-other-label": ["1"]}),
    ([{}, {"image": "0.png", "label": None}], {"duplicate-image": ["1"], "label-missing": ["1"]}),
    ([{"split": "train"}, {"split": "test"}], {}),
    ([{"split": "train"}, {"split": "test", "image": "0.png"}], {"duplicate-image": ["1"], "split-leak": ["1"]}),
    ([{"split": "train"}, {"split": "train", "image": "0.png"}], {"duplicate-image": ["1"]}),
    ([{"split": "train"}, {"image": "0.png"}], {"duplicate-image": ["1"]}),
    ([{}, {"label": -1}, {"label": None}], {"label-missing": ["1", "2"]}),
    ([{"label": None}, {"label": -1}], {}),
    ([{}, {"class": "crow"}], {"label-two-classes": ["1"]}),
    ([{}, {"label": 1}], {"class-two-labels": ["1"]}),
])
def test_records_are_odd_beside_others(here: Path, changes: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    findings = found([record(number, **change) for number, change in enumerate(changes)])
    assert {name: finding["ids"] for name, finding in findings.items()} == expected


def test_the_same_pixels_in_another_file_are_found_and_named(here: Path) -> None:
    cv2.imwrite("again.bmp", np.zeros((30, 40, 3), np.uint8))
    cv2.imwrite("turned.png", np.zeros((40, 30, 3), np.uint8))       # the same bytes in another shape
    records = [
        record(0), record(1, image="again.bmp", label=1, **{"class": "b"}), record(2, image="turned.png", size=None),
    ]
    (finding,) = found(records).values()
    assert finding["name"] == "duplicate-other-label"
    assert finding["sentence"].endswith('same pixels and another label; such as "1" and "0" (labels 1 and 0)')


@pytest.mark.parametrize(("frequent", "odd"), [(20, False), (21, True)])
def test_imbalance_counts_the_rarest_label(here: Path, frequent: int, odd: bool) -> None:
    labels = [0] * frequent + [1] * 2 + [2] * 3
    findings = found([record(n, label=label, **{"class": f"c{label}"}) for n, label in enumerate(labels)])
    assert list(findings) == ["label-imbalance"] * odd
    if odd:
        assert findings["label-imbalance"]["ids"] == ["21", "22"]
        assert "such as label 1 with 2 beside label 0 with 21" in findings["label-imbalance"]["sentence"]


def test_the_first_ids_are_listed_and_all_are_counted(here: Path) -> None:
    records = [record(number, map="zeros.npy") for number in range(9)]
    assert found(records)["empty-map"]["ids"] == ["0", "1", "2", "3", "4"]
    assert found(records, limit=2)["empty-map"] == {
        "name": "empty-map", "count": 9, "ids": ["0", "1"],
        "sentence": "9 of 9 records: the map is 0 everywhere; such as zeros.npy",
    }


def test_a_half_character_is_told_in_a_way_that_json_can_hold(here: Path) -> None:
    finding = found([record(0), record(1, **{"class": "\udcff"})])["label-two-classes"]
    assert 'label 0 is "ani" and "\\udcff"' in finding["sentence"]


# the command


def test_a_finding_ends_in_3_with_json_and_a_table(hk, here: Path) -> None:
    result = hk("check", "--ids", 1, stdin=[record(0, bubbles=[]), record(1, bubbles=[], map="zeros.npy")])
    assert result.exit_code == 3
    (report,) = result.records
    assert report["records"] == 2
    assert [finding["name"] for finding in report["findings"]] == ["empty-annotation", "empty-map"]
    assert report["findings"][0]["ids"] == ["0"]
    assert all(word in result.stderr for word in ("empty-annotation", "empty-map", "2 of 2 records", "0, …"))
    quiet = hk("check", "-q", stdin=[record(0, bubbles=[])])
    assert (quiet.exit_code, quiet.stderr) == (3, "")


def test_what_was_meant_is_ignored(hk, here: Path) -> None:
    records = [record(0, bubbles=[], map="zeros.npy")]
    one = hk("check", "--ignore", "empty-map", stdin=records)
    assert one.exit_code == 3
    assert [finding["name"] for finding in one.records[0]["findings"]] == ["empty-annotation"]
    assert hk("check", "--ignore", "empty-map", "--ignore", "empty-annotation", stdin=records).exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no records"), ("{", "not a JSON object"), ('{"error": "no disk"}', "the stage before failed: no disk")],
)
def test_a_stream_that_cannot_be_read_ends_in_1(hk, here: Path, text: str, message: str) -> None:
    result = hk("check", stdin=json.dumps(record()) + "\n" + text if text else "")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "findings" not in result.stdout


def test_every_finding_is_listed_with_its_meaning(hk) -> None:
    listed = {row["name"]: row["doc"] for row in hk("list", "findings").records}
    assert listed == {name: oddity.title for name, oddity in ODDITIES.items()}


# records or shards


def test_the_name_tells_records_from_shards(hk, here: Path, make_shard) -> None:
    make_shard("a.h5", 2)
    make_shard("b.h5", 2)
    (here / "in.jsonl").write_text(json.dumps(record()) + "\n")
    for names, paths in (
        (["a.h5"], ["a.h5"]), (["b.h5", "a.h5"], ["b.h5", "a.h5"]), (["."], ["a.h5", "b.h5"]),
        (["[ab].h5"], ["a.h5", "b.h5"]), (["gone.h5", "a.h5"], ["gone.h5", "a.h5"]),
    ):
        assert [result["path"] for result in hk("check", *names).records] == paths
    for names, stdin in (([], [record()]), (["-"], [record()]), (["in.jsonl"], b"")):
        assert hk("check", *names, stdin=stdin).records == [{"records": 1, "findings": []}]


# real data


def test_pairs_of_idrid_that_two_people_graded_differently(hk, data_root: Path) -> None:
    records = hk("idrid", data_root / "idrid", "--part", "grading").records
    result = hk("check", "--ignore", "no-annotation", stdin=records)
    assert result.exit_code == 3
    assert {finding["name"]: finding["ids"] for finding in result.records[0]["findings"]} == {
        "duplicate-image": ["IDRiD_279", "IDRiD_333", "IDRiD_375"],
        "duplicate-other-label": ["IDRiD_327", "IDRiD_391"],
    }
    assert '"IDRiD_391" and "IDRiD_021"' in result.records[0]["findings"][1]["sentence"]

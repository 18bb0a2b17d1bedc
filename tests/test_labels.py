"""hkmap join --on: the columns of a table become keys of records, or an error says why not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

STREAM = [
    {"id": "cat/1", "image": "photos/cat/1.jpg", "patient": 7},
    {"id": "cat/2", "image": "photos/cat/2.jpg", "patient": "8"},
    {"id": "dog/3", "image": "photos/dog/3.JPG", "patient": "8"},
]


def joined(hk, table: str, *options: object, stream: list[dict[str, Any]] = STREAM, name: str = "t.csv") -> Any:
    """The records, without what they came with, and what was said."""
    Path(name).write_text(table, encoding="utf-8")
    result = hk("join", name, *options, stdin=stream)
    assert result.exit_code == 0, result.stderr
    added = [
        {key: value for key, value in record.items() if key not in before or before[key] != value}
        for record, before in zip(result.records, stream, strict=True)
    ]
    return added, result.stderr


@pytest.mark.parametrize(("names", "options"), [
    (["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"], ["--on", "image"]),
    (["1.jpg", "2.jpg", "3.jpg"], ["--on", "image"]),
    (["1", "2", "3"], ["--on", "image"]),
    (["C:\\photos\\cat\\1.jpg", "C:\\photos\\cat\\2.jpg", "C:\\photos\\dog\\3.jpg"], ["--on", "image"]),
    (["cat/1", "cat/2", "dog/3"], ["--on", "image"]),
    (["cat/1", "cat/2", "dog/3"], ["--on", "id"]),
])
@pytest.mark.parametrize("column", ["own", "another"])
def test_a_row_is_found_by_image_or_id(hk, here: Path, names: list[str], options: list[str], column: str) -> None:
    key = options[1]
    head = key if column == "own" else "file name"
    mapped = [] if column == "own" else ["--columns", f"{key}=file name"]
    rows = "".join(f"{name},{sharp}\n" for name, sharp in zip(names, (0.5, 1, 2), strict=True))
    assert joined(hk, f"{head},sharp\n{rows}", *options, *mapped) == ([{"sharp": 0.5}, {"sharp": 1}, {"sharp": 2}], "")


@pytest.mark.parametrize(("name", "table"), [
    ("t.csv", "patient,age\n7,41\n8,52\n"), ("t.csv", "\ufeffpatient;age\r\n7;41\r\n8;52\r\n"),
    ("t.csv", "patient\tage\n8\t52\n7\t41\n"),
    ("t.jsonl", '{"patient": "7", "age": 41}\n{"patient": 8, "age": 52}\n'),
])
def test_a_row_of_a_group_is_about_all_its_records_whether_text_or_number(hk, here, name: str, table: str) -> None:
    assert joined(hk, table, "--on", "patient", name=name) == ([{"age": 41}, {"age": 52}, {"age": 52}], "")


def test_accents_are_compared_in_one_spelling(hk, here: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "épée") for form in ("NFD", "NFC"))
    stream = [{"id": apart, "patient": whole}]
    for key, name in (("id", whole), ("image", whole), ("patient", apart)):
        assert joined(hk, f"{key},age\n{name},4\n", "--on", key, stream=stream)[0] == [{"age": 4}]


@pytest.mark.parametrize(("cells", "expected"), [
    (["1", "2", "-3"], [1, 2, -3]), (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]), (["1", "", "2"], [1, None, 2]),
    (["007", "008", "010"], ["007", "008", "010"]), (["1", "x", "2"], ["1", "x", "2"]),
    (["", "", "a b"], [None, None, "a b"]),
    (["12345678901234567890"] * 3, ["12345678901234567890"] * 3), (["nan", "1", "2"], ["nan", "1", "2"]),
])
def test_a_column_of_numbers_alone_becomes_numbers(hk, here: Path, cells: list[str], expected: list[Any]) -> None:
    rows = "".join(f"{record['id']},{cell},x\n" for record, cell in zip(STREAM, cells, strict=True))
    added, _ = joined(hk, f"id,value,other\n{rows}", "--on", "id")
    assert [record.get("value") for record in added] == expected
    assert ["value" in record for record in added] == [value is not None for value in expected]
    assert [type(record.get("value")) for record in added] == [type(value) for value in expected]


def test_classes_are_numbered_in_natural_order_whatever_the_order_of_the_rows(hk, here: Path) -> None:
    table = "id,diagnosis,split\ndog/3,grade 10,1\ncat/1,grade 2,1\ncat/2,grade 10,2\n"
    assert joined(hk, table, "--on", "id", "--columns", "class=diagnosis")[0] == [
        {"class": "grade 2", "label": 0, "split": "1"}, {"class": "grade 10", "label": 1, "split": "2"},
        {"class": "grade 10", "label": 1, "split": "1"},
    ]
    numbers = "id,class\ncat/1,3\ncat/2,1\ndog/3,3\n"
    assert [(record["class"], record["label"]) for record in joined(hk, numbers, "--on", "id")[0]] == [
        ("3", 1), ("1", 0), ("3", 1)]


@pytest.mark.parametrize(("cell", "label"), [("2", 2), ("2.0", 2), ("0", 0)])
def test_a_label_is_a_whole_number(hk, here: Path, cell: str, label: int) -> None:
    table = f"id,label,class\ncat/1,{cell},owl\ncat/2,1,auk\ndog/3,,\n"
    assert joined(hk, table, "--on", "id")[0] == [{"label": label, "class": "owl"}, {"label": 1, "class": "auk"}, {}]


def test_names_for_labels_that_records_have(hk, here: Path) -> None:
    stream = [{"id": "a", "label": 1}, {"id": "b", "label": 0}, {"id": "c", "label": 1}]
    table = "number,name\n0,owl\n1,auk\n"
    added, _ = joined(hk, table, "--on", "label", "--columns", "label=number,class=name", stream=stream)
    assert added == [{"class": "auk"}, {"class": "owl"}, {"class": "auk"}]


def test_what_does_not_fit_is_counted_and_what_is_left_out_is_named(hk, here: Path) -> None:
    added, said = joined(hk, ",image,id,age\n0,cat/1.jpg,77,5\n1,cow.jpg,78,6\n2,,79,\n", "--on", "image")
    assert added == [{"age": 5}, {}, {}]
    assert said.replace("warning: ", "").splitlines() == [
        't.csv: columns left out, as they would name the records anew or have no name: "", "id"; to keep one: '
        "--columns KEY=COLUMN",
        't.csv: 1 rows have nothing under "image" and are left out',
        "t.csv: has nothing about 2 of 3 records: cat/2, dog/3",
        "t.csv: 1 rows fit no record: cow.jpg",
    ]


BAD = [
    ("id,x\ncow,1\n", "id", 't.csv: none of its values of "id" (cow) is one of the 3 records (cat/1, cat/2, dog/3); c'),
    ("image,x\ncow.png,1\n", "image", "none of its images (cow.png) is one of the 3 records (photos/cat/1.jpg, photos"),
    ("age,x\n1,1\n", "age", 'none of its values of "age" (1) is one of the 3 records (no age); compare their names'),
    ("file,x\n1.jpg,1\n", "image", 't.csv: no column "image", it has "file", "x"; name the right one by --columns ima'),
    ("id,x\ncat/1,1\ncat/2,2\ncat/1,3\n", "id", 't.csv line 4: id "cat/1" was on t.csv line 2 already; expected one r'),
    ("id,x,x\ncat/1,1,2\n", "id", 't.csv: two columns are called "x"; rename one'),
    ("id,label\ncat/1,owl\n", "id", 't.csv line 2: label is \'owl\'; expected a whole number from 0; for names use --'),
    ("id,label\ncat/1,1.5\n", "id", "label is '1.5'; expected a whole number from 0"),
    ("id,label\ncat/1,-1\n", "id", "label is '-1'; expected a whole number from 0"),
    ("id,patient\ncat/1,9\n", "id", 'record "cat/1": patient is "7", but t.csv, row id cat/1 has "9"; expected the sa'),
    ("id,points\ncat/1,9\n", "id", "t.csv line 2: points is '9'; expected a list or an object, as records have; for"),
    ("id,x\n", "id", "t.csv: holds no row; expected a line of names"),
    ("id,x\n,1\n", "id", 't.csv: no row with a value under "id"; expected a table of'),
    ("image,x\ncat/1,1\n1.jpg,2\n", "image", 'record "cat/1" (photos/cat/1.jpg) may be 1.jpg, cat/1; expected one of '),
]


@pytest.mark.parametrize(("table", "key", "sentence"), BAD)
def test_what_cannot_be_right_is_an_error(hk, here: Path, table: str, key: str, sentence: str) -> None:
    Path("t.csv").write_text(table)
    result = hk("join", "t.csv", "--on", key, stdin=STREAM)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == result.stderr.count("warning") + 1


@pytest.mark.parametrize(("options", "sentence"), [
    (["--on", "id", "--columns", "class=x,label=x"], "--columns gives one column two keys"),
    (["--on", "id", "--columns", "y=x,x=id"], "--columns gives one column two keys"),
    (["--on", "id", "--columns", "z=x"], 'two columns are to be "z"; give one another key by --columns KEY=z'),
    (["--on", "id", "--columns", "z=w"], 'no column "w", it has "id", "x", "z"; name the right one by --columns z='),
    (["--on", "id", "--columns", "z"], '"z=": expected KEY=COLUMN, such as class=diagnosis'),
    (["--on", "id", "--frame", "10x10"], "--on reads a table of values; omit --format, --frame and --origin"),
    (["--on", "id", "--format", "coco"], "--on reads a table of values; omit --format"),
    (["--replace", "--columns", "image=id,y=z"], "--replace is about the columns of a table; give --on, or omit it"),
    ([], "or add labels and other values to records by `hkmap join --on image`"),
    (["--columns", "class=x"], '"class=x": expected NAME=COLUMN, NAME one of image'),
])
def test_options_that_do_not_go_together(hk, here: Path, options: list[str], sentence: str) -> None:
    Path("t.csv").write_text("id,x,z\ncat/1,1,2\n")
    result = hk("join", "t.csv", *options, stdin=STREAM)
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr


def test_a_value_is_replaced_where_that_is_asked_for_and_a_class_keeps_its_number(hk, here: Path) -> None:
    stream = [{"id": str(n), "label": 0, "class": "images", "age": n} for n in range(2)]
    Path("t.csv").write_text("id,class,age\n0,owl,0\n1,auk,7\n")
    refused = hk("join", "t.csv", "--on", "id", stdin=stream)
    assert 'record "0": class is "images", but t.csv, row id 0 has "owl"; expected the same: use' in refused.stderr
    assert hk("join", "t.csv", "--on", "id", "--replace", stdin=stream).records == [
        {"id": "0", "age": 0, "class": "owl", "label": 1}, {"id": "1", "age": 7, "class": "auk", "label": 0}]
    skipped = hk("join", "t.csv", "--on", "id", "--on-error", "skip", "--max-errors", 2, stdin=stream)
    assert (skipped.exit_code, skipped.records) == (0, [])


@pytest.mark.parametrize(("before", "now", "same"), [
    (True, False, False), (True, True, True), ([1], [2], False), ([1], [1], True), ("7", 7, True), (7, "8", False),
    ({"a": 1}, True, False),
])
def test_values_of_json_are_compared_whole(hk, here: Path, before: Any, now: Any, same: bool) -> None:
    Path("t.jsonl").write_text(json.dumps({"id": "a", "value": now}))
    assert hk("join", "t.jsonl", "--on", "id", stdin=[{"id": "a", "value": before}]).exit_code == (0 if same else 1)


def test_lines_of_records_give_their_annotations(hk, here: Path) -> None:
    """A file of records is a table too: another stream's boxes, masks and strokes, joined by id."""
    held = {"size": [9, 6], "boxes": [], "masks": {"EX": "m.png"}, "points": [{"x": 1, "y": 2}], "map": "a.npy"}
    lines = [{"id": "cat/1", **held, "strokes": [{"tool": "add", "points": [[1, 2]], "radius": 3}]},
             {"id": "cat/2", "size": [9, 6]}]
    table = "".join(f"{json.dumps(line)}\n" for line in lines)
    added, said = joined(hk, table, "--on", "id", stream=STREAM[:2], name="t.jsonl")
    assert (added, said) == ([{**held, "strokes": lines[0]["strokes"]}, {"size": [9, 6]}], "")
    stream = [{"id": "cat/1", "boxes": [{"x": 0, "y": 0, "width": 1, "height": 1}]}]
    refused = hk("join", "t.jsonl", "--on", "id", stdin=stream).stderr
    assert 'record "cat/1": boxes is "' in refused
    assert "--replace" in refused


@pytest.mark.parametrize(("key", "value", "sentence"), [
    ("boxes", 7, "boxes is '7'; expected a list or an object, as records have; for another key use --columns KEY="),
    ("size", "9x6", "t.jsonl line 1: size is '9x6'; expected a list"),
    ("class", [1], "t.jsonl line 1: class is '[1]'; expected a text"), ("class", True, "class is 'True'; expected a"),
    ("label", True, "label is 'True'; expected a whole number"), ("label", {}, "label is '{}'; expected a whole"),
])
def test_a_class_or_label_of_json_is_one(hk, here: Path, key: str, value: Any, sentence: str) -> None:
    Path("t.jsonl").write_text(json.dumps({"id": "a", key: value}))
    assert sentence in hk("join", "t.jsonl", "--on", "id", stdin=[{"id": "a"}]).stderr


def test_a_class_of_an_annotation_must_be_the_record_s(hk, here: Path, installed) -> None:
    code = ("from hkmap.sources.formats import Format\n"
            "FORMAT = Format('tags', 'tags', lambda path: path.name == 'd.tags',\n"
            "    lambda path, rejects: iter([{'id': '1', 'image': '1.jpg', 'class': 'owl', 'size': [4, 4]}]))\n")
    installed("tags", code, group="hkmap.sources", tags="tags:FORMAT")
    Path("d.tags").touch()
    record = {"id": "a", "image": "1.jpg", "size": [4, 4]}
    assert hk("join", "d.tags", stdin=[record]).records == [{**record, "class": "owl"}]
    result = hk("join", "d.tags", stdin=[{**record, "class": "auk", "label": 0}])
    assert 'record "a": d.tags has something else under "class" ("owl", not "auk"); expected' in result.stderr


def test_the_table_of_busi(hk, data_root: Path, here: Path) -> None:
    busi = data_root / "busi"
    Path("flat").mkdir()
    for image in (busi / "images").glob("*/*"):
        (Path("flat") / image.name).symlink_to(image)
    stream = hk("folder", "flat").records
    result = hk("join", busi / "labels.csv", "--on", "id", stdin=stream)
    assert result.stderr == ""
    counts = {(record["class"], record["label"]) for record in result.records}
    assert counts == {("benign", 0), ("malignant", 1), ("normal", 2)}
    assert [sum(record["label"] == label for record in result.records) for label in range(3)] == [437, 210, 133]
    assert json.loads(json.dumps(result.records[0]["orig_width"])) == 562

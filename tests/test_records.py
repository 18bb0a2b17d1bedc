"""The record and its stream, by the library: what is a record, what is not, and what the sentences say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hkmap.errors import HkmapError, MapError, RecordError, UpstreamError
from hkmap.records import (
    Bubble,
    Rejects,
    boxes_of,
    bubbles_of,
    dump_record,
    each,
    frame_of,
    label_of,
    masks_of,
    parse_record,
    polygons_of,
    read_records,
    reference_of,
)

DEEP = b'{"id": "7", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


# one line


@pytest.mark.parametrize("record", [
    {"id": "7"},
    {"id": "Großer Ani \U0001f426", "note": "Zeile\nzwei", "tab": "\t"},
    {"id": "7", "mine": {"deep": [1, 2.5, None, True, {"er": "ja"}]}, "error": "a key like any other beside an id"},
])
def test_a_record_written_and_read_is_the_same_record(record: dict[str, Any]) -> None:
    line = dump_record(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_record(line, "line 1") == record
    assert list(parse_record(line, "line 1")) == list(record)       # the order of the keys, too


@pytest.mark.parametrize(("line", "message"), [
    (b'{"id": "7"', "not a JSON object (Expecting ',' delimiter"),
    (b"photos/7.jpg", "not a JSON object (Expecting value"),
    (b'{"id": "caf\xe9"}', "not a JSON object ('utf-8' codec can't decode byte 0xe9"),
    (b'{"id": "7", "x": NaN}', "not a JSON object (NaN is not JSON); expected one record per line"),
    (b'{"id": "7", "x": -Infinity}', "-Infinity is not JSON"),
    (b'{"id": "7", "x": ' + b"9" * 5000 + b"}", "not a JSON object"),
    (DEEP, "not a JSON object (maximum recursion depth exceeded"),
    (b'["id", "7"]', "expected a JSON object, got list"),
    (b'"7"', "expected a JSON object, got str"),
    (b"null", "expected a JSON object, got NoneType"),
    (b"{}", 'expected a key "id" with a non-empty string, got None'),
    (b'{"id": ""}', 'expected a key "id" with a non-empty string, got \'\''),
    (b'{"id": 7}', 'expected a key "id" with a non-empty string, got 7'),
    (b'{"id": "\\ud800"}', 'expected a key "id" with a non-empty string, got \'\\ud800\''),
])
def test_what_is_no_record(line: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(line, "maps.jsonl line 3")
    assert str(caught.value).startswith("maps.jsonl line 3: ")
    assert message in str(caught.value)
    assert not isinstance(caught.value, UpstreamError)


@pytest.mark.parametrize(("line", "sentence"), [
    (b'{"error": "7.jpg: gone"}', "7.jpg: gone"),
    (b'{"error": "7.jpg: gone", "added": "by jq"}', "7.jpg: gone"),
    (b'{"error": 3}', "3"),
    (b'{"error": null}', "None"),
])
def test_the_failure_of_the_stage_before_is_an_error_of_its_own(line: bytes, sentence: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        parse_record(line, "line 1")
    assert caught.value.args == (sentence,)
    assert str(caught.value) == f"the stage before failed: {sentence}"


@pytest.mark.parametrize(("record", "message"), [
    ({"id": "7", "x": float("inf")}, "record '7': cannot be written as JSON in UTF-8 (Out of range float"),
    ({"id": "7", "x": float("nan")}, "record '7': cannot be written as JSON in UTF-8"),
    ({"id": "7", "image": "caf\udce9.jpg"}, "record '7': a name in it is not UTF-8; rename the file or the folder"),
    ({"id": "caf\udce9"}, "record 'caf\\udce9': a name in it is not UTF-8"),
])
def test_what_cannot_be_written(record: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        dump_record(record)
    assert message in str(caught.value)


# the stream


def read(text: bytes, rejects: Rejects | None = None) -> list[dict[str, Any]]:
    return list(read_records(text.splitlines(keepends=True), "stdin", rejects or Rejects()))


def test_blank_lines_are_passed_over_and_count() -> None:
    assert read(b'\n{"id": "1"}\n  \t\r\n{"id": "2"}\r\n\n') == [{"id": "1"}, {"id": "2"}]
    with pytest.raises(RecordError, match=r"^stdin line 4: "):
        read(b'\n{"id": "1"}\n\nbroken\n')


@pytest.mark.parametrize("text", [b"", b"\n", b" \n\t\n"])
def test_no_record_at_all_is_an_error(text: bytes) -> None:
    with pytest.raises(RecordError, match=r"^stdin: no records; expected one JSON object per line, as `hkmap folder`"):
        read(text)


def test_a_reader_asks_for_no_line_before_its_turn() -> None:
    taken = []

    def lines():
        for number in range(3):
            taken.append(number)
            yield b'{"id": "%d"}\n' % number

    stream = read_records(lines(), "stdin", Rejects())
    assert next(stream) == {"id": "0"}
    assert taken == [0]


def test_each_gives_users_errors_to_rejects_and_lets_bugs_through() -> None:
    def function(record: dict[str, Any]) -> str:
        if record["id"] == "bad":
            raise MapError("bad: no map")
        return record["id"].upper()

    records = [{"id": "a"}, {"id": "bad"}, {"id": "c"}]
    rejects = Rejects(skip=True)
    assert list(each(records, function, rejects)) == ["A", "C"]
    assert rejects.count == 1
    with pytest.raises(MapError, match="bad: no map"):
        list(each(records, function, Rejects()))
    with pytest.raises(KeyError):
        list(each([{}], function, Rejects(skip=True)))


# the keys


def test_annotations_are_read() -> None:
    record: dict[str, Any] = {
        "id": "7",
        "size": [500, 375.0],
        "bubbles": [{"x": 81.5, "y": 40, "radius": 12, "user": 3, "weight": 0}, {"x": -1, "y": 0, "radius": 0.5}],
        "points": [{"x": 1, "y": 2}],
        "boxes": [{"x": 1, "y": 2, "width": 3, "height": 0, "label": "bird"}],
        "polygons": [{"points": [[1, 2], [3, 4.5], [0, 0]], "label": "wing"}],
        "masks": {"EX": "path.tif"},
        "map": "maps.h5#17",
        "label": 4,
    }
    assert frame_of(record) == (500, 375)
    assert bubbles_of(record, "bubbles") == [Bubble(81.5, 40, 12, 0, "3"), Bubble(-1, 0, 0.5, 1, "")]
    assert bubbles_of(record, "points") == [Bubble(1, 2, 0, 1, "")]
    assert boxes_of(record) == [(1, 2, 3, 0)]
    assert polygons_of(record) == [[(1, 2), (3, 4.5), (0, 0)]]
    assert masks_of(record) == {"EX": "path.tif"}
    assert reference_of(record, "map") == "maps.h5#17"
    assert reference_of(record, "attention") is None
    assert [label_of(record), label_of({"id": "7"}), label_of({"id": "7", "label": None})] == [4, -1, -1]


HUGE = 10**400
BOX = {"x": 1, "y": 2, "width": 3, "height": 4}


@pytest.mark.parametrize("side", [0, -5, "500", None, True, float("inf"), float("nan"), HUGE])
def test_a_frame_has_two_sides_from_one(side: object) -> None:
    for size in ([side, 5], [5, side], [5], [5, 5, side], side, {"width": 5, "height": 5}):
        with pytest.raises(RecordError, match=r'^record "7": size is .*; expected \[width, height\] in pixels$'):
            frame_of({"id": "7", "size": size})


@pytest.mark.parametrize(("key", "found", "message"), [
    ("bubbles", None, "bubbles is None; expected a list of objects with x and y"),
    ("bubbles", {"x": 1}, "bubbles is {'x': 1}; expected a list"),
    ("bubbles", [7], "bubbles[0] is 7; expected an object with x and y"),
    ("bubbles", [{"y": 1, "radius": 1}], "bubbles[0].x is None; expected a number of pixels"),
    ("bubbles", [{"x": 1, "y": "1", "radius": 1}], "bubbles[0].y is 1; expected a number of pixels"),
    ("bubbles", [{"x": 1, "y": HUGE, "radius": 1}], "bubbles[0].y is 1000"),
    ("bubbles", [{"x": -2e12, "y": 1, "radius": 1}], "bubbles[0].x is -2000000000000.0; expected a number of pix"),
    ("bubbles", [{"x": 1, "y": True, "radius": 1}], "bubbles[0].y is True; expected a number of pixels"),
    ("bubbles", [{"x": 1, "y": 1}], "bubbles[0].radius is None; expected a number of pixels above 0"),
    ("bubbles", [{"x": 1, "y": 1, "radius": 0}], "bubbles[0].radius is 0; expected a number of pixels above 0"),
    ("bubbles", [{"x": 1, "y": 1, "radius": -2}], "bubbles[0].radius is -2; expected"),
    ("bubbles", [{"x": 1, "y": 1, "radius": 1, "weight": -1}], "bubbles[0].weight is -1; expected a number from 0"),
    ("bubbles", [{"x": 1, "y": 1, "radius": 1, "weight": None}], "bubbles[0].weight is None; expected a number"),
    ("points", [{"x": 1, "y": 1}, {"x": float("nan"), "y": 1}], "points[1].x is nan; expected a number of pixels"),
    ("points", [{"x": 1, "y": 1, "radius": -1}], "points[0].radius is -1"),
])
def test_what_is_no_bubble(key: str, found: object, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        bubbles_of({"id": "7", key: found}, key)
    assert str(caught.value).startswith('record "7": ')
    assert message in str(caught.value)


@pytest.mark.parametrize("item", [7, {}, BOX | {"x": "1"}, BOX | {"width": -1}, BOX | {"height": None}])
def test_what_is_no_box(item: object) -> None:
    with pytest.raises(RecordError, match=r'^record "7": boxes\[1\] is .*; expected an object with the numbers x, y,'):
        boxes_of({"id": "7", "boxes": [BOX, item]})
    with pytest.raises(RecordError, match="boxes is None; expected a list of objects"):
        boxes_of({"id": "7"})


@pytest.mark.parametrize("item", [7, {}, {"points": []}, {"points": [[1]]}, {"points": [[1, "2"]]}, {"points": [1, 2]}])
def test_what_is_no_polygon(item: object) -> None:
    with pytest.raises(RecordError, match=r'^record "7": polygons\[0\] is .*; expected an object with points, a list'):
        polygons_of({"id": "7", "polygons": [item]})
    with pytest.raises(RecordError, match="polygons is None; expected a list of objects"):
        polygons_of({"id": "7"})


@pytest.mark.parametrize("path", [7, "", "nul\0.png", "\ud800.png", ["a.png"], {}])
def test_what_is_no_path(path: object) -> None:
    with pytest.raises(RecordError, match=r'^record "7": map is [^;]*; expected a path or a reference such as maps/'):
        reference_of({"id": "7", "map": path}, "map")
    with pytest.raises(RecordError, match=r'^record "7": masks is [^;]*; expected an object of names and paths'):
        masks_of({"id": "7", "masks": {"EX": path}})


@pytest.mark.parametrize("label", ["3", 2.0, True, -2, [1]])
def test_what_is_no_label(label: object) -> None:
    expected = "expected a whole number from 0 to 99,999, or none"
    with pytest.raises(RecordError, match=rf'^record "7": label is .*; {expected}$'):
        label_of({"id": "7", "label": label})


def test_a_long_value_is_named_shortly() -> None:
    with pytest.raises(RecordError) as caught:
        label_of(json.loads('{"id": "7", "label": "%s"}' % ("x" * 1000)))
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, HkmapError)

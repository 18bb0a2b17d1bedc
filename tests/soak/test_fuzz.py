"""Whatever text people or programs hand in: a result or an HkmapError, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hkmap.errors import HkmapError
from hkmap.files.images import decode_image
from hkmap.files.masks import read_referred_mask
from hkmap.maps.kde import bubbles_map
from hkmap.records import (
    Rejects,
    boxes_of,
    bubbles_of,
    dump_record,
    frame_of,
    label_of,
    masks_of,
    parse_record,
    polygons_of,
    read_records,
    reference_of,
)
from hkmap.sources.gaze import gaze_points, read_gaze
from hkmap.sources.tables import Table, read_bubbles, table_bubbles
from hkmap.stream.references import load_map, read_image

pytestmark = pytest.mark.soak
EXAMPLES = settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.integers(0, 500), st.floats(0, 500),
    st.sampled_from([0, -1, 1e-320, 1e300, -1e300, 10**400, True, None, "3"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)
BUBBLE = st.fixed_dictionaries(
    {"x": NUMBERS, "y": NUMBERS}, optional={"radius": NUMBERS, "weight": NUMBERS, "user": JSON}
)
BOX = st.fixed_dictionaries(dict.fromkeys(("x", "y", "width", "height"), NUMBERS))
POLYGON = st.fixed_dictionaries({"points": st.lists(st.lists(NUMBERS, max_size=3))})
RECORD = st.fixed_dictionaries(
    {"id": st.text(min_size=1)},
    optional={
        "size": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
        "bubbles": st.lists(BUBBLE | JSON, max_size=5) | JSON,
        "points": st.lists(BUBBLE, max_size=5),
        "boxes": st.lists(BOX | JSON, max_size=3),
        "polygons": st.lists(POLYGON | JSON, max_size=3),
        "masks": st.dictionaries(st.text(max_size=3), st.text(max_size=9) | JSON, max_size=3) | JSON,
        "map": st.text() | JSON,
        "image": st.text() | JSON,
        "label": NUMBERS | JSON,
    },
)


def tried(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or None where the user is told what is wrong."""
    try:
        return function(*arguments, **options)
    except HkmapError:
        return None


# records


@EXAMPLES
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | RECORD.map(lambda x: json.dumps(x).encode()))
@example(b'{"id": "\\ud800"}')
@example(b'{"id": "7", "x": 1e999}')
@example(b"[" * 100_000)
def test_a_line_is_a_record_or_an_error(line: bytes) -> None:
    record = tried(parse_record, line, "line 1")
    if record is not None and (written := tried(dump_record, record)) is not None:
        assert parse_record(written, "line 1") == record


@EXAMPLES
@given(st.binary())
def test_a_stream_is_records_or_an_error(text: bytes) -> None:
    tried(lambda: list(read_records(text.splitlines(keepends=True), "stdin", Rejects())))
    tried(lambda: list(read_records(text.splitlines(keepends=True), "stdin", Rejects(skip=True))))


@EXAMPLES
@given(RECORD)
def test_every_key_is_read_or_an_error(record: dict[str, Any]) -> None:
    for function in (frame_of, boxes_of, polygons_of, masks_of, label_of):
        tried(function, record)
    for key in ("map", "image"):
        reference = tried(reference_of, record, key)
        if reference is not None:
            tried(load_map if key == "map" else read_image, reference)
    for mask in (tried(masks_of, record) or {}).values():
        tried(read_referred_mask, mask)
    for key in ("bubbles", "points"):
        tried(bubbles_of, record, key)


@EXAMPLES
@given(
    st.lists(BUBBLE, min_size=1, max_size=6),
    st.tuples(st.integers(1, 600) | NUMBERS, st.integers(1, 600) | NUMBERS),
    st.sampled_from(["scott", "radius", "fixed", 0.5, 1e-300, 1e300]),
    st.sampled_from([(1, 1), (14, 14), (7, 30)]),
)
def test_bubbles_are_a_map_or_an_error(bubbles, frame, bandwidth, size) -> None:
    record = {"id": "7", "size": list(frame), "bubbles": bubbles, "points": bubbles}
    for key in ("bubbles", "points"):
        found = tried(bubbles_of, record, key)
        if found:
            values = tried(bubbles_map, record, found, size, bandwidth=bandwidth)
            assert values is None or (values.dtype == np.float32 and values.shape == size and values.max() == 1)
            assert values is None or (values >= 0).all()


# tables and gaze

CELL = st.one_of(
    st.text(alphabet='0123456789.-+eE ,;"\'\t\nnaif\0\ufeffé', max_size=6), st.integers().map(str), st.floats().map(str)
)
ROWS = st.lists(st.lists(CELL, max_size=7).map(",".join), max_size=5).map("\n".join)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


TABLE = st.one_of(
    st.binary(),
    ROWS.map(str.encode),
    ROWS.map(lambda text: f"image,x,y,radius,user,weight\n{text}".encode()),
    st.lists(BUBBLE.map(lambda bubble: json.dumps({"image": "1", **bubble}) + "\n")).map("".join).map(str.encode),
)
NAMES = [("1", "a/1.jpg"), ("2", "a/2.jpg"), ("3", "b/2.jpg")]


@EXAMPLES
@given(TABLE, st.sampled_from(["bubbles.csv", "bubbles.jsonl"]), st.sampled_from([0, 1]))
def test_a_table_is_bubbles_or_an_error(scratch: Path, content: bytes, name: str, origin: int) -> None:
    (scratch / name).write_bytes(content)
    table = Table(scratch / name, {}, (224, 224), origin)
    found = tried(read_bubbles, table, NAMES) or {}
    for identifier in found:
        fitted = tried(table_bubbles, found[identifier], table, (500, 375))
        if fitted is None:
            continue
        # what a source prints is a record that a filter reads
        dumped = tried(dump_record, {"id": identifier, "size": [500, 375], "bubbles": fitted})
        if dumped is not None:
            tried(bubbles_of, parse_record(dumped, "line 1"), "bubbles")


@EXAMPLES
@given(st.binary() | ROWS.map(str.encode) | ROWS.map(lambda text: f"1,50,40,{text}".encode()))
def test_gaze_is_points_or_an_error(scratch: Path, content: bytes) -> None:
    (scratch / "gaze.txt").write_bytes(content)
    found = tried(read_gaze, [scratch / "gaze.txt"], {"1", "2"})
    for lines in (found or {}).values():
        points = tried(gaze_points, lines, (50, 40))
        if points is not None:
            tried(bubbles_of, {"id": "1", "points": points}, "points")


# the bytes of images and maps (mutated real ones: test_damage.py)


@EXAMPLES
@given(st.binary(), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"GIF89a", b"P6 "]))
def test_bytes_are_an_image_or_an_error(scratch: Path, data: bytes, magic: bytes) -> None:
    tried(decode_image, magic + data, "x")
    for name in ("x.npy", "x.png"):
        (scratch / name).write_bytes((b"\x93NUMPY\x01\x00" if name == "x.npy" and magic else magic) + data)
        tried(load_map, str(scratch / name))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(RECORD, max_size=4),
    st.sampled_from([
        "bubbles2map --out {}/m", "masks2map --out {}/m", "resize --size 3 --out {}/m", "pack {}/x.h5",
        "show --out {}/x.png",
    ]),
    st.booleans(),
)
def test_any_records_through_the_whole_command_line(hk, tmp_path_factory, records, command, skip) -> None:
    with suppress(ValueError):      # json.dumps cannot say every record that was made up here
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        arguments = command.format(tmp_path_factory.mktemp("line")).split()
        result = hk(*arguments, *(["--on-error", "skip"] if skip else []), stdin=text)
        assert result.exit_code in (0, 1)

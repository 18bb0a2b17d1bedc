"""The record, one JSON object on one line, and the stream of records between two commands.

Keys that hkmap does not know are kept and passed on. A last line ``{"error": "..."}`` says that the
stage before failed: whoever reads it stops too, so a failure never looks like the end of the data.
"""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from hkmap.errors import HkmapError, RecordError, UpstreamError

Record = dict[str, Any]
MaskReference = str | dict[str, Any]       # a path, PATH#VALUE, or COCO's run lengths {"size", "counts"}
Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("hkmap")

_LARGEST = 1e12     # no length in an image, and no weight, is beyond it; squares and sums of such numbers stay finite

LARGEST_LABEL = 99_999      # every number up to a label takes a place in the list of classes


class Bubble(NamedTuple):
    """A circle (or, with radius 0, a point) where somebody looked, in pixels of the record's frame."""

    x: float
    y: float
    radius: float
    weight: float
    user: str


@dataclass
class Rejects:
    """What to do with a record that cannot be used: stop, or skip it, warn and count it."""

    skip: bool = False
    max_errors: int = 0
    count: int = 0

    def reject(self, error: HkmapError) -> None:
        """Raise ``error``, or count it where records may be skipped."""
        if not self.skip:
            raise error
        self.count += 1
        logger.warning("skipped: %s", error)

    @property
    def too_many(self) -> bool:
        return self.count > self.max_errors


def parse_record(line: bytes, place: str) -> Record:
    """Read one line.

    >>> parse_record(b'{"id": "7", "label": 2}', "line 1")
    {'id': '7', 'label': 2}
    """
    try:
        record = json.loads(line, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:   # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RecordError(f"{place}: not a JSON object ({error}); expected one record per line") from error
    if not isinstance(record, dict):
        raise RecordError(f"{place}: expected a JSON object, got {type(record).__name__}")
    if "error" in record and "id" not in record:        # a filter such as jq may have added keys
        raise UpstreamError(str(record["error"]))
    if not _is_text(record.get("id")):
        raise RecordError(f'{place}: expected a key "id" with a non-empty string, got {repr(record.get("id"))[:60]}')
    return record


def read_records(lines: Iterable[bytes], name: str, rejects: Rejects) -> Iterator[Record]:
    """Yield the records of a stream, one line each; blank lines are skipped.

    Raises RecordError where a line is not a record (unless ``rejects`` skips it), where the stage before
    reports its failure, and where there is no record at all.
    """
    return accepted(parsed(lines, name), rejects)


def parsed(lines: Iterable[bytes], name: str) -> Iterator[Record | HkmapError]:
    """Like read_records, but yield the RecordError of a line that is no record in its place."""
    empty = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        empty = False
        record = attempt(partial(parse_record, place=f"{name} line {number}"), line)
        if isinstance(record, UpstreamError):
            raise record
        yield record
    if empty:
        raise RecordError(f"{name}: no records; expected one JSON object per line, as `hkmap folder` prints them")


def attempt(function: Callable[[Item], Result], item: Item | HkmapError) -> Result | HkmapError:
    """Return the function's result, or the HkmapError that it raises; an item that is an HkmapError, as it is."""
    if isinstance(item, HkmapError):
        return item
    try:
        return function(item)
    except HkmapError as error:
        return error


def accepted(outcomes: Iterable[Result | HkmapError], rejects: Rejects) -> Iterator[Result]:
    """Yield the results, in order; each error between them goes to ``rejects``."""
    for outcome in outcomes:
        if isinstance(outcome, HkmapError):
            rejects.reject(outcome)
        else:
            yield outcome


def each(items: Iterable[Item], function: Callable[[Item], Result], rejects: Rejects) -> Iterator[Result]:
    """Apply ``function`` to every item; an HkmapError that it raises goes to ``rejects``."""
    return accepted((attempt(function, item) for item in items), rejects)


def passed_on(record: Record, policy: str, found: str, remedy: str) -> Record:
    """Return a record that lacks what the command needs, as it is; RecordError where the policy is "error"."""
    if policy == "error":
        raise RecordError(f'record "{record["id"]}": {found}; {remedy}')
    return record


def text_of(path: Path) -> str:
    r"""Return a path as text; its bytes that are not UTF-8, which TOML and JSON cannot hold, are written as \xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def dump_record(record: Record) -> bytes:
    """Return the record's line, newline included.

    >>> dump_record({"id": "7", "class": "Großer Ani"}).decode()
    '{"id": "7", "class": "Großer Ani"}\\n'
    """
    place = f"record {record.get('id')!a}"
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:       # a file name of another encoding, as Python carries it
        raise RecordError(f"{place}: a name in it is not UTF-8; rename the file or the folder") from error
    except (ValueError, RecursionError) as error:       # what JSON can hold and Python cannot write: 1e999 is infinite
        raise RecordError(f"{place}: cannot be written as JSON in UTF-8 ({error}); mend its text or number") from error


def frame_of(record: Record) -> tuple[int, int]:
    """Return (width, height) of the frame in which the record's coordinates are given, in pixels."""
    size = record.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(_is_number(side) and side >= 1 for side in size)):
        raise _wrong(record, "size", "[width, height] in pixels", size)
    return int(size[0]), int(size[1])


def bubbles_of(record: Record, key: str) -> list[Bubble]:
    """Return the circles or points under ``key`` ("bubbles" or "points"), checked.

    Weight defaults to 1, user to "". A bubble must have a radius above 0; a point has none (0).
    """
    bubbles = []
    for place, item in _items(record, key, "x and y"):
        for name in ("x", "y"):
            if not _is_number(item.get(name)):
                raise _wrong(record, f"{place}.{name}", "a number of pixels", item.get(name))
        radius, weight = item.get("radius", 0), item.get("weight", 1)
        if not _is_number(radius) or radius < 0 or (radius == 0 and key == "bubbles"):
            raise _wrong(record, f"{place}.radius", "a number of pixels above 0", item.get("radius"))
        if not _is_number(weight) or weight < 0:
            raise _wrong(record, f"{place}.weight", "a number from 0", weight)
        user = "" if item.get("user") is None else str(item["user"])
        bubbles.append(Bubble(float(item["x"]), float(item["y"]), float(radius), float(weight), user))
    return bubbles


def boxes_of(record: Record) -> list[tuple[float, float, float, float]]:
    """Return the record's boxes, checked: (left, top, width, height) in pixels of its frame."""
    boxes = []
    for place, item in _items(record, "boxes", "the numbers x, y, width and height"):
        sides: list[Any] = [item.get(name) for name in ("x", "y", "width", "height")]
        if not all(map(_is_number, sides)) or min(sides[2:]) < 0:
            raise _wrong(record, place, "an object with the numbers x, y, width and height", item)
        left, top, width, height = map(float, sides)
        boxes.append((left, top, width, height))
    return boxes


def polygons_of(record: Record, key: str = "polygons") -> list[list[tuple[float, float]]]:
    """Return the corners (x, y) of the record's polygons (or "lines"), checked, in pixels of its frame."""
    polygons = []
    for place, item in _items(record, key, "points, a list of [x, y]"):
        points = item.get("points")
        if not isinstance(points, list) or not points or not all(map(_is_point, points)):
            raise _wrong(record, place, "an object with points, a list of [x, y]", item)
        polygons.append([(float(x), float(y)) for x, y in points])
    return polygons


def labels_of(record: Record, key: str) -> list[str]:
    """Return the label of each shape under ``key`` ("boxes", "polygons" or "masks"), "" where it has none.

    The label of a mask is its name, without the @USER that tells the masks of several users apart.
    """
    if key == "masks":
        users = mask_users_of(record)
        return [name.removesuffix(f"@{users[name]}") if name in users else name for name in masks_of(record)]
    return [str(item.get("label", "")) for _, item in _items(record, key, "labels")]


def users_of(record: Record, key: str) -> list[str]:
    """Return who drew each mark under ``key`` ("bubbles", "points", "boxes", "polygons" or "masks"), "" for nobody.

    A mark names its `user` itself; those of the masks are in the record's `mask_users`, {NAME: USER}.
    """
    if key == "masks":
        users = mask_users_of(record)
        return [users.get(name, "") for name in masks_of(record)]
    return ["" if item.get("user") is None else str(item["user"]) for _, item in _items(record, key, "users")]


def annotators_of(record: Record) -> list[str]:
    """Return the names under "annotators", checked: who looked at the image, also if they marked nothing."""
    found = record.get("annotators")
    if found is None:
        return []
    if not (isinstance(found, list) and all(map(_is_text, found))):
        raise _wrong(record, "annotators", 'a list of names, such as ["ada", "ben"]', found)
    return found


def masks_of(record: Record, key: str = "masks") -> dict[str, MaskReference]:
    """Return the references of the record's masks ("masks", or "unknown") by their names, checked."""
    found = record.get(key)
    if not (isinstance(found, dict) and all(_is_path(value) or _is_rle(value) for value in found.values())):
        raise _wrong(record, key, 'an object of names and paths, such as {"EX": "path.tif"}', found)
    return found


def mask_users_of(record: Record) -> dict[str, str]:
    """Return who drew each of the record's masks, by the masks' names, checked; empty where that is not said."""
    found = record.get("mask_users")
    if not isinstance(found, dict | None):
        raise _wrong(record, "mask_users", 'names of masks and users, such as {"EX": "ada"}', found)
    return {name: str(user) for name, user in (found or {}).items() if user is not None}


def reference_of(record: Record, key: str) -> str | None:
    """Return the path or reference under ``key`` ("image", "map", "attention"), None where it has none."""
    found = record.get(key)
    if found is None or _is_path(found):
        return found
    raise _wrong(record, key, "a path or a reference such as maps/017.npy or maps.h5#17", found)


def annotator_maps_of(record: Record) -> dict[str, str]:
    """Return the map references of single annotators by their names, checked; empty where the record has none."""
    found = record.get("annotator_maps")
    if found is None:
        return {}
    if not (isinstance(found, dict) and all(map(_is_text, found)) and all(map(_is_path, found.values()))):
        raise _wrong(record, "annotator_maps", 'names and map references, such as {"3": "maps/017@3.npy"}', found)
    return found


def with_annotators(record: Record, references: dict[str, str]) -> Record:
    """Return the record with these references of its annotators' maps; without any, as it is."""
    return {**record, "annotator_maps": references} if references else record


def without_maps(record: Record) -> Record:
    """Return a record for a new map, without the certainty and the annotators' maps of an older one.

    >>> without_maps({"id": "7", "map": "old.npy", "certainty": "c.npy"})
    {'id': '7', 'map': 'old.npy'}
    """
    return {key: value for key, value in record.items() if key not in ("certainty", "annotator_maps")}


def label_of(record: Record) -> int:
    """Return the record's label, -1 where it has none."""
    label = record.get("label", -1)
    if label is None:
        return -1
    if not isinstance(label, int) or isinstance(label, bool) or not -1 <= label <= LARGEST_LABEL:
        raise _wrong(record, "label", f"a whole number from 0 to {LARGEST_LABEL:,}, or none", label)
    return label


def shown(value: object) -> str:
    """Return the beginning of a value for a message, however large or deeply nested the value is.

    >>> shown("x"), shown([[1, [2, [3, [4, [5, [6, [7]]]]]]], "x"])
    ('x', "[[1, [2, [3, [4, [5, [...]]]]]], 'x']")
    """
    return (value if isinstance(value, str) else reprlib.repr(value))[:60]


def mismatch(value: object, expected: str) -> str:
    """Say what was found in place of what was expected; a text in its quotes.

    >>> mismatch("10", "a number"), mismatch(1.5, "a list")
    ('is "10"; expected a number (not a text)', 'is 1.5; expected a list')
    """
    if not isinstance(value, str):
        return f"is {shown(value)}; expected {expected}"
    hint = " (not a text)" if "number" in expected and "text" not in expected else ""
    return f'is "{shown(value)}"; expected {expected}{hint}'


def _items(record: Record, key: str, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of the list under ``key`` after its place."""
    found = record.get(key)
    if not isinstance(found, list):
        raise _wrong(record, key, f"a list of objects with {content}", found)
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            raise _wrong(record, f"{key}[{index}]", f"an object with {content}", item)
        yield f"{key}[{index}]", item


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_text(value: object) -> bool:
    """Whether it is a string, not empty, that UTF-8 can hold: JSON's escapes also write half characters."""
    return isinstance(value, str) and bool(value) and value.encode(errors="ignore").decode() == value


def _is_path(value: object) -> bool:
    return _is_text(value) and "\0" not in str(value)


def _is_rle(value: object) -> bool:
    """Whether it has the form of run lengths, which are checked where they are decoded."""
    return isinstance(value, dict) and isinstance(value.get("size"), list) and isinstance(value.get("counts"), str)


def _is_number(value: object) -> bool:
    # NaN compares as False, and JSON's whole numbers, which have no end, compare without becoming a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _wrong(record: Record, key: str, expected: str, got: object) -> RecordError:
    return RecordError(f'record "{record["id"]}": {key} {mismatch(got, expected)}')


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which Python reads and JSON has not: the ``parse_constant`` of json."""
    raise ValueError(f"{name} is not JSON")

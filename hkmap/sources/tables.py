"""The neutral table: CSV or JSON Lines, one bubble, box or point per row.

Its columns are ``image,x,y,radius`` for bubbles, ``image,x,y,width,height`` for boxes (x and y are the left and
top edge) and ``image,x,y`` for points. ``user``, ``weight`` and ``label`` are optional; any other column is kept on
its row. Coordinates are continuous: in a frame of width w, x runs from 0 (the left edge of the first pixel) to w (the
right edge of the last), so the first pixel's centre is at 0.5.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import head
from hkmap.sources.frames import fit_items

PLACE = ("image", "x", "y")
# What a row has besides its place, by the key of the record that it belongs to.
SHAPES: dict[str, tuple[str, ...]] = {"boxes": ("width", "height"), "bubbles": ("radius",), "points": ()}
OPTIONAL = ("user", "weight", "label")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Item = dict[str, Any]
# Where a line is, the names of its columns, and its values. A table may have millions of rows: Python's garbage
# collector skips tuples of texts, and numbers are read when their image comes.
Row = tuple[str, tuple[str, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class Table:
    """Where a table is, and how it is to be read.

    ``columns`` maps the names above to the table's own where they differ; ``frame`` is the (width, height) that the
    coordinates count in, None for the image's own pixels; ``origin`` is the coordinate of the left and top
    edge, 0 or 1.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    frame: tuple[int, int] | None = None
    origin: int = 0

    def names(self, shape: str) -> dict[str, str]:
        """Return what the table calls each column of a shape."""
        return {name: self.columns.get(name, name) for name in (*PLACE, *SHAPES[shape], *OPTIONAL)}


def is_table(path: Path) -> bool:
    """Whether it is a file whose first line has the columns image, x and y."""
    try:
        return path.is_file() and set(PLACE) <= set(_columns(path))
    except SourceError:
        return False


def table_records(table: Table, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image that the table mentions, with its boxes, bubbles or points.

    The columns decide which they are. A row that cannot be read goes to ``rejects``.
    """
    shape = _shape(table)
    names = table.names(shape)
    records: dict[str, Record] = {}

    def read(row: Row) -> tuple[str, Item]:
        return _image(row, names), _item(row, names, table.origin)

    for image, item in each(_rows(table.path), read, rejects):
        records.setdefault(image, {"id": image, "image": image, shape: []})[shape].append(item)
    frame = {} if table.frame is None else {"frame": list(table.frame)}
    yield from (record | frame for record in records.values())


def read_bubbles(table: Table, images: Iterable[tuple[str, str]]) -> dict[str, list[Row]]:
    """Return the rows about each image, by its id; table_bubbles makes bubbles of them when their image comes.

    ``images`` are all of the data set, (id, path below the folder images). A row names one by id, path, file name or
    stem. Raises SourceError, with the line, where a row's image is not in the data set or may be two of it.
    """
    known = _spellings(images)
    names = table.names("bubbles")
    rows: dict[str, list[Row]] = {}
    named: dict[str, list[Row]] = {}        # the same lists, by what the table calls the image
    for row in _rows(table.path):
        name = _image(row, names)
        if name not in named:
            found = known.get(name.replace("\\", "/").rsplit("images/", 1)[-1], set())
            if not found:
                raise SourceError(
                    f'{row[0]}: image "{name}" is not in the data set; '
                    "expected an id, a file name or a path below images/ (drop the row, or map --columns image=...)"
                )
            if len(found) > 1:
                raise SourceError(
                    f'{row[0]}: image "{name}" is the name of {len(found)} images; give the path below images/'
                )
            named[name] = rows.setdefault(next(iter(found)), [])
        named[name].append(row)
    if not rows:
        expected = ",".join((*PLACE, *SHAPES["bubbles"]))
        raise SourceError(f"{table.path}: no bubbles; expected one per row under the columns {expected}")
    return rows


def table_bubbles(rows: Iterable[Row], table: Table, size: tuple[int, int]) -> list[Item]:
    """Return the bubbles of an image of ``size`` (width, height), in its pixels; SourceError for a bad row."""
    names = table.names("bubbles")
    bubbles = [_item(row, names, table.origin) for row in rows]
    return bubbles if table.frame is None else fit_items(bubbles, table.frame, size)


def _spellings(images: Iterable[tuple[str, str]]) -> Mapping[str, set[str]]:
    """Return the ids of the images that each name may mean; an id or a path means one."""
    exact: dict[str, set[str]] = {}
    loose: defaultdict[str, set[str]] = defaultdict(set)
    for identifier, path in images:
        exact[identifier] = exact[path] = {identifier}
        name = path.rsplit("/", 1)[-1]
        loose[name].add(identifier)
        loose[name.rsplit(".", 1)[0]].add(identifier)
    return loose | exact


def _shape(table: Table) -> str:
    """Return the key of a record that the columns of a table are for."""
    columns = set(_columns(table.path))
    own = {shape: {table.columns.get(name, name) for name in names} for shape, names in SHAPES.items() if names}
    found = [shape for shape, names in own.items() if names <= columns]
    if len(found) > 1:
        raise SourceError(f"{table.path}: has the columns of {' and '.join(found)}; expected those of one")
    return found[0] if found else "points"


def _columns(path: Path) -> tuple[str, ...]:
    """Return the names in a table's first line, or of its first JSON object."""
    first = next((line for line in head(path).splitlines() if line.strip()), "")
    if not _is_json(path):
        return _header(path, first)
    return next((names for _, names, _ in _json_rows(path, [first])), ())


def value_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table whatever its columns are; raises SourceError for a line that belongs to no table."""
    return _rows(path)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in JSON_SUFFIXES or head(path).lstrip()[:1] == "{"


def _rows(path: Path) -> Iterator[Row]:
    """Yield the rows that are not empty; raise SourceError where a line belongs to no table."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from _json_rows(path, stream) if _is_json(path) else _csv_rows(path, stream)
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error
        except csv.Error as error:
            raise SourceError(f"{path}: not CSV ({error}); expected one line per row, with commas between") from error


def _csv_rows(path: Path, stream: IO[str]) -> Iterator[Row]:
    above, first = next(((number, line) for number, line in enumerate(stream, start=1) if line.strip()), (0, ""))
    header = _header(path, first)
    reader = csv.reader(stream, delimiter=_delimiter(first))
    for cells in reader:
        texts = tuple(map(str.strip, cells))
        if not any(texts):
            continue
        place = f"{path} line {reader.line_num + above}"
        if len(texts) > len(header):
            raise SourceError(f"{place}: {len(texts)} values under {len(header)} columns; quote a text with commas")
        yield place, header, texts


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{place}: not a JSON object ({error}); expected one bubble, box or point") from error
        if not isinstance(values, dict):
            raise SourceError(f"{place}: expected a JSON object with {', '.join(PLACE)}, got {line.strip()[:40]}")
        yield place, tuple(values), tuple(values.values())


def _header(path: Path, line: str) -> tuple[str, ...]:
    header = tuple(map(str.strip, next(csv.reader([line], delimiter=_delimiter(line)), ())))
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise SourceError(f'{path}: two columns are called "{twice[0]}"; rename one')
    return header


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _item(row: Row, names: Mapping[str, str], origin: int) -> Item:
    """Return the bubble, box or point of a row; ``names`` are the table's own, by the neutral ones."""
    place, values = row[0], _values(row)
    item: Item = {}
    for name in names:
        if name not in ("image", *OPTIONAL):
            item[name] = _number(_required(values, name, names, place), name, place)
    item["x"] -= origin
    item["y"] -= origin
    taken = {*names, *names.values()}
    item |= {name: value for name, value in values.items() if name not in taken}
    item |= {name: value for name in OPTIONAL if (value := values.get(names[name])) is not None}
    if "user" in item:
        item["user"] = str(item["user"])
    if "weight" in item:
        item["weight"] = _number(item["weight"], "weight", place)
    return item


def _image(row: Row, names: Mapping[str, str]) -> str:
    place, columns, values = row
    own = names["image"]
    found = values[columns.index(own)] if own in columns[: len(values)] else ""
    return str(found or _required(_values(row), "image", names, place))


def _values(row: Row) -> Item:
    """Return the values that are not empty, by the names of their columns."""
    _, names, values = row
    return {name: value for name, value in zip(names, values, strict=False) if value != ""}


def _required(values: Item, name: str, names: Mapping[str, str], place: str) -> Any:
    value = values.get(names[name])
    if value is None:
        has = ", ".join(map(str, values)) or "nothing"
        raise SourceError(f'{place}: no value under "{names[name]}" (it has {has}); map it by --columns {name}=...')
    return value


def _number(value: Any, name: str, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):      # JSON's whole numbers have no end
        number = math.nan
    if value is True or value is False or not math.isfinite(number):
        raise SourceError(f'{place}: {name} is "{value}"; expected a number, with a point for decimals')
    if name == "radius" and number <= 0:
        raise SourceError(f"{place}: radius is {value}; expected a number of pixels above 0")
    if name in ("width", "height", "weight") and number < 0:
        raise SourceError(f"{place}: {name} is {value}; expected a number from 0")
    return number

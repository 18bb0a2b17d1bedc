"""The neutral table: CSV or JSON Lines, one bubble, box or point a row.

Its columns are ``image,x,y,radius`` for bubbles, ``image,x,y,width,height`` for boxes (x and y are the left and
top edge), ``image,x,y`` for points and, as they are there, ``user`` and ``weight``; any other column is kept on
its row, such as ``label``. Coordinates are continuous: in a frame of width w, x runs from 0 (the left edge of the
first pixel) to w (the right edge of the last), so the first pixel's centre is at 0.5.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import head
from hkmap.sources.frames import fit_items

PLACE = ("image", "x", "y")
# What a row has beside its place, by the key of the record that it belongs to.
SHAPES: dict[str, tuple[str, ...]] = {"boxes": ("width", "height"), "bubbles": ("radius",), "points": ()}
OPTIONAL = ("user", "weight", "label")
NAMES = (*PLACE, "radius", "width", "height", *OPTIONAL)
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Item = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Where a table is, and how it is to be read.

    ``columns`` maps NAMES to the table's own where they differ; ``frame`` is the (width, height) that the
    coordinates count in, None for the image's own pixels; ``origin`` is the coordinate of the left and top
    edge, 0 or 1.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    frame: tuple[int, int] | None = None
    origin: int = 0


class Row(NamedTuple):
    """One line of a table, and its place for messages."""

    place: str
    values: Mapping[str, Any]


class ImageNames:
    """Every way in which a table may name an image of a data set: id, path, file name, and stem."""

    def __init__(self, images: Iterable[tuple[str, str]]) -> None:
        """Take (id, path below the folder of images) of each."""
        self._ids: dict[str, str] = {}
        self._loose: dict[str, set[str]] = {}
        for identifier, path in images:
            self._ids[identifier] = self._ids[path] = identifier
            name = path.rsplit("/", 1)[-1]
            for loose in (name, name.rsplit(".", 1)[0]):
                self._loose.setdefault(loose, set()).add(identifier)

    def identify(self, name: str, place: str) -> str:
        """Return the id of the image called ``name``; SourceError where there is none, or more than one."""
        path = name.replace("\\", "/").rsplit("images/", 1)[-1]
        found = {self._ids[path]} if path in self._ids else self._loose.get(path, set())
        if len(found) == 1:
            return next(iter(found))
        if not found:
            raise SourceError(
                f'{place}: image "{name}" is not in the data set; '
                "expected an id, a file name or a path below images/ (drop the row, or map --columns image=...)"
            )
        raise SourceError(f'{place}: image "{name}" is the name of {len(found)} images; give the path below images/')


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
    records: dict[str, Record] = {}

    def add(row: Row) -> None:
        values = _renamed(row, table.columns, shape)
        item = _item(values, row.place, table.origin, shape)
        name = str(values["image"])
        records.setdefault(name, {"id": name, "image": name, shape: []})[shape].append(item)

    for _ in each(_rows(table.path), add, rejects):
        pass
    frame = {} if table.frame is None else {"frame": list(table.frame)}
    yield from (record | frame for record in records.values())


def read_bubbles(table: Table, names: ImageNames) -> dict[str, list[Item]]:
    """Return the bubbles of every image that the table mentions, by the image's id, in the table's frame.

    Raises SourceError, with the line, where a row cannot be read or its image is not in the data set.
    """
    bubbles: dict[str, list[Item]] = {}
    for row in _rows(table.path):
        values = _renamed(row, table.columns, "bubbles")
        identifier = names.identify(str(values["image"]), row.place)
        bubbles.setdefault(identifier, []).append(_item(values, row.place, table.origin, "bubbles"))
    if not bubbles:
        columns = ",".join((*PLACE, *SHAPES["bubbles"]))
        raise SourceError(f"{table.path}: no bubbles; expected one a row under the columns {columns}")
    return bubbles


def fit_bubbles(bubbles: list[Item], frame: tuple[int, int] | None, size: tuple[int, int]) -> list[Item]:
    """Carry bubbles from a frame, None for the image's own, to an image of ``size``, both (width, height)."""
    return bubbles if frame is None else fit_items(bubbles, frame, size)


def _shape(table: Table) -> str:
    """Return the key of a record that the columns of a table are for."""
    columns = set(_columns(table.path))
    own = {name: table.columns.get(name, name) for name in NAMES}
    found = [shape for shape, names in SHAPES.items() if names and columns.issuperset(own[name] for name in names)]
    if len(found) > 1:
        raise SourceError(f"{table.path}: has the columns of {' and '.join(found)}; expected those of one")
    return found[0] if found else "points"


def _columns(path: Path) -> list[str]:
    """Return the names in a table's first line, or of its first JSON object."""
    first = next((line for line in head(path).splitlines() if line.strip()), "")
    if not _is_json(path):
        return _header(path, first)
    return list(next((row.values for row in _json_rows(path, iter([first])) if first), {}))


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in JSON_SUFFIXES or head(path).lstrip()[:1] == "{"


def _rows(path: Path) -> Iterator[Row]:
    rows = _json_rows if _is_json(path) else _csv_rows
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from rows(path, stream)
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error
        except csv.Error as error:
            raise SourceError(f"{path}: not CSV ({error}); expected one line a row, with commas between") from error


def _json_rows(path: Path, lines: Iterator[str] | IO[str]) -> Iterator[Row]:
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
        yield Row(place, values)


def _csv_rows(path: Path, stream: IO[str]) -> Iterator[Row]:
    first = stream.readline()
    header = _header(path, first)
    reader = csv.reader(stream, delimiter=_delimiter(first))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        place = f"{path} line {reader.line_num + 1}"
        if len(cells) > len(header):
            raise SourceError(f"{place}: {len(cells)} values under {len(header)} columns; quote a text with commas")
        yield Row(place, {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()})


def _header(path: Path, line: str) -> list[str]:
    try:
        header = [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)), [])]
    except csv.Error as error:
        raise SourceError(f"{path}: not CSV ({error}); expected the names of the columns in its first line") from error
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise SourceError(f'{path}: two columns are called "{twice[0]}"; rename one')
    return header


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _renamed(row: Row, columns: Mapping[str, str], shape: str) -> Item:
    """Return the row under the neutral names."""
    required = (*PLACE, *SHAPES[shape])
    own = {name: columns.get(name, name) for name in required + OPTIONAL}
    for name in required:
        if row.values.get(own[name]) is None:
            has = ", ".join(map(str, row.values)) or "nothing"
            raise SourceError(
                f'{row.place}: no value under "{own[name]}" (it has {has}); map it by --columns {name}=...'
            )
    taken = {*own.values(), *own}
    others = {name: value for name, value in row.values.items() if name not in taken}
    return {**others, **{name: row.values[key] for name, key in own.items() if row.values.get(key) is not None}}


def _item(values: Item, place: str, origin: int, shape: str) -> Item:
    item = {name: _number(values, name, place) - origin for name in ("x", "y")}
    item |= {name: _number(values, name, place) for name in SHAPES[shape]}
    if item.get("radius", 1) <= 0:
        raise SourceError(f"{place}: radius is {values['radius']}; expected a number of pixels above 0")
    if min(item.get("width", 0), item.get("height", 0)) < 0:
        raise SourceError(f"{place}: {values['width']} wide and {values['height']} high; expected numbers from 0")
    rest = {name: value for name, value in values.items() if name != "image" and name not in item}
    if "user" in rest:
        rest["user"] = str(rest["user"])
    if "weight" in rest:
        rest["weight"] = _number(values, "weight", place)
        if rest["weight"] < 0:
            raise SourceError(f"{place}: weight is {values['weight']}; expected a number from 0")
    return {**item, **rest}


def _number(values: Item, name: str, place: str) -> float:
    value = values[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):      # JSON's whole numbers have no end
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise SourceError(f'{place}: {name} is "{value}"; expected a number, with a point for decimals')
    return number

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
Line = tuple[Any, ...]


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
    """One line of a table, and where it is."""

    path: Path
    number: int
    values: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where it is, for messages; made only for them, as a table may have millions of rows."""
        return f"{self.path} line {self.number}"


class Columns(NamedTuple):
    """The columns of a table for one shape: its own names by the neutral ones, and all names that are taken."""

    required: Mapping[str, str]
    optional: Mapping[str, str]
    taken: frozenset[str]


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
    columns = _columns_of(table, shape)
    records: dict[str, Record] = {}

    def add(row: Row) -> None:
        name, item = _entry(row, columns, table.origin, shape)
        if name not in records:
            records[name] = {"id": name, "image": name, shape: []}
        records[name][shape].append(item)

    for _ in each(_rows(table.path), add, rejects):
        pass
    frame = {} if table.frame is None else {"frame": list(table.frame)}
    yield from (record | frame for record in records.values())


def read_bubbles(table: Table, names: ImageNames) -> Mapping[str, list[Item]]:
    """Return the bubbles of every image that the table mentions, by the image's id, in the table's frame.

    They are made of the image's rows when they are asked for, so that the first image need not wait until the rows of
    the last are. Raises SourceError, with the line, where a row's image is not in the data set; asking for bubbles
    does where a row of theirs cannot be read.
    """
    columns = _columns_of(table, "bubbles")
    lines: dict[str, list[Line]] = {}
    named: dict[str, list[Line]] = {}       # the same lists, by what the table calls the image
    sheet = _Sheet.of(table.path)
    cell = sheet.reader_of(columns.required["image"])
    for line in sheet.lines():
        name = cell(line)
        if name not in named:
            row = sheet.row(line)
            named[name] = lines.setdefault(names.identify(str(_renamed(row, columns)["image"]), row.place), [])
        named[name].append(line)
    if not lines:
        expected = ",".join((*PLACE, *SHAPES["bubbles"]))
        raise SourceError(f"{table.path}: no bubbles; expected one a row under the columns {expected}")
    return _Bubbles(sheet, lines, columns, table.origin)


class _Bubbles(Mapping[str, list[Item]]):
    """Makes the bubbles of an image of its lines when they are asked for."""

    def __init__(self, sheet: _Sheet, lines: Mapping[str, Sequence[Line]], columns: Columns, origin: int) -> None:
        self._sheet = sheet
        self._lines = lines
        self._columns = columns
        self._origin = origin

    def __getitem__(self, identifier: str) -> list[Item]:
        rows = map(self._sheet.row, self._lines[identifier])
        return [_entry(row, self._columns, self._origin, "bubbles")[1] for row in rows]

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._lines        # the default would make them

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


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
    return list(next((values for _, values in _json_lines(path, iter([first])) if first), {}))


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in JSON_SUFFIXES or head(path).lstrip()[:1] == "{"


def _rows(path: Path) -> Iterator[Row]:
    sheet = _Sheet.of(path)
    return map(sheet.row, sheet.lines())


@dataclass(frozen=True)
class _Sheet:
    """A table's lines, each its number and its cells, or of JSON its object: a tuple, which is small until it is read.

    (Python's garbage collector does not visit tuples of text, and there may be millions.) ``header`` is None for JSON.
    """

    path: Path
    header: list[str] | None

    @classmethod
    def of(cls, path: Path) -> _Sheet:
        return cls(path, None if _is_json(path) else _columns(path))

    def lines(self) -> Iterator[Line]:
        """Read the lines that are not empty; raise SourceError where one is none of a table."""
        with self.path.open(encoding="utf-8-sig", newline="") as stream:
            try:
                yield from _json_lines(self.path, stream) if self.header is None else self._csv_lines(stream)
            except UnicodeDecodeError as error:
                raise SourceError(f"{self.path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error
            except csv.Error as error:
                raise SourceError(
                    f"{self.path}: not CSV ({error}); expected one line a row, with commas between"
                ) from error

    def row(self, line: Line) -> Row:
        """Read a line."""
        if self.header is None:
            number, values = line
            return Row(self.path, number, values)
        number, *cells = line
        stripped = [cell.strip() for cell in cells]
        values = dict(zip(self.header, stripped, strict=False))
        filled = {name: cell for name, cell in values.items() if cell} if "" in stripped else values
        return Row(self.path, number, filled)

    def reader_of(self, name: str) -> Callable[[Line], str]:
        """Return what reads one column of a line: text, with the blanks around it, "" where nothing stands."""
        if self.header is None:
            return lambda line: str(line[1].get(name, ""))
        at = self.header.index(name) + 1 if name in self.header else len(self.header) + 1
        return lambda line: line[at] if at < len(line) else ""

    def _csv_lines(self, stream: IO[str]) -> Iterator[Line]:
        width = len(self.header or ())
        skipped, first = 1, stream.readline()
        while first and not first.strip():
            skipped, first = skipped + 1, stream.readline()
        reader = csv.reader(stream, delimiter=_delimiter(first))
        for cells in reader:
            if not (cells and cells[0].strip()) and not any(map(str.strip, cells)):
                continue
            number = reader.line_num + skipped
            if len(cells) > width:
                raise SourceError(
                    f"{self.path} line {number}: {len(cells)} values under {width} columns; quote a text with commas"
                )
            yield number, *cells


def _json_lines(path: Path, lines: Iterator[str] | IO[str]) -> Iterator[Line]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{path} line {number}: not a JSON object ({error}); expected one bubble, box or point"
            ) from error
        if not isinstance(values, dict):
            raise SourceError(
                f"{path} line {number}: expected a JSON object with {', '.join(PLACE)}, got {line.strip()[:40]}"
            )
        yield number, values


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


def _columns_of(table: Table, shape: str) -> Columns:
    required = {name: table.columns.get(name, name) for name in (*PLACE, *SHAPES[shape])}
    optional = {name: table.columns.get(name, name) for name in OPTIONAL}
    taken = frozenset({**required, **optional}).union(required.values(), optional.values())
    return Columns(required, optional, taken)


def _entry(row: Row, columns: Columns, origin: int, shape: str) -> tuple[str, Item]:
    """Return what the row calls its image, and its bubble, box or point."""
    values = _renamed(row, columns)
    return str(values["image"]), _item(values, row, origin, shape)


def _renamed(row: Row, columns: Columns) -> Item:
    """Return the row under the neutral names."""
    found = row.values
    values = {name: value for name, value in found.items() if name not in columns.taken}
    for name, own in columns.required.items():
        if found.get(own) is None:
            has = ", ".join(map(str, found)) or "nothing"
            raise SourceError(f'{row.place}: no value under "{own}" (it has {has}); map it by --columns {name}=...')
        values[name] = found[own]
    for name, own in columns.optional.items():
        if found.get(own) is not None:
            values[name] = found[own]
    return values


def _item(values: Item, row: Row, origin: int, shape: str) -> Item:
    item: Item = {"x": _number(values, "x", row) - origin, "y": _number(values, "y", row) - origin}
    for name in SHAPES[shape]:
        item[name] = _number(values, name, row)
    _check_lengths(item, values, row)
    item.update((name, value) for name, value in values.items() if name != "image" and name not in item)
    if "user" in item:
        item["user"] = str(item["user"])
    if "weight" in item:
        item["weight"] = _number(values, "weight", row)
        if item["weight"] < 0:
            raise SourceError(f"{row.place}: weight is {values['weight']}; expected a number from 0")
    return item


def _check_lengths(item: Item, values: Item, row: Row) -> None:
    if item.get("radius", 1) <= 0:
        raise SourceError(f"{row.place}: radius is {values['radius']}; expected a number of pixels above 0")
    if "width" in item and min(item["width"], item["height"]) < 0:
        raise SourceError(f"{row.place}: {values['width']} wide and {values['height']} high; expected numbers from 0")


def _number(values: Item, name: str, row: Row) -> float:
    value = values[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):      # JSON's whole numbers have no end
        number = math.nan
    if value is True or value is False or not math.isfinite(number):
        raise SourceError(f'{row.place}: {name} is "{value}"; expected a number, with a point for decimals')
    return number

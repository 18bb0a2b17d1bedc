"""The neutral table: CSV or JSON Lines, one bubble, box or point per row.

Its columns are ``image,x,y,radius`` for bubbles, ``image,x,y,width,height`` for boxes (x and y are the left and
top edge), ``image,xmin,ymin,xmax,ymax`` for boxes too, and ``image,x,y`` for points. ``user``, ``weight`` and ``label``
are optional; any other column is kept on its row. Capitals do not matter, and some other names are known (ALIASES). In
a table of corners width and height are the picture's. Coordinates are continuous: in a frame of width w, x runs from 0
(the left edge of the first pixel) to w (the right edge of the last), so the first pixel's centre is at 0.5.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from hkmap.errors import SourceError
from hkmap.files.opening import open_file
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import head
from hkmap.sources.frames import fit_items
from hkmap.sources.images import few

PLACE = ("image", "x", "y")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SIZE = ("width", "height")
# The columns that a shape needs. A table of corners is one of boxes.
SHAPES: dict[str, tuple[str, ...]] = {
    "boxes": (*PLACE, *SIZE), "bubbles": (*PLACE, "radius"), "points": PLACE, "corners": ("image", *CORNERS),
}
OPTIONAL = ("user", "weight", "label")
PLACED = {"x", "y", "radius", *SIZE, "points"}       # what a record keeps in pixels, so no column of another meaning
NAMES = (*PLACE, "radius", *SIZE, *CORNERS, *OPTIONAL)      # that --columns maps
# What else a table may call a column, the first that it has; LABELS are known beside corners alone.
ALIASES = {
    "image": ("filename", "file_name", "image_name", "image_id", "imageid", "image_path"),
    "xmin": ("x_min", "x1", "left"), "ymin": ("y_min", "y1", "top"),
    "xmax": ("x_max", "x2", "right"), "ymax": ("y_max", "y2", "bottom"),
}
LABELS = ("class", "class_name", "labelname", "category")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

_CENTRE = re.compile("cent|^c_?x$|^x_?c$", re.IGNORECASE)

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

    def names(self, columns: tuple[str, ...]) -> Mapping[str, str]:
        """Return what a table of these columns calls each of NAMES; those that it lacks by their own names."""
        return _names(columns, tuple(self.columns.items()))


def is_table(path: Path) -> bool:
    """Whether it is a file whose first line has the columns of a shape."""
    try:
        return path.is_file() and bool(_shape(Table(path)))
    except SourceError:
        return False


def like_table(path: Path) -> bool:
    """Whether it is a file of lines with the suffix of a table, and not empty."""
    return path.is_file() and path.suffix.lower() in TABLE_SUFFIXES and bool(head(path).strip())


def table_records(table: Table, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image that the table mentions, with its boxes, bubbles or points.

    The columns decide which they are. A row that cannot be read goes to ``rejects``.
    """
    shape = _shape(table)
    key = "boxes" if shape == "corners" else shape
    records: dict[str, Record] = {}

    def read(row: Row) -> tuple[str, str, Item, Record]:
        stated = _picture_size(row, table) if shape == "corners" and table.frame is None else {}
        return row[0], _image(row, table), _item(row, table, shape), stated

    for place, image, item, size in each(_rows(table.path), read, rejects):
        record = records.setdefault(image, {"id": image, "image": image, **size, key: []})
        if size and record.setdefault("size", size["size"]) != size["size"]:
            raise SourceError(f"{place}: width and height are {size['size']}, but {record['size']} before; mend one")
        record[key].append(item)
    frame = {} if table.frame is None else {"frame": list(table.frame)}
    if not frame and _are_fractions(item for record in records.values() for item in record[key]):
        raise SourceError(
            f"{table.path}: every coordinate lies between 0 and 1; say --frame 1x1 if they are fractions of the image, "
            "and the image's own --frame WIDTHxHEIGHT if they are pixels"
        )
    yield from (record | frame for record in records.values())


def read_bubbles(table: Table, images: Iterable[tuple[str, str]]) -> dict[str, list[Row]]:
    """Return the rows about each image, by its id; table_bubbles makes bubbles of them when their image comes.

    ``images`` are all of the data set, (id, path below the folder images). A row names one by id, path, file name or
    stem. Raises SourceError, with the line, where a row's image is not in the data set or may be two of it.
    """
    known = _spellings(images)
    rows: dict[str, list[Row]] = {}
    named: dict[str, list[Row]] = {}        # the same lists, by what the table calls the image
    for row in _rows(table.path):
        name = _image(row, table)
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
        expected = ",".join(SHAPES["bubbles"])
        raise SourceError(f"{table.path}: no bubbles; expected one per row under the columns {expected}")
    return rows


def table_bubbles(rows: Iterable[Row], table: Table, size: tuple[int, int]) -> list[Item]:
    """Return the bubbles of an image of ``size`` (width, height), in its pixels; SourceError for a bad row."""
    bubbles = [_item(row, table, "bubbles") for row in rows]
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


@lru_cache(maxsize=64)
def _names(columns: tuple[str, ...], given: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    names = dict(given)
    for name in (one for one in NAMES if one not in names):
        is_corners = name == "label" and set(CORNERS) <= names.keys()
        spellings = (name, *ALIASES.get(name, ()), *(LABELS if is_corners else ()))
        alike = ([column for column in columns if column.lower() == spelling] for spelling in spellings)
        found = [name] if name in columns else next(filter(None, alike), [])
        names |= {name: found[0]} if len(found) == 1 else {}
    return {name: names.get(name, name) for name in NAMES}


def _shape(table: Table) -> str:
    """Return the shape, one of SHAPES, that the columns of a table are for; SourceError where they are for none."""
    columns = _columns(table.path)
    names = table.names(columns)
    has = {name for name, own in names.items() if own in columns}
    if not _is_json(table.path) and not set(table.columns.values()) <= set(columns):
        raise _unsuitable(table, columns, [name for name in table.columns if name not in has])
    edges = {names[name] for name in CORNERS if name in has}
    if set(SHAPES["corners"]) <= has and not ({"x", "y"} <= has and edges.isdisjoint((names["x"], names["y"]))):
        return "corners"
    if {"xmax", "ymax"} & has and not edges.isdisjoint((names["x"], names["y"])):
        raise SourceError(
            f"{table.path}: x and y are an edge, and another edge has a column too ({', '.join(sorted(edges))}); "
            f"map all four by --columns {','.join(f'{name}=...' for name in CORNERS)}"
        )
    found = [shape for shape in ("boxes", "bubbles") if set(SHAPES[shape]) <= has]
    if len(found) > 1:
        raise SourceError(f"{table.path}: has the columns of {' and '.join(found)}; expected those of one")
    if found == ["boxes"] and _CENTRE.search(names["x"]):
        raise SourceError(
            f'{table.path}: "{names["x"]}" looks like the centre of a box; expected its left and top edge under x and '
            "y (take half the width and height off), or another name if it is the edge"
        )
    needed = SHAPES["corners"] if {"xmax", "ymax"} & has else PLACE
    if not found and not set(needed) <= has:
        raise _unsuitable(table, columns, [name for name in needed if name not in has])
    return found[0] if found else "points"


def _unsuitable(table: Table, columns: tuple[str, ...], missing: list[str]) -> SourceError:
    """Return the error of a table whose columns are for no shape: what it has, what it needs, and what to type."""
    if any(map(_is_number, columns)):
        return SourceError(
            f"{table.path}: the first line is a row ({few(columns)}); expected the names of the columns above the rows"
        )
    given = [f"{name}={column}" for name, column in table.columns.items() if name not in missing]
    line = ",".join([*given, *(f"{name}={_guess(name, columns)}" for name in missing)])
    absent = [f'no "{table.columns[name]}"' for name in missing if name in table.columns]
    return SourceError(
        f"{table.path}: a table with the columns {few([*columns, *absent], 12) or 'none'}; expected image, x, y "
        "(points), also radius (bubbles) or width, height (boxes), or image, xmin, ymin, xmax, ymax (boxes); "
        f"map yours by --columns {line}, or add labels and other values to records by `hkmap join --on image`"
    )


# Columns that may be meant.
_GUESSES = {
    "image": re.compile("^(im|file|photo|pic)", re.IGNORECASE), "x": re.compile("(?i:(^|[^a-z])c?x([^a-z]|$))"),
    "y": re.compile("(?i:(^|[^a-z])c?y([^a-z]|$))"),
}


def _guess(name: str, columns: tuple[str, ...]) -> str:
    return next((own for own in columns if name in _GUESSES and _GUESSES[name].search(own)), "...")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _are_fractions(items: Iterable[Item]) -> bool:
    """Whether all of them lie between 0 and 1, and not on whole numbers alone."""
    found = False
    for item in items:
        places = [item["x"] + item.get("width", 0), item["y"] + item.get("height", 0), item["x"], item["y"]]
        if min(places) < 0 or max(places) > 1:
            return False
        found = found or not all(map(float.is_integer, places))
    return found


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
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as stream:
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
        texts = _trimmed(cells)
        if not texts:
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
    header = _trimmed(next(csv.reader([line], delimiter=_delimiter(line)), []))
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise SourceError(f'{path}: two columns are called "{twice[0]}"; rename one')
    return header


def _trimmed(cells: list[str]) -> tuple[str, ...]:
    """Return the texts of a line, without the empty ones at its end."""
    texts = [cell.strip() for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(texts)


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _item(row: Row, table: Table, shape: str) -> Item:
    """Return the bubble, box or point of a row."""
    place, values, names = row[0], _values(row), table.names(row[1])
    item: Item = {}
    for name in SHAPES[shape][1:]:
        item[name] = _number(_required(values, name, names, place), name, place)
    if shape == "corners":
        left, top, right, bottom = item.values()
        if right < left or bottom < top:
            raise SourceError(f"{place}: goes from {left:g}, {top:g} to {right:g}, {bottom:g}; expected xmin <= xmax")
        item = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    item["x"] -= table.origin
    item["y"] -= table.origin
    known = (*SHAPES[shape], *OPTIONAL, *(SIZE if shape == "corners" else ()))
    taken = {*known, *(names[name] for name in known)}
    if strange := sorted(PLACED & values.keys() - taken):
        raise SourceError(
            f'{place}: has "{strange[0]}", which is none of the columns of {shape} ({", ".join(SHAPES[shape][1:])}); '
            "give that column another name"
        )
    item |= {name: value for name, value in values.items() if name not in taken}
    item |= {name: value for name in OPTIONAL if (value := values.get(names[name])) is not None}
    if "user" in item:
        item["user"] = str(item["user"])
    if "weight" in item:
        item["weight"] = _number(item["weight"], "weight", place)
    return item


def _picture_size(row: Row, table: Table) -> Record:
    """Return the "size" of the picture that a row of corners states; nothing where it is the box's own."""
    values, names = _values(row), table.names(row[1])
    if any(values.get(names[name]) is None for name in SIZE):
        return {}
    left, top, right, bottom, width, height = (
        _number(_required(values, name, names, row[0]), name, row[0]) for name in (*CORNERS, *SIZE)
    )
    if math.isclose(width, right - left, abs_tol=1) and math.isclose(height, bottom - top, abs_tol=1):
        return {}
    return {"size": [int(width), int(height)]}


def _image(row: Row, table: Table) -> str:
    place, columns, values = row
    names = table.names(columns)
    own = names["image"]
    found = values[columns.index(own)] if own in columns[: len(values)] else ""
    return str(found or _required(_values(row), "image", names, place))


def _values(row: Row) -> Item:
    """Return the values that are not empty, by the names of their columns; one without a name counts the rows."""
    _, names, values = row
    return {name: value for name, value in zip(names, values, strict=False) if value != "" and name}


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
        raise SourceError(f'{place}: {name} is "{shown(value)}"; expected a number, with a point for decimals')
    if name == "radius" and number <= 0:
        raise SourceError(f"{place}: radius is {value}; expected a number of pixels above 0")
    if name in ("width", "height", "weight") and number < 0:
        raise SourceError(f"{place}: {name} is {value}; expected a number from 0")
    return number

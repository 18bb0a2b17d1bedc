"""The neutral bubble table: CSV or JSON Lines, one bubble a row.

Its columns are ``image,x,y,radius`` and, as they are there, ``user`` and ``weight``; any other column is
kept on its bubble. Coordinates are continuous: in a frame of width w, x runs from 0 (the left edge of the
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

REQUIRED = ("image", "x", "y", "radius")
OPTIONAL = ("user", "weight")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Item = dict[str, Any]


@dataclass(frozen=True)
class BubbleTable:
    """Where a table is, and how it is to be read.

    ``columns`` maps the names of REQUIRED and OPTIONAL to the table's own where they differ; ``frame`` is the
    (width, height) that the coordinates count in, None for the image's own pixels; ``origin`` is the
    coordinate of the left and top edge, 0 or 1.
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


def read_bubbles(table: BubbleTable, names: ImageNames) -> dict[str, list[Item]]:
    """Return the bubbles of every image that the table mentions, by the image's id, in the table's frame.

    Raises SourceError, with the line, where a row cannot be read or its image is not in the data set.
    """
    bubbles: dict[str, list[Item]] = {}
    for row in _rows(table.path):
        values = _renamed(row, table.columns)
        identifier = names.identify(str(values["image"]), row.place)
        bubbles.setdefault(identifier, []).append(_bubble(values, row.place, table.origin))
    if not bubbles:
        raise SourceError(f"{table.path}: no bubbles; expected one a row under the columns {','.join(REQUIRED)}")
    return bubbles


def fit_bubbles(bubbles: list[Item], frame: tuple[int, int] | None, size: tuple[int, int]) -> list[Item]:
    """Carry bubbles from a frame to an image of ``size``, both (width, height).

    A circle stays one: where the two sides scale differently the radius takes their geometric mean, which
    keeps the share of the picture that it covers.

    >>> fit_bubbles([{"x": 10, "y": 10, "radius": 2}], (100, 100), (400, 100))
    [{'x': 40.0, 'y': 10.0, 'radius': 4.0}]
    """
    if frame is None:
        return bubbles
    across, down = size[0] / frame[0], size[1] / frame[1]
    radius = math.sqrt(across * down)
    return [
        {**item, "x": item["x"] * across, "y": item["y"] * down, "radius": item["radius"] * radius} for item in bubbles
    ]


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from (_json_rows if path.suffix.lower() in JSON_SUFFIXES else _csv_rows)(path, stream)
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error


def _json_rows(path: Path, stream: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{place}: not a JSON object ({error}); expected one bubble a line") from error
        if not isinstance(values, dict):
            raise SourceError(f"{place}: expected a JSON object with {', '.join(REQUIRED)}, got {line.strip()[:40]}")
        yield Row(place, values)


def _csv_rows(path: Path, stream: IO[str]) -> Iterator[Row]:
    first = stream.readline()
    delimiter = max(",;\t", key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise SourceError(f'{path}: two columns are called "{twice[0]}"; rename one')
    reader = csv.reader(stream, delimiter=delimiter)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        place = f"{path} line {reader.line_num + 1}"
        if len(cells) > len(header):
            raise SourceError(f"{place}: {len(cells)} values under {len(header)} columns; quote a text with commas")
        yield Row(place, {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()})


def _renamed(row: Row, columns: Mapping[str, str]) -> Item:
    """Return the row under the neutral names."""
    own = {name: columns.get(name, name) for name in REQUIRED + OPTIONAL}
    for name in REQUIRED:
        if row.values.get(own[name]) is None:
            has = ", ".join(map(str, row.values)) or "nothing"
            raise SourceError(
                f'{row.place}: no value under "{own[name]}" (it has {has}); map it by --columns {name}=...'
            )
    taken = {*own.values(), *own}
    others = {name: value for name, value in row.values.items() if name not in taken}
    return {**others, **{name: row.values[key] for name, key in own.items() if row.values.get(key) is not None}}


def _bubble(values: Item, place: str, origin: int) -> Item:
    bubble = {
        "x": _number(values, "x", place) - origin,
        "y": _number(values, "y", place) - origin,
        "radius": _number(values, "radius", place),
    }
    if bubble["radius"] <= 0:
        raise SourceError(f"{place}: radius is {values['radius']}; expected a number of pixels above 0")
    rest = {name: value for name, value in values.items() if name not in REQUIRED}
    if "user" in rest:
        rest["user"] = str(rest["user"])
    if "weight" in rest:
        rest["weight"] = _number(values, "weight", place)
        if rest["weight"] < 0:
            raise SourceError(f"{place}: weight is {values['weight']}; expected a number from 0")
    return {**bubble, **rest}


def _number(values: Item, name: str, place: str) -> float:
    value = values[name]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):      # JSON's whole numbers have no end
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise SourceError(f'{place}: {name} is "{value}"; expected a number, with a point for decimals')
    return number

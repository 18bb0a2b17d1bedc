"""A table of values, one row per image, id or group: its columns become keys of the records of a stream."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hkmap.errors import RecordError, SourceError
from hkmap.records import Record, Rejects, label_of, shown
from hkmap.sources.annotations import Match, match, match_by_image
from hkmap.sources.images import few, natural_order, nfc
from hkmap.sources.tables import value_rows

logger = logging.getLogger("hkmap")

# Lines of JSON may have what these hold in a record; a cell of CSV is a text.
_SHAPED = {"size", "frame", "bubbles", "points", "boxes", "polygons", "lines", "masks", "unknown", "dont_look"}
_EXPECTED = {
    "label": "a whole number from 0; for names use --columns class=COLUMN", "class": "a text", "split": "a text",
    **dict.fromkeys(_SHAPED, "a list or an object, as records have; for another key use --columns KEY=COLUMN"),
}
_NUMBER = re.compile(r"(?=.{1,16}$)-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")
_WHOLE = re.compile(r"([0-9]{1,9})(\.0*)?")

Values = dict[str, Any]      # of a row, by the keys of a record


def labelled_records(
    records: Iterable[Record], path: Path, *, on: str, columns: Mapping[str, str], replace: bool, rejects: Rejects
) -> Iterator[Record]:
    """Yield the ``records`` with the values of the row that is about each: the columns of a CSV or JSON Lines table.

    ``on`` is the key whose values choose the row: "image" (compared as joined_records does), "id", or any other, such
    as "patient", whose row may be that of many records. ``columns`` gives the table's own names of keys. A column of
    numbers alone becomes numbers; a class is a text, a label a whole number. Where the table has classes and neither it
    nor the record has a label, the table's classes are numbered from 0 in natural order. ``replace`` takes the table's
    value where the record has another; class and label go together then. Raises SourceError for a table that cannot be
    read so, two rows of one name, and where no row fits any record; a record that has another value goes to
    ``rejects``.
    """
    rows = _by_name(path, on, columns)
    labelled = any("label" in values for values in rows.values())
    classes = {values["class"] for values in rows.values() if "class" in values and not labelled}
    numbers = {name: label for label, name in enumerate(sorted(classes, key=natural_order))}
    how = match_by_image({name: {name} for name in rows}, path, "%d rows") if on == "image" else _match_by_key(on, rows)
    place = f"{path}, row {on}"

    def add(record: Record, name: str) -> Record:
        return _with_values(record, rows[name], numbers, f"{place} {name}", replace)

    yield from match(records, path, rows, how, add, rejects)


def _match_by_key(key: str, rows: Mapping[str, Values]) -> Match:
    def find(record: Record) -> str | None:
        name = _text(record.get(key))
        return name if name in rows else None

    def told(record: Record) -> str:
        return _text(record.get(key)) or f"no {key}"

    return Match(find, told, f'values of "{key}"', "%d rows", once=key == "id")


def _text(value: object) -> str:
    """Return a value as it is compared: 7 and "7" are one patient in two tables."""
    return nfc(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _by_name(path: Path, on: str, columns: Mapping[str, str]) -> dict[str, Values]:
    """Return the values of each row by what the table has under ``on``."""
    rows = list(value_rows(path))
    if not rows:
        raise SourceError(f"{path}: holds no row; expected a line of names, then a line of values for each image")
    found = {column: None for _, names, _ in rows for column in names}      # in their order
    keys = _keys(path, list(found), {on: on, **columns}, on)
    read: dict[str, Values] = {}
    places: dict[str, str] = {}
    nameless = 0
    for place, names, cells in rows:
        values = {keys[name]: cell for name, cell in zip(names, cells, strict=False)
                  if name in keys and cell not in ("", None)}
        name = _text(values.pop(on, None))
        if not name:
            nameless += 1
        elif name in read:
            raise SourceError(f'{place}: {on} "{name}" was on {places[name]} already; expected one row for each')
        else:
            read[name], places[name] = values, place
    if not read:
        raise SourceError(f'{path}: no row with a value under "{columns.get(on, on)}"; expected a table of values')
    if nameless:
        logger.warning('%s: %d rows have nothing under "%s" and are left out', path, nameless, columns.get(on, on))
    for key in {key for key in keys.values() if key != on}:
        _convert(key, read, places)
    return read


def _keys(path: Path, found: list[str], columns: Mapping[str, str], on: str) -> dict[str, str]:
    """Return the key that each column is for; ``columns`` are those that must be there, by their keys."""
    has = few((f'"{column}"' for column in found), 12) or "no row"
    for key, column in columns.items():
        if column not in found:
            raise SourceError(f'{path}: no column "{column}", it has {has}; name the right one by --columns {key}=...')
    mapped = {column: key for key, column in columns.items()}
    if len(mapped) < len(columns):
        raise SourceError(f"{path}: --columns gives one column two keys; expected a column of its own for each key")
    keys = {column: mapped.get(column, column) for column in found}
    left = [column for column, key in keys.items() if not key or (key in ("id", "image") and key != on)]
    if left:
        logger.warning(
            "%s: columns left out, as they would name the records anew or have no name: %s; to keep one: --columns "
            "KEY=COLUMN", path, few(f'"{column}"' for column in left),
        )
    keys = {column: key for column, key in keys.items() if column not in left}
    for key, count in Counter(keys.values()).items():
        if count > 1:
            raise SourceError(f'{path}: two columns are to be "{key}"; give one another key by --columns KEY={key}')
    return keys


def _convert(key: str, rows: Mapping[str, Values], places: Mapping[str, str]) -> None:
    """Make the texts of a column what their key holds."""
    having = {name: values for name, values in rows.items() if key in values}
    if key in _EXPECTED:
        for name, values in having.items():
            values[key] = _checked(key, values[key], places[name])
    elif all(isinstance(values[key], str) and _NUMBER.fullmatch(values[key]) for values in having.values()):
        kind = int if all(re.fullmatch(r"-?[0-9]+", values[key]) for values in having.values()) else float
        for values in having.values():
            values[key] = kind(values[key])


def _checked(key: str, value: object, place: str) -> object:
    """Return a value as a record holds it under a key of _EXPECTED."""
    text = _text(value)
    kept: object = text or None      # a class stays text though every cell is a number
    if key == "label":
        found = _WHOLE.fullmatch(text)
        kept = int(found[1]) if found else None
    elif key in _SHAPED:
        kept = value if isinstance(value, list | dict) else None
    if kept is None:
        raise SourceError(f"{place}: {key} is {shown(value)!r}; expected {_EXPECTED[key]}")
    return kept


def _with_values(record: Record, values: Values, numbers: Mapping[str, int], place: str, replace: bool) -> Record:
    """Return the record with a row's values, and with the number of its class if it has no label."""
    others = [key for key, value in values.items() if _given(record, key) and not _same(record[key], value)]
    if others and not replace:
        before, now = shown(record[others[0]]), shown(values[others[0]])
        raise RecordError(
            f'record "{record["id"]}": {others[0]} is "{before}", but {place} has "{now}"; expected the same: use '
            "--replace, or give the column another key by --columns"
        )
    former = {"class", "label"} if {"class", "label"} & {*others} else set()      # a class and its number go together
    joined = {key: value for key, value in record.items() if key not in former} | values
    if values.get("class") in numbers and not _given(joined, "label"):
        joined["label"] = numbers[values["class"]]
    return joined


def _same(one: object, other: object) -> bool:
    return one == other or (_text(one) != "" and _text(one) == _text(other))


def _given(record: Record, key: str) -> bool:
    return record.get(key) is not None and (key != "label" or label_of(record) >= 0)

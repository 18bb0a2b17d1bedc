"""Read a file of annotations and check what it holds; every error is a sentence."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from hkmap.errors import SourceError
from hkmap.records import refuse_constant, shown

HEAD = 1 << 16      # bytes that tell one text format from another


class _Builder(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Entities are declared there: a few lines of them can stand for gigabytes.
        raise ValueError("it declares a DOCTYPE")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; SourceError where it is none. The result is shared: never change it."""
    try:
        return _parsed(path.read_bytes())
    except RecursionError as error:
        raise SourceError(f"{path}: nested too deeply for a file of annotations; export it again") from error
    except ValueError as error:       # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise SourceError(f"{path}: not JSON ({error}); expected a file of annotations, export it again") from error


def json_object(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, to recognise the file by its keys; {} where it holds anything else."""
    if not path.is_file() or head(path).lstrip()[:1] != "{":
        return {}
    try:
        found = read_json(path)
    except SourceError:
        return {}
    return found if isinstance(found, dict) else {}


def read_xml(path: Path) -> ET.Element:
    """Return the root of an XML file; SourceError where it is none, or declares a DOCTYPE."""
    try:
        parser = ET.XMLParser(target=_Builder())
        parser.feed(path.read_bytes())
        root: ET.Element = parser.close()
    except (ET.ParseError, LookupError, ValueError) as error:     # LookupError: an unknown encoding
        raise SourceError(f"{path}: not XML ({error}); expected a file of annotations, export it again") from error
    return root


def head(path: Path) -> str:
    """Return the beginning of a text file, "" where it is no text."""
    with path.open("rb") as stream:
        data = stream.read(HEAD)
    return "" if b"\0" in data else data.decode("utf-8-sig", errors="ignore")


def text_lines(path: Path, expected: str) -> list[str]:
    """Return the lines of a text file; SourceError, which names what was ``expected``, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file ({error.reason}); expected {expected}") from error


def as_object(value: object, place: str) -> dict[str, Any]:
    """Return ``value``, which must be a JSON object."""
    return value if isinstance(value, dict) else _wrong(value, place, "an object")


def as_list(value: object, place: str) -> list[Any]:
    """Return ``value``, which must be a list."""
    return value if isinstance(value, list) else _wrong(value, place, "a list")


def as_text(value: object, place: str) -> str:
    """Return ``value``, which must be a string that is not empty."""
    return value if isinstance(value, str) and value else _wrong(value, place, "a text")


def as_number(value: object, place: str, *, above: float = -sys.float_info.max) -> float:
    """Return ``value``, which must be a finite number, from ``above`` on."""
    # math.isfinite cannot take all of JSON's whole numbers, which have no end
    if isinstance(value, int | float) and not isinstance(value, bool) and above <= value <= sys.float_info.max:
        return value
    return _wrong(value, place, "a number" if above < 0 else f"a number from {above:g}")


def as_numbers(value: object, place: str) -> list[float]:
    """Return ``value``, which must be a list of finite numbers."""
    return [as_number(number, place) for number in as_list(value, place)]


def as_pairs(value: object, place: str) -> list[list[float]]:
    """Return ``value``, which must be a list of [x, y]."""
    for where, pair in numbered(value, place):
        if len(as_numbers(pair, where)) != 2:
            _wrong(pair, where, "two numbers")
    return as_list(value, place)


def as_key(value: object, place: str) -> int | str:
    """Return ``value``, an id: a whole number or a text that is not empty. 7 and "7" are two."""
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return value
    return _wrong(value, place, "a number or a text")


def stated_size(width: object, height: object, place: str) -> dict[str, list[object]]:
    """Return a record's "size", [width, height], which must be whole numbers above 0; nothing where both are None."""
    if width is None and height is None:
        return {}
    for side in (width, height):
        if not (isinstance(side, int) and not isinstance(side, bool) and side > 0):
            _wrong(side, place, "a whole number of pixels above 0")
    return {"size": [width, height]}


def numbered(value: object, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place, such as PLACE[0], and each item of ``value``, which must be a list."""
    for index, item in enumerate(as_list(value, place)):
        yield f"{place}[{index}]", item


@lru_cache(maxsize=1)       # a file is recognised, then read: it is parsed once
def _parsed(data: bytes) -> Any:
    return json.loads(data, parse_constant=refuse_constant)


def _wrong(value: object, place: str, expected: str) -> NoReturn:
    got = "missing" if value is None else shown(value)
    raise SourceError(f"{place} is {got}; expected {expected}")

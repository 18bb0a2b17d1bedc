"""Read a file of annotations and check what it holds; every error is a sentence."""

from __future__ import annotations

import codecs
import json
import logging
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from hkmap.errors import SourceError
from hkmap.files.opening import file_content, open_file
from hkmap.records import Record, Rejects, each, mismatch, refuse_constant
from hkmap.sources.images import few, is_litter, natural_order

logger = logging.getLogger("hkmap")

HEAD = 1 << 16      # bytes that tell one text format from another
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}

LARGEST_LABEL = 1 << 63

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]{1,40})["']""")
_RAW_AND = re.compile(r"&(?!#?\w+;)")
_NO_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape")     # codecs of other things than files


class _Builder(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Entities are declared there: a few lines of them can stand for gigabytes.
        raise ValueError("it declares a DOCTYPE")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; SourceError where it is none. The result is shared: never change it."""
    try:
        return _parsed(_content(path))
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
    """Return the root of an XML file in any encoding that Python knows; SourceError where it is none, or declares a
    DOCTYPE. The result is shared: never change it.
    """
    data = _content(path)
    try:
        return _xml_root(data)
    except ET.ParseError as error:
        reason = _xml_fault(_xml_text(data), error)
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        reason = f"line {line} has the byte {byte:#x}, which {error.encoding} has not; declare its own encoding"
    except (LookupError, ValueError) as error:      # LookupError: an unknown encoding
        reason = str(error)
    raise SourceError(f"{path}: not XML ({reason}); expected a file of annotations, mend it or export it again")


def xml_tag(path: Path) -> str:
    """Return the name of an XML file's root, to recognise the file by it; "" where it is none."""
    try:
        return read_xml(path).tag if path.suffix.lower() == ".xml" and path.is_file() else ""
    except SourceError:
        return ""


def head(path: Path) -> str:
    """Return the beginning of a text file, "" where it is no text."""
    with open_file(path) as stream:
        data = stream.read(HEAD)
    encoding = _marked(data)
    return "" if b"\0" in data and not encoding else data.decode(encoding or "utf-8", errors="ignore")


def text_lines(path: Path, expected: str) -> list[str]:
    """Return the lines of a text file; SourceError, which names what was ``expected``, where it is not UTF-8."""
    try:
        return _content(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: not a text file in UTF-8 ({error.reason}); expected {expected}; save it as UTF-8"
        ) from error


def files_below(path: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder or below, in natural order, without hidden names; a file as it is."""
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.suffix.lower() == suffix and file.is_file())
    shown = (file for file in found if not any(map(is_litter, file.relative_to(path).parts)))
    return sorted(shown, key=lambda file: natural_order(file.as_posix()))


def annotations_by_image(path: Path, document: Record, rejects: Rejects) -> dict[str, list[tuple[str, Record]]]:
    """Return each of a document's annotations after its place, by the id of the image (COCO's and SALICON's layout).

    A warning counts those of images that the document does not list; SourceError where all are.
    """
    found: dict[str, list[tuple[str, Record]]] = {}

    def read(item: tuple[str, Any]) -> tuple[str, str, Record]:
        place, annotation = item[0], as_object(item[1], item[0])
        return as_key(annotation.get("image_id"), f"{place}.image_id"), place, annotation

    for key, place, annotation in each(numbered(document.get("annotations"), f"{path}: annotations"), read, rejects):
        found.setdefault(key, []).append((place, annotation))
    listed: set[str] = set()
    for place, image in numbered(document.get("images"), f"{path}: images"):
        key = _key(image.get("id")) if isinstance(image, dict) else ""
        if key and key in listed:
            raise SourceError(f"{place}.id is {key}, as that of an image before; expected each id once")
        listed.add(key)
    listed -= {""}
    strange = [key for key in found if key not in listed]
    if listed and strange and len(strange) == len(found):
        raise SourceError(
            f"{path}: no annotation is of an image that it lists: their image_id is {few(strange, 3)}, "
            f"the id of the images {few(sorted(listed), 3)}; expected the same ids"
        )
    if listed and strange:
        count = sum(len(found.pop(key)) for key in strange)
        logger.warning("%s: %d annotations are of images that it does not list: %s", path, count, few(strange))
    return found


def class_of(names: Iterable[str]) -> Record:
    """Return the "class" where the names are one; "classes", all of them, where they are more.

    >>> class_of(["cat", "cat"]), class_of(["cat", "dog"]), class_of([])
    ({'class': 'cat'}, {'classes': ['cat', 'dog']}, {})
    """
    found = list(dict.fromkeys(names))
    if len(found) > 1:
        return {"classes": found}
    return {"class": found[0]} if found else {}


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


def as_key(value: object, place: str) -> str:
    """Return an id, a whole number or a text that is not empty, as a text: 7 and "7" are one."""
    return _key(value) or _wrong(value, place, "a whole number or a text")


def as_label(value: object, place: str) -> str:
    """Return a label, a text that is not empty or a number, as a text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_LABEL:
        return str(value)
    return value if isinstance(value, str) and value else _wrong(value, place, "a text, or a number below 2^63")


def stated_size(width: object, height: object, place: str) -> Record:
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


@lru_cache(maxsize=1)
def _xml_root(data: bytes) -> ET.Element:
    parser = ET.XMLParser(target=_Builder())
    parser.feed(_xml_text(data))        # of a text the parser leaves the declared encoding aside
    root: ET.Element = parser.close()
    return root


def _xml_text(data: bytes) -> str:
    found = _DECLARED.match(data)
    encoding = _marked(data) or (found[1].decode() if found else "utf-8")
    known = codecs.lookup(encoding).name
    if known.replace("-", "_") in _NO_TEXT:
        raise LookupError(f"{encoding} is no encoding of XML")
    if found and known.startswith(("utf-16", "utf-32")) and not _marked(data):
        encoding = "utf-8"      # .NET declares what its texts have in memory; the declaration itself is in single bytes
    return data.decode(encoding)


def _xml_fault(text: str, error: ET.ParseError) -> str:
    """Say where the fault is, and what stands there."""
    number, column = error.position
    line = "".join(text.splitlines()[number - 1 : number])[max(0, column - 40) :][:60].strip()
    remedy = '; "&" is written "&amp;" in XML' if _RAW_AND.search(line) else ""
    return f'{error}: "{line}"{remedy}' if line else str(error)


def _marked(data: bytes) -> str:
    """Return the encoding that the first bytes tell, "" where they tell none."""
    return next((name for mark, name in MARKS.items() if data.startswith(mark)), "")


def _key(value: object) -> str:
    is_key = isinstance(value, str | int) and not isinstance(value, bool)
    return unicodedata.normalize("NFC", str(value)) if is_key else ""


def _content(path: Path) -> bytes:
    try:
        return file_content(path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _wrong(value: object, place: str, expected: str) -> NoReturn:
    found = f"is missing; expected {expected}" if value is None else mismatch(value, expected)
    raise SourceError(f"{place} {found}")

"""Edits of maps that are kept as strokes: a script of them, and what they make of a record's map."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hkmap.errors import RecordError
from hkmap.files.maps import Drawn
from hkmap.files.opening import open_file
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, from_json, paint
from hkmap.records import Record, mismatch, parse_record, reference_of, without_maps
from hkmap.stream.references import image_frame, load_certainty_of, load_map

logger = logging.getLogger("hkmap")

HUMAN, PREDICTED, EMPTY = "map", "attention", "empty"       # what strokes start from: keys of a record, or zeros
SIZE = 14, 14           # of a map that starts from zeros, where nothing else says it
UNFINISHED = ("untouched", "skipped")      # an editor's word for a record whose map does not count
ABOUT = ("edited_by", "edited_at")      # what a script may say of who edited, and when


@dataclass(frozen=True)
class Edit:
    """The strokes of a record: a line of a script, whose place is ``reference``.

    They start from the map that the record refers to under the key ``start``, from a map of zeros with EMPTY, or, with
    None, from its map if it has one.
    """

    strokes: tuple[Stroke, ...]
    reference: str
    start: str | None = None
    about: tuple[tuple[str, str], ...] = ()


def read_script(path: Path) -> dict[str, Edit]:
    """Read a script, a JSON object per line: {"id", "strokes": [...]}, and "start", "edited_by", "edited_at".

    Return the edits by the records' ids, without those whose "state" is UNFINISHED. Raise RecordError, with its line,
    for what is none, or for an id twice.
    """
    edits: dict[str, Edit] = {}
    with open_file(path) as file:
        for row, line in enumerate(file):
            place = f"{path}, line {row + 1}"
            edit = parse_record(line, place)
            if edit["id"] in edits:
                raise RecordError(f'{place}: record "{edit["id"]}" comes a second time; expected one line per record')
            if edit.get("state") not in UNFINISHED:
                edits[edit["id"]] = _edit(edit, f"{path}#{row}", place)
    return edits


def edited(record: Record, edits: dict[str, Edit], size: tuple[int, int] | None) -> Drawn | Record:
    """Return the record with the map that its strokes make; one without strokes as it is.

    ``size`` (height, width) is that of a map that starts from zeros, by default as in `base_of`.
    """
    edit = edits.get(record["id"])
    if edit is None:
        return record
    base = base_of(record, edit.start or (HUMAN if reference_of(record, HUMAN) else EMPTY), size)
    found = paint(edit.strokes, base, image_frame(record))
    return Drawn({**without_maps(record), "strokes": edit.reference, **dict(edit.about)}, found.map, found.certainty)


def watched(items: Iterable[Any], edits: dict[str, Edit], script: Path) -> Iterator[Any]:
    """Pass a stream through; at its end warn of edits whose record did not come, or raise RecordError if none did."""
    seen = 0
    for item in items:
        seen += isinstance(item, dict) and item["id"] in edits
        yield item
    if edits and not seen:
        raise RecordError(
            f'{script}: has strokes for "{next(iter(edits))}" and others, and no such record came; expected the ids of '
            "the records"
        )
    if seen < len(edits):
        logger.warning("%s has strokes for %d records that did not come", script, len(edits) - seen)


def base_of(
    record: Record, start: str, size: tuple[int, int] | None, otherwise: tuple[int, int] = SIZE
) -> Weighted:
    """Return the map under the key ``start`` of a record, or, with EMPTY, one of zeros.

    That one is of ``size`` (height, width), by default as large as the record's own map, so that a stream keeps maps
    of one size, and ``otherwise`` where it has none.
    """
    if start == EMPTY:
        own = reference_of(record, HUMAN)
        return Weighted(np.zeros(size or (load_map(own).shape if own else otherwise), np.float32), None)
    reference = reference_of(record, start)
    if reference is None:
        raise no_start(record, start)
    values = load_map(reference)
    return Weighted(values, load_certainty_of(record, values) if start == HUMAN else None)


def no_start(record: Record, start: str) -> RecordError:
    return RecordError(f'record "{record["id"]}": has no map under "{start}", from which its strokes start')


def _edit(line: Record, reference: str, place: str) -> Edit:
    strokes: Any = line.get("strokes")
    if not isinstance(strokes, list):
        raise RecordError(f"{place}: strokes {mismatch(strokes, 'a list of strokes')}")
    for key in ("start", *ABOUT):
        if not isinstance(line.get(key, ""), str):
            raise RecordError(f"{place}: {key} {mismatch(line[key], 'a text')}")
    painted = tuple(from_json(one, f"{place}, stroke {number}") for number, one in enumerate(strokes, start=1))
    return Edit(painted, reference, line.get("start"), tuple((key, line[key]) for key in ABOUT if key in line))

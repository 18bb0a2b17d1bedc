"""What a page may say, checked before anything is done: one JSON object per message, "do" and what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hkmap.editor.session import STARTS
from hkmap.editor.work import CONFIRMED, EDITED, SKIPPED
from hkmap.errors import RecordError
from hkmap.maps.strokes import Point, Stroke, from_json
from hkmap.records import refuse_constant, shown

MOST_BYTES = 4 << 20        # of a message; a stroke of as many points as one may have takes less
_CHANGE = ("n", "revision")
#: What a page can ask for, and the keys that it takes.
_KEYS = {
    "open": ("n",), "draw": ("n", "tick"), "lift": ("n",), "paint": (*_CHANGE, "stroke"), "undo": _CHANGE,
    "redo": _CHANGE, "reset": _CHANGE, "start": (*_CHANGE, "start"), "mark": (*_CHANGE, "state"), "done": (),
}


@dataclass(frozen=True)
class Message:
    """What a page says: ``do`` to the record ``number``; a change knows the ``revision`` that it changes."""

    do: str
    number: int = -1
    revision: int = -1
    tick: int = 0
    stroke: Stroke | None = None
    points: tuple[Point, ...] = ()
    start: str = ""
    state: str = ""

    @property
    def painted(self) -> Stroke:
        assert self.stroke is not None
        return self.stroke


def read_message(text: str, count: int) -> Message:
    """Return what a text says about one of ``count`` records.

    Raises ValueError where it is no JSON, and HkmapError for any other JSON.
    """
    try:
        said = json.loads(text, parse_constant=refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(said, dict) or not isinstance(said.get("do"), str) or said["do"] not in _KEYS:
        raise RecordError(f"the message: {shown(said)}, expected an object whose do is one of {', '.join(_KEYS)}")
    keys = _KEYS[said["do"]]
    for key in keys:
        fits, expected = _EXPECTED.get(key, (None, ""))
        if fits and not fits(said.get(key)):
            raise RecordError(f"the message: {key} is {shown(said.get(key))}; expected {expected}")
    if "n" in keys and said["n"] >= count:
        raise RecordError(f"the message: n is {shown(said['n'])}; expected a record's number below {count}")
    told = {key: said[key] for key in keys if key not in ("n", "stroke")}
    drawn = _line(said) if said["do"] == "draw" else {}
    if "stroke" in keys:
        drawn = {"stroke": from_json(said.get("stroke"), "the stroke")}
    return Message(said["do"], said["n"] if "n" in keys else -1, **told, **drawn)


def _line(said: dict[str, Any]) -> dict[str, Any]:
    """Return the beginning of a brush's way, or the points that it goes on along."""
    if "stroke" not in said:
        more = {"tool": "add", "radius": 1, "points": said.get("points")}
        return {"points": from_json(more, "the stroke under way").points}
    stroke = from_json(said["stroke"], "the stroke under way")
    if stroke.outline or not stroke.points:
        raise RecordError("the stroke under way: an outline or the whole map; expected a brush, others are painted")
    return {"stroke": stroke}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n": (_is_count, "a record's number"),
    "revision": (_is_count, "a number of changes"),
    "tick": (_is_count, "a whole number from 0"),
    "start": (lambda value: value in STARTS, f"one of {', '.join(STARTS)}"),
    "state": (lambda value: value in (EDITED, CONFIRMED, SKIPPED), f"{EDITED}, {CONFIRMED} or {SKIPPED}"),
}

"""What one person has done to the map of one record: strokes, what undo took back, and how far the work is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hkmap.errors import RecordError
from hkmap.maps.strokes import Stroke, from_json, to_json
from hkmap.records import mismatch, shown
from hkmap.stream.editing import UNFINISHED

UNTOUCHED, SKIPPED = UNFINISHED
EDITED, CONFIRMED = FINISHED = ("edited", "confirmed")
STATES = (*UNFINISHED, *FINISHED)
MOST_STROKES = 10_000       # of a record


class Brief(NamedTuple):
    """How far a person's work on a record is: its state, its number of strokes, and when it was changed, in UTC."""

    state: str
    strokes: int
    at: str | None


@dataclass(frozen=True)
class Work:
    """A person's work on a map; each change gives a new one, whose ``revision`` is one higher, even
    where nothing was left to undo.

    The strokes start from the record's map under the key ``start``, or from zeros. ``undone`` are the strokes that redo
    brings back, the last first. ``at`` is when it was changed, in UTC.
    """

    start: str
    strokes: tuple[Stroke, ...] = ()
    undone: tuple[Stroke, ...] = ()
    state: str = UNTOUCHED
    revision: int = 0
    at: str | None = None

    @property
    def brief(self) -> Brief:
        return Brief(self.state, len(self.strokes), self.at)

    @property
    def finished(self) -> bool:
        """Whether its map counts: it was painted or confirmed, and not skipped."""
        return self.state in FINISHED

    def painted(self, stroke: Stroke) -> Work:
        if len(self.strokes) >= MOST_STROKES:
            raise RecordError(f"over {MOST_STROKES:,} strokes on one map; confirm it, or reset it and paint again")
        return self._changed(EDITED, strokes=(*self.strokes, stroke), undone=())

    def undo(self) -> Work:
        """Take back the last stroke, if there is one."""
        if not self.strokes:
            return self._changed(self.state)
        return self._changed(EDITED, strokes=self.strokes[:-1], undone=(*self.undone, self.strokes[-1]))

    def redo(self) -> Work:
        """Bring back the stroke that was taken back last, if there is one."""
        if not self.undone:
            return self._changed(self.state)
        return self._changed(EDITED, strokes=(*self.strokes, self.undone[-1]), undone=self.undone[:-1])

    def reset(self) -> Work:
        """Take back all strokes; redo brings them back one by one."""
        return self._changed(EDITED, strokes=(), undone=(*self.undone, *reversed(self.strokes)))

    def started(self, start: str) -> Work:
        """Paint the same strokes on another map."""
        return self._changed(self.state if start == self.start else EDITED, start=start)

    def marked(self, state: str) -> Work:
        """Say that the map is right (confirmed), that it cannot be told (skipped), or take that back (edited)."""
        if state == UNTOUCHED or state not in STATES:
            raise RecordError(f"state is {shown(state)}; expected {EDITED}, {CONFIRMED} or {SKIPPED}")
        return self._changed(state)

    def _changed(self, state: str, **changes: Any) -> Work:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, state=state, revision=self.revision + 1, at=now, **changes)


def to_line(work: Work, identifier: str, user: str) -> dict[str, Any]:
    """Return the line of a script for `hkmap edit --script` that has a person's work on a record."""
    return {
        "id": identifier, "edited_by": user, "edited_at": work.at, "state": work.state, "start": work.start,
        "strokes": [to_json(stroke) for stroke in work.strokes], "undone": [to_json(stroke) for stroke in work.undone],
        "revision": work.revision,
    }


def from_line(line: Mapping[str, Any], place: str) -> Work:
    """Return what `to_line` wrote at ``place``; raise RecordError for what it did not."""
    brief = brief_of(line, place)
    strokes, undone = (
        tuple(from_json(one, f"{place}, {name} {number}") for number, one in enumerate(line[name], start=1))
        for name in ("strokes", "undone")
    )
    return Work(line["start"], strokes, undone, brief.state, line["revision"], brief.at)


def brief_of(line: Mapping[str, Any], place: str) -> Brief:
    """Return how far the work of a line at ``place`` is, without a look at its strokes; raise RecordError."""
    for name, (fits, expected) in _EXPECTED.items():
        if not fits(line.get(name)):
            raise RecordError(f"{place}: {name} {mismatch(line.get(name), expected)}")
    return Brief(line["state"], len(line["strokes"]), line["edited_at"])


_EXPECTED: dict[str, tuple[Any, str]] = {
    "start": (lambda value: isinstance(value, str), "the key of a map, or empty"),
    "state": (lambda value: value in STATES, f"one of {', '.join(STATES)}"),
    "strokes": (lambda value: isinstance(value, list), "a list of strokes"),
    "undone": (lambda value: isinstance(value, list), "a list of strokes"),
    "revision": (lambda value: type(value) is int and value >= 0, "a number of changes"),
    "edited_at": (lambda value: value is None or isinstance(value, str), "a time"),
}

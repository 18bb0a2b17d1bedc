"""The names of the labels while records come in."""

from __future__ import annotations

from collections.abc import Sequence

from hkmap.errors import RecordError, ShardError
from hkmap.records import Record

_MAX_LABEL = 99_999      # every number up to the largest label takes a place in the list of classes


class ClassNames:
    """The names of the labels: given once for all, or learnt from the records; ``known`` are those of other shards.

    Raises ShardError where what is given contradicts what is known.
    """

    def __init__(self, given: list[str] | None, known: Sequence[str] = ()) -> None:
        self._given = given
        self._names = dict(enumerate(given or []))
        self._count = max(len(self._names), len(known))
        for label, name in enumerate(known):
            if given is not None and label >= len(given):
                raise ShardError(f'{len(given)} classes given, but label {label} is "{name}" already; give them all')
            self._learn(label, name, "the series")

    def names(self) -> list[str]:
        """Return the names from label 0, "" where one is not known."""
        return [self._names.get(label, "") for label in range(self._count)]

    def learn(self, record: Record, label: int) -> None:
        """Take a record's "class" for the name of its label; raise RecordError or ShardError where that cannot be."""
        place = f'record "{record["id"]}"'
        name = record.get("class")
        if name is not None and not isinstance(name, str):
            raise RecordError(f"{place}: class is {str(name)[:60]}; expected a name")
        if self._given is not None and label >= len(self._given):
            raise ShardError(f"{place}: label {label} is beyond the {len(self._given)} classes, counted from 0")
        if label > _MAX_LABEL:
            raise ShardError(f"{place}: label {label}, expected at most {_MAX_LABEL}; number the classes from 0")
        if label >= 0:
            self._learn(label, name or "", place)
            self._count = max(self._count, label + 1)

    def _learn(self, label: int, name: str, place: str) -> None:
        if name and self._names.setdefault(label, name) != name:
            raise ShardError(
                f'{place}: label {label} is class "{name}", but it was "{self._names[label]}" before; '
                "one label has one name: renumber one of the sources"
            )

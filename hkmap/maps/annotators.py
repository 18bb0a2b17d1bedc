"""The maps of single annotators, and what each of them marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, compress
from typing import Any

from hkmap.errors import MapError, RecordError
from hkmap.maps.check import Map
from hkmap.records import Record, annotators_of, users_of


def by_user(record: Record, keys: Iterable[str]) -> dict[str, Record]:
    """Return a record per user, in the order of their first marks, with that user's marks alone under the ``keys``.

    Who is among the record's "annotators" and marked nothing comes last. The keys are those of `users_of`; the record
    need not have them all. Raises RecordError for a mark without a user.
    """
    users = {key: users_of(record, key) for key in keys if record.get(key) is not None}
    for key, own in users.items():
        if "" in own:
            place = f"{key}[{own.index('')}]" if key != "masks" else f'mask "{list(record[key])[own.index("")]}"'
            raise RecordError(
                f'record "{record["id"]}": {place} has no user, expected one for each; name the users, or omit '
                "--per-annotator for the joint map alone"
            )
    names = dict.fromkeys(chain(*users.values(), annotators_of(record)))
    return {name: {**record, **{key: _of(name, own, record[key]) for key, own in users.items()}} for name in names}


def maps_by_user(record: Record, keys: Iterable[str], draw: Callable[[Record], Map]) -> Mapping[str, Map]:
    """Return the map that ``draw`` makes of each user's record by ``by_user``; its MapError then names the user."""
    maps = {}
    for user, own in by_user(record, keys).items():
        try:
            maps[user] = draw(own)
        except MapError as error:
            raise MapError(f'annotator "{user}", {error}') from error
    return maps


def _of(name: str, users: list[str], marks: Any) -> Any:
    chosen = [user == name for user in users]
    return dict(compress(marks.items(), chosen)) if isinstance(marks, dict) else list(compress(marks, chosen))

"""The maps of single annotators, and what each of them marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hkmap.errors import MapError, RecordError
from hkmap.maps.check import Map
from hkmap.records import Bubble, Record


def by_user(record: Record, bubbles: list[Bubble]) -> dict[str, list[Bubble]]:
    """Return what each user marked, in the order of the users' first marks.

    Raises RecordError where a bubble or point has no user.
    """
    users: dict[str, list[Bubble]] = {}
    for index, bubble in enumerate(bubbles):
        if not bubble.user:
            raise RecordError(
                f'record "{record["id"]}": bubble or point {index} has no user, expected one for each; name the users, '
                "or omit --per-annotator for the joint map alone"
            )
        users.setdefault(bubble.user, []).append(bubble)
    return users


def maps_by_user(record: Record, bubbles: list[Bubble], draw: Callable[[list[Bubble]], Map]) -> Mapping[str, Map]:
    """Return the map that ``draw`` makes of each user's bubbles; its MapError then names the user."""
    maps = {}
    for user, own in by_user(record, bubbles).items():
        try:
            maps[user] = draw(own)
        except MapError as error:
            raise MapError(f'annotator "{user}", {error}') from error
    return maps

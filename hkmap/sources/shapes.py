"""Shapes that a record has no key for, as polygons; and what several formats make of masks and classes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hkmap.errors import ImageError, SourceError
from hkmap.files.masks import merge_rles
from hkmap.records import Record, mask_users_of

Points = list[list[float]]

CORNERS = 72        # of the polygon for an ellipse: its area is 0.13 % too small


def ellipse_points(centre: tuple[float, float], across: float, down: float, turn: float = 0) -> Points:
    """Return the corners of a polygon for an ellipse with these half axes, turned clockwise by ``turn`` radians."""
    angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    flat = [[centre[0] + across * math.cos(angle), centre[1] + down * math.sin(angle)] for angle in angles]
    return turned(flat, centre, turn)


def box_points(box: Record) -> Points:
    """Return the corners of a box, clockwise from its top left one.

    >>> box_points({"x": 1, "y": 2, "width": 3, "height": 4})
    [[1, 2], [4, 2], [4, 6], [1, 6]]
    """
    left, top, right, bottom = box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def turned(points: Points, pivot: tuple[float, float], turn: float) -> Points:
    """Return points turned about a pivot, clockwise as seen (y runs down), by ``turn`` radians."""
    cosine, sine = math.cos(turn), math.sin(turn)
    return [
        [pivot[0] + cosine * (x - pivot[0]) - sine * (y - pivot[1]),
         pivot[1] + sine * (x - pivot[0]) + cosine * (y - pivot[1])]
        for x, y in points
    ]


def named_masks(masks: Iterable[tuple[str, str, Record]], *, several: bool, place: str) -> Record:
    """Return "masks", one for each label (the union), and "mask_users" where users are known; {} without masks.

    ``masks`` are (label, user, run lengths). If there are ``several`` users in the file, a name is LABEL@USER.
    """
    runs: dict[str, list[Record]] = {}
    users: dict[str, str] = {}
    for label, user, rle in masks:
        name = f"{label}@{user}" if several and user else label
        runs.setdefault(name, []).append(rle)
        users |= {name: user} if user else {}
    try:
        merged = {name: merge_rles(rles) for name, rles in runs.items()}
    except ImageError as error:
        raise SourceError(f"{place}: {error}") from error
    return ({"masks": merged} if merged else {}) | ({"mask_users": users} if users else {})


def told_apart(record: Record, other: Record) -> tuple[Record, Record]:
    """Return two records of an image, masks of one name but of two users in them called LABEL@USER.

    >>> told_apart({"id": "1", "masks": {"a": "1.png"}, "mask_users": {"a": "ann"}},
    ...            {"id": "1", "masks": {"a": "2.png"}, "mask_users": {"a": "bob"}})[1]
    {'id': '1', 'masks': {'a@bob': '2.png'}, 'mask_users': {'a@bob': 'bob'}}
    """
    ours, theirs = mask_users_of(record), mask_users_of(other)
    shared = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    return _renamed(record, ours, shared), _renamed(other, theirs, shared)


def _renamed(record: Record, users: dict[str, str], names: set[str]) -> Record:
    called = {name: f"{name}@{users[name]}" for name in names}
    found = {key: record[key] for key in ("masks", "mask_users") if isinstance(record.get(key), dict)}
    return record | {key: {called.get(name, name): value for name, value in old.items()} for key, old in found.items()}

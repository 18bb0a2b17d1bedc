"""labelme: a JSON file of shapes for each image.

Polygons stay polygons, rectangles become boxes, circles (a centre and a point on the edge) bubbles, points points;
lines are kept under ``lines``, which no filter draws. Coordinates are continuous pixels from 0 in labelme too: they
are kept as they are. The picture inside the file (imageData) is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import as_object, as_pairs, as_text, json_object, numbered, read_json, stated_size
from hkmap.sources.images import files_of
from hkmap.sources.matching import stem_of

Item = dict[str, Any]
Points = list[list[float]]


def is_labelme(path: Path) -> bool:
    """Whether it is a file of labelme, or a folder whose first JSON file is one."""
    first = next(iter(files_of(path, ".json")), None)
    document = {} if first is None else json_object(first)
    return isinstance(document.get("shapes"), list) and "imagePath" in document


def labelme_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each JSON file, in natural order."""
    yield from each(files_of(path, ".json"), _record, rejects)


def corners_box(points: Points) -> Item:
    """Return the box between two opposite corners, in any order.

    >>> corners_box([[5, 1], [2, 7]])
    {'x': 2, 'y': 1, 'width': 3, 'height': 6}
    """
    (x, y), (other_x, other_y) = points
    return {"x": min(x, other_x), "y": min(y, other_y), "width": abs(x - other_x), "height": abs(y - other_y)}


def _record(path: Path) -> Record:
    document = as_object(read_json(path), str(path))
    name = as_text(document.get("imagePath"), f"{path}: imagePath").replace("\\", "/")
    size = stated_size(document.get("imageWidth"), document.get("imageHeight"), f"{path}: imageWidth and imageHeight")
    shapes: Record = {}
    for place, item in numbered(document.get("shapes"), f"{path}: shapes"):
        for key, shape in _shapes(as_object(item, place), place):
            shapes.setdefault(key, []).append(shape)
    return {"id": stem_of(name.rsplit("/", 1)[-1]), "image": name, **size, **(shapes or {"polygons": []})}


def _shapes(item: Item, place: str) -> Iterator[tuple[str, Item]]:
    """Yield the key of a record and what goes there."""
    kind = item.get("shape_type") or "polygon"        # the first versions had nothing else
    if not isinstance(kind, str) or kind not in SHAPES:
        raise SourceError(f"{place}.shape_type is {shown(kind)}; expected one of {', '.join(SHAPES)}")
    points = as_pairs(item.get("points"), f"{place}.points")
    least, most, key, make = SHAPES[kind]
    if not least <= len(points) <= most:
        number = str(least) if least == most else f"{least} or more"
        raise SourceError(f"{place}: a {kind} of {len(points)} points; expected {number}")
    label = {"label": item["label"]} if isinstance(item.get("label"), str) else {}
    for shape in make(points):
        if shape.get("radius") == 0:
            raise SourceError(f"{place}: a circle whose edge is its centre; expected a radius above 0")
        yield key, shape | label


def _circle(points: Points) -> list[Item]:
    (x, y), edge = points
    return [{"x": x, "y": y, "radius": math.hypot(edge[0] - x, edge[1] - y)}]


MANY = 1 << 24
# The shape's name: the least and the most points that it has, where it goes, and what it becomes.
SHAPES: dict[str, tuple[int, int, str, Callable[[Points], list[Item]]]] = {
    "polygon": (3, MANY, "polygons", lambda points: [{"points": points}]),
    "rectangle": (2, 2, "boxes", lambda points: [corners_box(points)]),
    "circle": (2, 2, "bubbles", _circle),
    "point": (1, 1, "points", lambda points: [{"x": points[0][0], "y": points[0][1]}]),
    "points": (1, MANY, "points", lambda points: [{"x": x, "y": y} for x, y in points]),
    "line": (2, 2, "lines", lambda points: [{"points": points}]),
    "linestrip": (2, MANY, "lines", lambda points: [{"points": points}]),
}

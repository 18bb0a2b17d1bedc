"""labelme: a JSON file of shapes for each image, of a folder or below.

Polygons stay polygons, rectangles become boxes (of four corners that are turned, as X-AnyLabeling writes them,
polygons), circles (a centre and a point on the edge) bubbles, points points; masks are united, one a label; lines are
kept under ``lines``, which no filter draws. Where one flag of the image is set it is the image's class. Coordinates are
continuous pixels from 0 in labelme too: they are kept as they are. The picture inside the file (imageData) is not read.
"""

from __future__ import annotations

import base64
import math
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hkmap.errors import SourceError
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import decode_image
from hkmap.files.masks import encode_rle, merge_rles
from hkmap.records import Record, Rejects, each, mismatch
from hkmap.sources.documents import (
    as_label,
    as_object,
    as_pairs,
    as_text,
    class_of,
    files_below,
    json_object,
    numbered,
    read_json,
    stated_size,
)
from hkmap.sources.matching import stem_of

Item = dict[str, Any]
Points = list[list[float]]

NEAR = 0.01         # pixels by which rounding may turn a box
_ABSOLUTE = re.compile("/|[A-Za-z]:")
_GREY_PNG = re.compile(rb"\x89PNG\r\n\x1a\n.{16}[\x01\x02\x04\x08]\0", re.DOTALL)     # what labelme writes


def is_labelme(path: Path) -> bool:
    """Whether it is a file of labelme, or a folder whose first JSON file, in it or below, is one."""
    document = _first(path)
    return isinstance(document.get("shapes"), list) and "imagePath" in document


def like_labelme(path: Path) -> bool:
    """Whether it is a file with one of labelme's keys, or a folder of JSON files and no text files."""
    if path.is_dir():
        return bool(files_below(path, ".json")) and not files_below(path, ".txt")
    return not {"shapes", "imagePath"}.isdisjoint(_first(path))


def labelme_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each JSON file, in natural order."""
    yield from each(files_below(path, ".json"), partial(_record, root=path if path.is_dir() else path.parent), rejects)


def corners_box(points: Points) -> Item:
    """Return the box between two opposite corners, in any order.

    >>> corners_box([[5, 1], [2, 7]])
    {'x': 2, 'y': 1, 'width': 3, 'height': 6}
    """
    (x, y), (other_x, other_y) = points
    return {"x": min(x, other_x), "y": min(y, other_y), "width": abs(x - other_x), "height": abs(y - other_y)}


def _first(path: Path) -> Item:
    return next(map(json_object, files_below(path, ".json")), {})


def _record(path: Path, root: Path) -> Record:
    document = as_object(read_json(path), str(path))
    name = _image(document, path, root)
    size = stated_size(document.get("imageWidth"), document.get("imageHeight"), f"{path}: imageWidth and imageHeight")
    shapes: Record = {}
    runs: dict[str, list[Record]] = {}
    for place, item in numbered(document.get("shapes"), f"{path}: shapes"):
        shape = as_object(item, place)
        if shape.get("shape_type") == "mask":
            mask = _mask(shape, size.get("size"), place)
            runs.setdefault(_label(shape, place).get("label", "object"), []).append(mask)
            continue
        for key, found in _shapes(shape, place):
            shapes.setdefault(key, []).append(found)
    if runs:
        shapes["masks"] = {label: merge_rles(found) for label, found in runs.items()}
    flags = as_object(document.get("flags") or {}, f"{path}: flags")
    classes = class_of(name for name, is_set in flags.items() if is_set is True)
    return {"id": stem_of(name), "image": name, **size, **(shapes or {"polygons": []}), **classes}


def _image(document: Item, path: Path, root: Path) -> str:
    """Return the path of the image that a file is about, from ``root`` on; that beside the file where it lies there."""
    if document.get("imagePath") is None:
        return path.relative_to(root).with_suffix("").as_posix()
    name = as_text(document["imagePath"], f"{path}: imagePath").replace("\\", "/")
    own = name.rpartition("/")[2]
    if os.path.isfile(path.parent / own):       # it answers for a name of any length
        name = own
    return name if _ABSOLUTE.match(name) else posixpath.normpath((path.parent.relative_to(root) / name).as_posix())


def _shapes(item: Item, place: str) -> Iterator[tuple[str, Item]]:
    """Yield the key of a record and what goes there."""
    kind = item.get("shape_type") or "polygon"        # the first versions had nothing else
    if not isinstance(kind, str) or kind not in SHAPES:
        expected = f"one of {', '.join(SHAPES)}, mask"
        raise SourceError(f"{place}.shape_type {mismatch(kind, expected)}")
    points = as_pairs(item.get("points"), f"{place}.points")
    counts, key, make = SHAPES[kind]
    if len(points) not in counts:
        number = " or ".join(map(str, counts)) if len(counts) < 3 else f"{counts[0]} or more"
        raise SourceError(f"{place}: a {kind} of {len(points)} points; expected {number}")
    label = _label(item, place)
    group = {"group_id": item["group_id"]} if isinstance(item.get("group_id"), int) else {}
    for shape in make(points):
        if shape.get("radius") == 0:
            raise SourceError(f"{place}: a circle whose edge is its centre; expected a radius above 0")
        yield "polygons" if key == "boxes" and "points" in shape else key, shape | label | group


def _label(item: Item, place: str) -> Item:
    return {} if item.get("label") in (None, "") else {"label": as_label(item["label"], f"{place}.label")}


def _mask(item: Item, size: list[int] | None, place: str) -> Record:
    """Return the run lengths of a mask shape, which is a PNG in base64, in a picture of ``size`` (width, height)."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise SourceError(f"{place}: a mask of a picture of unknown size; expected imageWidth and imageHeight")
    points = as_pairs(item.get("points"), f"{place}.points")
    try:
        data = base64.b64decode(as_text(item.get("mask"), f"{place}.mask"), validate=True)
    except ValueError:
        data = b""
    if len(points) != 2 or not _GREY_PNG.match(data):
        raise SourceError(f"{place}: no mask of labelme's; expected two points and a grey PNG in base64")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    left, top, right, bottom = (int(side) for point in points for side in point)
    if (width, height) != (right - left + 1, bottom - top + 1) or not (
        0 <= left <= right < size[0] and 0 <= top <= bottom < size[1]
    ):
        raise SourceError(
            f"{place}: a mask of {width}x{height} pixels from {left}, {top} to {right}, {bottom} in a picture of "
            f"{size[0]}x{size[1]}; expected it to fill these pixels, the last included"
        )
    mask = np.zeros((size[1], size[0]), np.bool_)
    mask[top : bottom + 1, left : right + 1] = decode_image(data, f"{place}.mask").any(axis=2)
    return encode_rle(mask)


def _rectangle(points: Points) -> list[Item]:
    """Return a box, of two opposite corners or of four; a polygon where the four are turned."""
    sides = zip(points, points[1:] + points[:1], strict=True)
    if len(points) == 4 and any(min(abs(x - other), abs(y - below)) > NEAR for (x, y), (other, below) in sides):
        return [{"points": points}]
    return [corners_box([[side(values) for values in zip(*points, strict=True)] for side in (min, max)])]


def _circle(points: Points) -> list[Item]:
    (x, y), edge = points
    return [{"x": x, "y": y, "radius": math.hypot(edge[0] - x, edge[1] - y)}]


MANY = 1 << 24
# The shape's name: how many points it has, where it goes, and what it becomes.
SHAPES: dict[str, tuple[Sequence[int], str, Callable[[Points], list[Item]]]] = {
    "polygon": (range(3, MANY), "polygons", lambda points: [{"points": points}]),
    "rectangle": ((2, 4), "boxes", _rectangle),
    "rotation": ((4,), "boxes", _rectangle),
    "circle": ((2,), "bubbles", _circle),
    "point": ((1,), "points", lambda points: [{"x": points[0][0], "y": points[0][1]}]),
    "points": (range(1, MANY), "points", lambda points: [{"x": x, "y": y} for x, y in points]),
    "line": ((2,), "lines", lambda points: [{"points": points}]),
    "linestrip": (range(2, MANY), "lines", lambda points: [{"points": points}]),
}

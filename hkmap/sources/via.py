"""VIA, the VGG image annotator (version 2, and 1): a project file, or the regions exported from one, as JSON.

A rect becomes a box, a circle a bubble, a polygon a polygon, an ellipse a polygon of 72 corners, a point a point;
polylines are kept under ``lines``, which no filter draws. Coordinates are continuous pixels from 0 in VIA too: they are
kept as they are. A region's attributes stay on it as ``attributes``; one of them is its label (LABELS, or the only one
that is a text). An image without regions counts as not annotated: VIA lists every image that was ever opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import as_number, as_numbers, as_object, as_text, json_object, numbered, read_json
from hkmap.sources.matching import stem_of

Item = dict[str, Any]

IMAGES = "_via_img_metadata"
LABELS = ("label", "class", "name", "type")
CORNERS = 72        # of the polygon for an ellipse: its area is 0.13 % too small


def is_via(path: Path) -> bool:
    """Whether a file has the images of a VIA project, or is the export of its regions."""
    document = json_object(path)
    images = list(document.get(IMAGES, document).values()) if isinstance(document.get(IMAGES, {}), dict) else []
    return bool(images) and all(isinstance(item, dict) and {"filename", "regions"} <= set(item) for item in images[:9])


def via_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file."""
    document = as_object(read_json(path), str(path))
    images = as_object(document.get(IMAGES, document), f"{path}: {IMAGES}")
    yield from each(images.items(), lambda image: _record(f'{path}: "{image[0][:80]}"', image[1]), rejects)


def _record(place: str, value: object) -> Record:
    image = as_object(value, place)
    name = as_text(image.get("filename"), f"{place}.filename")
    record: Record = {"id": stem_of(name.replace("\\", "/").rsplit("/", 1)[-1]), "image": name}
    regions = image.get("regions")
    if isinstance(regions, dict):       # version 1 numbers them
        regions = list(regions.values())
    for where, region in numbered(regions, f"{place}.regions"):
        key, shape = _shape(region, where)
        record.setdefault(key, []).append(shape)
    return record


def _shape(value: object, place: str) -> tuple[str, Item]:
    region = as_object(value, place)
    shape = as_object(region.get("shape_attributes"), f"{place}.shape_attributes")
    kind = shape.get("name")
    if not isinstance(kind, str) or kind not in SHAPES:
        raise SourceError(f"{place} has the shape {shown(kind)}; expected one of {', '.join(SHAPES)}")
    key, make = SHAPES[kind]
    attributes = as_object(region.get("region_attributes") or {}, f"{place}.region_attributes")
    return key, make(shape, place) | _label(attributes) | ({"attributes": attributes} if attributes else {})


def _label(attributes: Item) -> Item:
    texts = {name: value for name, value in attributes.items() if isinstance(value, str) and value}
    named = [texts[name] for name in LABELS if name in texts]
    found = named or list(texts.values())
    return {"label": found[0]} if named or len(found) == 1 else {}


def _rect(shape: Item, place: str) -> Item:
    sides = {name: as_number(shape.get(name), f"{place}.{name}", above=0) for name in ("width", "height")}
    return {name: as_number(shape.get(name), f"{place}.{name}") for name in ("x", "y")} | sides


def _point(shape: Item, place: str) -> Item:
    return {name: as_number(shape.get(f"c{name}"), f"{place}.c{name}") for name in ("x", "y")}


def _circle(shape: Item, place: str) -> Item:
    radius = as_number(shape.get("r"), f"{place}.r", above=0)
    if radius == 0:
        raise SourceError(f"{place}.r is 0; expected a number of pixels above 0")
    return _point(shape, place) | {"radius": radius}


def _ellipse(shape: Item, place: str) -> Item:
    centre = _point(shape, place)
    across, down = (as_number(shape.get(name), f"{place}.{name}", above=0) for name in ("rx", "ry"))
    turn = as_number(shape.get("theta", 0), f"{place}.theta")
    cosine, sine = math.cos(turn), math.sin(turn)
    points = []
    for corner in range(CORNERS):
        angle = 2 * math.pi * corner / CORNERS
        x, y = across * math.cos(angle), down * math.sin(angle)
        points.append([centre["x"] + cosine * x - sine * y, centre["y"] + sine * x + cosine * y])
    return {"points": points}


def _points(shape: Item, place: str) -> Item:
    columns = [as_numbers(shape.get(name), f"{place}.{name}") for name in ("all_points_x", "all_points_y")]
    if len(columns[0]) != len(columns[1]) or not columns[0]:
        raise SourceError(f"{place} has {len(columns[0])} x and {len(columns[1])} y; expected as many of both")
    return {"points": list(map(list, zip(*columns, strict=True)))}


SHAPES: dict[str, tuple[str, Callable[[Item, str], Item]]] = {
    "rect": ("boxes", _rect), "circle": ("bubbles", _circle), "ellipse": ("polygons", _ellipse),
    "polygon": ("polygons", _points), "point": ("points", _point), "polyline": ("lines", _points),
}

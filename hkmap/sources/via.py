"""VIA, the VGG image annotator: a project file, or the regions exported from one, as JSON or CSV (versions 1 to 3).

A rect becomes a box, a circle a bubble, a polygon a polygon, an ellipse a polygon of 72 corners, a point a point;
polylines are kept under ``lines``, which no filter draws. Coordinates are continuous pixels from 0 in VIA too: they are
kept as they are. A region's attributes stay on it as ``attributes``; one of them is its label (LABELS, or the only one
that is a text). A file's attribute of CLASSES is the image's class. An image without regions counts as not annotated:
VIA lists every image that was ever opened. Version 3 and CSV are first brought into the form of version 2.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, refuse_constant, shown
from hkmap.sources.documents import (
    as_number,
    as_numbers,
    as_object,
    as_text,
    head,
    json_object,
    numbered,
    read_json,
    text_lines,
)
from hkmap.sources.images import few
from hkmap.sources.matching import stem_of
from hkmap.sources.shapes import ellipse_points
from hkmap.sources.via3 import CSV_OF_3, is_project, project_images

Item = dict[str, Any]

IMAGES = "_via_img_metadata"
LABELS = ("label", "class", "name", "type")
CLASSES = ("class", "label")
CELLS = ("file_attributes", "region_shape_attributes", "region_attributes")     # of a CSV, each a JSON object
COLUMNS = {"filename", *CELLS}


def is_via(path: Path) -> bool:
    """Whether a file is a VIA project, or the export of its regions; a damaged one too, so that its reader says why."""
    document = json_object(path)
    if IMAGES in document or is_project(document):
        return True
    if document:
        images = list(document.values())[:9]
        return all(isinstance(item, dict) and {"filename", "regions"} <= set(item) for item in images)
    return path.is_file() and (CELLS[1] in _header(head(path)) or head(path).startswith(CSV_OF_3))


def via_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file."""
    yield from each(_images(path), lambda image: _record(*image), rejects)


def _images(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the place and the image as version 2 has it."""
    text = head(path)
    if text.lstrip()[:1] != "{":
        yield from _csv_images(path, text)
        return
    document = as_object(read_json(path), str(path))
    if is_project(document):
        yield from project_images(document, str(path))
        return
    for key, image in as_object(document.get(IMAGES, document), f"{path}: {IMAGES}").items():
        yield f'{path}: "{key[:80]}"', image


def _header(text: str) -> list[str]:
    """Return the columns in the first line of a CSV, which VIA may begin with a #."""
    first = (text.splitlines() or [""])[0]
    return [name.strip(' "#') for name in first.split(_delimiter(first))]


def _delimiter(first: str) -> str:
    return max(",;\t", key=first.count)        # spreadsheets save others


def _csv_images(path: Path, text: str) -> Iterator[tuple[str, object]]:
    if text.startswith(CSV_OF_3):
        raise SourceError(f"{path}: a CSV of VIA 3; hkmap reads its project, save that as JSON")
    columns = _header(text)
    if not set(columns) >= COLUMNS:
        raise SourceError(f"{path}: has the columns {few(columns)}; expected {', '.join(sorted(COLUMNS))}, as VIA has")
    images: dict[str, Item] = {}
    stream = io.StringIO("\n".join(text_lines(path, "a CSV of VIA's")), newline="")
    rows = csv.reader(stream, delimiter=_delimiter(next(stream)))
    try:
        for cells in rows:
            if any(map(str.strip, cells)):
                _add_row(images, dict(zip(columns, cells, strict=False)), f"{path} line {rows.line_num + 1}")
    except csv.Error as error:
        raise SourceError(f"{path}: not CSV ({error}); expected VIA's, export it again") from error
    yield from ((f'{path}: "{name[:80]}"', image) for name, image in images.items())


def _add_row(images: dict[str, Item], row: dict[str, str], place: str) -> None:
    name = as_text(row["filename"].strip(), f"{place}: filename")
    of_file, shape, attributes = (_object(row.get(column, ""), f"{place}: {column}") for column in CELLS)
    image = images.setdefault(name, {"filename": name, "file_attributes": of_file, "regions": []})
    if shape:       # a row without one says that the image has no region
        image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})


def _object(text: str, place: str) -> Item:
    try:
        return as_object(json.loads(text or "{}", parse_constant=refuse_constant), place)
    except (ValueError, RecursionError) as error:
        raise SourceError(f'{place} is "{text[:40]}"; expected a JSON object ({str(error)[:60]})') from error


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
    of_file = as_object(image.get("file_attributes") or {}, f"{place}.file_attributes")
    found = [of_file[name] for name in CLASSES if isinstance(of_file.get(name), str) and of_file[name]]
    return record | ({"class": found[0]} if found else {})


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
    return {"points": ellipse_points((centre["x"], centre["y"]), across, down, turn)}


def _points(shape: Item, place: str) -> Item:
    columns = [as_numbers(shape.get(name), f"{place}.{name}") for name in ("all_points_x", "all_points_y")]
    if len(columns[0]) != len(columns[1]) or not columns[0]:
        raise SourceError(f"{place} has {len(columns[0])} x and {len(columns[1])} y; expected as many of both")
    return {"points": list(map(list, zip(*columns, strict=True)))}


SHAPES: dict[str, tuple[str, Callable[[Item, str], Item]]] = {
    "rect": ("boxes", _rect), "circle": ("bubbles", _circle), "ellipse": ("polygons", _ellipse),
    "polygon": ("polygons", _points), "point": ("points", _point), "polyline": ("lines", _points),
}

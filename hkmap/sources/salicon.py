"""SALICON's fixations: a JSON file of images, and for each of them the fixations of many workers.

A fixation is [row, column], counted from 1: the centre of that pixel is x = column - 0.5, y = row - 0.5. Each worker is
a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import as_list, as_object, as_pairs, as_size, as_text, json_object, read_json
from hkmap.sources.matching import stem_of


def is_salicon(path: Path) -> bool:
    """Whether a file has images, and annotations with fixations."""
    document = json_object(path)
    annotations = document.get("annotations")
    return isinstance(document.get("images"), list) and isinstance(annotations, list) and any(
        isinstance(item, dict) and "fixations" in item for item in annotations[:1]
    )


def salicon_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file; one that nobody looked at has no points."""
    document = as_object(read_json(path), str(path))
    points: dict[int | str, list[dict[str, Any]]] = {}

    def add(item: tuple[int, object]) -> None:
        place = f"{path}: annotations[{item[0]}]"
        annotation = as_object(item[1], place)
        points.setdefault(_key(annotation.get("image_id"), f"{place}.image_id"), []).extend(_points(annotation, place))

    for _ in each(enumerate(as_list(document.get("annotations"), f"{path}: annotations")), add, rejects):
        pass
    images = enumerate(as_list(document.get("images"), f"{path}: images"))
    yield from each(images, lambda item: _record(f"{path}: images[{item[0]}]", item[1], points), rejects)


def _record(place: str, value: object, points: dict[int | str, list[dict[str, Any]]]) -> Record:
    image = as_object(value, place)
    key = _key(image.get("id"), f"{place}.id")
    name = as_text(image.get("file_name"), f"{place}.file_name")
    record: Record = {"id": stem_of(name), "image": name}
    if image.get("width") is not None or image.get("height") is not None:
        record["size"] = as_size(image.get("width"), image.get("height"), f"{place} width and height")
    return record | ({"points": points[key]} if key in points else {})


def _points(annotation: dict[str, Any], place: str) -> Iterator[dict[str, Any]]:
    user = _key(annotation.get("worker_id", ""), f"{place}.worker_id") if "worker_id" in annotation else ""
    for row, column in as_pairs(annotation.get("fixations"), f"{place}.fixations"):
        yield {"x": column - 0.5, "y": row - 0.5, "user": str(user)}


def _key(value: object, place: str) -> int | str:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise SourceError(f"{place} is {shown(value)}; expected a number or a text")

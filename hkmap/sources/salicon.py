"""SALICON's fixations: a JSON file of images, and for each of them the fixations of many workers.

A fixation is [row, column], counted from 1: the centre of that pixel is x = column - 0.5, y = row - 0.5. Each worker is
a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import (
    annotations_by_image,
    as_key,
    as_object,
    as_pairs,
    as_text,
    json_object,
    numbered,
    read_json,
    stated_size,
)
from hkmap.sources.matching import stem_of


def is_salicon(path: Path) -> bool:
    """Whether a file has images, and annotations with fixations."""
    document = json_object(path)
    return isinstance(document.get("images"), list) and has_fixations(document)


def has_fixations(document: dict[str, Any]) -> bool:
    """Whether an annotation of a document has fixations, as COCO's have not."""
    annotations = document.get("annotations")
    return isinstance(annotations, list) and any(isinstance(one, dict) and "fixations" in one for one in annotations)


def salicon_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file; one without fixations has no points."""
    document = as_object(read_json(path), str(path))
    points: dict[str, list[dict[str, Any]]] = {}
    found = annotations_by_image(path, document, rejects)
    annotations = ((image, *annotation) for image, of_image in found.items() for annotation in of_image)
    for image, of_worker in each(annotations, lambda item: (item[0], _points(*item[1:])), rejects):
        points.setdefault(image, []).extend(of_worker)

    def read(item: tuple[str, Any]) -> Record:
        place, value = item
        image = as_object(value, place)
        key = as_key(image.get("id"), f"{place}.id")
        name = as_text(image.get("file_name"), f"{place}.file_name")
        size = stated_size(image.get("width"), image.get("height"), f"{place} width and height")
        return {"id": stem_of(name), "image": name, **size} | ({"points": points[key]} if key in points else {})

    yield from each(numbered(document.get("images"), f"{path}: images"), read, rejects)


def _points(place: str, annotation: Record) -> list[dict[str, Any]]:
    user = as_key(annotation["worker_id"], f"{place}.worker_id") if "worker_id" in annotation else ""
    pairs = as_pairs(annotation.get("fixations"), f"{place}.fixations")
    return [{"x": column - 0.5, "y": row - 0.5, "user": user} for row, column in pairs]

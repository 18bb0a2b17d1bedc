"""COCO's instances: one JSON file of images, categories and annotations.

A bbox becomes a box, each part of a polygon segmentation a polygon, run lengths one mask a category (the instances of
an image merged; this takes pycocotools). An annotation of none of these, whose category is all that it says, is the
image's class. Coordinates are continuous pixels from 0 in COCO too: they are kept as they are. A crowd's box keeps its
``iscrowd``; a crowd's region is a mask like any other, as its category is known.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hkmap.errors import ImageError, SourceError
from hkmap.files.masks import merge_rles
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import (
    annotations_by_image,
    as_key,
    as_label,
    as_number,
    as_numbers,
    as_object,
    as_text,
    class_of,
    json_object,
    numbered,
    read_json,
    stated_size,
)
from hkmap.sources.salicon import has_fixations

logger = logging.getLogger("hkmap")

ELSEWHERE = ("keypoints", "caption")        # what an annotation without bbox and segmentation may be about


@dataclass
class _Contents:
    """The annotations of a file by the id of their image, and the keys that the file has anything for."""

    categories: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, list[tuple[str, Record]]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)


def is_coco(path: Path) -> bool:
    """Whether a file has COCO's images and annotations, and no fixations."""
    document = json_object(path)
    lists = (document.get("images"), document.get("annotations"))
    return all(isinstance(found, list) for found in lists) and not has_fixations(document)


def like_coco(path: Path) -> bool:
    """Whether a file has one of COCO's keys at least."""
    return not {"images", "annotations"}.isdisjoint(json_object(path))


def coco_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file.

    A key that the file has for any image is on every image, empty where that one has nothing.
    """
    document = as_object(read_json(path), str(path))
    contents = _contents(path, document, rejects)
    images = numbered(document.get("images"), f"{path}: images")
    yield from each(images, lambda item: _record(*item, contents), rejects)


def _contents(path: Path, document: dict[str, Any], rejects: Rejects) -> _Contents:
    contents = _Contents(annotations=annotations_by_image(path, document, rejects))
    for place, item in numbered(document.get("categories", []), f"{path}: categories"):
        category = as_object(item, place)
        key, name = as_key(category.get("id"), f"{place}.id"), as_label(category.get("name"), f"{place}.name")
        if contents.categories.setdefault(key, name) != name:
            raise SourceError(f"{place}.id is {key}, as that of a category before; expected each id once")
    found = [annotation for one in contents.annotations.values() for _, annotation in one]
    contents.keys = set().union(*map(_keys, found)) if found else {"boxes"}
    unread = sum(not _keys(annotation) and not _is_of_image(annotation) for annotation in found)
    if unread:
        logger.warning("%s: %d annotations have neither bbox nor segmentation, and are not read", path, unread)
    return contents


def _is_of_image(annotation: Record) -> bool:
    """Whether all that an annotation says is its category."""
    return not _keys(annotation) and annotation.get("category_id") is not None and not any(
        annotation.get(key) for key in ELSEWHERE
    )


def _keys(annotation: Record) -> set[str]:
    segmentation = annotation.get("segmentation")
    found = set() if annotation.get("bbox") in (None, []) else {"boxes"}
    if segmentation:
        found.add("masks" if isinstance(segmentation, dict) else "polygons")
    return found


def _record(place: str, item: object, contents: _Contents) -> Record:
    image = as_object(item, place)
    key = as_key(image.get("id"), f"{place}.id")
    record: Record = {"id": key, "image": as_text(image.get("file_name"), f"{place}.file_name")}
    record |= stated_size(image.get("width"), image.get("height"), f"{place} width and height")
    boxes: list[Record] = []
    polygons: list[Record] = []
    runs: dict[str, list[Record]] = {}
    classes: list[str] = []
    for where, annotation in contents.annotations.pop(key, []):
        label = _label(annotation, contents, where)
        classes += [label["label"]] if _is_of_image(annotation) else []
        if annotation.get("bbox") not in (None, []):
            boxes.append(_box(annotation, where) | label)
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            runs.setdefault(label.get("label", "object"), []).append(segmentation)
        elif segmentation is not None:
            polygons += [{"points": part} | label for part in _parts(segmentation, f"{where}.segmentation")]
    found = {"boxes": boxes, "polygons": polygons, "masks": _masks(runs, place)}
    return record | {name: value for name, value in found.items() if name in contents.keys} | class_of(classes)


def _label(annotation: dict[str, Any], contents: _Contents, place: str) -> dict[str, str]:
    if annotation.get("category_id") is None:
        return {}
    category = as_key(annotation["category_id"], f"{place}.category_id")
    if category not in contents.categories:
        raise SourceError(f"{place}.category_id is {category}; expected the id of a category")
    return {"label": contents.categories[category]}


def _box(annotation: dict[str, Any], place: str) -> Record:
    sides = as_numbers(annotation["bbox"], f"{place}.bbox")
    if len(sides) != 4:
        raise SourceError(f"{place}.bbox has {len(sides)} numbers; expected [left, top, width, height]")
    x, y, *lengths = sides
    width, height = (as_number(side, f"{place}.bbox", above=0) for side in lengths)
    crowd = {"iscrowd": annotation["iscrowd"]} if annotation.get("iscrowd") else {}
    return {"x": x, "y": y, "width": width, "height": height} | crowd


def _parts(segmentation: object, place: str) -> Iterator[list[list[float]]]:
    for where, part in numbered(segmentation, place):
        numbers = as_numbers(part, where)
        if len(numbers) < 6 or len(numbers) % 2:
            raise SourceError(f"{where} has {len(numbers)} numbers; expected x and y of three corners or more")
        yield list(map(list, zip(numbers[::2], numbers[1::2], strict=True)))


def _masks(runs: dict[str, list[Record]], place: str) -> dict[str, Record]:
    try:
        return {label: merge_rles(rles) for label, rles in runs.items()}
    except ImageError as error:
        raise SourceError(f"{place}: {error}") from error

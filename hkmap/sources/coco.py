"""COCO's instances: one JSON file of images, categories and annotations.

A bbox becomes a box, each part of a polygon segmentation a polygon, run lengths one mask a category (the instances of
an image merged; this takes pycocotools). Coordinates are continuous pixels from 0 in COCO too: they are kept as they
are. A crowd's box keeps its ``iscrowd``; a crowd's region is a mask like any other, as its category is known.
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
    as_key,
    as_number,
    as_numbers,
    as_object,
    as_text,
    json_object,
    numbered,
    read_json,
    stated_size,
)
from hkmap.sources.images import few
from hkmap.sources.salicon import has_fixations

logger = logging.getLogger("hkmap")


@dataclass
class _Contents:
    """The annotations of a file by the id of their image, and the keys that the file has anything for."""

    categories: dict[int | str, str] = field(default_factory=dict)
    annotations: dict[int | str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    listed: set[int | str] = field(default_factory=set)


def is_coco(path: Path) -> bool:
    """Whether a file has COCO's images and annotations, and no fixations."""
    document = json_object(path)
    lists = (document.get("images"), document.get("annotations"))
    return all(isinstance(found, list) for found in lists) and not has_fixations(document)


def coco_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file.

    A key that the file has for any image is on every image, empty where that one has nothing.
    """
    document = as_object(read_json(path), str(path))
    contents = _contents(path, document, rejects)
    images = numbered(document.get("images"), f"{path}: images")
    yield from each(images, lambda item: _record(*item, contents), rejects)
    if contents.annotations:
        names = [str(image) for image in contents.annotations]
        logger.warning("%s: annotations of %d images that it does not list: %s", path, len(names), few(names))


def _contents(path: Path, document: dict[str, Any], rejects: Rejects) -> _Contents:
    contents = _Contents()
    for place, item in numbered(document.get("categories", []), f"{path}: categories"):
        category = as_object(item, place)
        contents.categories[as_key(category.get("id"), f"{place}.id")] = as_text(category.get("name"), f"{place}.name")
    annotations = numbered(document.get("annotations"), f"{path}: annotations")
    for image, place, annotation in each(annotations, lambda item: _annotation(*item), rejects):
        contents.annotations.setdefault(image, []).append((place, annotation))
        contents.keys |= _keys(annotation)
    contents.keys = contents.keys or {"boxes"}
    return contents


def _annotation(place: str, value: object) -> tuple[int | str, str, dict[str, Any]]:
    annotation = as_object(value, place)
    return as_key(annotation.get("image_id"), f"{place}.image_id"), place, annotation


def _keys(annotation: dict[str, Any]) -> set[str]:
    segmentation = annotation.get("segmentation")
    found = {"boxes"} if annotation.get("bbox") is not None else set()
    if segmentation:
        found.add("masks" if isinstance(segmentation, dict) else "polygons")
    return found


def _record(place: str, item: object, contents: _Contents) -> Record:
    image = as_object(item, place)
    key = as_key(image.get("id"), f"{place}.id")
    if key in contents.listed:
        raise SourceError(f"{place}.id is {key}, as that of an image before; expected each id once")
    contents.listed.add(key)
    record: Record = {"id": str(key), "image": as_text(image.get("file_name"), f"{place}.file_name")}
    record |= stated_size(image.get("width"), image.get("height"), f"{place} width and height")
    boxes: list[Record] = []
    polygons: list[Record] = []
    runs: dict[str, list[Record]] = {}
    for where, annotation in contents.annotations.pop(key, []):
        label = _label(annotation, contents, where)
        if annotation.get("bbox") is not None:
            boxes.append(_box(annotation, where) | label)
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            runs.setdefault(label.get("label", "object"), []).append(segmentation)
        elif segmentation is not None:
            polygons += [{"points": part} | label for part in _parts(segmentation, f"{where}.segmentation")]
    found = {"boxes": boxes, "polygons": polygons, "masks": _masks(runs, place)}
    return record | {name: value for name, value in found.items() if name in contents.keys}


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

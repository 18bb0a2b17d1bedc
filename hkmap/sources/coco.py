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
from hkmap.sources.documents import as_list, as_number, as_numbers, as_object, as_size, as_text, json_object, read_json
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")


@dataclass
class _Contents:
    """The annotations of a file by the id of their image, and the keys that the file has anything for."""

    path: Path
    categories: dict[object, str] = field(default_factory=dict)
    annotations: dict[object, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    listed: set[object] = field(default_factory=set)


def is_coco(path: Path) -> bool:
    """Whether a file has COCO's images and annotations, and no fixations."""
    document = json_object(path)
    annotations = document.get("annotations")
    return (
        isinstance(document.get("images"), list)
        and isinstance(annotations, list)
        and not any(isinstance(item, dict) and "fixations" in item for item in annotations[:1])
    )


def coco_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file.

    A key that the file has for any image is on every image, empty where that one has nothing.
    """
    document = as_object(read_json(path), str(path))
    contents = _contents(path, document, rejects)
    images = as_list(document.get("images"), f"{path}: images")
    yield from each(enumerate(images), lambda item: _record(f"{path}: images[{item[0]}]", item[1], contents), rejects)
    if contents.annotations:
        names = [str(image) for image in contents.annotations]
        logger.warning("%s: annotations of %d images that it does not list: %s", path, len(names), few(names))


def _contents(path: Path, document: dict[str, Any], rejects: Rejects) -> _Contents:
    contents = _Contents(path)
    for index, item in enumerate(as_list(document.get("categories", []), f"{path}: categories")):
        place = f"{path}: categories[{index}]"
        category = as_object(item, place)
        contents.categories[_key(category.get("id"), f"{place}.id")] = as_text(category.get("name"), f"{place}.name")

    def add(item: tuple[int, object]) -> None:
        place = f"{path}: annotations[{item[0]}]"
        annotation = as_object(item[1], place)
        image = _key(annotation.get("image_id"), f"{place}.image_id")
        contents.annotations.setdefault(image, []).append((place, annotation))
        contents.keys |= _keys(annotation)

    annotations = as_list(document.get("annotations"), f"{path}: annotations")
    for _ in each(enumerate(annotations), add, rejects):
        pass
    contents.keys |= set() if contents.keys else {"boxes"}
    return contents


def _keys(annotation: dict[str, Any]) -> set[str]:
    segmentation = annotation.get("segmentation")
    found = {"boxes"} if annotation.get("bbox") is not None else set()
    if segmentation:
        found.add("masks" if isinstance(segmentation, dict) else "polygons")
    return found


def _record(place: str, item: object, contents: _Contents) -> Record:
    image = as_object(item, place)
    key = _key(image.get("id"), f"{place}.id")
    if key in contents.listed:
        raise SourceError(f"{place}.id is {key}, as that of an image before; expected each id once")
    contents.listed.add(key)
    record: Record = {"id": str(key), "image": as_text(image.get("file_name"), f"{place}.file_name")}
    if image.get("width") is not None or image.get("height") is not None:
        record["size"] = as_size(image.get("width"), image.get("height"), f"{place} width and height")
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
    category = _key(annotation["category_id"], f"{place}.category_id")
    if category not in contents.categories:
        raise SourceError(f"{place}.category_id is {category}; expected the id of a category")
    return {"label": contents.categories[category]}


def _box(annotation: dict[str, Any], place: str) -> Record:
    sides = as_list(annotation["bbox"], f"{place}.bbox")
    if len(sides) != 4:
        raise SourceError(f"{place}.bbox has {len(sides)} numbers; expected [left, top, width, height]")
    x, y = (as_number(side, f"{place}.bbox") for side in sides[:2])
    width, height = (as_number(side, f"{place}.bbox", above=0) for side in sides[2:])
    crowd = {"iscrowd": annotation["iscrowd"]} if annotation.get("iscrowd") else {}
    return {"x": x, "y": y, "width": width, "height": height} | crowd


def _parts(segmentation: object, place: str) -> Iterator[list[list[float]]]:
    for index, part in enumerate(as_list(segmentation, place)):
        where = f"{place}[{index}]"
        numbers = as_numbers(part, where)
        if len(numbers) < 6 or len(numbers) % 2:
            raise SourceError(f"{where} has {len(numbers)} numbers; expected x and y of three corners or more")
        yield list(map(list, zip(numbers[::2], numbers[1::2], strict=True)))


def _masks(runs: dict[str, list[Record]], place: str) -> dict[str, Record]:
    try:
        return {label: merge_rles(rles) for label, rles in runs.items()}
    except ImageError as error:
        raise SourceError(f"{place}: {error}") from error


def _key(value: object, place: str) -> object:
    """Return an id, which may be a number or a text, but 7 and "7" are two."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return as_text(value, place)

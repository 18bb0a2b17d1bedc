"""Pascal VOC: an XML file of boxes for each image, and palette images of classes or objects beside it.

VOC counts pixels from 1 and its boxes hold their last pixel too: x = xmin - 1, width = xmax - xmin + 1. In the palette
images 0 is background and 255 void: what is there was not annotated, so it becomes ``unknown``. Parts of objects,
actions and single points are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from hkmap.errors import SourceError
from hkmap.files.images import read_levels
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import head, read_xml, stated_size
from hkmap.sources.images import as_stored, files_of
from hkmap.sources.matching import stem_of
from hkmap.sources.releases import find_folder

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
VOID = 255
FLAGS = ("difficult", "truncated", "occluded")


def is_voc(path: Path) -> bool:
    """Whether it is a VOC annotation, or a folder of them, or one that holds the folder Annotations."""
    first = next(iter(_files(path)), None)
    if first is None or first.suffix.lower() != ".xml" or "<annotation" not in head(first):
        return False
    try:
        return read_xml(first).tag == "annotation"
    except SourceError:
        return False


def voc_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each XML file, in natural order, with the masks that lie beside them."""
    yield from each(_files(path), _record, rejects)


def voc_boxes(root: Element, place: str) -> list[dict[str, Any]]:
    """Return the boxes of an annotation's objects; SourceError where one has no name, or no box."""
    return [_box(item, f"{place}: object {number}") for number, item in enumerate(root.findall("object"), start=1)]


def voc_size(root: Element, place: str) -> Record:
    """Return the "size" of the image as the annotation states it; nothing where it states none."""
    found = root.find("size")
    if found is None:
        return {}
    sides = [found.findtext(name, "").strip() for name in ("width", "height")]
    if sides == ["0", "0"]:       # what some tools write for "I did not look"
        return {}
    width, height = (int(side) if side.isascii() and side.isdecimal() and len(side) < 9 else side for side in sides)
    return stated_size(width, height, f"{place}: size")


def _files(path: Path) -> list[Path]:
    annotations = find_folder(path, "Annotations")
    return files_of(annotations if annotations.is_dir() else path, ".xml")


def _record(path: Path) -> Record:
    root = read_xml(path)
    if root.tag != "annotation":
        raise SourceError(f"{path}: begins with <{root.tag[:40]}>; expected <annotation>, as Pascal VOC has it")
    name = root.findtext("filename", "").strip() or path.stem
    boxes = voc_boxes(root, str(path))
    record = {"id": stem_of(name), "image": name, **voc_size(root, str(path)), "boxes": boxes}
    return record | _masks(path, [box["label"] for box in boxes])


def _box(item: Element, place: str) -> dict[str, Any]:
    label = item.findtext("name", "").strip()
    corners = item.find("bndbox")
    if not label or corners is None:
        raise SourceError(f"{place} has no {'bndbox' if label else 'name'}; expected a name and a bndbox")
    left, top, right, bottom = (_number(corners, name, place) for name in ("xmin", "ymin", "xmax", "ymax"))
    if right < left or bottom < top:
        raise SourceError(f"{place} goes from {left:g}, {top:g} to {right:g}, {bottom:g}; expected xmin <= xmax")
    box = {"x": left - 1, "y": top - 1, "width": right - left + 1, "height": bottom - top + 1, "label": label}
    return box | {flag: 1 for flag in FLAGS if item.findtext(flag, "").strip() == "1"}


def _number(corners: Element, name: str, place: str) -> float:
    text = corners.findtext(name, "").strip()
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not abs(number) < 1e9:
        raise SourceError(f'{place}: {name} is "{text[:40]}"; expected a number of pixels')
    return number


def _masks(path: Path, objects: list[str]) -> Record:
    """Return the "masks" and the "unknown" of the palette images in the folders next to that of the annotations.

    Objects are numbered in the order of the XML file; a name that comes twice gets its number.
    """
    here = path.parent
    beside = here / ".." if here.name in ("", "..") else here.parent        # written as the user gave it
    numbered = {
        number: name if objects.count(name) == 1 else f"{name} {number}" for number, name in enumerate(objects, start=1)
    }
    for kind, names in (("Class", dict(enumerate(CLASSES))), ("Object", numbered)):
        picture = as_stored(beside / f"Segmentation{kind}" / f"{path.stem}.png")
        if picture.is_file():
            levels = {int(level): f"{picture}#{level}" for level in np.unique(read_levels(picture)) if level != 0}
            unknown = {"unknown": {"void": levels.pop(VOID)}} if VOID in levels else {}
            masks = {names.get(level, f"{kind.lower()} {level}"): mask for level, mask in levels.items()}
            return {"masks": masks} | unknown
    return {}

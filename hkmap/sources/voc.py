"""Pascal VOC: an XML file of boxes for each image, and palette images of classes or objects beside it.

VOC counts pixels from 1 and its boxes hold their last pixel too: x = xmin - 1, width = xmax - xmin + 1. In the palette
images 0 is background and 255 void: what is there was not annotated, so it becomes ``unknown``. A data set of other
classes names them in labelmap.txt (as CVAT does; it also says their colours) or class_names.txt (as labelme2voc does),
one on each line from 0 on; without such a file they are "class 1" and so on. Parts of objects, actions and single
points are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from hkmap.errors import SourceError
from hkmap.files.images import decode_image, file_bytes, read_levels
from hkmap.files.masks import encode_rle
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import read_xml, stated_size, text_lines, xml_tag
from hkmap.sources.images import as_stored, files_of
from hkmap.sources.matching import stem_of
from hkmap.sources.releases import find_folder

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
VOID = 255
NAMES = ("labelmap.txt", "class_names.txt")
FLAGS = ("difficult", "truncated", "occluded")

_COLOURED_PNG = re.compile(rb"\x89PNG\r\n\x1a\n.{16}\x08[\x02\x06]", re.DOTALL)


@dataclass(frozen=True)
class _Classes:
    """The names of a data set's classes by their level in the palette images, and by their colour, "red,green,blue"."""

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)


VOC = _Classes(dict(enumerate(CLASSES)))


def is_voc(path: Path) -> bool:
    """Whether it is a VOC annotation, or a folder of them, or one that holds the folder Annotations."""
    first = next(iter(_files(path)), None)
    return first is not None and xml_tag(first) == "annotation"


def like_voc(path: Path) -> bool:
    """Whether it is an XML file, or a folder of them."""
    first = next(iter(_files(path)), None)
    return first is not None and first.suffix.lower() == ".xml"


def voc_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each XML file, in natural order, with the masks that lie beside them."""
    files = _files(path)
    classes = _classes(files[0].parent) if files else VOC
    yield from each(files, partial(_record, classes=classes), rejects)


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


def _record(path: Path, classes: _Classes) -> Record:
    root = read_xml(path)
    if root.tag != "annotation":
        raise SourceError(f"{path}: begins with <{root.tag[:40]}>; expected <annotation>, as Pascal VOC has it")
    name = root.findtext("filename", "").strip() or path.stem
    boxes = voc_boxes(root, str(path))
    record = {"id": stem_of(name), "image": name, **voc_size(root, str(path)), "boxes": boxes}
    return record | _masks(path, [box["label"] for box in boxes], classes)


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


def _beside(folder: Path) -> Path:
    """Return the folder around that of the annotations, written as the user gave it."""
    return folder / ".." if folder.name in ("", "..") else folder.parent


def _classes(folder: Path) -> _Classes:
    """Return what says of the classes: a file beside the annotations, or that all objects are of VOC's classes."""
    for file in (place / name for place in (_beside(folder), folder) for name in NAMES):
        if file.is_file():
            return _listed_classes(file)
    if not (_beside(folder) / "SegmentationClass").is_dir():
        return _Classes()
    found = {
        (name.text or "").strip() for file in files_of(folder, ".xml") for name in _root(file).iterfind("object/name")
    }
    return VOC if found and found <= set(CLASSES) else _Classes()


def _listed_classes(file: Path) -> _Classes:
    lines = [line.strip() for line in text_lines(file, "one class a line") if not line.startswith("#")]
    parts = [line.split(":") if file.name == NAMES[0] else [line] for line in lines if line != "__ignore__"]
    names = {level: part[0].strip() for level, part in enumerate(parts) if part[0].strip()}
    if len(set(names.values())) < len(names):
        raise SourceError(f"{file}: has a class twice; expected each once, one a line from the background on")
    colours = {part[1].strip(): names[level] for level, part in enumerate(parts) if len(part) > 1 and level}
    return _Classes(names, colours)


def _root(path: Path) -> Element:
    """Return the root of a file; an element of nothing where it is none, which is said when it is read."""
    try:
        return read_xml(path)
    except SourceError:
        return Element("nothing")


def _masks(path: Path, objects: list[str], classes: _Classes) -> Record:
    """Return the "masks" and the "unknown" of the pictures in the folders next to that of the annotations.

    Objects are numbered in the order of the XML file; a name that comes twice gets its number.
    """
    beside = _beside(path.parent)
    numbered = {
        number: name if objects.count(name) == 1 else f"{name} {number}" for number, name in enumerate(objects, start=1)
    }
    for kind, names in (("Class", classes.names), ("Object", numbered)):
        picture = as_stored(beside / f"Segmentation{kind}" / f"{path.stem}.png")
        if not picture.is_file():
            continue
        if kind == "Class" and classes.colours and _COLOURED_PNG.match(file_bytes(picture)):
            return {"masks": _coloured_masks(picture, classes.colours)}
        levels = {int(level): f"{picture}#{level}" for level in np.unique(read_levels(picture)) if level != 0}
        unknown = {"unknown": {"void": levels.pop(VOID)}} if VOID in levels else {}
        if kind == "Class" and names:
            _check_classes(picture, sorted(levels), classes, objects)
        masks = {names.get(level, f"{kind.lower()} {level}"): mask for level, mask in levels.items()}
        return {"masks": masks} | unknown
    return {}


def _colours(picture: Path) -> npt.NDArray[np.uint32]:
    """Return (height, width): each pixel's colour as one number, red first."""
    pixels = decode_image(file_bytes(picture), str(picture))            # (height, width, 3)
    return np.asarray(pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))


def _spelt(colour: int) -> str:
    return f"{colour >> 16},{colour >> 8 & 255},{colour & 255}"


def _palette(picture: Path) -> dict[int, str]:
    """Return the colour of each value that a picture has."""
    levels, first = np.unique(read_levels(picture), return_index=True)
    colours = _colours(picture).ravel()[first]
    return {int(level): _spelt(int(colour)) for level, colour in zip(levels, colours, strict=True)}


def _coloured_masks(picture: Path, names: dict[str, str]) -> Record:
    """Return the masks of a picture that has a colour for each class, black for the background."""
    colours = _colours(picture)
    masks: Record = {}
    for colour in map(int, np.unique(colours)):
        if colour and _spelt(colour) not in names:
            raise SourceError(f"{picture}: has the colour {_spelt(colour)}; expected those of {NAMES[0]} and black")
        if colour:
            masks[names[_spelt(colour)]] = encode_rle(colours == colour)
    return masks


def _check_classes(picture: Path, levels: list[int], classes: _Classes, objects: list[str]) -> None:
    """Refuse a level without a name, VOC's name for what the XML file does not have, and objects of the background."""
    names = classes.names
    if names.get(0) in objects:
        raise SourceError(f'{picture}: 0 is the background, but the first class is "{names[0]}"; name the background')
    for level, colour in _palette(picture).items() if classes.colours else ():
        if classes.colours.get(colour, names.get(level)) != names.get(level):
            raise SourceError(
                f'{picture}: the value {level} is "{names.get(level)}" by its place in {NAMES[0]} and '
                f'"{classes.colours[colour]}" by its colour {colour}; expected one class, save the picture in RGB'
            )
    strange = [level for level in levels if level not in names or (classes is VOC and names[level] not in objects)]
    if strange:
        name = names.get(strange[0])
        said = f'which is "{name}" in VOC and no object of the XML file' if name else "and no class of that number"
        raise SourceError(
            f"{picture}: has the value {strange[0]}, {said}; name the classes of this data set in class_names.txt, "
            "one a line from the background on"
        )

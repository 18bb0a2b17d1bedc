"""CVAT: one XML file of images and their shapes, as "CVAT for images 1.1" exports it.

Boxes stay boxes, a turned one becomes a polygon of four corners, an ellipse one of 72; polygons and points stay what
they are; polylines are kept under ``lines``, which no filter draws. Masks are united, one for each label. A tag is the
image's class. Coordinates are continuous pixels from 0 in CVAT too. The user is whom the job, or else the task, is
assigned to, or else its owner. CVAT lists every image of a task: one without a shape counts as not annotated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from hkmap.errors import SourceError
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import Mask
from hkmap.files.masks import encode_rle
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import class_of, head, read_xml, stated_size
from hkmap.sources.matching import stem_of
from hkmap.sources.shapes import Points, box_points, ellipse_points, named_masks, turned

Item = dict[str, Any]
Size = tuple[int, int]

FILE = "annotations.xml"        # in an unpacked export

_BEGIN = re.compile(r"\s*(<\?.*?\?>\s*)?(<!--.*?-->\s*)*<annotations[\s>]", re.DOTALL)


def is_cvat(path: Path) -> bool:
    """Whether it is a file of CVAT's, or the folder of an export; a damaged one too, so that its reader says why."""
    file = _file(path)
    return file.is_file() and bool(_BEGIN.match(head(file)))


def cvat_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image of the file."""
    file = _file(path)
    root = read_xml(file)
    if root.tag != "annotations":
        raise SourceError(f"{file}: begins with <{root.tag[:40]}>; expected <annotations>, as CVAT has it")
    if root.find("track") is not None:
        raise SourceError(f'{file}: has tracks of a video; expected images, export it as "CVAT for images 1.1"')
    users = _users(root)
    images = enumerate(root.findall("image"), start=1)
    yield from each(images, lambda item: _record(item[1], f"{file}: image {item[0]}", users), rejects)


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def _users(root: Element) -> dict[str | None, str]:
    """Return the annotator by the id of the task; under None that of the only task or job."""
    tasks = [*root.iterfind("meta/job"), *root.iterfind("meta/task"), *root.iterfind("meta/project/tasks/task")]
    found = {task.findtext("id"): _person(task) for task in tasks}
    return found | ({None: _person(tasks[0])} if len(tasks) == 1 else {})


def _person(task: Element) -> str:
    places = (f"{role}{name}" for role in ("assignee", "owner") for name in ("/username", "/email", ""))
    return next((name for place in places if (name := task.findtext(place, "").strip())), "")


def _record(image: Element, place: str, users: dict[str | None, str]) -> Record:
    name = image.get("name", "")
    if not name:
        raise SourceError(f"{place} has no name; expected that of the image's file")
    width, height = (_whole(image, side, place) for side in ("width", "height"))
    record: Record = {"id": stem_of(name.replace("\\", "/").rsplit("/", 1)[-1]), "image": name}
    if subset := image.get("subset"):       # the folder of its images in the export of a project
        record |= {"image": f"{subset}/{name}", "names": [name]}
    record |= stated_size(width, height, f"{place}: width and height")
    user = users.get(image.get("task_id"), users.get(None, ""))
    masks = []
    tags = []
    for number, shape in enumerate(image, start=1):
        where = f"{place}: {shape.tag} {number}"
        label = shape.get("label", "")
        if shape.tag == "tag":
            tags.append(label)
        elif shape.tag == "mask":
            masks.append((label or "object", user, _mask(shape, where, (width, height))))
        else:
            key, items = _shape(shape, where)
            record.setdefault(key, []).extend(item | _details(shape, label, user) for item in items)
    several = len(set(users.values())) > 1
    return record | named_masks(masks, several=several, place=place) | class_of(tags)


def _details(shape: Element, label: str, user: str) -> Item:
    """Return what a shape keeps besides its place."""
    attributes = {one.get("name", ""): one.text or "" for one in shape.iterfind("attribute")}
    details = {"label": label, "user": user, "attributes": attributes, "occluded": int(shape.get("occluded") == "1")}
    return {key: value for key, value in details.items() if value}


def _shape(shape: Element, place: str) -> tuple[str, list[Item]]:
    if shape.tag not in SHAPES:
        raise SourceError(f"{place} is none of {', '.join([*SHAPES, 'mask', 'tag'])}, which hkmap reads of CVAT")
    return SHAPES[shape.tag](shape, place)


def _box(shape: Element, place: str) -> tuple[str, list[Item]]:
    left, top, right, bottom = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"), place)
    if right < left or bottom < top:
        raise SourceError(f"{place} goes from {left:g}, {top:g} to {right:g}, {bottom:g}; expected xtl <= xbr")
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    turn = _turn(shape, place)
    if not turn:
        return "boxes", [box]
    return "polygons", [{"points": turned(box_points(box), ((left + right) / 2, (top + bottom) / 2), turn)}]


def _ellipse(shape: Element, place: str) -> tuple[str, list[Item]]:
    x, y, across, down = _numbers(shape, ("cx", "cy", "rx", "ry"), place)
    if across < 0 or down < 0:
        raise SourceError(f"{place} has the radii {across:g} and {down:g}; expected numbers from 0")
    return "polygons", [{"points": ellipse_points((x, y), across, down, _turn(shape, place))}]


def _polygon(shape: Element, place: str) -> tuple[str, list[Item]]:
    return "polygons", [{"points": _pairs(shape, 3, place)}]


def _polyline(shape: Element, place: str) -> tuple[str, list[Item]]:
    return "lines", [{"points": _pairs(shape, 2, place)}]


def _points(shape: Element, place: str) -> tuple[str, list[Item]]:
    return "points", [{"x": x, "y": y} for x, y in _pairs(shape, 1, place)]


def _pairs(shape: Element, least: int, place: str) -> Points:
    text = shape.get("points", "")
    pairs = [pair.split(",") for pair in text.split(";")]
    if len(pairs) < least or any(len(pair) != 2 for pair in pairs):
        raise SourceError(f'{place} has the points "{text[:40]}"; expected {least} or more as x,y;x,y')
    return [[_number(number, f"{place}.points") for number in pair] for pair in pairs]


def _mask(shape: Element, place: str, size: Size) -> Item:
    """Return a mask's run lengths over the whole image; the file's are those of the rectangle around it."""
    left, top, width, height = (_whole(shape, name, place) for name in ("left", "top", "width", "height"))
    if left + width > size[0] or top + height > size[1] or size[0] * size[1] > MAX_PIXELS:
        raise SourceError(
            f"{place} is {width}x{height} from {left}, {top}, in an image of {size[0]}x{size[1]}; expected it inside, "
            f"and at most {MAX_PIXELS:,} pixels"
        )
    text = shape.get("rle", "")
    try:
        runs = [int(run) for run in text.split(",")]
    except ValueError as error:
        raise SourceError(f'{place}.rle is "{text[:40]}"; expected whole numbers with commas between') from error
    whole = np.zeros(size[::-1], np.bool_)
    whole[top : top + height, left : left + width] = _decoded(runs, (width, height), f"{place}.rle")
    return encode_rle(whole)


def _decoded(runs: list[int], size: Size, place: str) -> Mask:
    """Return the mask (height, width) of runs along its rows, background first."""
    width, height = size
    if sum(runs) != width * height or min(runs) < 0:
        raise SourceError(f"{place} has runs for {sum(runs)} pixels of {width}x{height}; expected to fill them")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _turn(shape: Element, place: str) -> float:
    return math.radians(_number(shape.get("rotation", "0"), f"{place}.rotation") % 360)


def _number(text: str | None, place: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        got = "missing" if text is None else f'"{text[:40]}"'
        raise SourceError(f"{place} is {got}; expected a number of pixels")
    return number


def _numbers(shape: Element, names: tuple[str, ...], place: str) -> list[float]:
    return [_number(shape.get(name), f"{place}.{name}") for name in names]


def _whole(element: Element, name: str, place: str) -> int:
    text = element.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise SourceError(f'{place}: {name} is "{text[:40]}"; expected a whole number of pixels')
    return int(text)


SHAPES: dict[str, Callable[[Element, str], tuple[str, list[Item]]]] = {
    "box": _box, "polygon": _polygon, "polyline": _polyline, "points": _points, "ellipse": _ellipse,
}

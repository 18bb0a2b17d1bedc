"""Label Studio: its JSON export, a list of tasks with the annotations of each person.

Rectangles become boxes, a turned one a polygon of four corners, an ellipse one of 72; polygons and key points stay what
they are. Brush strokes are united, one mask for each label. Choices for the image are its class. Coordinates are per
cent of the image, and are scaled to it. Whoever completed an annotation is the user of what it holds. Cancelled
annotations and predictions are not read. A task without annotations counts as not annotated; where somebody annotated
it and marked nothing, the record has the keys that the file has, empty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from hkmap.errors import SourceError
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import Mask
from hkmap.files.masks import encode_rle
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import (
    as_list,
    as_number,
    as_object,
    as_pairs,
    as_text,
    class_of,
    head,
    numbered,
    read_json,
    stated_size,
)
from hkmap.sources.frames import SHAPES as PLACED
from hkmap.sources.images import IMAGE_SUFFIXES
from hkmap.sources.matching import stem_of
from hkmap.sources.shapes import box_points, ellipse_points, named_masks, turned

Item = dict[str, Any]

PEOPLE = ("annotations", "completions")     # "completions" up to version 1.0
MINIMAL = {"annotation_id", "annotator"}    # what only the export JSON-MIN has
ANSWERS = ("relation", "textarea", "rating", "number", "datetime", "taxonomy")      # no shapes: they are not read
MARKED = 128        # of a brush's alpha, 0 to 255: half of the pixel

_UPLOAD = re.compile(r"(?:.*/)?upload/\d+/([0-9a-f]{8}-(.+))")


@dataclass
class _Shape:
    """What one person marked, the labels given to it, and the (width, height) of the image, None where not stated."""

    place: str
    kind: str
    user: str
    value: Item
    size: tuple[int, int] | None
    labels: list[str] = field(default_factory=list)

    @property
    def scale(self) -> tuple[float, float]:
        """What a coordinate is multiplied by; the frame of a record without a size is 100x100."""
        return (1, 1) if self.size is None else (self.size[0] / 100, self.size[1] / 100)

    def numbers(self, *names: str) -> list[float]:
        return [as_number(self.value.get(name), f"{self.place}.value.{name}") for name in names]

    def turn(self) -> float:
        """Return the angle clockwise, in radians."""
        turn = as_number(self.value.get("rotation") or 0, f"{self.place}.value.rotation") % 360
        if turn and self.size is None:
            raise SourceError(f"{self.place} is turned, but has no original_width and original_height; export it again")
        return math.radians(turn)


def is_label_studio(path: Path) -> bool:
    """Whether a file has a task of a JSON export, or is the minimal one, which the reader refuses by its name."""
    if not path.is_file() or head(path).lstrip()[:1] not in ("[", "{"):
        return False
    try:
        tasks = _tasks(path)
    except SourceError:
        return False
    return any(isinstance(task, dict) and (_is_task(task) or task.keys() >= MINIMAL) for task in tasks)


def label_studio_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each task of the file."""
    tasks = _tasks(path)
    if any(isinstance(task, dict) and task.keys() >= MINIMAL and not _is_task(task) for task in tasks):
        raise SourceError(f"{path}: Label Studio's JSON-MIN, which leaves out who drew what; export it as JSON")
    found = list(each(numbered(tasks, str(path)), lambda item: _record(*item), rejects))
    several = len({user for _, _, masks in found for _, user, _ in masks}) > 1
    keys = {"masks" for _, _, masks in found if masks}
    keys |= {key for record, _, _ in found for key in PLACED if key in record}
    for record, annotated, masks in found:
        shapes = named_masks(masks, several=several, place=f"{path}: {record['image']}")
        full = record | shapes
        if not keys:        # a project of choices alone, where nobody could mark anything
            full.pop("annotators", None)
        if annotated and not keys & full.keys():
            full |= {key: {} if key == "masks" else [] for key in keys}
        yield full


def brush_mask(data: bytes, size: tuple[int, int], place: str) -> Mask:
    """Return the mask (height, width) of a brush region of ``size`` (width, height); True where it is half opaque.

    ``data`` are the bits that @thi.ng/rle-pack writes: 32 for the number of values (the RGBA bytes of all pixels), 5
    for the bits of a value, four times 4 for the bits of a length. Then come the runs: a bit that says whether one
    value is repeated, 2 that choose the length's bits, the length less 1, and that one value or as many as the length.
    Raises SourceError where they do not fill the image.
    """
    position = 0
    padded = data + bytes(8)

    def read(bits: int) -> int:
        nonlocal position
        if position + bits > 8 * len(data):
            raise SourceError(f"{place} ends too early; expected the run lengths of a brush, export it again")
        start, position = position, position + bits
        chunk = int.from_bytes(padded[start // 8 : start // 8 + 8], "big")
        return chunk >> (64 - start % 8 - bits) & ((1 << bits) - 1)

    count, value_bits = read(32), read(5) + 1
    if count != 4 * size[0] * size[1] or count > 4 * MAX_PIXELS or value_bits != 8:
        raise SourceError(f"{place} has {count} values; expected 4 for each pixel of {size[0]}x{size[1]}")
    length_bits = [read(4) + 1 for _ in range(4)]
    mask = np.zeros(size[0] * size[1], np.bool_)
    start = 0
    while start < count:
        repeated = read(1)
        end = start + read(length_bits[read(2)]) + 1
        if end > count:
            raise SourceError(f"{place} has more than {count} values; expected 4 for each pixel of {size[0]}x{size[1]}")
        values = [read(8)] * 4 if repeated else [read(8) for _ in range(start, end)]
        alphas = [value >= MARKED for value in values[3 - start % 4 :: 4]]
        mask[start // 4 : end // 4] = alphas[:1] if repeated else alphas
        start = end
    return mask.reshape(size[1], size[0])


def _tasks(path: Path) -> list[Any]:
    document = read_json(path)
    return [document] if isinstance(document, dict) else as_list(document, str(path))


def _is_task(task: Item) -> bool:
    return isinstance(task.get("data"), dict) and not task.keys().isdisjoint(("id", *PEOPLE))


def _record(place: str, value: object) -> tuple[Record, bool, list[tuple[str, str, Item]]]:
    """Return the record without its masks, whether anybody annotated it, and the masks: label, user, run lengths."""
    task = as_object(value, place)
    annotations = list(_annotations(task, place))
    marked = [_marked(annotation, where) for where, annotation in annotations]
    people = dict.fromkeys(_user(annotation.get("completed_by"), where) for where, annotation in annotations)
    shapes = [shape for own, _ in marked for shape in own]
    name, *others = _names(task, place)
    record: Record = {"id": stem_of(name.replace("\\", "/").rsplit("/", 1)[-1]), "image": name, "names": others}
    record |= _frame(shapes)
    if "" not in people and people.keys() - {shape.user for shape in shapes}:      # somebody marked nothing
        record["annotators"] = list(people)
    masks = []
    for shape in shapes:
        if shape.kind == "brush":
            masks += [(label or "object", shape.user, _brush(shape)) for label in shape.labels]
            continue
        key, item = SHAPES[shape.kind](shape)
        user = {"user": shape.user} if shape.user else {}
        items = [item | ({"label": label} if label else {}) | user for label in shape.labels]
        record.setdefault(key, []).extend(items)
    return record | class_of(choice for _, chosen in marked for choice in chosen), bool(marked), masks


def _frame(shapes: list[_Shape]) -> Record:
    """Return the record's size, or where none is stated the frame of its coordinates, which are per cent."""
    sizes = {shape.size: shape.place for shape in shapes}
    if len(sizes) > 1:
        raise SourceError(f"{max(sizes.values())} states another size of the image than others; expected one")
    size = next(iter(sizes), None)
    return {"frame": [100, 100]} if size is None else {"size": list(size)}


def _annotations(task: Item, place: str) -> Iterator[tuple[str, Item]]:
    key = next((key for key in PEOPLE if task.get(key) is not None), PEOPLE[0])
    for where, item in numbered(task.get(key), f"{place}.{key}"):
        annotation = as_object(item, where)
        if not (annotation.get("was_cancelled") or annotation.get("skipped")):
            yield where, annotation


def _marked(annotation: Item, place: str) -> tuple[list[_Shape], list[str]]:
    """Return a person's shapes and the choices for the image.

    A shape and its labels are one result, or several with one id: that of the tag Rectangle and that of Labels.
    """
    user = _user(annotation.get("completed_by"), place)
    results = [(where, as_object(item, where)) for where, item in numbered(annotation.get("result"), f"{place}.result")]
    shapes: dict[object, _Shape] = {}
    for where, result in results:
        kind = as_text(result.get("type"), f"{where}.type").removesuffix("labels")
        if kind in KINDS:
            shapes.setdefault(str(result.get("id", where)), _shape(where, kind, user, result))
        elif kind and kind not in ("choices", *ANSWERS):
            raise SourceError(f'{where}.type is "{shown(kind)}"; expected one of {", ".join(KINDS)}, or choices')
    choices = []
    for where, result in results:
        shape = shapes.get(str(result.get("id", where)))
        chosen = _chosen(result, where)
        if result["type"] == "choices" and shape is None:
            choices += chosen
        elif result["type"].endswith("labels") and shape is not None:
            shape.labels += chosen
    for shape in shapes.values():
        shape.labels = shape.labels or [""]
    return list(shapes.values()), choices


def _shape(place: str, kind: str, user: str, result: Any) -> _Shape:
    if result.get("image_rotation"):
        raise SourceError(f"{place}: the image was turned in Label Studio; turn it back there and export it again")
    width, height = result.get("original_width"), result.get("original_height")
    stated = stated_size(width, height, f"{place}.original_width and original_height")
    value = as_object(result.get("value"), f"{place}.value")
    return _Shape(place, kind, user, value, (width, height) if stated else None)


def _chosen(result: Item, place: str) -> list[str]:
    kind = result["type"]
    if kind != "choices" and not kind.endswith("labels"):
        return []
    value = as_object(result.get("value"), f"{place}.value").get(kind, [])
    return [as_text(name, where) for where, name in numbered([value] if isinstance(value, str) else value, place)]


def _user(value: object, place: str) -> str:
    """Return a person's email, or else the number that Label Studio gave them."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return "" if value is None else str(value)[:200]
    raise SourceError(f"{place}.completed_by is {shown(value)}; expected a person's number or email")


def _names(task: Item, place: str) -> list[str]:
    """Return what the image may be called: as Label Studio stores it, and as it was uploaded."""
    data = as_object(task.get("data"), f"{place}.data")
    texts = {key: _path_of(value) for key, value in data.items() if isinstance(value, str)}
    found = [texts["image"]] if "image" in texts else [path for path in texts.values() if _is_picture(path)]
    stored = task.get("file_upload")
    if not found and isinstance(stored, str):
        found = [f"upload/0/{stored}"]
    if len(found) != 1 or not found[0]:
        raise SourceError(f'{place}.data is {shown(data)}; expected the path of one image under "image"')
    uploaded = _UPLOAD.fullmatch(found[0])
    return [uploaded[1], uploaded[2]] if uploaded else found


def _is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _path_of(text: str) -> str:
    """Return the path in a URL, or in its ``?d=`` where it is a local file's; a path as it is."""
    if "://" not in text and not re.match(r"(/[^?#]*)?/data/", text):
        return text
    try:
        url = urlsplit(text)
    except ValueError:
        return text
    local = parse_qs(url.query).get("d")
    return local[0] if local else unquote(url.path)


def _rectangle(shape: _Shape) -> tuple[str, Item]:
    across, down = shape.scale
    x, y, width, height = shape.numbers("x", "y", "width", "height")
    if width < 0 or height < 0:
        raise SourceError(f"{shape.place} is {width:g} wide and {height:g} high; expected numbers from 0")
    box = {"x": x * across, "y": y * down, "width": width * across, "height": height * down}
    turn = shape.turn()
    if not turn:
        return "boxes", box
    return "polygons", {"points": turned(box_points(box), (box["x"], box["y"]), turn)}      # about its top left corner


def _ellipse(shape: _Shape) -> tuple[str, Item]:
    across, down = shape.scale
    x, y, wide, high = shape.numbers("x", "y", "radiusX", "radiusY")
    return "polygons", {"points": ellipse_points((x * across, y * down), wide * across, high * down, shape.turn())}


def _polygon(shape: _Shape) -> tuple[str, Item]:
    across, down = shape.scale
    points = as_pairs(shape.value.get("points"), f"{shape.place}.value.points")
    key, least = ("lines", 2) if shape.value.get("closed") is False else ("polygons", 3)
    if len(points) < least:
        raise SourceError(f"{shape.place} has {len(points)} points; expected {least} or more")
    return key, {"points": [[x * across, y * down] for x, y in points]}


def _keypoint(shape: _Shape) -> tuple[str, Item]:
    across, down = shape.scale
    x, y = shape.numbers("x", "y")
    return "points", {"x": x * across, "y": y * down}


def _brush(shape: _Shape) -> Item:
    place = f"{shape.place}.value.rle"
    numbers = as_list(shape.value.get("rle"), place)
    if shape.size is None or not all(type(number) is int and 0 <= number < 256 for number in numbers):
        raise SourceError(f"{place} is {shown(numbers)}; expected bytes, and original_width and original_height")
    return encode_rle(brush_mask(bytes(numbers), shape.size, place))


SHAPES: dict[str, Callable[[_Shape], tuple[str, Item]]] = {
    "rectangle": _rectangle, "polygon": _polygon, "ellipse": _ellipse, "keypoint": _keypoint,
}
KINDS = (*SHAPES, "brush")

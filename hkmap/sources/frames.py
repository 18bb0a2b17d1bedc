"""Scale annotations to the image that they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, frame_of

Item = dict[str, Any]

SHAPES = ("bubbles", "points", "boxes", "polygons", "lines")        # the keys of a record that hold coordinates


def fit_items(items: Iterable[Item], frame: tuple[int, int], size: tuple[int, int]) -> list[Item]:
    """Scale shapes from a frame to an image of ``size``, both (width, height).

    A circle stays one: where the two sides scale differently the radius takes their geometric mean, which
    keeps the share of the picture that it covers.

    >>> fit_items([{"x": 10, "y": 10, "radius": 2}], (100, 100), (400, 100))
    [{'x': 40.0, 'y': 10.0, 'radius': 4.0}]
    """
    across, down = size[0] / frame[0], size[1] / frame[1]
    factors = {"x": across, "width": across, "y": down, "height": down, "radius": math.sqrt(across * down)}

    def fit(name: str, value: Any) -> Any:
        if name == "points":
            return [[x * across, y * down] for x, y in value]
        return value * factors[name] if name in factors else value

    return [{name: fit(name, value) for name, value in item.items()} for item in items]


def fit_record(record: Record, size: tuple[int, int], image: str) -> Record:
    """Return an annotated record in the pixels of its ``image``, of ``size`` (width, height).

    A reader's ``frame`` is scaled to that size. Its ``size`` is the image's according to the file: SourceError where
    the image has another, as the shapes would then be in the wrong place; and where a box has the image's own size, but
    begins elsewhere.
    """
    frame = record.get("frame")
    if frame is not None:
        width, height = frame_of({"id": record["id"], "size": frame})
        scaled = {key: fit_items(record[key], (width, height), size) for key in SHAPES if key in record}
        record = {key: value for key, value in record.items() if key != "frame"} | scaled
    elif record.get("size") is not None and frame_of(record) != size:
        stated = frame_of(record)
        turned = " (its EXIF turns it)" if stated == size[::-1] and size[0] != size[1] else ""
        raise SourceError(
            f"{image}: annotated at {stated[0]}x{stated[1]} pixels, but it has {size[0]}x{size[1]} as displayed"
            f"{turned}; expected the image that was annotated"
        )
    for box in record.get("boxes", ()):
        if (box.get("width"), box.get("height")) == size and (box.get("x"), box.get("y")) != (0, 0):
            raise SourceError(
                f"{image}: a box at {box.get('x')}, {box.get('y')} has the picture's own size, {size[0]}x{size[1]}; "
                "expected the width and height of the box"
            )
    return {**record, "size": list(size)}

"""Annotations of an image in the pixels of a box of it."""

from __future__ import annotations

from typing import Any

from hkmap.maps.views import Box
from hkmap.records import Record, boxes_of, bubbles_of, polygons_of

Item = dict[str, Any]
Span = tuple[float, float]      # from, to


def move_annotations(record: Record, box: Box, frame: tuple[int, int]) -> Record:
    """Return the record with ``size`` and all coordinates in the pixels of ``box``, from an image of ``frame``.

    ``frame`` is (width, height). Bubbles and points are all kept, since the density of one outside reaches in. Boxes
    are cut at the edges of what is seen of the image, and left out where nothing remains. Polygons and lines keep their
    corners and are left out where the rectangle around them is not seen. Raises RecordError for what is none of these.
    """
    moved: Record = {**record, "size": [box[2], box[3]]}
    for key in ("bubbles", "points"):
        if record.get(key) is not None:
            bubbles_of(record, key)
            moved[key] = [_shifted(item, box) for item in record[key]]
    seen = _seen(box[0], box[2], frame[0]), _seen(box[1], box[3], frame[1])
    if record.get("boxes") is not None:
        boxes_of(record)
        cut = (_cut(_shifted(item, box), seen) for item in record["boxes"])
        moved["boxes"] = [item for item in cut if item is not None]
    for key in ("polygons", "lines"):
        if record.get(key) is not None:
            polygons_of(record, key)
            shifted = (_shifted_corners(item, box) for item in record[key])
            moved[key] = [item for item in shifted if _is_seen(item["points"], seen)]
    return moved


def _seen(start: int, length: int, side: int) -> Span:
    """Return what is seen of the image's side, in the pixels of the box."""
    return max(0, -start), min(length, side - start)


def _shifted(item: Item, box: Box) -> Item:
    return {**item, "x": item["x"] - box[0], "y": item["y"] - box[1]}


def _shifted_corners(item: Item, box: Box) -> Item:
    return {**item, "points": [[x - box[0], y - box[1]] for x, y in item["points"]]}


def _cut(item: Item, seen: tuple[Span, Span]) -> Item | None:
    across, down = _cut_side(item["x"], item["width"], seen[0]), _cut_side(item["y"], item["height"], seen[1])
    if across is None or down is None:
        return None
    return {**item, "x": across[0], "y": down[0], "width": across[1], "height": down[1]}


def _cut_side(start: float, length: float, seen: Span) -> tuple[float, float] | None:
    """Return where a side starts and how long it is within what is seen, None where nothing of it is."""
    if seen[0] <= start and start + length <= seen[1]:
        return start, length
    first, last = max(start, seen[0]), min(start + length, seen[1])
    return (first, last - first) if first < last else None


def _is_seen(corners: list[list[float]], seen: tuple[Span, Span]) -> bool:
    sides = zip(zip(*corners, strict=True), seen, strict=True)
    return all(min(places) <= last and max(places) >= first for places, (first, last) in sides)

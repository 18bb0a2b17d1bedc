"""A contact sheet: each image with its annotations, and its maps beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.files.images import Pixels
from hkmap.maps.check import Map
from hkmap.maps.masks import Mask, masks_map
from hkmap.records import Record, boxes_of, bubbles_of, frame_of, label_of, polygons_of
from hkmap.report.colouring import bare, colour_bar, overlay
from hkmap.report.lettering import DARK, LINE_HEIGHT, PAPER, Colour, length, write_lines, write_names

Points = npt.NDArray[np.float64]

COLOURS: dict[str, Colour] = {       # Okabe and Ito's palette, for the colour-blind too
    "bubbles": (86, 180, 233),
    "points": (240, 228, 66),
    "boxes": (0, 200, 140),
    "polygons": (230, 159, 0),
}
LESIONS: tuple[Colour, ...] = ((86, 180, 233), (240, 228, 66), (0, 200, 140), (204, 121, 167), (213, 94, 0))
SETTLED: dict[str, Colour] = {"unknown": (215, 215, 215), "dont_look": (255, 90, 90)}      # what is no lesion
GAP = 4
BAR = (10, 96)          # pixels of the legend's colour bar: height, width
SWATCH = 9              # pixels of a colour's square in the legend
CROWD = 50              # dots of full size
SUBPIXEL_BITS = 4       # cv2 draws in sixteenths of a pixel


@dataclass(frozen=True)
class Entry:
    """What one tile shows: ``image`` (H, W, 3) RGB, ``maps`` by key (None if the record has none), and ``masks``.

    The masks are grouped by the record's key ("masks", "unknown", "dont_look"), then by name.
    """

    record: Record
    image: Pixels
    maps: Mapping[str, Map | None]
    masks: Mapping[str, Mapping[str, Mask]]


@dataclass(frozen=True)
class Style:
    """How a sheet looks.

    ``cell`` is the longer side of each picture in pixels, ``colour`` a name in colouring.COLOURS. ``plain`` maps stand
    alone, others lie over the image. ``captions`` are the record's keys to write below, instead of id, class, label and
    prediction.
    """

    cell: int = 224
    colour: str = "viridis"
    plain: bool = False
    captions: tuple[str, ...] = ()


class Tile(NamedTuple):
    """The pictures of one record side by side, (H, W, 3) RGB, and what needs a legend: annotation keys, "map"."""

    pixels: Pixels
    shown: frozenset[str]


def contact_sheet(tiles: Sequence[Tile], columns: int) -> Pixels:
    """Return tiles (one or more, of equal width) as one picture (height, width, 3), ``columns`` per row."""
    columns = min(columns, len(tiles))
    width = tiles[0].pixels.shape[1]
    rows = []
    for start in range(0, len(tiles), columns):
        pictures = [tile.pixels for tile in tiles[start : start + columns]]
        row = np.full((max(map(len, pictures)), columns * width, 3), PAPER, np.uint8)
        for index, picture in enumerate(pictures):
            row[: len(picture), index * width : (index + 1) * width] = picture
        rows.append(row)
    return np.concatenate(rows, axis=0)


def with_legend(sheet: Pixels, tiles: Sequence[Tile], style: Style) -> Pixels:
    """Return the sheet with a strip below that explains the colours of the maps and annotations on it."""
    shown = frozenset[str]().union(*(tile.shown for tile in tiles))
    if not shown:
        return sheet
    width = sheet.shape[1]
    bars = [_bar_item(style, width)] if "map" in shown else []
    swatches = [_swatch_item(kind, colour) for kind, colour in COLOURS.items() if kind in shown]
    return np.concatenate([sheet, _flowing(bars + swatches, width)], axis=0)


def draw_tile(entry: Entry, style: Style) -> Tile:
    """Return the image with its annotations, then one picture per map, with captions below.

    Each picture is fitted into the style's cell, so entries with the same map keys give tiles of equal width.
    """
    image = _fitted(entry.image, style.cell)
    pictures = [annotated(image, entry.record, entry.masks)]
    pictures += [_map_picture(image, values, style) for values in entry.maps.values()]
    captions = [_told(entry.record, style.captions) if style.captions else _caption(entry.record)]
    captions += [_map_caption(key, values) for key, values in entry.maps.items()]
    lines = max(map(len, captions))
    panels = [_panel(picture, text, style.cell, lines) for picture, text in zip(pictures, captions, strict=True)]
    kinds = {kind for kind in COLOURS if entry.record.get(kind)}
    maps = {"map" for values in entry.maps.values() if values is not None}
    return Tile(np.concatenate(panels, axis=1), frozenset(kinds | maps))


def annotated(image: Pixels, record: Record, masks: Mapping[str, Mapping[str, Mask]]) -> Pixels:
    """Return a copy of ``image`` (H, W, 3) with the record's annotations and the ``masks`` of its Entry as outlines.

    Coordinates are in the record's frame, which covers the image at any size; without ``size`` the image is the frame.
    Raises RecordError for an invalid annotation.
    """
    record = {key: [] for key in COLOURS} | {key: value for key, value in record.items() if value is not None}
    picture = image.copy()
    height, width = picture.shape[:2]
    frame = frame_of(record) if "size" in record else (width, height)
    scale = np.array([width / frame[0], height / frame[1]])
    outlines = list(_outlines(masks))
    for _, mask, colour in reversed(outlines):      # lesions last, over the others
        _draw_mask(picture, mask, colour)
    for polygon in polygons_of(record):
        _draw_lines(picture, np.array(polygon) * scale, COLOURS["polygons"])
    for left, top, wide, high in boxes_of(record):
        corners = np.array([(left, top), (left + wide, top), (left + wide, top + high), (left, top + high)])
        _draw_lines(picture, corners * scale, COLOURS["boxes"])
    _draw_bubbles(picture, record, scale)
    _draw_points(picture, record, scale)
    return write_names(picture, {name: colour for name, _, colour in outlines})


def _fitted(image: Pixels, cell: int) -> Pixels:
    """Scale the image so that its longer side is the cell's."""
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)


def _map_picture(image: Pixels, values: Map | None, style: Style) -> Pixels:
    """Return a map's picture; without a map the image, or in a plain style empty paper."""
    if values is None:
        return np.full_like(image, PAPER) if style.plain else image
    height, width = image.shape[:2]
    return bare(values, (height, width), style.colour) if style.plain else overlay(image, values, style.colour)


def _panel(picture: Pixels, text: list[str], cell: int, lines: int) -> Pixels:
    """Centre a picture in a strip as wide as a cell, with its caption below in room for ``lines`` lines."""
    height, width = picture.shape[:2]
    panel = np.full((height + lines * LINE_HEIGHT + 2 * GAP, cell + GAP, 3), PAPER, np.uint8)
    left = (cell - width) // 2
    panel[:height, left : left + width] = picture
    return write_lines(panel, text, (1, height + GAP // 2), cell)


def _bar_item(style: Style, width: int) -> Pixels:
    """Return the bar between its 0 and 1; ``width`` is the sheet's."""
    end = length("0") + 2 * GAP
    wide = max(GAP, min(BAR[1], width - 2 * end - GAP))
    item = np.full((LINE_HEIGHT, wide + 2 * end + 2 * GAP, 3), PAPER, np.uint8)
    item[2 : 4 + BAR[0], end - 1 : end + wide + 1] = DARK
    item[3 : 3 + BAR[0], end : end + wide] = colour_bar((BAR[0], wide), style.colour, plain=style.plain)
    return write_lines(write_lines(item, ["0"], (2, 0), end), ["1"], (end + wide + GAP, 0), end)


def _swatch_item(kind: str, colour: Colour) -> Pixels:
    item = np.full((LINE_HEIGHT, SWATCH + length(kind) + 4 * GAP, 3), PAPER, np.uint8)
    item[3 : 5 + SWATCH, 1 : 3 + SWATCH] = DARK
    item[4 : 4 + SWATCH, 2 : 2 + SWATCH] = colour
    return write_lines(item, [kind], (SWATCH + GAP + 2, 0), length(kind))


def _flowing(items: list[Pixels], width: int) -> Pixels:
    """Put pictures of a line's height in rows of ``width`` pixels, as many rows as it takes; cut a wider picture."""
    rows = [np.full((LINE_HEIGHT, width, 3), PAPER, np.uint8)]
    left = 0
    for item in items:
        if left and left + item.shape[1] > width:
            rows.append(np.full_like(rows[0], PAPER))
            left = 0
        rows[-1][:, left : left + item.shape[1]] = item[:, : width - left]
        left += item.shape[1]
    return np.concatenate(rows, axis=0)


def _told(record: Record, keys: tuple[str, ...]) -> list[str]:
    """Return one line per key: text as it is, nested values as JSON."""
    return [f"{key}: {_in_words(record[key])}" if record.get(key) is not None else f"no {key}" for key in keys]


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _caption(record: Record) -> list[str]:
    label, confidence = label_of(record), record.get("confidence")
    parts = [str(record["class"])] if record.get("class") is not None else []
    parts += [f"label {label}"] if label >= 0 else []
    parts += [f"predicted {record['prediction']}"] if record.get("prediction") is not None else []
    parts += [f"({confidence:.2f})"] if isinstance(confidence, float | int) else []
    return [record["id"], " ".join(parts)]


def _map_caption(key: str, values: Map | None) -> list[str]:
    if values is None:
        return [f"no {key}"]
    height, width = values.shape
    return [key, f"{width}x{height}, max {values.max():.2f}"]


def _outlines(masks: Mapping[str, Mapping[str, Mask]]) -> Iterator[tuple[str, Mask, Colour]]:
    """Yield name, mask and colour: lesions first, then the masks that say how an area counts."""
    for (name, mask), colour in zip(masks.get("masks", {}).items(), cycle(LESIONS), strict=False):
        yield name, mask, colour
    for key, colour in SETTLED.items():
        for name, mask in masks.get(key, {}).items():
            yield f"{key}: {name}", mask, colour


def _draw_mask(picture: Pixels, mask: Mask, colour: Colour) -> None:
    # By the maximum per pixel, so that a lesion smaller than a pixel of the sheet is still outlined.
    marked = masks_map([mask], [1.0], (picture.shape[0], picture.shape[1]), "max").astype(np.uint8)
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1)


def _draw_lines(picture: Pixels, corners: Points, colour: Colour) -> None:
    """Draw a closed line through ``corners`` (n, 2), in continuous pixels of the picture."""
    for ink, thickness in ((DARK, 3), (colour, 1)):
        cv2.polylines(picture, [_sixteenths(corners)], True, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_bubbles(picture: Pixels, record: Record, scale: Points) -> None:
    for bubble in bubbles_of(record, "bubbles"):
        centre = _sixteenths(np.array([bubble.x, bubble.y]) * scale).tolist()
        axes = [max(1, round(bubble.radius * side * 2**SUBPIXEL_BITS)) for side in scale]
        for ink, thickness in ((DARK, 3), (COLOURS["bubbles"], 1)):
            cv2.ellipse(picture, centre, axes, 0, 0, 360, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_points(picture: Pixels, record: Record, scale: Points) -> None:
    """Draw dots whose area grows with the weight, the smallest last, so that none is hidden under a larger one.

    If there are many, all are drawn smaller, so that places stay distinct.
    """
    points = bubbles_of(record, "points")
    heaviest = max((point.weight for point in points), default=0) or 1
    shrunk = min(1.0, (CROWD / max(1, len(points))) ** 0.5)
    for point in sorted(points, key=lambda point: -point.weight):
        centre = _sixteenths(np.array([point.x, point.y]) * scale).tolist()
        radius = max(1.0, shrunk * (1.5 + 3.5 * (point.weight / heaviest) ** 0.5))
        for ink, size in ((DARK, radius + 1), (COLOURS["points"], radius)):
            cv2.circle(picture, centre, round(size * 2**SUBPIXEL_BITS), ink, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _sixteenths(points: Points) -> npt.NDArray[np.int32]:
    """Convert continuous pixels to cv2's, whose (0, 0) is the centre of a pixel; ours is its corner."""
    limit = 2.0**24       # far outside any sheet, but no overflow in cv2
    return np.clip(np.rint((points - 0.5) * 2**SUBPIXEL_BITS), -limit, limit).astype(np.int32)

"""A contact sheet: each image with its annotations, and beside it its maps as overlays."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hkmap.maps.check import Map
from hkmap.maps.masks import Mask, masks_map
from hkmap.maps.resize import resize_map
from hkmap.records import Bubble, Record, boxes_of, bubbles_of, frame_of, label_of, polygons_of

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: Colour = (250, 250, 250)
INK: Colour = (30, 30, 30)
DARK: Colour = (0, 0, 0)
COLOURS: dict[str, Colour] = {       # Okabe and Ito's palette: told apart by the colour-blind too
    "bubbles": (86, 180, 233),
    "points": (240, 228, 66),
    "boxes": (0, 200, 140),
    "polygons": (230, 159, 0),
}
LESIONS: tuple[Colour, ...] = ((86, 180, 233), (240, 228, 66), (0, 200, 140), (204, 121, 167), (213, 94, 0))
GAP = 4
LINE_HEIGHT = 15
CAPTION_LINES = 2
SUBPIXEL_BITS = 4       # cv2 draws at sixteenths of a pixel


@dataclass(frozen=True)
class Entry:
    """What one tile shows: ``image`` (H, W, 3) RGB, ``maps`` by their key (None: it has none), ``masks`` by name."""

    record: Record
    image: Pixels
    maps: Mapping[str, Map | None]
    masks: Mapping[str, Mask]


def contact_sheet(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Return at least one tile, all of one width, as one picture (height, width, 3), ``columns`` in a row."""
    columns = min(columns, len(tiles))
    rows = [_row(tiles[start : start + columns], columns) for start in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def draw_tile(entry: Entry, cell: int) -> Pixels:
    """Return the image with its annotations, one overlay a map beside it, and a caption below; RGB.

    Each picture is fitted into ``cell`` x ``cell`` pixels, so entries with the same map keys give tiles of one width.
    """
    image = _fitted(entry.image, cell)
    pictures = [annotated(image, entry.record, entry.masks)]
    captions = [_caption(entry.record)]
    for key, values in entry.maps.items():
        pictures.append(image if values is None else overlay(image, values))
        captions.append(_map_caption(key, values))
    panels = [_panel(picture, lines, cell) for picture, lines in zip(pictures, captions, strict=True)]
    return np.concatenate(panels, axis=1)


def overlay(image: Pixels, values: Map) -> Pixels:
    """Return ``image`` (H, W, 3) under the colours of a map that covers it: dark blue for 0 to yellow for 1.

    The image is shown in grey, and stays visible by half everywhere.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    height, width = image.shape[:2]
    levels = np.rint(resize_map(values, (height, width)) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(grey, 0.5, colours, 0.5, 0), dtype=np.uint8)


def annotated(image: Pixels, record: Record, masks: Mapping[str, Mask]) -> Pixels:
    """Return a copy of ``image`` (H, W, 3) with the record's annotations and masks as outlines.

    Coordinates lie in the record's frame, which covers the image whatever the image's own size; without ``size``
    the image is the frame. Raises RecordError for an annotation that is not one.
    """
    picture = image.copy()
    height, width = picture.shape[:2]
    frame = frame_of(record) if record.get("size") is not None else (width, height)
    scale = np.array([width / frame[0], height / frame[1]])
    colours = dict(zip(masks, cycle(LESIONS), strict=False))
    for name, mask in masks.items():
        _draw_mask(picture, mask, colours[name])
    if record.get("polygons") is not None:
        for polygon in polygons_of(record):
            _draw_lines(picture, np.array(polygon) * scale, COLOURS["polygons"])
    if record.get("boxes") is not None:
        for left, top, wide, high in boxes_of(record):
            corners = np.array([(left, top), (left + wide, top), (left + wide, top + high), (left, top + high)])
            _draw_lines(picture, corners * scale, COLOURS["boxes"])
    _draw_bubbles(picture, record, scale)
    _draw_points(picture, record, scale)
    return _legend(picture, colours)


def _fitted(image: Pixels, cell: int) -> Pixels:
    """Scale the image so that its longer side is the cell's."""
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)


def _row(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Put tiles side by side on paper as high as the highest."""
    width = tiles[0].shape[1]
    row = np.full((max(len(tile) for tile in tiles), columns * width, 3), PAPER, np.uint8)
    for index, tile in enumerate(tiles):
        row[: len(tile), index * width : (index + 1) * width] = tile
    return row


def _panel(picture: Pixels, lines: list[str], cell: int) -> Pixels:
    """Put a picture in the middle of a strip as wide as a cell, with the lines of its caption below."""
    height, width = picture.shape[:2]
    panel = np.full((height + CAPTION_LINES * LINE_HEIGHT + 2 * GAP, cell + GAP, 3), PAPER, np.uint8)
    left = (cell - width) // 2
    panel[:height, left : left + width] = picture
    paper = Image.fromarray(panel)
    draw, font = ImageDraw.Draw(paper), _font()
    for index, line in enumerate(lines):
        draw.text((1, height + GAP // 2 + index * LINE_HEIGHT), _shortened(line, font, cell), fill=INK, font=font)
    return np.array(paper)


def _legend(picture: Pixels, colours: Mapping[str, Colour]) -> Pixels:
    """Write the names of the masks in their colours."""
    paper = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(paper), _font()
    for index, (name, colour) in enumerate(colours.items()):
        draw.text((3, 1 + index * LINE_HEIGHT), name, fill=colour, font=font, stroke_width=1, stroke_fill=DARK)
    return np.array(paper)


@cache
def _font() -> Font:
    return ImageFont.load_default(LINE_HEIGHT - 3)


def _shortened(line: str, font: Font, width: int) -> str:
    """Cut a line to ``width`` pixels; its end tells more than its middle."""
    line = _plain(line)
    if font.getlength(line) <= width:
        return line
    kept = next((count for count in range(len(line), 1, -1) if font.getlength(_cut(line, count)) <= width), 1)
    return _cut(line, kept)


def _plain(line: str) -> str:
    """Spell a line in ASCII, all that the font has: an accent goes, another letter becomes a question mark."""
    letters = unicodedata.normalize("NFKD", line.replace("\n", " "))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode()


def _cut(line: str, kept: int) -> str:
    return f"{line[: kept - kept // 2]}...{line[len(line) - kept // 2 :]}"


def _caption(record: Record) -> list[str]:
    label = label_of(record)
    parts = [str(record[key]) for key in ("class",) if record.get(key) is not None]
    parts += [f"label {label}"] if label >= 0 else []
    parts += [f"predicted {record['prediction']}"] if record.get("prediction") is not None else []
    confidence = record.get("confidence")
    parts += [f"({confidence:.2f})"] if isinstance(confidence, float | int) else []
    return [record["id"], " ".join(parts)]


def _map_caption(key: str, values: Map | None) -> list[str]:
    if values is None:
        return [f"no {key}"]
    height, width = values.shape
    return [key, f"{height}x{width}, max {values.max():.2f}"]


def _draw_mask(picture: Pixels, mask: Mask, colour: Colour) -> None:
    # The largest pixel of each cell, so that a lesion smaller than a pixel of the sheet is still outlined.
    marked = masks_map([mask], [1.0], (picture.shape[0], picture.shape[1]), "max").astype(np.uint8)
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1)


def _draw_lines(picture: Pixels, corners: Points, colour: Colour) -> None:
    """Draw a closed line through ``corners`` (n, 2), in continuous pixels of the picture."""
    for ink, thickness in ((DARK, 3), (colour, 1)):
        cv2.polylines(picture, [_sixteenths(corners)], True, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_bubbles(picture: Pixels, record: Record, scale: Points) -> None:
    for bubble in bubbles_of(record, "bubbles") if record.get("bubbles") is not None else []:
        centre = _centre(bubble, scale)
        axes = [max(1, round(bubble.radius * side * 2**SUBPIXEL_BITS)) for side in scale]
        for ink, thickness in ((DARK, 3), (COLOURS["bubbles"], 1)):
            cv2.ellipse(picture, centre, axes, 0, 0, 360, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_points(picture: Pixels, record: Record, scale: Points) -> None:
    """Draw dots whose area follows the weight, the largest last of all so that none is hidden under a larger one."""
    points = bubbles_of(record, "points") if record.get("points") is not None else []
    heaviest = max((point.weight for point in points), default=0) or 1
    for point in sorted(points, key=lambda point: -point.weight):
        centre = _centre(point, scale)
        radius = 1.5 + 3.5 * (point.weight / heaviest) ** 0.5
        for ink, size in ((DARK, radius + 1), (COLOURS["points"], radius)):
            cv2.circle(picture, centre, round(size * 2**SUBPIXEL_BITS), ink, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _centre(bubble: Bubble, scale: Points) -> list[int]:
    return [int(value) for value in _sixteenths(np.array([bubble.x, bubble.y]) * scale)]


def _sixteenths(points: Points) -> npt.NDArray[np.int32]:
    """Return continuous pixels as cv2 counts them: its (0, 0) is the centre of a pixel, ours its corner."""
    limit = 2.0**24       # far outside of any sheet, and not yet an overflow in cv2
    return np.clip(np.rint((points - 0.5) * 2**SUBPIXEL_BITS), -limit, limit).astype(np.int32)

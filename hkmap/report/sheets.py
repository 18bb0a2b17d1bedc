"""A contact sheet: each image with its annotations, and its maps beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.files.images import Pixels
from hkmap.maps.check import Map
from hkmap.maps.masks import Mask, masks_map
from hkmap.records import Record, boxes_of, bubbles_of, frame_of, label_of, labels_of, polygons_of
from hkmap.report.colouring import bare, colour_bar, overlay
from hkmap.report.lettering import DARK, LINE_HEIGHT, PAPER, Colour, length, spelt, wrapped, write_lines, write_names

Points = npt.NDArray[np.float64]

COLOURS: dict[str, Colour] = {       # Okabe and Ito's palette, for the colour-blind too
    "bubbles": (86, 180, 233),
    "points": (240, 228, 66),
    "boxes": (0, 200, 140),
    "polygons": (230, 159, 0),
}
#: Of labels, in the order in which they come; further ones begin anew. None is that of a kind.
LABELS: tuple[Colour, ...] = (
    (0, 235, 235), (255, 110, 200), (190, 255, 60), (165, 125, 255), (240, 100, 20), (70, 120, 255), (255, 190, 120),
    (0, 150, 120), (160, 255, 200), (255, 60, 60), (160, 140, 20), (255, 200, 255),
)
SETTLED: dict[str, Colour] = {"unknown": (215, 215, 215), "dont_look": (255, 90, 90)}      # what is no lesion
GAP = 4
BAR = (10, 96)          # pixels of the legend's colour bar: height, width
SWATCH = 9              # pixels of a colour's square in the legend
CROWD = 50              # dots of full size
FEW = 8                 # bubbles with a rim
SUBPIXEL_BITS = 4       # cv2 draws in sixteenths of a pixel
MARGIN = 16             # pixels round a picture in which lines are still drawn, as they are thick
MOST_AXIS = 2.0**14     # pixels: of the ellipses that cv2 draws
MOST_LINES = 3          # of a caption
MOST_NAMES = 36         # in a legend


class Palette(dict[str, Colour]):
    """The colours of labels: one that was seen keeps its own, so a palette lasts for all tiles of all sheets."""

    def __missing__(self, label: str) -> Colour:
        self[label] = LABELS[len(self) % len(LABELS)]
        return self[label]


@dataclass(frozen=True)
class Entry:
    """What one tile shows: ``image`` (H, W, 3) RGB, ``maps`` by key (None if the record has none), and ``masks``.

    The masks are grouped by the record's key ("masks", "unknown", "dont_look"), then by name. ``frame`` (width, height)
    has the proportions of the pictures, where they are not those of the image, or there is no image.
    """

    record: Record
    image: Pixels | None
    maps: Mapping[str, Map | None]
    masks: Mapping[str, Mapping[str, Mask]]
    frame: tuple[int, int] | None = None


@dataclass(frozen=True)
class Style:
    """How a sheet looks.

    ``cell`` is the longer side of each picture in pixels, ``colour`` a name in colouring.COLOURS. ``plain`` maps stand
    alone, others lie over the image. ``stretch`` divides each map by its maximum. ``captions`` are the record's keys to
    write below, instead of id, class, label and prediction.
    """

    cell: int = 224
    colour: str = "viridis"
    plain: bool = False
    stretch: bool = False
    captions: tuple[str, ...] = ()


class Tile(NamedTuple):
    """One record: its image and maps with the line below each, its caption, and the colours that need a legend.

    A picture is (H, W, 3) RGB, that of the image None where the record has none. ``mapped``: there is a map.
    """

    pictures: tuple[Pixels | None, ...]
    notes: tuple[str, ...]
    caption: list[str]
    colours: Mapping[str, Colour]
    mapped: bool


def contact_sheet(tiles: Sequence[Tile], keys: Sequence[str], columns: int, style: Style) -> Pixels:
    """Return tiles (one or more, with maps of the same ``keys``) as one picture (height, width, 3) with column heads.

    There are at most ``columns`` tiles per row, and no column of images where no tile has one.
    """
    columns = min(columns, len(tiles))
    first = int(all(tile.pictures[0] is None for tile in tiles))
    drawn = [_drawn(tile, first, style.cell) for tile in tiles]
    heads = [_panel(None, 0, wrapped(head, style.cell, 1), 1, style.cell) for head in ("image", *keys)[first:]]
    rows = [np.concatenate(heads * columns, axis=1)]
    for start in range(0, len(drawn), columns):
        pictures = drawn[start : start + columns]
        row = np.full((max(map(len, pictures)), rows[0].shape[1], 3), PAPER, np.uint8)
        for index, picture in enumerate(pictures):
            left = index * picture.shape[1]
            row[: len(picture), left : left + picture.shape[1]] = picture
        rows.append(row)
    return np.concatenate(rows, axis=0)


def with_legend(sheet: Pixels, tiles: Sequence[Tile], style: Style) -> Pixels:
    """Return the sheet with a strip below that explains the colours of the maps and annotations on it."""
    colours = {name: colour for tile in tiles for name, colour in tile.colours.items()}
    width = sheet.shape[1]
    items = [_bar_item(style, width)] if any(tile.mapped for tile in tiles) else []
    items += [_swatch_item(name, colour, width) for name, colour in islice(colours.items(), MOST_NAMES)]
    if len(colours) > MOST_NAMES:
        items.append(_swatch_item(f"{len(colours) - MOST_NAMES} more", PAPER, width))
    return np.concatenate([sheet, _flowing(items, width)], axis=0) if items else sheet


def draw_tile(entry: Entry, style: Style, palette: Palette) -> Tile:
    """Draw the image with its annotations, then one picture per map."""
    size = _cell_size(entry, style.cell)
    image = None if entry.image is None else _resized(entry.image, size)
    under = np.full((*size, 3), PAPER, np.uint8) if image is None else image
    seen, colours = annotated(under, entry.record, entry.masks, palette)
    maps = [_map_picture(under, values, style) for values in entry.maps.values()]
    notes = [_map_note(key, values, style) for key, values in entry.maps.items()]
    caption = _told(entry.record, style.captions) if style.captions else _caption(entry.record)
    mapped = any(values is not None for values in entry.maps.values())
    return Tile((seen if colours or image is not None else None, *maps), ("", *notes), caption, colours, mapped)


def annotated(
    image: Pixels, record: Record, masks: Mapping[str, Mapping[str, Mask]], palette: Palette
) -> tuple[Pixels, dict[str, Colour]]:
    """Return a copy of ``image`` (H, W, 3) with the record's annotations and the ``masks`` of its Entry as outlines.

    Also return the colours used, by label or, where there is none, by kind. Coordinates are in the record's frame,
    which covers the image at any size; without ``size`` the image is the frame. Raises RecordError for an invalid
    annotation.
    """
    record = {key: [] for key in COLOURS} | {key: value for key, value in record.items() if value is not None}
    picture = image.copy()
    height, width = picture.shape[:2]
    frame = frame_of(record) if "size" in record else (width, height)
    scale = np.array([width / frame[0], height / frame[1]])
    outlines = list(_outlines(record, masks, palette))
    for _, mask, colour in reversed(outlines):      # lesions last, over the others
        _draw_mask(picture, mask, colour)
    names = {name: colour for name, _, colour in outlines}
    kinds: dict[str, Colour] = {}
    for key, label, corners in _shapes(record):
        colour = palette[label] if label else COLOURS[key]
        (names if label else kinds)[label or key] = colour
        _draw_outline(picture, corners * scale, colour)
    for key, draw in (("bubbles", _draw_bubbles), ("points", _draw_points)):
        kinds |= {key: COLOURS[key]} if record[key] else {}
        draw(picture, record, scale)
    return write_names(picture, names), names | kinds


def _shapes(record: Record) -> Iterator[tuple[str, str, Points]]:
    """Yield the kind, label and corners (n, 2) of each polygon and box."""
    for label, corners in zip(labels_of(record, "polygons"), polygons_of(record), strict=True):
        yield "polygons", label, np.array(corners)
    for label, (left, top, wide, high) in zip(labels_of(record, "boxes"), boxes_of(record), strict=True):
        yield "boxes", label, np.array([
            (left, top), (left + wide, top), (left + wide, top + high), (left, top + high)
        ])


def _cell_size(entry: Entry, cell: int) -> tuple[int, int]:
    """Return the (height, width) of the entry's pictures, whose longer side is the cell's."""
    shape = (1, 1) if entry.image is None else entry.image.shape[1::-1]
    width, height = entry.frame or (shape[0], shape[1])
    scale = cell / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    interpolation = cv2.INTER_AREA if size[0] * size[1] < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size[::-1], interpolation=interpolation), dtype=np.uint8)


def _map_picture(image: Pixels, values: Map | None, style: Style) -> Pixels:
    """Return a map's picture; without a map the image, or in a plain style empty paper."""
    if values is None:
        return np.full_like(image, PAPER) if style.plain else image
    if style.stretch and values.max() > 0:
        values = values / values.max()
    height, width = image.shape[:2]
    return bare(values, (height, width), style.colour) if style.plain else overlay(image, values, style.colour)


def _drawn(tile: Tile, first: int, cell: int) -> Pixels:
    """Return a tile from its ``first`` picture on: the pictures side by side, the caption below them all.

    If the caption's first line fits below the image, it stands there, beside the notes on the maps.
    """
    pictures, notes, caption = tile.pictures[first:], [*tile.notes[first:]], tile.caption
    if first == 0 and len(pictures) > 1 and len(caption[0]) < cell and length(spelt(caption[0])) <= cell:
        notes[0], *caption = caption
    texts = [wrapped(note, cell, 2) for note in notes]
    height = max(len(picture) for picture in pictures if picture is not None)
    lines = max(map(len, texts))
    across = np.concatenate(
        [_panel(picture, height, text, lines, cell) for picture, text in zip(pictures, texts, strict=True)], axis=1
    )
    width = across.shape[1] - GAP
    below = [line for text in caption for line in wrapped(text, width, MOST_LINES)]
    return np.concatenate([across, _panel(None, 0, below, len(below), width)], axis=0)


def _panel(picture: Pixels | None, height: int, text: list[str], lines: int, cell: int) -> Pixels:
    """Centre a picture in a strip as wide as a cell, with text below its ``height``, in room for ``lines`` lines."""
    panel = np.full((height + lines * LINE_HEIGHT + GAP, cell + GAP, 3), PAPER, np.uint8)
    if picture is not None:
        left = (cell - picture.shape[1]) // 2
        panel[: len(picture), left : left + picture.shape[1]] = picture
    return write_lines(panel, text, (1, height + GAP // 2))


def _bar_item(style: Style, width: int) -> Pixels:
    """Return the bar between its 0 and 1; ``width`` is the sheet's."""
    highest = "each map's maximum" if style.stretch else "1"
    start, end = length("0") + 2 * GAP, length(highest) + 2 * GAP
    wide = max(GAP, min(BAR[1], width - start - end - GAP))
    item = np.full((LINE_HEIGHT, wide + start + end + 2 * GAP, 3), PAPER, np.uint8)
    item[2 : 4 + BAR[0], start - 1 : start + wide + 1] = DARK
    item[3 : 3 + BAR[0], start : start + wide] = colour_bar((BAR[0], wide), style.colour, plain=style.plain)
    return write_lines(write_lines(item, ["0"], (2, 0)), [highest], (start + wide + GAP, 0))


def _swatch_item(name: str, colour: Colour, width: int) -> Pixels:
    [name] = wrapped(name, max(1, width - SWATCH - 4 * GAP), 1)
    item = np.full((LINE_HEIGHT, SWATCH + length(name) + 4 * GAP, 3), PAPER, np.uint8)
    item[3 : 5 + SWATCH, 1 : 3 + SWATCH] = DARK
    item[4 : 4 + SWATCH, 2 : 2 + SWATCH] = colour
    return write_lines(item, [name], (SWATCH + GAP + 2, 0))


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
    predicted = record.get("prediction") if record.get("predicted_class") is None else record["predicted_class"]
    parts = [str(record["class"])] if record.get("class") is not None else []
    parts += [f"label {label}"] if label >= 0 else []
    parts += [f"predicted {_in_words(predicted)}"] if predicted is not None else []
    parts += [f"({confidence:.2f})"] if isinstance(confidence, float | int) else []
    return [record["id"], " ".join(parts)]


def _map_note(key: str, values: Map | None, style: Style) -> str:
    if values is None:
        return f"no {key}"
    (height, width), highest = values.shape, values.max()
    return f"{width}x{height}, max {highest:.2g}{' drawn as 1' if style.stretch and 0 < highest < 1 else ''}"


def _outlines(
    record: Record, masks: Mapping[str, Mapping[str, Mask]], palette: Palette
) -> Iterator[tuple[str, Mask, Colour]]:
    """Yield label, mask and colour: lesions first, then the masks that say how an area counts."""
    lesions = masks.get("masks", {})
    labels = labels_of({**record, "masks": dict.fromkeys(lesions, "a mask")}, "masks")
    for label, mask in zip(labels, lesions.values(), strict=True):
        yield label, mask, palette[label]
    for key, colour in SETTLED.items():
        for name, mask in masks.get(key, {}).items():
            yield f"{key}: {name}", mask, colour


def _draw_mask(picture: Pixels, mask: Mask, colour: Colour) -> None:
    # By the maximum per pixel, so that a lesion smaller than a pixel of the sheet is still outlined.
    marked = masks_map([mask], [1.0], (picture.shape[0], picture.shape[1]), "max").astype(np.uint8)
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1)


def _draw_outline(picture: Pixels, corners: Points, colour: Colour) -> None:
    """Draw a closed line through ``corners`` (n, 2), in continuous pixels of the picture."""
    lines = [_sixteenths(line) for line in _seen(corners, np.roll(corners, -1, axis=0), picture.shape)]
    for ink, thickness in ((DARK, 3), (colour, 1)):
        cv2.polylines(picture, lines, False, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _seen(starts: Points, ends: Points, shape: tuple[int, ...]) -> Points:
    """Return the parts (n, 2 ends, 2) of lines that lie on a picture or near it: cv2 has no longer ones."""
    steps = ends - starts
    with np.errstate(divide="ignore", invalid="ignore"):      # along an axis
        near, far = (-MARGIN - starts) / steps, (np.array(shape[1::-1]) + MARGIN - starts) / steps
    first, last = np.fmin(near, far).max(axis=1, initial=0), np.fmax(near, far).min(axis=1, initial=1)
    on = first <= last
    return np.stack([starts[on] + share[on, None] * steps[on] for share in (first, last)], axis=1)


def _draw_bubbles(picture: Pixels, record: Record, scale: Points) -> None:
    """Draw circles, of thin lines alone if there are many: their dark rims would cover the picture."""
    bubbles = bubbles_of(record, "bubbles")
    inks = ((DARK, 3), (COLOURS["bubbles"], 1))[len(bubbles) > FEW :]
    for bubble in bubbles:
        place, sides = np.array([bubble.x, bubble.y]) * scale, bubble.radius * scale
        if sides.max() > MOST_AXIS:
            _draw_arc(picture, place, sides)
            continue
        centre = _sixteenths(place).tolist()
        axes = [max(1, round(side * 2**SUBPIXEL_BITS)) for side in sides]
        for ink, thickness in inks:
            cv2.ellipse(picture, centre, axes, 0, 0, 360, ink, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_arc(picture: Pixels, place: Points, sides: Points) -> None:
    """Draw what is seen of an ellipse that is too large for cv2."""
    y, x = np.indices(picture.shape[:2]) + 0.5
    inside = np.hypot((x - place[0]) / sides[0], (y - place[1]) / sides[1]) <= 1
    picture[inside & (cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) == 0)] = COLOURS["bubbles"]


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

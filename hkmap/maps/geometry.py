"""Which part of an image is seen: one geometry for pixels, maps and annotations, for the engine and for `hkmap crop`.

A view is an affine map, 2x3, from the unit square of the output to that of the image: u, v in [0, 1] of what is seen to
x, y in [0, 1] of the whole image. It has no pixels, so one view serves an image and its map. A box is (left, top,
width, height) in whole pixels of an image; what lies beyond the image is padding.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.maps.certainty import Weighted, change_weighted
from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map
from hkmap.records import Record, boxes_of, bubbles_of, polygons_of

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
Pixels = npt.NDArray[Any]        # an image or a map: OpenCV keeps the type
Colour = tuple[int, int, int]    # R, G, B
Item = dict[str, Any]
Span = tuple[float, float]      # from, to
View = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]

WHOLE: View = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MIRROR: View = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])      # left and right exchanged

#: ImageNet's mean colour, round(255 * mean): normalised it is nearly 0, and convolutions pad with 0.
PADDING: Colour = (124, 116, 104)

_NOTHING = 1e-9     # of a side: rounding, no length


def center_crop(aspect: float, image_size: tuple[int, int]) -> Box:
    """Return the largest middle box of an ``aspect`` (width over height) within an image of (height, width).

    Its sides are whole pixels, at least 1; an odd rest leaves one more pixel at the right or the bottom.

    >>> center_crop(1, (100, 200)), center_crop(2, (101, 100))
    ((50, 0, 100, 100), (0, 25, 100, 50))
    """
    height, width = image_size
    sides = min(width, max(1, round(aspect * height))), min(height, max(1, round(width / aspect)))
    return (width - sides[0]) // 2, (height - sides[1]) // 2, *sides


def letterbox(aspect: float, image_size: tuple[int, int]) -> Box:
    """Return the smallest centred box of an ``aspect`` (width over height) around an image of (height, width).

    Its sides are whole pixels; an odd rest leaves one more pixel at the right or the bottom.

    >>> letterbox(1, (100, 200)), letterbox(1, (4, 3))
    ((0, -50, 200, 200), (0, 0, 4, 4))
    """
    height, width = image_size
    sides = max(width, round(aspect * height)), max(height, round(width / aspect))
    return -((sides[0] - width) // 2), -((sides[1] - height) // 2), *sides


def box_view(box: Box, image_size: tuple[int, int]) -> View:
    """Return the view that shows ``box`` of an image of (height, width).

    >>> box_view((50, 0, 100, 100), (100, 200)).tolist()
    [[0.5, 0.0, 0.25], [0.0, 1.0, 0.0]]
    """
    height, width = image_size
    left, top, across, down = box
    return np.array([[across / width, 0.0, left / width], [0.0, down / height, top / height]])


def pixel_box(view: View, image_size: tuple[int, int]) -> Box | None:
    """Return the box that ``view`` shows of an image of (height, width); None where that is no box of whole pixels.

    >>> pixel_box(WHOLE, (100, 200)), pixel_box(MIRROR, (100, 200))
    ((0, 0, 200, 100), None)
    """
    height, width = image_size
    if not is_straight(view) or view[0, 0] <= 0 or view[1, 1] <= 0:
        return None
    sides = np.array([view[0, 2] * width, view[1, 2] * height, view[0, 0] * width, view[1, 1] * height])
    whole = np.rint(sides)
    if np.abs(sides - whole).max() > 1e-6:
        return None
    left, top, across, down = (int(side) for side in whole)
    return left, top, across, down


def share_view(left: float, top: float, share: float) -> View:
    """Return the view of a part whose sides are ``share`` of the whole's, from ``left`` and ``top`` in [0, 1]."""
    return np.array([[share, 0.0, left], [0.0, share, top]])


def turned_view(angle: float, aspect: float) -> View:
    """Return the turn about the output's centre by ``angle`` in radians; ``aspect`` is the output's width / height."""
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine / aspect], [sine * aspect, cosine]])
    return np.column_stack([turn, 0.5 - turn @ [0.5, 0.5]])


def compose(outer: View, inner: View) -> View:
    """Return what ``inner`` shows of what ``outer`` shows.

    >>> compose(MIRROR, share_view(0, 0, 0.5)).tolist()
    [[-0.5, 0.0, 1.0], [0.0, 0.5, 0.0]]
    """
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def invert(view: View) -> View:
    """Return the inverse: the view that shows the whole image within what ``view`` shows of it.

    >>> invert(box_view((0, -50, 200, 200), (100, 200))).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.5, 0.25]]
    """
    back = np.linalg.inv(view[:, :2])
    return np.column_stack([back, -back @ view[:, 2]]) + 0.0        # no -0.0


def is_straight(view: View) -> bool:
    """Whether the sides are parallel to the image's: a crop, padding or a mirror, but no turn."""
    return bool(view[0, 1] == 0 and view[1, 0] == 0)


def reaches_out(view: View) -> bool:
    """Whether it shows anything beyond the image."""
    corners = view @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    return bool(corners.min() < -_NOTHING or corners.max() > 1 + _NOTHING)


# what a view shows of an image, and of the map that lies over it


def cut_image(pixels: Pixels, box: Box, padding: Colour | int | bool) -> Pixels:
    """Return a box of an image (H, W, 3) or mask (H, W), pixel by pixel, with ``padding`` beyond its sides."""
    left, top, width, height = box
    rows, columns = np.clip((top, top + height), 0, pixels.shape[0]), np.clip((left, left + width), 0, pixels.shape[1])
    inside = pixels[slice(*rows), slice(*columns)]
    if inside.shape[:2] == (height, width):
        return inside
    canvas = np.full((height, width, *pixels.shape[2:]), padding, pixels.dtype)
    canvas[slice(*(rows - top)), slice(*(columns - left))] = inside
    return canvas


def view_image(image: Image, view: View, size: tuple[int, int], padding: Colour | None = None) -> Image:
    """Return what ``view`` shows of an image (H, W, 3), as (height, width, 3).

    Area averages where it shrinks, bilinear where it grows. Beyond the image the colour is ``padding``; None reflects
    the image at its edges.
    """
    if is_straight(view) and view[0, 0] < 0:        # seen in a mirror: by the same filter as without it
        return np.ascontiguousarray(view_image(image, compose(view, MIRROR), size, padding)[:, ::-1])
    box = pixel_box(view, (image.shape[0], image.shape[1]))
    if box is None or (padding is None and reaches_out(view)):
        return np.asarray(_warp(image, view, size, padding), dtype=np.uint8)
    seen, (height, width) = cut_image(image, box, padding or PADDING), size
    seen = _resize(seen, min(width, seen.shape[1]), min(height, seen.shape[0]), cv2.INTER_AREA)
    return np.asarray(_resize(seen, width, height, cv2.INTER_LINEAR), dtype=np.uint8)


def view_map(weighted: Weighted, view: View, size: tuple[int, int], *, padded: bool = False) -> Weighted:
    """Return what ``view`` shows of a map and its certainty, with ``size`` = (height, width).

    Area averages where it shrinks, bilinear where it grows, both over what is known. ``padded``: the certainty is 0
    beyond the image, and the share within it for a cell on its edge; a view inside the image adds no certainty. Else
    the map is reflected at its edges.
    """
    if weighted.certainty is None and padded and reaches_out(view):
        weighted = Weighted(weighted.map, np.ones_like(weighted.map))
    return change_weighted(weighted, lambda cells: _view_cells(cells, view, size, padded))


def map_back(values: Map, view: View, size: tuple[int, int]) -> Map:
    """Return the whole image's map, (height, width), from the map of what ``view`` shows; 0 where it shows nothing.

    A cell that is seen in part has the mean of that part.
    """
    return view_map(Weighted(values, None), invert(view), size, padded=True).map


def _view_cells(cells: Map, view: View, size: tuple[int, int], padded: bool) -> Map:
    if np.array_equal(view, WHOLE):
        return resize_map(cells, size)
    if is_straight(view) and (padded or not reaches_out(view)):
        rows = _line_matrix(cells.shape[0], size[0], view[1, 2], view[1, 1])
        columns = _line_matrix(cells.shape[1], size[1], view[0, 2], view[0, 0])
        seen = rows @ cells @ columns.T
        return np.asarray(np.clip(seen, 0, cells.max()), dtype=np.float32)
    turned: Map = np.clip(_warp(cells, view, cells.shape), 0, 1)
    return resize_map(turned * _coverage(view, cells.shape) if padded else turned, size)


def _line_matrix(n_in: int, n_out: int, start: float, length: float) -> Array:
    """Return the (n_out, n_in) matrix of a part of a line of ``n_in`` cells, seen as ``n_out`` cells.

    `hkmap.maps.resize.resize_matrix` for a part: from ``start``, ``length`` long, in lines; a length below 0 looks
    backwards. The row of a cell sums to the share of it that lies within the line.
    """
    # rounded, so that whole cells are copied to the last bit
    edges = np.round((start + length * np.arange(n_out + 1) / n_out) * n_in, 9)
    low, high = np.minimum(edges[:-1], edges[1:])[:, None], np.maximum(edges[:-1], edges[1:])[:, None]
    cells = np.arange(n_in)[None, :]
    shares = np.maximum(0, np.minimum(high, cells + 1) - np.maximum(low, cells)) / (high - low)
    if abs(length) * n_in >= n_out:
        return np.asarray(shares)
    centres = np.clip((low + high) / 2 - 0.5, 0, n_in - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(centres - cells)) * shares.sum(axis=1, keepdims=True))


def _coverage(view: View, size: tuple[int, ...]) -> Map:
    """Return the share of each of the output's cells that lies in the image: exact along its sides, near at corners."""
    height, width = size
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    within = np.ones((height, width))
    for across, down, offset in view:
        place = across * u + (down * v + offset)[:, None]           # 0 to 1 within the image
        steep = float(np.hypot(across / width, down / height))      # its change over one cell
        within *= np.clip(np.clip(0.5 + place / steep, 0, 1) + np.clip(0.5 + (1 - place) / steep, 0, 1) - 1, 0, 1)
    return within.astype(np.float32)


def _warp(array: Pixels, view: View, size: tuple[int, ...], padding: Colour | None = None) -> Pixels:
    """Sample an image or map at the view: an area average first where it shrinks, then bilinear."""
    height, width = size
    steps = np.hypot(view[:, 0] / width, view[:, 1] / height)       # from sample to sample, in shares of the sides
    shrunk = [max(1, round(min(side, 1 / step))) for side, step in zip(array.shape[1::-1], steps, strict=True)]
    array = _resize(array, shrunk[0], shrunk[1], cv2.INTER_AREA)
    # OpenCV wants indices, from target to source; the pixel of index i covers [i, i + 1), so its centre is i + 0.5
    to_unit = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
    matrix = np.diag(array.shape[1::-1]) @ view @ to_unit - [0, 0, 0.5]
    edge = cv2.BORDER_REFLECT if padding is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(
        array, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=edge,
        borderValue=padding or 0,
    )


def _resize(array: Pixels, width: int, height: int, method: int) -> Pixels:
    if array.shape[:2] == (height, width):
        return array
    return cv2.resize(array, (width, height), interpolation=method)


# annotations in the pixels of a box


def move_annotations(record: Record, box: Box, frame: tuple[int, int]) -> Record:
    """Return the record with ``size`` and all coordinates in the pixels of ``box``, from an image of ``frame``.

    ``frame`` is (width, height). All bubbles and points are kept, as the density of one outside reaches inside. Boxes
    are cut to what is seen of the image, and dropped where nothing remains. Polygons and lines keep their corners, and
    are dropped where the rectangle around them is not seen. Raises RecordError for malformed annotations.
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
    """Return the start and length of what is seen of a side; None where nothing is."""
    if seen[0] <= start and start + length <= seen[1]:
        return start, length
    first, last = max(start, seen[0]), min(start + length, seen[1])
    return (first, last - first) if first < last else None


def _is_seen(corners: list[list[float]], seen: tuple[Span, Span]) -> bool:
    sides = zip(zip(*corners, strict=True), seen, strict=True)
    return all(min(places) <= last and max(places) >= first for places, (first, last) in sides)

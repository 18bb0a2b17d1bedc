"""What a view shows of an image, and of the map that lies over it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map
from hkmap.maps.views import WHOLE, Box, View, invert, is_straight, pixel_box, reaches_out
from hkmap.maps.weights import Weighted, change_weighted

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
Pixels = npt.NDArray[Any]        # an image or a map: OpenCV keeps the type
Colour = tuple[int, int, int]    # R, G, B

#: ImageNet's mean colour, round(255 * mean): normalised it is nearly 0, which is what convolutions pad with.
PADDING: Colour = (124, 116, 104)


def cut_image(pixels: Pixels, box: Box, padding: Colour | int | bool) -> Pixels:
    """Return a box of an image (H, W, 3) or mask (H, W), pixel by pixel, with ``padding`` beyond its sides."""
    left, top, width, height = box
    rows, columns = np.clip((top, top + height), 0, pixels.shape[0]), np.clip((left, left + width), 0, pixels.shape[1])
    inside = pixels[slice(*rows), slice(*columns)]
    if inside.shape[:2] == (height, width):
        return inside
    line = np.empty((width, *pixels.shape[2:]), pixels.dtype)
    line[:] = padding
    canvas = np.empty((height, *line.shape), pixels.dtype)
    canvas[:] = line        # line by line it is faster than pixel by pixel
    canvas[slice(*(rows - top)), slice(*(columns - left))] = inside
    return canvas


def view_image(image: Image, view: View, size: tuple[int, int], padding: Colour | None = None) -> Image:
    """Return what ``view`` shows of an image (H, W, 3), as (height, width, 3).

    Area averages where it shrinks, bilinear where it grows. What lies beyond the image has the colour ``padding``; None
    reflects the image at its edges.
    """
    box = pixel_box(view, (image.shape[0], image.shape[1]))
    if box is None or (padding is None and reaches_out(view)):
        return np.asarray(_warp(image, view, size, padding), dtype=np.uint8)
    seen, (height, width) = cut_image(image, box, padding or PADDING), size
    seen = _resize(seen, min(width, seen.shape[1]), min(height, seen.shape[0]), cv2.INTER_AREA)
    return np.asarray(_resize(seen, width, height, cv2.INTER_LINEAR), dtype=np.uint8)


def view_map(weighted: Weighted, view: View, size: tuple[int, int], *, padded: bool = False) -> Weighted:
    """Return what ``view`` shows of a map and its weights, with ``size`` = (height, width).

    Area averages where it shrinks, bilinear where it grows, and over what is known, as wherever a map is resized.
    ``padded``: beyond the image the weight is 0, in a cell that lies partly beyond it the share within; a view that
    stays inside adds no weights. Else the map is reflected at its edges.
    """
    if weighted.weights is None and padded and reaches_out(view):
        weighted = Weighted(weighted.map, np.ones_like(weighted.map))
    return change_weighted(weighted, lambda cells: _view_cells(cells, view, size, padded))


def map_back(values: Map, view: View, size: tuple[int, int]) -> Map:
    """Return the whole image's map, (height, width), from the map of what ``view`` shows; 0 where it shows nothing.

    A cell that is seen in part has the mean of what is seen of it.
    """
    return view_map(Weighted(values, None), invert(view), size, padded=True).map


def _view_cells(cells: Map, view: View, size: tuple[int, int], padded: bool) -> Map:
    if np.array_equal(view, WHOLE):
        return resize_map(cells, size)
    if is_straight(view):
        rows = _line_matrix(cells.shape[0], size[0], view[1, 2], view[1, 1])
        columns = _line_matrix(cells.shape[1], size[1], view[0, 2], view[0, 0])
        seen = rows @ cells @ columns.T
        return np.asarray(np.clip(seen, 0, cells.max()), dtype=np.float32)
    seen = np.clip(_warp(cells, view, cells.shape), 0, 1)
    return resize_map(seen * _coverage(view, cells.shape) if padded else seen, size)


def _line_matrix(n_in: int, n_out: int, start: float, length: float) -> Array:
    """Return the (n_out, n_in) matrix of a part of a line of ``n_in`` cells, seen as ``n_out`` cells.

    `hkmap.maps.resize.resize_matrix` for a part: from ``start``, ``length`` long, in lines; a length below 0 looks
    backwards. Where a cell lies beyond the line its row falls short of 1 by the share of it that does.
    """
    # Rounded, whole cells are copied to the last bit.
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
    matrix = _pixels(view, (array.shape[0], array.shape[1]), (height, width))
    edge = cv2.BORDER_REFLECT if padding is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(
        array, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=edge,
        borderValue=padding or 0,
    )


def _resize(array: Pixels, width: int, height: int, method: int) -> Pixels:
    if array.shape[:2] == (height, width):
        return array
    return cv2.resize(array, (width, height), interpolation=method)


def _pixels(view: View, source: tuple[int, int], target: tuple[int, int]) -> View:
    """Return the view as OpenCV wants it: indices of target pixels to indices of source pixels.

    The pixel of index i covers [i, i + 1), so its centre is i + 0.5.
    """
    to_unit = np.array([[1 / target[1], 0, 0.5 / target[1]], [0, 1 / target[0], 0.5 / target[0]], [0, 0, 1]])
    scale = np.array([[source[1], 0.0], [0.0, source[0]]])
    matrix: View = scale @ view @ to_unit
    matrix[:, 2] -= 0.5
    return matrix

"""Which part of an image is seen: one geometry for pixels, maps and annotations, for the engine and for `hkmap view`.

A view is an affine map, 2x3, from the output's unit square to the image's: u, v in [0, 1] of what is seen, to x, y in
[0, 1] of the whole image. Being free of pixels it serves an image and its map alike. A box is (left, top, width,
height) in whole pixels of an image; it may reach beyond the image, into what is then padding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

View = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]

WHOLE: View = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MIRROR: View = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])      # left and right exchanged

_NOTHING = 1e-9     # of a side: rounding, no length


def center_crop(aspect: float, image_size: tuple[int, int]) -> Box:
    """Return the largest middle box of an ``aspect`` (width over height) within an image of (height, width).

    Its sides are rounded to whole pixels and at least 1; an odd rest leaves one pixel more at the right or the bottom.

    >>> center_crop(1, (100, 200)), center_crop(2, (101, 100))
    ((50, 0, 100, 100), (0, 25, 100, 50))
    """
    height, width = image_size
    sides = min(width, max(1, round(aspect * height))), min(height, max(1, round(width / aspect)))
    return (width - sides[0]) // 2, (height - sides[1]) // 2, *sides


def letterbox(aspect: float, image_size: tuple[int, int]) -> Box:
    """Return the smallest box of an ``aspect`` (width over height) around an image of (height, width), in its middle.

    Its sides are rounded to whole pixels; an odd rest leaves one pixel more at the right or the bottom.

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
    """Return the turn about the output's centre by ``angle`` in radians, round in its pixels.

    ``aspect`` is the output's width over its height.
    """
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
    """Return the way back: the view that shows the whole image within what ``view`` shows of it.

    >>> invert(box_view((0, -50, 200, 200), (100, 200))).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.5, 0.25]]
    """
    back = np.linalg.inv(view[:, :2])
    return np.column_stack([back, -back @ view[:, 2]]) + 0.0        # no -0.0


def is_straight(view: View) -> bool:
    """Whether the output's sides lie along the image's: a crop, padding or a mirror, but no turn."""
    return bool(view[0, 1] == 0 and view[1, 0] == 0)


def reaches_out(view: View) -> bool:
    """Whether it shows anything beyond the image."""
    corners = view @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    return bool(corners.min() < -_NOTHING or corners.max() > 1 + _NOTHING)

"""Which part of an image the network sees: one transform that moves image and map together.

A view is an affine map, 2x3, from the output's unit square to the image's: u, v in [0, 1] of what the network
gets, to x, y in [0, 1] of the whole image. Being free of pixels it serves the image and its map alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map

View = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
Pixels = npt.NDArray[Any]        # an image or a map: OpenCV keeps the type

WHOLE: View = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
AUGMENTATIONS = ("mirror", "crop", "rotate", "intensity")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; kept with the weights, so that no later command needs flags.

    ``height`` and ``width`` in pixels. ``fit`` is "squash" (the whole image, its aspect given up) or "crop" (the
    largest middle part of the right aspect). ``mean`` and ``std`` are of the RGB channels in [0, 1]; ImageNet's.
    """

    height: int = 224
    width: int = 224
    fit: str = "squash"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def plain_view(preprocessing: Preprocessing, image_size: tuple[int, int]) -> View:
    """Return the view without augmentation of an image of (height, width)."""
    if preprocessing.fit == "squash":
        return WHOLE
    height, width = image_size
    aspect = preprocessing.width / preprocessing.height
    share_x, share_y = min(1.0, aspect * height / width), min(1.0, width / (aspect * height))
    return _box_view((0.5, 0.5), (share_x, share_y))


def random_view(
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    augmentations: tuple[str, ...],
    generator: np.random.Generator,
) -> View:
    """Return a random view.

    "mirror" mirrors every other time, "crop" keeps 50 to 100 % of the area, "rotate" turns by up to 15 degrees.
    """
    view = plain_view(preprocessing, image_size)
    if "crop" in augmentations:
        share = np.sqrt(generator.uniform(0.5, 1.0))
        left, top = generator.uniform(0, 1 - share, 2)
        view = _compose(view, _box_view((left + share / 2, top + share / 2), (share, share)))
    if "rotate" in augmentations:
        angle = np.radians(generator.uniform(-15, 15))
        view = _compose(view, _rotation(angle, preprocessing.width / preprocessing.height))
    if "mirror" in augmentations and generator.random() < 0.5:
        view = _compose(view, np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    return view


def change_intensity(image: Image, generator: np.random.Generator) -> Image:
    """Change contrast (x 0.8 to 1.2, about mid-grey) and brightness (up to 10 % of the range) at random."""
    contrast, brightness = generator.uniform(0.8, 1.2), generator.uniform(-25.5, 25.5)
    table = np.clip((np.arange(256) - 127.5) * contrast + 127.5 + brightness, 0, 255).round().astype(np.uint8)
    return cv2.LUT(image, table).astype(np.uint8)


def view_image(image: Image, view: View, size: tuple[int, int]) -> Image:
    """Return what ``view`` shows of an image (H, W, 3), as (height, width, 3); edges are reflected."""
    return _warp(image, view, size).astype(np.uint8)


def view_map(values: Map, view: View, size: tuple[int, int]) -> Map:
    """Return what ``view`` shows of a map, area-averaged to (height, width)."""
    if view is WHOLE:
        return resize_map(values, size)
    height, width = values.shape
    return resize_map(np.clip(_warp(values, view, (height, width)), 0, 1), size)


def _warp(array: Pixels, view: View, size: tuple[int, int]) -> Pixels:
    """Sample an image or map at the view: an area average first where it shrinks, then bilinear."""
    height, width = size
    shares = np.hypot(view[0, :2], view[1, :2])       # of the image's sides, spanned by the output's width and height
    shrunk_width = round(array.shape[1] * min(1.0, width / (shares[0] * array.shape[1])))
    shrunk_height = round(array.shape[0] * min(1.0, height / (shares[1] * array.shape[0])))
    array = _resize(array, max(1, shrunk_width), max(1, shrunk_height), cv2.INTER_AREA)
    if view is WHOLE:
        return _resize(array, width, height, cv2.INTER_LINEAR)
    matrix = _pixels(view, (array.shape[0], array.shape[1]), size)
    return cv2.warpAffine(
        array, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
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
    matrix = scale @ view @ to_unit
    matrix[:, 2] -= 0.5
    return matrix


def _box_view(centre: tuple[float, float], shares: tuple[float, float]) -> View:
    return np.array([
        [shares[0], 0.0, centre[0] - shares[0] / 2],
        [0.0, shares[1], centre[1] - shares[1] / 2],
    ])


def _rotation(angle: float, aspect: float) -> View:
    """Return the turn about the output's centre, round in its pixels (``aspect`` is its width over its height)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine / aspect], [sine * aspect, cosine]])
    return np.column_stack([turn, 0.5 - turn @ [0.5, 0.5]])


def _compose(outer: View, inner: View) -> View:
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])

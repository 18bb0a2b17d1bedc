"""Maps in colour: dark for 0, bright for 1, in steps that look even, also to the colour-blind."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hkmap.choices import Choices
from hkmap.files.images import Pixels
from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map


class Colour(NamedTuple):
    """How a map is shown: by one of OpenCV's ramps, or without a ramp as a light on the image, alone in grey."""

    title: str
    ramp: int | None


COLOURS = Choices("colour", {
    "viridis": Colour("From violet to yellow.", cv2.COLORMAP_VIRIDIS),
    "cividis": Colour("From blue to yellow.", cv2.COLORMAP_CIVIDIS),
    "inferno": Colour("From black through red to pale yellow.", cv2.COLORMAP_INFERNO),
    "grey": Colour("From black to white; over an image, a light on it.", None),
})


def coloured(values: Map, colour: str) -> Pixels:
    """Return (H, W, 3) RGB for a map (H, W); ``colour`` is a name in COLOURS."""
    levels, ramp = np.rint(values * 255).astype(np.uint8), COLOURS[colour].ramp
    bgr = cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR) if ramp is None else cv2.applyColorMap(levels, ramp)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def overlay(image: Pixels, values: Map, colour: str = "viridis") -> Pixels:
    """Return ``image`` (H, W, 3) under the colours of a map that covers it.

    The image is shown in grey, at half strength everywhere. With "grey" the map is a light on the image instead: the
    image's own colours where the map is 1, black where it is 0.
    """
    height, width = image.shape[:2]
    shown = resize_map(values, (height, width))
    if COLOURS[colour].ramp is None:
        return np.rint(image * shown[..., None]).astype(np.uint8)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(grey, 0.5, coloured(shown, colour), 0.5, 0), dtype=np.uint8)


def bare(values: Map, size: tuple[int, int], colour: str) -> Pixels:
    """Return a map alone at ``size`` (height, width): its cells as blocks, or area means if the map is larger."""
    height, width = size
    if values.shape[0] <= height and values.shape[1] <= width:
        return np.asarray(cv2.resize(coloured(values, colour), (width, height), interpolation=cv2.INTER_NEAREST_EXACT))
    return coloured(resize_map(values, size), colour)


def colour_bar(size: tuple[int, int], colour: str, *, plain: bool) -> Pixels:
    """Return a bar (height, width, 3) of the values from 0 at the left to 1 at the right.

    Unless ``plain`` it lies over an image from white at the top to black at the bottom, so it shows every colour of an
    overlay.
    """
    height, width = size
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    if plain:
        return coloured(ramp, colour)
    under = np.linspace(255, 0, height).round().astype(np.uint8)
    return overlay(np.tile(under[:, None, None], (1, width, 3)), ramp, colour)

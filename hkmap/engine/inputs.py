"""How an image becomes the network's input: the fit of the whole, and random views in training."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hkmap.maps.geometry import (
    MIRROR,
    WHOLE,
    Colour,
    Image,
    View,
    box_view,
    center_crop,
    compose,
    letterbox,
    share_view,
    turned_view,
)

AUGMENTATIONS = ("mirror", "crop", "rotate", "intensity")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; kept with the weights, so that no later command needs flags.

    ``height`` and ``width`` in pixels. ``fit`` is "squash" (the whole image, its aspect given up), "crop" (the
    largest middle part of the right aspect) or "letterbox" (the whole image and its aspect, with padding). ``mean`` and
    ``std`` are of the RGB channels in [0, 1]; ImageNet's.
    """

    height: int = 224
    width: int = 224
    fit: str = "squash"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def padding(self) -> Colour | None:
        """The colour beyond the image: the mean, nearly 0 for the network, as convolutions pad; None reflects."""
        if self.fit != "letterbox":
            return None
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


def plain_view(preprocessing: Preprocessing, image_size: tuple[int, int]) -> View:
    """Return the view without augmentation of an image of (height, width)."""
    if preprocessing.fit == "squash":
        return WHOLE
    fitted = letterbox if preprocessing.fit == "letterbox" else center_crop
    return box_view(fitted(preprocessing.width / preprocessing.height, image_size), image_size)


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
        view = compose(view, share_view(left, top, share))
    if "rotate" in augmentations:
        angle = np.radians(generator.uniform(-15, 15))
        view = compose(view, turned_view(angle, preprocessing.width / preprocessing.height))
    if "mirror" in augmentations and generator.random() < 0.5:
        view = compose(view, MIRROR)
    return view


def change_intensity(image: Image, generator: np.random.Generator) -> Image:
    """Change contrast (x 0.8 to 1.2, about mid-grey) and brightness (up to 10 % of the range) at random."""
    contrast, brightness = generator.uniform(0.8, 1.2), generator.uniform(-25.5, 25.5)
    table = np.clip((np.arange(256) - 127.5) * contrast + 127.5 + brightness, 0, 255).round().astype(np.uint8)
    return cv2.LUT(image, table).astype(np.uint8)

"""How an image becomes the network's input: how it is fitted, and random views in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from hkmap.choices import Choices
from hkmap.maps.geometry import (
    MIRROR,
    Box,
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

Generator = np.random.Generator
#: An image (H, W, 3), the view of it, the aspect (width over height) of what is seen, chance → another image and view.
Augmentation = Callable[[Image, View, float, Generator], tuple[Image, View]]


@dataclass(frozen=True)
class Fit:
    """How an image gets the network's aspect: ``box`` returns what is seen, from the aspect and (height, width).

    ``pads``: beyond the image is padding, of certainty 0; else the image is reflected at its edges.
    """

    title: str
    box: Callable[[float, tuple[int, int]], Box]
    pads: bool = False


FITS = Choices("fit", {
    "squash": Fit("The whole image, its aspect given up.", lambda aspect, size: (0, 0, size[1], size[0])),
    "crop": Fit("The largest middle part of the network's aspect.", center_crop),
    "letterbox": Fit("The whole image and its aspect, with padding in the mean colour.", letterbox, pads=True),
})


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; saved with the weights, so no later command needs options.

    ``height`` and ``width`` in pixels. ``fit`` is a name in FITS. ``mean`` and ``std`` are ImageNet's, of the RGB
    channels in [0, 1].
    """

    height: int = 224
    width: int = 224
    fit: str = "squash"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        FITS.check(self.fit)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def padding(self) -> Colour | None:
        """The colour beyond the image: the mean, nearly 0 for the network, as convolutions pad; None reflects."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return (red, green, blue) if FITS[self.fit].pads else None

    @property
    def aspect(self) -> float:
        return self.width / self.height


def plain_view(preprocessing: Preprocessing, image_size: tuple[int, int]) -> View:
    """Return the view without augmentation of an image of (height, width)."""
    return box_view(FITS[preprocessing.fit].box(preprocessing.aspect, image_size), image_size)


def augmented(
    image: Image, view: View, aspect: float, augmentations: tuple[str, ...], generator: Generator
) -> tuple[Image, View]:
    """Return the image and the view of it after random changes, in the order of AUGMENTATIONS."""
    for name, change in AUGMENTATIONS.items():
        if name in augmentations:
            image, view = change(image, view, aspect, generator)
    return image, view


def crop(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Keep 50 to 100 % of the area."""
    share = np.sqrt(generator.uniform(0.5, 1.0))
    left, top = generator.uniform(0, 1 - share, 2)
    return image, compose(view, share_view(left, top, share))


def resized_crop(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Keep 8 to 100 % of the area, in an aspect from 3:4 to 4:3: Inception's random resized crop.

    Szegedy et al., CVPR 2015, as torchvision's RandomResizedCrop draws it: of ten parts the first that fits, or else
    the largest in the middle.
    """
    across, down = np.linalg.norm(view[:, :2] * [[image.shape[1]], [image.shape[0]]], axis=0)      # seen, in pixels
    least, most = 3 / 4, 4 / 3
    area, aspects = generator.uniform(0.08, 1, 10), np.exp(generator.uniform(np.log(least), np.log(most), 10))
    shares = np.sqrt(area * [aspects * down / across, across / down / aspects])     # (2, 10) of both sides
    place, fits = generator.random(2), (shares <= 1).all(axis=0)
    share = shares[:, fits.argmax()]
    if not fits.any():
        nearest = np.clip(across / down, least, most)
        share, place = np.minimum(1, [nearest * down / across, across / down / nearest]), np.full(2, 0.5)
    return image, compose(view, np.column_stack([np.diag(share), (1 - share) * place]))


def scale(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Enlarge by 0.9 to 1.1 about the centre; the paper scales, the range is ours."""
    share = 1 / generator.uniform(0.9, 1.1)
    return image, compose(view, share_view((1 - share) / 2, (1 - share) / 2, share))


def rotate(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Turn by up to 15 degrees."""
    return image, compose(view, turned_view(np.radians(generator.uniform(-15, 15)), aspect))


def mirror(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Exchange left and right, every other time."""
    return image, compose(view, MIRROR) if mirrored(generator) else view


def mirrored(generator: Generator) -> bool:
    """Say whether `mirror` mirrors; where it is the only augmentation, the generator is new."""
    return generator.random() < 0.5


def intensity(image: Image, view: View, aspect: float, generator: Generator) -> tuple[Image, View]:
    """Change contrast (x 0.8 to 1.2, about mid-grey) and brightness (up to 10 % of the range)."""
    contrast, brightness = generator.uniform(0.8, 1.2), generator.uniform(-25.5, 25.5)
    table = np.clip((np.arange(256) - 127.5) * contrast + 127.5 + brightness, 0, 255).round().astype(np.uint8)
    return cv2.LUT(image, table).astype(np.uint8), view


AUGMENTATIONS: Choices[Augmentation] = Choices("augmentation", {
    "crop": crop, "resized-crop": resized_crop, "scale": scale, "rotate": rotate, "mirror": mirror,
    "intensity": intensity,
})

"""How an image becomes the network's input: how it is fitted, random views in training, and whose map it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import RunError
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
Numbers = npt.NDArray[np.int64]
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


AUGMENTATIONS: Choices[Augmentation] = Choices(
    "augmentation", {"crop": crop, "rotate": rotate, "mirror": mirror, "intensity": intensity}
)


def keep_maps(has_map: npt.NDArray[np.bool_], seed: int) -> Numbers:
    """Every image keeps its own map."""
    return np.arange(len(has_map))


def exchange_maps(has_map: npt.NDArray[np.bool_], seed: int) -> Numbers:
    """The sham control: every image gets another one's map.

    The samples with a map form a random circle, and each takes its neighbour's; the others have none.
    """
    circle = np.flatnonzero(has_map)
    if len(circle) < 2:
        raise RunError(f"--control shuffled exchanges maps between samples and needs two with a map, got {len(circle)}")
    circle = np.random.default_rng(seed).permutation(circle)
    owner = np.arange(len(has_map))
    owner[circle] = np.roll(circle, 1)
    return owner


#: Which samples have a map (n,), a seed → the sample whose map each sample gets (n,).
CONTROLS: Choices[Callable[[npt.NDArray[np.bool_], int], Numbers]] = Choices(
    "control", {"none": keep_maps, "shuffled": exchange_maps}
)

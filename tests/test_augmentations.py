"""Random views: image and map show the same, and what is shown has the size and the place that were asked for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hkmap.engine.data import seen_example
from hkmap.engine.inputs import AUGMENTATIONS, Preprocessing, augmented, plain_view
from hkmap.maps.certainty import Weighted
from hkmap.maps.geometry import WHOLE, reaches_out

MOVING = tuple(name for name in AUGMENTATIONS if name != "intensity")


def drawn(height: int, width: int) -> np.ndarray:
    """A smooth drawing without symmetry, (H, W) in [0, 1], that reaches all edges."""
    noise = np.random.default_rng(7).random((5, 4), np.float32)
    return np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


@pytest.mark.parametrize("name", [*((name,) for name in MOVING), MOVING])
@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_image_and_map_show_the_same(name: tuple[str, ...], fit: str) -> None:
    """The map is the image's own grey values, so after any view they agree in each cell that is known."""
    values, preprocessing = drawn(90, 120), Preprocessing(60, 72, fit)
    image = np.repeat((255 * values).round().astype(np.uint8)[..., None], 3, axis=2)
    generator, differing = np.random.default_rng(1), []
    for _ in range(20):
        _, view = augmented(image, plain_view(preprocessing, (90, 120)), preprocessing.aspect, name, generator)
        seen = seen_example(image, Weighted(values, None), view, preprocessing, map_size=(10, 12))
        cells = seen.image[..., 0].reshape(10, 6, 12, 6).mean(axis=(1, 3)) / 255
        differing.append(np.abs(cells - seen.map)[seen.certainty > 0.999].max())
    assert max(differing) < 0.06
    assert np.median(differing) < 0.02


def views(name: str, size: tuple[int, int], count: int) -> np.ndarray:
    """What ``name`` shows of an image of (height, width), seen whole: left, top, right and bottom in pixels."""
    image, generator = np.zeros((*size, 3), np.uint8), np.random.default_rng(0)
    shown = np.array([AUGMENTATIONS[name](image, WHOLE, 1.0, generator)[1] for _ in range(count)])
    assert not shown[:, 0, 1].any()
    assert not shown[:, 1, 0].any()
    starts, sides = shown[:, :, 2], shown[:, (0, 1), (0, 1)]
    return np.concatenate([starts, starts + sides], axis=1) * [*size[::-1], *size[::-1]]


@pytest.mark.parametrize("size", [(100, 100), (100, 130), (130, 100), (90, 300)])
def test_a_resized_crop_has_the_areas_and_aspects_of_inceptions(size: tuple[int, int]) -> None:
    left, top, right, bottom = views("resized-crop", size, 600).T
    height, width = size
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= width + 1e-9
    assert bottom.max() <= height + 1e-9
    area, aspect = (right - left) * (bottom - top) / (height * width), (right - left) / (bottom - top)
    assert 0.08 <= area.min() < 0.1
    assert 3 / 4 - 1e-9 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-9
    if height == width:      # 3:4 as often as 4:3; of a wide image more of the wide parts fit
        assert np.median(np.log(aspect)) == pytest.approx(0, abs=0.03)
    share = left[right - left < width - 1] / (width - right + left)[right - left < width - 1]
    assert share.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("size", "expected"), [
    ((10, 400), (200 - 20 / 3, 0, 200 + 20 / 3, 10)), ((400, 10), (0, 200 - 20 / 3, 10, 200 + 20 / 3)),
])
def test_where_no_crop_fits_it_is_the_largest_in_the_middle(size: tuple[int, int], expected: tuple[float, ...]) -> None:
    """A part of 8 % of a line is longer than 4:3."""
    assert views("resized-crop", size, 20) == pytest.approx(np.tile(expected, (20, 1)))


def test_scaling_keeps_the_centre_and_goes_both_ways() -> None:
    left, top, right, bottom = views("scale", (80, 100), 400).T
    assert (left + right) / 2 == pytest.approx(np.full(400, 50))
    assert (top + bottom) / 2 == pytest.approx(np.full(400, 40))
    factor = 100 / (right - left)
    assert 0.9 <= factor.min() < 0.905
    assert 1.095 < factor.max() <= 1.1
    assert factor == pytest.approx(80 / (bottom - top))


def test_beyond_an_image_that_is_not_padded_the_map_is_reflected_as_the_image_is() -> None:
    view = np.array([[1.25, 0, -0.125], [0, 1.25, -0.125]])
    assert reaches_out(view)
    ones = np.ones((16, 16), np.float32)
    seen = seen_example(np.full((32, 32, 3), 255, np.uint8), Weighted(ones, None), view, Preprocessing(32, 32),
                        map_size=(8, 8))
    assert seen.image.min() == 255
    assert seen.map.min() == pytest.approx(1)
    assert seen.certainty.min() == 1


def test_augmentations_draw_the_same_numbers_whatever_the_image_is() -> None:
    """So that what is drawn next, and with it a resumed run, does not depend on a crop that fitted."""
    ends = []
    for size in ((100, 100), (10, 400)):
        generator = np.random.default_rng(3)
        for name in MOVING:
            AUGMENTATIONS[name](np.zeros((*size, 3), np.uint8), WHOLE, 1.0, generator)
        ends.append(generator.random())
    assert ends[0] == ends[1]

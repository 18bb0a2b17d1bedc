"""One transform moves image and map: a landmark in the image stays under its landmark in the map."""

from __future__ import annotations

import numpy as np
import pytest

from hkmap.engine.views import (
    WHOLE,
    Preprocessing,
    change_intensity,
    plain_view,
    random_view,
    view_image,
    view_map,
)
from hkmap.maps.resize import resize_map


def blob(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A disc, its centre at (x, y) in shares of the sides."""
    rows, columns = np.mgrid[:height, :width]
    return (np.hypot(columns + 0.5 - x * width, rows + 0.5 - y * height) < radius).astype(np.float32)


def centre_of(values: np.ndarray) -> tuple[float, float]:
    """The centre of mass in shares of the sides."""
    height, width = values.shape
    rows, columns = np.mgrid[:height, :width]
    total = values.sum()
    return ((columns + 0.5) * values).sum() / total / width, ((rows + 0.5) * values).sum() / total / height


@pytest.mark.parametrize("augmentations", [
    (), ("mirror",), ("crop",), ("rotate",), ("mirror", "crop", "rotate"),
])
@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("size", [(120, 200), (300, 180), (64, 64)])
def test_image_and_map_move_together(augmentations, fit, size):
    preprocessing, rng = Preprocessing(96, 96, fit), np.random.default_rng(3)
    height, width = size
    for _ in range(12):
        view = random_view(preprocessing, size, augmentations, rng)
        # the landmark lies in the middle of the view, so that no view cuts it off
        x, y = view @ [0.5, 0.5, 1]
        landmark = blob(height, width, x, y, 0.07 * min(size))
        image = np.repeat((255 * landmark)[:, :, None], 3, axis=2).astype(np.uint8)
        seen = view_image(image, view, (96, 96))[:, :, 0].astype(np.float32)
        drawn = view_map(resize_map(landmark, (56, 56)), view, (24, 24))
        assert seen.shape == (96, 96)
        assert drawn.shape == (24, 24)
        assert np.allclose(centre_of(seen), 0.5, atol=0.5 / 24)
        assert np.allclose(centre_of(drawn), 0.5, atol=0.5 / 24)        # within half a cell
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_an_off_centre_landmark_keeps_its_side():
    """Neither mirrored nor transposed: upper left stays upper left."""
    landmark = blob(90, 160, 0.25, 0.3, 8)
    image = np.repeat((255 * landmark)[:, :, None], 3, axis=2).astype(np.uint8)
    seen = view_image(image, WHOLE, (64, 64))[:, :, 0].astype(np.float32)
    assert np.allclose(centre_of(seen), (0.25, 0.3), atol=0.01)
    assert np.allclose(centre_of(view_map(resize_map(landmark, (32, 32)), WHOLE, (16, 16))), (0.25, 0.3), atol=0.01)


def test_without_a_view_a_map_is_only_resized():
    values = np.random.default_rng(0).random((28, 28), np.float32)
    assert np.array_equal(view_map(values, WHOLE, (14, 14)), resize_map(values, (14, 14)))


@pytest.mark.parametrize(("size", "view"), [
    ((100, 200), [[0.5, 0, 0.25], [0, 1, 0]]),      # the middle square of a wide image
    ((200, 100), [[1, 0, 0], [0, 0.5, 0.25]]),
    ((100, 100), [[1, 0, 0], [0, 1, 0]]),
])
def test_fit_crop_is_the_largest_middle_square(size, view):
    assert np.allclose(plain_view(Preprocessing(64, 64, "crop"), size), view)


def test_a_mirrored_view_mirrors_exactly():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    mirror = np.array([[-1.0, 0, 1], [0, 1, 0]])
    assert np.array_equal(view_image(image, mirror, (20, 30)), image[:, ::-1])
    values = np.random.default_rng(0).random((14, 14), np.float32)
    assert np.allclose(view_map(values, mirror, (14, 14)), values[:, ::-1], atol=1e-6)


def test_shrinking_averages_an_image():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200        # stripes that a bare bilinear sampling would alias
    seen = view_image(image, np.array([[0.98, 0, 0.01], [0, 0.98, 0.01]]), (8, 8))
    assert np.abs(seen.astype(int) - 100).max() <= 8


def test_intensity_changes_the_image_and_stays_in_range():
    image = np.linspace(0, 255, 300).astype(np.uint8).reshape(10, 10, 3)
    changed = change_intensity(image, np.random.default_rng(1))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)

"""Insertion and deletion against a plain, slow, literal implementation of RISE's protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from literal_curves import literal_area, literal_blur, literal_curve
from scipy.ndimage import gaussian_filter

from hkmap.engine.resize import resize_maps
from hkmap.evaluation.curves import (
    BLURS,
    auc,
    curve,
    deletion,
    gaussian_blur,
    insertion,
    rank_pixels,
    rise_blur,
)
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("step", [8, 30])        # 30 does not divide 15 x 16
def test_curves_equal_the_literal_protocol(dtype, batch_size, step):
    torch.manual_seed(1)
    network = build(Architecture("resnet8+abn", 4, stem="small", width=4)).eval().to(dtype)
    image = torch.randn(3, 15, 16, dtype=dtype)
    saliency = torch.randint(0, 9, (15, 16)).to(dtype) / 8      # many ties
    chosen = 2

    def score(frames):
        return network(frames).logits.softmax(1)[:, chosen]

    curve_tolerance, area_tolerance = (1e-10, 1e-10) if dtype == torch.float64 else (1e-4, 1e-5)
    with torch.no_grad():
        for measure, start, finish in (
            (deletion, image, torch.zeros_like(image)),
            (insertion, literal_blur(image), image),
        ):
            found = measure(score, image, saliency, step, batch_size=batch_size)
            wanted, _ = literal_curve(network, start, finish, saliency, step, chosen)
            assert found.shape == wanted.shape == (-(-240 // step) + 1,)
            assert np.abs(found.numpy() - wanted).max() < curve_tolerance
            assert abs(auc(found).item() - literal_area(wanted)) < area_tolerance


def test_the_blur_is_nearly_a_box_and_darkens_the_border():
    image = torch.ones(3, 40, 40, dtype=torch.float64)
    blurred = rise_blur(image)
    assert torch.allclose(blurred, literal_blur(image), atol=1e-12)
    assert blurred[0, 20, 20].item() == pytest.approx(1.0)
    assert blurred[0, 0, 0].item() < 0.4
    impulse = torch.zeros(3, 21, 21, dtype=torch.float64)
    impulse[:, 10, 10] = 1
    kernel = rise_blur(impulse)[0]
    assert (kernel[10, 10] / kernel[5, 5]).item() == pytest.approx(1.142, abs=1e-3)    # a true Gaussian has 2.718


@pytest.mark.parametrize("size", [(40, 61), (9, 7)])
def test_the_true_gaussian_is_scipys(size):
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = np.array([[gaussian_filter(channel, 5) for channel in one] for one in image.numpy()])
    assert np.abs(gaussian_blur(image).numpy() - expected).max() < 1e-12


def test_insertion_can_begin_with_nothing():
    assert not BLURS["zeros"](torch.ones(2, 3, 4, 5)).any()


@pytest.mark.parametrize("blur", BLURS)
def test_a_blur_treats_images_of_a_batch_alike(blur):
    images = torch.randn(3, 3, 17, 12)
    each = torch.stack([BLURS[blur](image) for image in images])
    torch.testing.assert_close(BLURS[blur](images), each, rtol=0, atol=1e-6)


def test_ranks_of_several_maps_are_those_of_each():
    maps = torch.randint(0, 9, (4, 1, 10, 11)) / 8
    assert torch.equal(rank_pixels(maps), torch.stack([rank_pixels(one[0])[None] for one in maps]))


def test_ties_fall_in_raster_order():
    assert rank_pixels(torch.zeros(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_noise_of_float32_breaks_no_tie(scale):
    """As a map has it that one machine sums in another order than another."""
    steps = torch.randint(0, 9, (20, 30), generator=torch.Generator().manual_seed(3)) / 8
    noise = 1e-7 * (torch.rand(20, 30, generator=torch.Generator().manual_seed(4)) - 0.5)
    assert torch.equal(rank_pixels((steps + noise) * scale), rank_pixels(steps))
    assert rank_pixels(torch.tensor([[0.5, 0.5 + 2**-19]])).tolist() == [[1, 0]]      # a difference, not noise


def test_a_map_that_tells_nothing_is_ranked_in_raster_order_where_it_was_resized():
    flat = resize_maps(torch.full((1, 1, 7, 7), 0.3), (45, 61))[0, 0]
    assert torch.equal(rank_pixels(flat).flatten(), torch.arange(45 * 61))


def test_resized_maps_have_gradients_also_after_a_measurement():
    maps = torch.rand(1, 1, 5, 5, requires_grad=True)
    with torch.inference_mode():
        resize_maps(torch.rand(1, 1, 5, 5), (9, 11))      # keeps its matrices
    resize_maps(maps, (9, 11)).sum().backward()
    assert maps.grad.sum().item() == pytest.approx(99, rel=1e-5)


def test_the_ends_are_the_two_images():
    start, finish = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    scores = curve(lambda frames: frames.mean((1, 2, 3)), start, finish, rank_pixels(torch.rand(4, 4)), 4)
    assert scores.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_linear_score_by_random_maps_falls_in_a_straight_line():
    """As each pixel is as likely to go first as another; the curve of each map is the sum of what is left."""
    generator = torch.Generator().manual_seed(6)
    image, weights = torch.rand(3, 6, 8, generator=generator), torch.rand(3, 6, 8, generator=generator)
    worth = (image * weights).sum(0).flatten()
    areas = []
    for _ in range(300):
        order = torch.randperm(48, generator=generator)
        saliency = torch.empty(48)
        saliency[order] = torch.arange(48.0, 0, -1)
        scores = deletion(lambda frames: (frames * weights).sum((1, 2, 3)), image, saliency.view(6, 8), 4)
        left = [worth[order[changed:]].sum().item() for changed in range(0, 49, 4)]
        assert scores.tolist() == pytest.approx(left, rel=1e-5, abs=1e-4)
        areas.append(auc(scores).item())
    error = np.std(areas) / len(areas) ** 0.5
    assert abs(np.mean(areas) - worth.sum().item() / 2) < 4 * error

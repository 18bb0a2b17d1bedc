"""Insertion and deletion against a plain, slow, literal implementation of RISE's protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hkmap.engine.resize import resize_maps
from hkmap.evaluation.curves import auc, curve, deletion, insertion, rank_pixels, rise_blur
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture


def literal_curve(network, start, finish, saliency, step, chosen):
    """One pixel after the other, one image after the other, in numpy and in the order of the protocol."""
    values = saliency.numpy()
    height, width = values.shape
    places = sorted((-values[i, j], i * width + j) for i in range(height) for j in range(width))
    frame, scores = start.clone(), []
    for number, (_, place) in enumerate(places):
        if number % step == 0:
            scores.append(network(frame[None]).logits.softmax(1)[0, chosen].item())
        frame[:, place // width, place % width] = finish[:, place // width, place % width]
    scores.append(network(frame[None]).logits.softmax(1)[0, chosen].item())
    return np.array(scores)


def literal_blur(image):
    """conv2d with zero padding, spelled out, of RISE's gkern(11, 5)."""
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    kernel = gaussian_filter(delta, 5)
    padded = np.pad(image.numpy(), ((0, 0), (5, 5), (5, 5)))
    out = np.zeros(image.shape)
    for channel in range(3):
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                out[channel, i, j] = (padded[channel, i : i + 11, j : j + 11] * kernel).sum()
    return torch.from_numpy(out).to(image.dtype)


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
            wanted = literal_curve(network, start, finish, saliency, step, chosen)
            assert found.shape == wanted.shape == (-(-240 // step) + 1,)
            assert np.abs(found.numpy() - wanted).max() < curve_tolerance
            area = (wanted.sum() - wanted[0] / 2 - wanted[-1] / 2) / (len(wanted) - 1)
            assert abs(auc(found).item() - area) < area_tolerance


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

"""RISE's protocol, plain and slow: one image, one pixel, one frame after the other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def literal_frames(start, finish, saliency, step):
    """Yield the frames (3, H, W) while the most salient pixels change first, ties in raster order."""
    height, width = saliency.shape
    values = saliency.numpy()
    places = sorted((-values[i, j], i * width + j) for i in range(height) for j in range(width))
    frame = start.clone()
    for number, (_, place) in enumerate(places):
        if number % step == 0:
            yield frame.clone()
        frame[:, place // width, place % width] = finish[:, place // width, place % width]
    yield frame


def literal_curve(network, start, finish, saliency, step, chosen, *held):
    """The probability of the class, and whether it is the answer: two arrays (steps + 1,)."""
    scores, hits = [], []
    for frame in literal_frames(start, finish, saliency, step):
        logits = network(frame[None], *held).logits[0].double().numpy()
        exponentials = np.exp(logits - logits.max())
        scores.append(exponentials[chosen] / exponentials.sum())
        hits.append(float(logits.argmax() == chosen))
    return np.array(scores), np.array(hits)


def literal_area(scores):
    """The trapezoids one by one, each as wide as the others."""
    return sum((one + other) / 2 for one, other in pairwise(scores)) / (len(scores) - 1)


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


def lively(network):
    """Give norms statistics of their own, so that a network without them would answer otherwise."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.copy_(torch.rand(values.shape, generator=generator, dtype=torch.float64) + 0.5)
    return network

"""Insertion and deletion: how fast the answer appears, or disappears, with the pixels that a map calls important.

Pure functions on their input's device. They follow RISE (Petsiuk et al., BMVC 2018, and its evaluation.py), except that
ties between pixels are in raster order, where RISE's sort is unstable, and that a map is rounded before it is ranked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hkmap.choices import Choices
from hkmap.networks.classifier import Classifier

Score = Callable[[Tensor], Tensor]       # images (m, 3, H, W) → the score of each (m,)


def rank_pixels(saliency: Tensor) -> Tensor:
    """Return the rank of each pixel (H, W) in the order of decreasing saliency (H, W); ties in raster order.

    Values are rounded to multiples of 2^-20 of the largest magnitude first. Pixels that are equal in exact arithmetic
    thus tie, although their sums of float32 may differ, and not alike on every machine.

    >>> rank_pixels(torch.tensor([[0.1, 0.9], [0.9, 0.0]]))
    tensor([[2, 0],
            [1, 3]])
    """
    values = saliency.flatten().double()
    order = (values / values.abs().max().clamp(min=1e-300) * 2**20).round().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks.view(saliency.shape)


def curve(score: Score, start: Tensor, finish: Tensor, ranks: Tensor, step: int, *, batch_size: int = 32) -> Tensor:
    """Return the scores (steps + 1,) while ``start`` (3, H, W) turns into ``finish``, ``step`` pixels at a time.

    Pixels change, all channels together, in the order of ``ranks`` (H, W); the last step may be shorter.
    """
    frames = -(-ranks.numel() // step) + 1
    scores = []
    for first in range(0, frames, batch_size):
        changed = torch.arange(first, min(first + batch_size, frames), device=ranks.device) * step
        images = torch.where(ranks < changed[:, None, None, None], finish, start)      # (m, 3, H, W)
        scores.append(score(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(scores)


def deletion(score: Score, image: Tensor, saliency: Tensor, step: int, *, batch_size: int = 32) -> Tensor:
    """Return the deletion curve of an image (3, H, W): pixels become 0, the mean colour, most salient first."""
    return curve(score, image, torch.zeros_like(image), rank_pixels(saliency), step, batch_size=batch_size)


def insertion(score: Score, image: Tensor, saliency: Tensor, step: int, *, batch_size: int = 32) -> Tensor:
    """Return the insertion curve of an image (3, H, W): blurred pixels become sharp, most salient first."""
    return curve(score, rise_blur(image), image, rank_pixels(saliency), step, batch_size=batch_size)


def auc(scores: Tensor) -> Tensor:
    """Return RISE's area under a curve (..., steps + 1): trapezoids of equal width, also for a short last step.

    >>> auc(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000)
    """
    return (scores.sum(-1) - scores[..., 0] / 2 - scores[..., -1] / 2) / (scores.shape[-1] - 1)


def rise_blur(image: Tensor) -> Tensor:
    """Blur a normalised image (3, H, W) exactly as RISE does: gkern(11, 5), zero padding.

    That kernel is not a truncated Gaussian: scipy filters an 11 x 11 delta in reflect mode, which folds the tails back.
    """
    kernel = _rise_kernel().to(device=image.device, dtype=image.dtype).expand(3, 1, 11, 11)
    return functional.conv2d(image[None], kernel, padding=5, groups=3)[0]


@lru_cache(maxsize=1)
def _rise_kernel() -> Tensor:
    from scipy.ndimage import gaussian_filter

    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    return torch.from_numpy(gaussian_filter(delta, 5))


BLURS: Choices[Callable[[Tensor], Tensor]] = Choices("blur", {"rise": rise_blur})


class Curves(NamedTuple):
    """The curves (B, n + 1) of a batch: of the class's probability, and 1 where it is the answer."""

    probability: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class Frames:
    """How the frames of curves are made and answered: ``step`` pixels at a time, ``batch_size`` images at once."""

    network: Classifier
    step: int
    batch_size: int
    blur: str = "rise"

    def curves(
        self, kind: str, images: Tensor, saliency: Tensor, classes: Tensor, *, clean: Tensor, held: Tensor | None
    ) -> Curves:
        """Return the curves of images (B, 3, H, W), whose saliency (B, 1, H, W) ranks their pixels.

        ``classes`` (B,) are those that are scored, ``clean`` (B, K) the logits of the whole images. All frames of an
        image get its map in ``held`` (B, 1, h, w); with None the network makes a new one for each.
        """
        drawn = []
        for row, image in enumerate(images):
            start, finish = (image, torch.zeros_like(image)) if kind == "deletion" else (rise_blur(image), image)

            def score(frames: Tensor, row: int = row) -> Tensor:
                given = () if held is None else (held[row].expand(len(frames), -1, -1, -1),)
                logits = self.network(frames, *given).logits
                hits = logits.argmax(1) == classes[row]
                return torch.stack([logits.softmax(1)[:, classes[row]], hits.to(logits.dtype)], dim=1)

            ranks = rank_pixels(saliency[row, 0])
            drawn.append(curve(score, start, finish, ranks, self.step, batch_size=self.batch_size))
        return Curves(*torch.stack(drawn).unbind(2))

"""Insertion and deletion: how fast the answer appears, or disappears, with the pixels that a map calls important.

Pure functions on their input's device. They follow RISE (Petsiuk et al., BMVC 2018, and its evaluation.py), except that
ties between pixels are in raster order, where RISE's sort is unstable, and that a map is rounded before it is ranked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hkmap.choices import Choices
from hkmap.evaluation.fast import AT_ONCE, DTYPES, Numbers, frames_that_fit, prepared
from hkmap.networks.classifier import Classifier

Score = Callable[[Tensor], Tensor]       # images (m, 3, H, W) → the score of each (m,)


def rank_pixels(saliency: Tensor) -> Tensor:
    """Return the rank of each pixel in the order of decreasing saliency (..., H, W); ties in raster order.

    Values are rounded to multiples of 2^-20 of the largest magnitude first. Pixels that are equal in exact arithmetic
    thus tie, although their sums of float32 may differ, and not alike on every machine.

    >>> rank_pixels(torch.tensor([[0.1, 0.9], [0.9, 0.0]]))
    tensor([[2, 0],
            [1, 3]])
    """
    values = saliency.flatten(-2).double()
    largest = values.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    order = (values / largest * 2**20).round().argsort(descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).view(saliency.shape)


def curve(score: Score, start: Tensor, finish: Tensor, ranks: Tensor, step: int, *, batch_size: int = 32) -> Tensor:
    """Return the scores (steps + 1,) while ``start`` (3, H, W) turns into ``finish``, ``step`` pixels at a time.

    Pixels change, all channels together, in the order of ``ranks`` (H, W); the last step may be shorter.
    """
    changed = torch.arange(-(-ranks.numel() // step) + 1, device=ranks.device) * step
    return _answers(
        lambda frames, rows: score(frames), start[None], finish[None], ranks[None], changed, batch_size=batch_size
    )[0]


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


# what insertion begins with


def rise_blur(image: Tensor) -> Tensor:
    """Blur normalised images (..., 3, H, W) exactly as RISE does: gkern(11, 5), zero padding.

    That kernel is not a truncated Gaussian: scipy filters an 11 x 11 delta in reflect mode, which folds the tails back.
    """
    kernel = _rise_kernel().to(device=image.device, dtype=image.dtype).expand(3, 1, 11, 11)
    return functional.conv2d(image, kernel, padding=5, groups=3)


@lru_cache(maxsize=1)
def _rise_kernel() -> Tensor:
    from scipy.ndimage import gaussian_filter

    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    return torch.from_numpy(gaussian_filter(delta, 5))


def gaussian_blur(image: Tensor) -> Tensor:
    """Blur images (..., 3, H, W) by a true Gaussian of sigma 5 pixels, reflected at the border, as scipy does."""
    rows, columns = (
        torch.from_numpy(_gaussian(side)).to(device=image.device, dtype=image.dtype) for side in image.shape[-2:]
    )
    return rows @ image @ columns.T


@lru_cache(maxsize=8)
def _gaussian(side: int) -> npt.NDArray[np.float64]:
    """Return the matrix (side, side) that blurs a column of pixels."""
    from scipy.ndimage import gaussian_filter1d

    matrix: npt.NDArray[np.float64] = gaussian_filter1d(np.eye(side), 5, axis=0, mode="reflect")
    return matrix


def no_image(image: Tensor) -> Tensor:
    """Show nothing but the mean colour, with which deletion ends."""
    return torch.zeros_like(image)


BLURS: Choices[Callable[[Tensor], Tensor]] = Choices(
    "blur", {"rise": rise_blur, "gaussian": gaussian_blur, "zeros": no_image}
)


# many images at once


class Curves(NamedTuple):
    """The curves (B, n + 1) of a batch: of the class's probability, and 1 where it is the answer."""

    probability: Tensor
    accuracy: Tensor


class Ready(NamedTuple):
    """What answers frames: a network, their type and number in a pass; ``nothing`` (1, K) is its answer to zeros."""

    network: Classifier
    dtype: torch.dtype
    batch_size: int
    nothing: Tensor


@dataclass
class Frames:
    """How the frames of an evaluation's curves are made and answered: ``step`` pixels change at a time.

    ``batch_size`` frames are in a forward pass; None is 16 on the CPU, on CUDA half of what fits. ``blur`` is a name
    in BLURS. A copy of the network answers them, which is prepared when the first curve is drawn: for numbers of the
    ``dtype``, a row of DTYPES, and ``compiled`` or not.
    """

    network: Classifier
    step: int
    batch_size: int | None = None
    blur: str = "rise"
    dtype: str | Numbers = "float32"
    compiled: bool = False
    ready: Ready | None = field(default=None, init=False, repr=False)

    def curves(
        self, kind: str, images: Tensor, saliency: Tensor, classes: Tensor, *, clean: Tensor, held: Tensor | None
    ) -> Curves:
        """Return the curves of images (B, 3, H, W), whose saliency (B, 1, H, W) ranks their pixels.

        ``classes`` (B,) are those that are scored, ``clean`` (B, K) the logits of the whole images. All frames of an
        image get its map in ``held`` (B, 1, h, w); with None the network makes a new one for each.
        """
        ready = self.ready = self.ready or self._prepare(images[:1])
        blur = BLURS.row(self.blur)
        start, finish = (images, no_image(images)) if kind == "deletion" else (blur(images), images)
        # the ends are known: the whole image, and zeros, unless each is seen with a map of its own
        whole = _scored(clean, classes)
        nothing = _scored(ready.nothing.expand(len(images), -1), classes) if held is None else None
        ends = (whole, nothing) if kind == "deletion" else (nothing if blur is no_image else None, whole)
        steps = -(-images.shape[2] * images.shape[3] // self.step)
        changed = torch.arange(ends[0] is not None, steps + (ends[1] is None), device=images.device) * self.step

        def answer(frames: Tensor, rows: Tensor) -> Tensor:
            given = () if held is None else (held[rows],)
            return _scored(ready.network(frames, *given).logits, classes[rows])

        parts = [end if end is None else end[:, None] for end in ends]      # (B, 1, 2)
        if len(changed):
            parts.insert(1, _answers(
                answer, start.to(ready.dtype), finish.to(ready.dtype), rank_pixels(saliency[:, 0]), changed,
                batch_size=ready.batch_size, filled=self.compiled,
            ))
        return Curves(*torch.cat([part for part in parts if part is not None], dim=1).unbind(2))

    def _prepare(self, image: Tensor) -> Ready:
        network, dtype = prepared(self.network, image[0], self.dtype), DTYPES.row(self.dtype).dtype
        zeros = torch.zeros_like(image, dtype=dtype)     # (1, 3, H, W)

        def forward(count: int) -> Tensor:
            frames = zeros.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            return network(frames).logits

        batch_size = self.batch_size or (frames_that_fit(forward) if image.is_cuda else AT_ONCE)
        nothing = forward(1)
        if self.compiled:
            network = torch.compile(network, dynamic=False)
        return Ready(network, dtype, batch_size, nothing)


def _scored(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of the classes (B,), and 1 where they are the answer, else 0: (B, 2)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probability = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    hit = (logits.argmax(1) == classes) + 0 * probability       # NaN where the answer is
    return torch.stack([probability, hit], dim=1)


def _answers(
    answer: Callable[[Tensor, Tensor], Tensor], start: Tensor, finish: Tensor, ranks: Tensor, changed: Tensor, *,
    batch_size: int, filled: bool = False,
) -> Tensor:
    """Return the answers (B, m, ...) to m frames of each of B images; ``changed`` (m,) pixels of each are changed.

    They change from ``start`` to ``finish`` (B, 3, H, W) in the order of ``ranks`` (B, H, W). ``answer`` is asked of
    ``batch_size`` frames (n, 3, H, W) at once, which may be of several images, and of their rows (n,) in the batch; if
    ``filled``, of never fewer, whose last ones are then of no account.
    """
    each, count = len(changed), len(start) * len(changed)
    rows = (torch.arange(count + batch_size, device=start.device) // each).clamp(max=len(start) - 1)
    start, finish = (images.contiguous(memory_format=torch.channels_last) for images in (start, finish))
    found = []
    for first in range(0, count, batch_size):
        last = min(first + batch_size, count)
        size = batch_size if filled else last - first
        frames = torch.empty(
            (size, *start.shape[1:]), dtype=start.dtype, device=start.device, memory_format=torch.channels_last
        )
        for row in range(first // each, -(-last // each)):
            begin, end = max(first, row * each), min(last, (row + 1) * each)
            shown = ranks[row] < changed[begin - row * each : end - row * each, None, None, None]      # (n, 1, H, W)
            torch.where(shown, finish[row], start[row], out=frames[begin - first : end - first])
        frames[last - first :] = 0
        found.append(answer(frames, rows[first : first + size])[: last - first])
    return torch.cat(found).unflatten(0, (len(start), each))

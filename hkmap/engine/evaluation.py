"""Was it more right, and more honest: accuracy, distance to the human map, insertion and deletion (RISE).

Insertion and deletion are pure functions on their input's device. They follow RISE (Petsiuk et al., BMVC 2018,
and its evaluation.py), except that ties between pixels are broken by raster order, where RISE leaves them to
an unstable sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hkmap.engine.abn import AttentionBranchNetwork, Output, place
from hkmap.engine.data import Batch, ShardExamples, in_order, normalise
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.maps import resize_maps
from hkmap.errors import RunError

Score = Callable[[Tensor], Tensor]       # images (m, 3, H, W) → the score of each (m,)
FRAMES = 28                              # RISE's steps for figures of a data set: 1,792 of 224 x 224 pixels at a time


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how.

    ``use_maps`` puts the human map in the place of the predicted one wherever there is one. ``step`` is the pixels
    that insertion and deletion change at a time (None: a 28th of the image, 1,792 at 224 x 224). ``hold_attention``
    keeps the clean image's map for every frame instead of letting the network look anew. ``batch_size`` is the
    images a forward pass takes.
    """

    metrics: tuple[str, ...]
    use_maps: bool = False
    step: int | None = None
    hold_attention: bool = False
    batch_size: int = 32


def rank_pixels(saliency: Tensor) -> Tensor:
    """Return each pixel's place (H, W) in the order of decreasing saliency (H, W); ties in raster order.

    >>> rank_pixels(torch.tensor([[0.1, 0.9], [0.9, 0.0]]))
    tensor([[2, 0],
            [1, 3]])
    """
    order = saliency.flatten().argsort(descending=True, stable=True)
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
    """Return the deletion curve of an image (3, H, W): salient pixels first become 0, the mean of normalised images."""
    return curve(score, image, torch.zeros_like(image), rank_pixels(saliency), step, batch_size=batch_size)


def insertion(score: Score, image: Tensor, saliency: Tensor, step: int, *, batch_size: int = 32) -> Tensor:
    """Return the insertion curve of an image (3, H, W): the blurred image gets its salient pixels back first."""
    return curve(score, rise_blur(image), image, rank_pixels(saliency), step, batch_size=batch_size)


def auc(scores: Tensor) -> Tensor:
    """Return RISE's area under a curve (..., steps + 1): trapezoids of equal width, also for a short last step.

    >>> auc(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000)
    """
    return (scores.sum(-1) - scores[..., 0] / 2 - scores[..., -1] / 2) / (scores.shape[-1] - 1)


def rise_blur(image: Tensor) -> Tensor:
    """Blur a normalised image (3, H, W) exactly as RISE does: gkern(11, 5), zero padding.

    That kernel is no cut-off Gaussian: scipy filters an 11 x 11 delta in reflect mode, and the tails fold back.
    """
    kernel = _rise_kernel().to(device=image.device, dtype=image.dtype).expand(3, 1, 11, 11)
    return functional.conv2d(image[None], kernel, padding=5, groups=3)[0]


@lru_cache(maxsize=1)
def _rise_kernel() -> Tensor:
    from scipy.ndimage import gaussian_filter

    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    return torch.from_numpy(gaussian_filter(delta, 5))


def accuracy(
    network: AttentionBranchNetwork,
    examples: ShardExamples,
    indices: npt.NDArray[np.int64],
    device: torch.device,
    batch_size: int,
) -> dict[str, float]:
    """Return what training is validated by, on the samples ``indices``.

    top1 (a share) and loss (cross entropy) of the perception branch and, where there are human maps, mse.
    """
    right, loss, distances = 0.0, 0.0, []
    network.eval()
    with torch.inference_mode():
        for batch in in_order(examples, indices, batch_size):
            batch = batch.to(device)
            output = network(normalise(batch.images, examples.preprocessing))
            if output.attention is not None:
                distances += map_distances(output.attention, batch).tolist()
            logits = output.logits.float()
            right += (logits.argmax(1) == batch.labels).sum().item()
            loss += functional.cross_entropy(logits, batch.labels, reduction="sum").item()
    figures = {"top1": right / len(indices), "loss": loss / len(indices)}
    known = [distance for distance in distances if math.isfinite(distance)]
    return figures | ({"mse": math.fsum(known) / len(known)} if known else {})


def evaluate(
    network: AttentionBranchNetwork,
    examples: ShardExamples,
    options: EvaluationOptions,
    device: torch.device,
    *,
    indices: npt.NDArray[np.int64] | None = None,
) -> Iterator[dict[str, float]]:
    """Yield, sample by sample, the metrics asked for; one that does not apply to a sample is left out.

    ``indices`` are the samples to measure on; None is all.

    top1 and top5 are 0 or 1 (a sample without a label has none). mse is the mean square difference between the
    network's own map and the human map, both in [0, 1], at the network's map size, over the cells that somebody knows
    (a sample without a human map has none); mse_of_zeros comes with it. insertion and deletion are the AUC of the
    probability of the class that the network gives the whole image.
    """
    if network.attention is None and (options.use_maps or not {"top1", "top5"}.issuperset(options.metrics)):
        raise RunError("the network has no attention branch, so it has no map; only top1 and top5 can be measured")
    place(network, device).eval()
    indices = np.arange(len(examples)) if indices is None else indices
    for batch in in_order(examples, indices, options.batch_size):
        with torch.inference_mode():        # not around the yield: it would stay on in the caller
            columns = _evaluate_batch(network, batch.to(device), examples.preprocessing, options)
        for row in zip(*columns.values(), strict=True):
            yield {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}


def reported(metrics: tuple[str, ...]) -> list[str]:
    """Return the metrics asked for and, after mse, what a network would score that looks nowhere.

    Human maps are dark over most of an image, so a low mse alone does not say that anything was learnt.

    >>> reported(("top1", "mse"))
    ['top1', 'mse', 'mse_of_zeros']
    """
    return [name for metric in metrics for name in ((metric, "mse_of_zeros") if metric == "mse" else (metric,))]


def pixel_step(options: EvaluationOptions, image_size: tuple[int, int]) -> int:
    """Return the pixels that insertion and deletion change at a time in an image of (height, width)."""
    return options.step or -(-image_size[0] * image_size[1] // FRAMES)


def put_maps(predicted: Tensor, batch: Batch) -> Tensor:
    """Return the batch's human maps (B, 1, h, w), and the predicted ones where nobody knows."""
    return torch.where(batch.certainty > 0, batch.maps.to(predicted.dtype), predicted)


def map_distances(attention: Tensor, batch: Batch) -> Tensor:
    """Return each sample's mean square difference (B,) from its human map, over the known cells; NaN without a map."""
    square = (attention - batch.maps).square()
    return (batch.certainty * square).sum((1, 2, 3)) / batch.certainty.sum((1, 2, 3))


def _evaluate_batch(
    network: AttentionBranchNetwork, batch: Batch, preprocessing: Preprocessing, options: EvaluationOptions
) -> dict[str, list[float]]:
    """Return each metric's column, NaN where it does not apply."""
    images = normalise(batch.images, preprocessing)
    own = used = network(images)
    if options.use_maps:
        used = network(images, put_maps(own.attention, batch))
    columns = {"top1": _among(used.logits, batch.labels, 1), "top5": _among(used.logits, batch.labels, 5)}
    if own.attention is not None:
        columns["mse"] = map_distances(own.attention, batch)
        columns["mse_of_zeros"] = map_distances(torch.zeros_like(own.attention), batch)
    for name, measure in (("insertion", insertion), ("deletion", deletion)):
        if name in options.metrics:
            areas = [_area(measure, network, images, used, row, options) for row in range(len(images))]
            columns[name] = torch.stack(areas)
    return {name: columns[name].tolist() for name in reported(options.metrics)}


def _among(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return _where(labels >= 0, (highest == labels[:, None]).any(1).float())


def _where(applies: Tensor, values: Tensor) -> Tensor:
    return torch.where(applies, values, values.new_tensor(math.nan))


def _area(
    measure: Callable[..., Tensor],
    network: AttentionBranchNetwork,
    images: Tensor,
    clean: Output,
    row: int,
    options: EvaluationOptions,
) -> Tensor:
    """Return the AUC of one image of the batch, whose pass as a whole image is ``clean``."""
    image, attention = images[row], _attention(clean)[row : row + 1]
    chosen = int(clean.logits[row].argmax())
    held = attention if options.hold_attention or options.use_maps else None

    def score(frames: Tensor) -> Tensor:
        given = None if held is None else held.expand(len(frames), -1, -1, -1)
        return network(frames, given).logits.softmax(1)[:, chosen]

    saliency = resize_maps(attention, (image.shape[1], image.shape[2]))[0, 0]
    step = pixel_step(options, (image.shape[1], image.shape[2]))
    return auc(measure(score, image, saliency, step, batch_size=options.batch_size))


def _attention(output: Output) -> Tensor:
    assert output.attention is not None, "evaluate lets only networks with an attention branch through"
    return output.attention

"""Was it more right, and more honest: the metrics of a network on shards, sample by sample and as means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hkmap.engine.abn import AttentionBranchNetwork, place
from hkmap.engine.data import Batch, ShardExamples, check_classes, in_order, normalise, put_maps
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.metrics import METRICS, Answered, map_distances
from hkmap.engine.runs import HeldOut, TrainedModel, named
from hkmap.errors import RunError
from hkmap.shards.sequence import ShardSequence

FRAMES = 28       # RISE's steps for figures of a data set: 1,792 of 224 x 224 pixels at a time


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how.

    ``metrics`` are names in METRICS. ``use_maps`` puts the human map in the place of the predicted one wherever there
    is one. ``step`` is the pixels that insertion and deletion change at a time (None: a 28th of the image, 1,792 at
    224 x 224). ``hold_attention`` keeps the clean image's map for every frame instead of letting the network look anew.
    ``batch_size`` is the images a forward pass takes. Raises ChoiceError for an unknown metric.
    """

    metrics: tuple[str, ...]
    use_maps: bool = False
    step: int | None = None
    hold_attention: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        METRICS.check(*self.metrics)

    def pixel_step(self, image_size: tuple[int, int]) -> int:
        """Return the pixels that insertion and deletion change at a time in an image of (height, width)."""
        return self.step or -(-image_size[0] * image_size[1] // FRAMES)

    def measures(self) -> dict[str, Callable[[Answered], Tensor]]:
        """Return what is reported, in order, with the functions that measure it: some metrics bring a second figure.

        >>> list(EvaluationOptions(("top1", "mse")).measures())
        ['top1', 'mse', 'mse_of_zeros']
        """
        found = {}
        for name in self.metrics:
            found[name] = METRICS[name].measure
            if (of_zeros := METRICS[name].of_zeros) is not None:
                found[f"{name}_of_zeros"] = of_zeros
        return found


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

    top1 and top5 are 0 or 1 (a sample without a label has none). mse is of the network's own map, at its size, over the
    cells that somebody knows (a sample without a human map has none); mse_of_zeros comes with it.
    """
    if network.attention is None and (options.use_maps or any(METRICS[name].needs_map for name in options.metrics)):
        others = " and ".join(name for name, metric in METRICS.items() if not metric.needs_map)
        raise RunError(f"the network has no attention branch, so it has no map; only {others} can be measured")
    place(network, device).eval()
    indices = np.arange(len(examples)) if indices is None else indices
    for batch in in_order(examples, indices, options.batch_size):
        with torch.inference_mode():        # not around the yield: it would stay on in the caller
            columns = _evaluate_batch(network, batch.to(device), examples.preprocessing, options)
        for row in zip(*columns.values(), strict=True):
            yield {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}


def measure(
    model: TrainedModel,
    shards: ShardSequence,
    options: EvaluationOptions,
    device: torch.device,
    *,
    held_out: HeldOut | None = None,
    watch: Callable[[Iterable[dict[str, float]]], Iterable[dict[str, float]]] = iter,
) -> dict[str, Any]:
    """Return the mean of each metric, over how many samples each was taken, and how it was measured.

    Only the fold ``held_out`` is measured on, where there is one. ``watch`` may wrap the samples' figures to show
    progress. A metric that applies to no sample is None.
    """
    check_classes(model, shards)
    examples = ShardExamples(shards, model.preprocessing, model.map_size)
    found: dict[str, list[float]] = {name: [] for name in options.measures()}
    indices = np.arange(len(shards)) if held_out is None else np.flatnonzero(held_out.inside)
    for figures in watch(evaluate(model.network, examples, options, device, indices=indices)):
        for name, value in figures.items():
            found[name].append(value)
    return {
        "samples": len(indices),
        "metrics": {name: math.fsum(values) / len(values) if values else None for name, values in found.items()},
        "counts": {name: len(values) for name, values in found.items()},
        "control": model.control,
        **({} if held_out is None else named(held_out)),
        "settings": {
            "use_maps": options.use_maps,
            "step": options.pixel_step(model.preprocessing.size),
            "hold_attention": options.hold_attention,
            "blur": "rise",
            "image_size": list(model.preprocessing.size),
            "map_size": list(examples.map_size),
            "device": device.type,
        },
    }


def _evaluate_batch(
    network: AttentionBranchNetwork, batch: Batch, preprocessing: Preprocessing, options: EvaluationOptions
) -> dict[str, list[float]]:
    """Return the column of each figure, NaN where it does not apply."""
    images = normalise(batch.images, preprocessing)
    own = used = network(images)
    if options.use_maps:
        used = network(images, put_maps(own.attention, batch))
    held = used.attention if options.hold_attention or options.use_maps else None
    step = options.pixel_step(preprocessing.size)
    answered = Answered(network, images, batch, own, used, step, options.batch_size, held)
    return {name: measure(answered).tolist() for name, measure in options.measures().items()}

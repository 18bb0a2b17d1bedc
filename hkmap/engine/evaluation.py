"""How right a network is, and how well it explains itself: metrics on shards, sample by sample and as means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.engine.data import Batch, Data, ShardExamples, check_classes, in_order, normalise, put_maps
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.losses import MapLoss, losses
from hkmap.engine.metrics import METRICS, Answered, map_distances
from hkmap.engine.runs import HeldOut, TrainedModel, named, pick_device
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import place
from hkmap.shards.sequence import ShardSequence

FRAMES = 28       # RISE's steps for figures of a data set: 1,792 of 224 x 224 pixels at a time


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how.

    ``metrics`` are names in METRICS. ``use_maps`` replaces the predicted map by the human one where there is one.
    ``step`` is how many pixels insertion and deletion change at a time (None: a 28th of the image, 1,792 at 224 x 224).
    ``hold_attention`` uses the whole image's map for every frame, else the network makes a new one. ``batch_size`` is
    the number of images in a forward pass. Raises ChoiceError for an unknown metric.
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
        """Return the names of what is reported, in order, with their functions; some metrics add a second figure.

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
    network: AttentionBranchNetwork, data: Data, device: torch.device, batch_size: int, *, gamma: float = 0.0,
    map_loss: str | MapLoss = "l2norm",
) -> dict[str, float]:
    """Validate a network: top1 (a share), loss (cross entropy), total (what training minimises), mse if there are maps.

    Each is a mean over the samples; ``gamma`` and ``map_loss`` are those of the training.
    """
    right, loss, total, distances = 0.0, 0.0, 0.0, []
    network.eval()
    with torch.inference_mode():
        for batch in in_order(data.examples, data.indices, batch_size):
            batch = batch.to(device)
            output = network(normalise(batch.images, data.examples.preprocessing))
            if output.attention is not None:
                distances += map_distances(output.attention, batch).tolist()
            parts = losses(output, batch.labels, batch.maps, batch.certainty, map_loss=map_loss)
            right += (output.logits.argmax(1) == batch.labels).sum().item()
            loss += parts.perception.item() * len(batch.labels)
            total += parts.total(gamma).item() * len(batch.labels)
    count = len(data.indices)
    known = [distance for distance in distances if math.isfinite(distance)]
    means = {"top1": right / count, "loss": loss / count, "total": total / count}
    return means | ({"mse": math.fsum(known) / len(known)} if known else {})


def sample_figures(
    network: AttentionBranchNetwork,
    examples: ShardExamples,
    indices: npt.NDArray[np.int64],
    options: EvaluationOptions,
    device: torch.device,
) -> Iterator[dict[str, float]]:
    """Yield the metrics of each sample in ``indices``, without those that do not apply to it.

    top1 and top5 are 0 or 1, and need a label. mse is of the network's own map, at its size, over the known cells, and
    needs a human map; mse_of_zeros is added to it.
    """
    if network.attention is None and (options.use_maps or any(METRICS[name].needs_map for name in options.metrics)):
        others = " and ".join(name for name, metric in METRICS.items() if not metric.needs_map)
        raise RunError(f"the network has no attention branch, so it has no map; only {others} can be measured")
    place(network, device).eval()
    for batch in in_order(examples, indices, options.batch_size):
        with torch.inference_mode():        # not around the yield: it would stay on in the caller
            columns = _evaluate_batch(network, batch.to(device), examples.preprocessing, options)
        for row in zip(*columns.values(), strict=True):
            yield {name: value for name, value in zip(columns, row, strict=True) if math.isfinite(value)}


def evaluate(
    model: TrainedModel,
    shards: ShardSequence,
    options: EvaluationOptions,
    device: torch.device | None = None,
    *,
    held_out: HeldOut | None = None,
    watch: Callable[[Iterable[dict[str, float]]], Iterable[dict[str, float]]] = iter,
) -> dict[str, Any]:
    """Return the mean of each metric, the number of samples of each, and how it was measured.

    ``device`` None is CUDA where there is one. Only the fold ``held_out`` is used, where it is given. ``watch`` may
    wrap the samples' figures to show progress. A metric that applies to no sample is None.
    """
    device = device or pick_device("auto")
    check_classes(model, shards)
    examples = ShardExamples(shards, model.preprocessing, model.map_size)
    indices = np.arange(len(shards)) if held_out is None else np.flatnonzero(held_out.inside)
    rows = list(watch(sample_figures(model.network, examples, indices, options, device)))
    found = {name: [row[name] for row in rows if name in row] for name in options.measures()}
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

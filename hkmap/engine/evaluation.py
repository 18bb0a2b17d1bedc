"""How right a network is, and how well it explains itself: metrics on shards, sample by sample and as means."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hkmap.engine.curves import auc
from hkmap.engine.data import Batch, Data, ShardExamples, check_classes, in_order, normalise, warn_of_small_map
from hkmap.engine.explain import Explanation, answered, check_answers, has_branch
from hkmap.engine.losses import MapLoss, losses
from hkmap.engine.metrics import METRICS, Answered, Metric, is_mapped, map_distances
from hkmap.engine.ranks import gathered, in_turn
from hkmap.engine.runs import HeldOut, TrainedModel, named, pick_device
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Output, place
from hkmap.shards.folds import ids_of
from hkmap.shards.sequence import ShardSequence

FRAMES = 28       # RISE's steps for figures of a data set: 1,792 of 224 x 224 pixels at a time
DARK = 0.05       # a mean attention below it lets the product gate pass next to nothing

logger = logging.getLogger("hkmap")


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

    def measures(self) -> dict[str, Metric]:
        """Return the metrics by the names of what is reported, in order; some add a second figure, a metric too.

        >>> list(EvaluationOptions(("top1", "mse")).measures())
        ['top1', 'mse', 'mse_of_zeros']
        """
        found = {}
        for name in self.metrics:
            found[name] = metric = METRICS[name]
            if metric.of_zeros is not None:
                found[f"{name}_of_zeros"] = replace(metric, measure=metric.of_zeros)
        return found


class Row(NamedTuple):
    """What was measured of a sample.

    ``label`` is None where nobody knows; ``attention`` is the mean of the network's own map, None where it has none.
    ``values`` has each figure by its name, None where it does not apply; ``curves`` the scores (n + 1,) of those that
    are areas under a curve.
    """

    id: str
    label: int | None
    prediction: int
    attention: float | None
    values: dict[str, float | None]
    curves: dict[str, list[float]]


def accuracy(
    network: AttentionBranchNetwork, data: Data, device: torch.device, batch_size: int, *, gamma: float = 0.0,
    map_loss: str | MapLoss = "l2norm",
) -> dict[str, float]:
    """Validate a network: top1 (a share), loss (cross entropy), total (what training minimises), means over samples.

    A network with an attention branch has attention_mean too, and where there are human maps mse and mse_of_zeros, its
    maps' distance from them and that of a map of zeros. ``gamma`` and ``map_loss`` are those of the training. Raises
    RunError where an answer is not finite.
    """
    columns, shards = [], data.examples.shards
    network.eval()
    with torch.inference_mode():
        for numbers, batch in in_order(data.examples, data.indices, batch_size):
            batch = batch.to(device)
            output = network(normalise(batch.images, data.examples.preprocessing))
            parts = losses(
                output, batch.labels, batch.maps, batch.certainty, map_loss=map_loss, count=len(data.indices),
                weights=torch.full(batch.labels.shape, float(len(numbers) > 0), device=device),
            )
            of_samples = {name: values[: len(numbers)] for name, values in _validated(output, batch).items()}
            of_batch = {"loss": parts.perception[None], "total": parts.total(gamma)[None]}
            columns.append({"number": torch.from_numpy(numbers), **of_batch, **of_samples})
    # copied to the host only here
    own = {name: torch.cat([column[name] for column in columns]).tolist() for name in columns[0]}
    ranks = gathered([own])
    found = {name: [value for rank in ranks for value in rank[name]] for name in own}
    check_answers(found["finite"], lambda row: shards.place(found["number"][row]))
    means = {"loss": math.fsum(found["loss"]), "total": math.fsum(found["total"])}
    for name in ("top1", "attention_mean", "mse", "mse_of_zeros"):
        values = found.get(name, [])
        if name.startswith("mse"):
            values = [value for value, there in zip(values, found["mapped"], strict=False) if there]
        means |= {name: math.fsum(values) / len(values)} if values else {}
    return means


def _validated(output: Output, batch: Batch) -> dict[str, Tensor]:
    """Return the samples' figures (B,), whether the answer is finite, and whether there is a human map."""
    found = {
        "finite": output.logits.isfinite().all(1),
        "mapped": is_mapped(batch),
        "top1": output.logits.argmax(1) == batch.labels,
    }
    if (attention := output.attention) is not None:
        found["attention_mean"] = attention.mean((1, 2, 3))
        found["mse"] = map_distances(attention, batch)
        found["mse_of_zeros"] = map_distances(torch.zeros_like(batch.maps), batch)
    return found


def evaluate(
    model: TrainedModel,
    shards: ShardSequence,
    options: EvaluationOptions,
    device: torch.device | None = None,
    *,
    held_out: HeldOut | None = None,
    explain: Explanation | None = None,
) -> Iterator[Row]:
    """Yield a Row for each record, in order; of several ranks each measures a part, and has the rows of all.

    ``device`` None is CUDA where there is one. Only the fold ``held_out`` is used, where it is given. ``explain`` gives
    the maps that are measured. With None, insertion and deletion rank pixels by the map that weighted the features, and
    mse is of the network's own, also where a human map replaces it. Raises RunError where a metric needs a map and
    there is none, and, with its place, for a record whose answer or figure is not finite.
    """
    if not has_branch(model.network) and (
        options.use_maps or options.hold_attention
        or (explain is None and any(METRICS[name].needs_map for name in options.metrics))
    ):
        others = ", ".join(name for name, metric in METRICS.items() if not metric.needs_map)
        raise RunError(f"the network has no attention branch, so it has no map; only {others} can be measured")
    check_classes(model, shards)
    device = device or pick_device("auto")
    place(model.network, device).eval()
    examples = ShardExamples(shards, model.preprocessing, model.map_size)
    indices = np.arange(len(shards)) if held_out is None else np.flatnonzero(held_out.inside)
    ids = ids_of(shards)
    for numbers, batch in in_order(examples, indices, options.batch_size):
        answers = _answers(model, batch.to(device), options, explain)
        rows = _rows(answers, options, [(ids[number], shards.place(number)) for number in numbers])
        yield from in_turn(rows)


def summarise(
    rows: Iterable[Row],
    model: TrainedModel,
    options: EvaluationOptions,
    device: torch.device | None = None,
    *,
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Return the mean of each figure of `evaluate`'s rows, the number of samples of each, and how it was measured.

    A figure that applies to no sample is None. Warns where a figure says less than it seems to.
    """
    samples, labels = 0, set()
    found: dict[str, list[float]] = {name: [] for name in (*options.measures(), "attention_mean")}
    for row in rows:
        samples += 1
        labels.add(row.label)
        for name, value in {**row.values, "attention_mean": row.attention}.items():
            if value is not None:
                found[name].append(value)
    counts = {name: len(values) for name, values in found.items()}
    means = {name: math.fsum(values) / counts[name] if values else None for name, values in found.items()}
    _warn(model, means, labels - {None})
    own, of_own = means.pop("attention_mean"), counts.pop("attention_mean")
    return {
        "samples": samples,
        "metrics": means,
        "counts": counts,
        **({"attention_mean": own} if of_own else {}),
        "control": model.control,
        **({} if held_out is None else named(held_out)),
        "settings": {
            "use_maps": options.use_maps,
            "step": options.pixel_step(model.preprocessing.size),
            "hold_attention": options.hold_attention,
            "blur": "rise",
            "image_size": list(model.preprocessing.size),
            "map_size": list(model.map_size),
            "device": (device or pick_device("auto")).type,
        },
    }


def _warn(model: TrainedModel, means: dict[str, float | None], labels: set[int | None]) -> None:
    """Warn where the means of figures say less than they seem to; ``labels`` are those that occur."""
    warn_of_small_map(model)
    if len(labels) == 1 and means.keys() & {"top1", "top5"}:
        logger.warning("all labels are the same, so top1 and top5 do not tell a good network from a constant answer")
    own, mse, of_zeros = (means.get(name) for name in ("attention_mean", "mse", "mse_of_zeros"))
    if own is not None and own < DARK and model.architecture.gate == "product":
        logger.warning(
            "the attention is dark (mean %.3f), and the product gate hides from the answer what is dark; lower --gamma "
            "or choose a --map-loss of shape such as kl", own,
        )
    if mse is not None and of_zeros is not None and mse >= of_zeros:
        logger.warning(
            "the maps are no closer to the human ones (mse %.4f) than a map of zeros is (%.4f)", mse, of_zeros
        )


def _answers(
    model: TrainedModel, batch: Batch, options: EvaluationOptions, explain: Explanation | None
) -> Answered:
    network, images = model.network, normalise(batch.images, model.preprocessing)
    with torch.inference_mode():        # not around a yield: it would stay on in the caller
        used, own = answered(network, images, batch if options.use_maps else None)
    explained = None
    if explain is not None:      # not in inference mode, as it may take gradients
        explained = explain(network, images, used.logits.argmax(1))
        if explained.shape[:2] != (len(images), 1) or explained.ndim != 4:
            shape = f"{tuple(explained.shape)}; expected ({len(images)}, 1, h, w)"
            raise RunError(f"explain gave maps of shape {shape}")
    return Answered(
        network, images, batch, used, own, explained,
        held=used.attention if options.hold_attention or options.use_maps else None,
        step=options.pixel_step(model.preprocessing.size),
        frames=options.batch_size,
    )


def _rows(answers: Answered, options: EvaluationOptions, names: Sequence[tuple[str, str]]) -> list[Row]:
    """Return the rows of a batch's first samples, whose ids and places are ``names``."""
    count, logits = len(names), answers.used.logits
    check_answers(logits.isfinite().all(1)[:count].tolist(), lambda row: names[row][1])
    values, curves = _figures(answers, options)
    labels, predictions = answers.batch.labels.tolist(), logits.argmax(1).tolist()
    means = [None] * len(labels) if answers.own is None else answers.own.mean((1, 2, 3)).tolist()
    rows = []
    for row, (identifier, of) in enumerate(names):
        found = {name: column[row] for name, column in values.items()}
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                raise RunError(f"{of}: {name} is {value}; expected a finite number where the metric applies")
        label = None if labels[row] < 0 else labels[row]
        shown = {name: column[row] for name, column in curves.items()}
        rows.append(Row(identifier, label, predictions[row], means[row], found, shown))
    return rows


def _figures(
    answers: Answered, options: EvaluationOptions
) -> tuple[dict[str, list[float | None]], dict[str, list[list[float]]]]:
    """Return the batch's values of each figure, None where it does not apply, and its curves."""
    values, curves = {}, {}
    for name, metric in options.measures().items():
        with torch.inference_mode():
            found, applies = metric.measure(answers), metric.applies(answers).tolist()
            if found.ndim == 2:
                curves[name] = found.tolist()
                found = auc(found)
        values[name] = [value if there else None for value, there in zip(found.tolist(), applies, strict=True)]
    return values, curves

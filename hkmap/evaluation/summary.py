"""What the rows of an evaluation say together: figures with their intervals, and how they were measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch

from hkmap.engine.data import warn_of_small_map
from hkmap.engine.runs import HeldOut, TrainedModel, named, pick_device
from hkmap.evaluation.evaluate import EvaluationOptions, Row

DARK = 0.05       # a mean attention below it lets the product gate pass next to nothing

logger = logging.getLogger("hkmap")


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
    found: dict[str, list[float]] = {name: [] for name in (*options.figures(), "attention_mean")}
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
        "settings": settings_of(model, options, device or pick_device("auto")),
    }


def settings_of(model: TrainedModel, options: EvaluationOptions, device: torch.device) -> dict[str, Any]:
    """Return how something is measured, as the report says it."""
    return {
        "maps": options.maps,
        "use_maps": options.use_maps,
        "target": options.target,
        "dtype": options.dtype,
        "step": options.pixel_step(model.preprocessing.size),
        "hold_attention": options.hold_attention,
        "blur": options.blur,
        "image_size": list(model.preprocessing.size),
        "map_size": list(model.map_size),
        "device": device.type,
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

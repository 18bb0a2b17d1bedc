"""How good a network is between two epochs: a few figures, without maps drawn or curves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hkmap.engine.answers import check_answers
from hkmap.engine.data import Batch, Data, in_order, normalise
from hkmap.engine.losses import MapLoss, losses
from hkmap.engine.ranks import gathered
from hkmap.engine.resize import resize_maps
from hkmap.maps.similarity import mse
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Output


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
        found |= map_distances(attention, batch)
    return found


def is_mapped(batch: Batch) -> Tensor:
    """Return which samples (B,) have a human map, if only of a part."""
    return (batch.certainty > 0).flatten(1).any(1)


def map_distances(maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return the mean square difference (B,) of maps (B, 1, h, w), and of zeros, from the human ones.

    It is over the known cells. Where there is none it is NaN; `is_mapped` tells where.
    """
    sized = resize_maps(maps, (batch.maps.shape[2], batch.maps.shape[3])).flatten(1)
    human = batch.maps.flatten(1), batch.certainty.flatten(1)
    return {"mse": mse(sized, *human), "mse_of_zeros": mse(torch.zeros_like(sized), *human)}

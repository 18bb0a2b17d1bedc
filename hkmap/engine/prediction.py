"""What a trained network says of records: the answer, how sure it is, and where it looked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hkmap.engine.abn import place
from hkmap.engine.data import Example, ahead, chunks, collate, normalise
from hkmap.engine.evaluation import put_maps
from hkmap.engine.runs import TrainedModel
from hkmap.engine.views import plain_view, view_image, view_map
from hkmap.errors import HkmapError, RecordError, RunError
from hkmap.maps.check import Map
from hkmap.records import Record, Rejects, reference_of
from hkmap.storage.images import read_image
from hkmap.storage.mapfiles import MapWriter, load_map


@dataclass(frozen=True)
class Prediction:
    """A record's answer: the class, its probability, and the attention map (h, w) that weighted the features."""

    record: Record
    label: int
    confidence: float
    attention: Map | None


def predict(
    model: TrainedModel,
    records: Iterable[Record],
    rejects: Rejects,
    device: torch.device,
    *,
    use_maps: bool = False,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """Yield a Prediction for each record that has an image, in order.

    ``use_maps`` puts a record's own map in the place of the predicted one.
    """
    if use_maps and not model.architecture.attention:
        raise RunError("the network has no attention branch, so no map can take its map's place")
    place(model.network, device).eval()
    for pairs in ahead(chunks(records, batch_size), lambda record: _example(model, record, use_maps), threads=2):
        good = []
        for record, example in pairs:
            if isinstance(example, HkmapError):
                rejects.reject(example)
            else:
                good.append((record, example))
        if good:
            yield from _predict_batch(model, good, device, use_maps)


def predicted_records(
    model: TrainedModel,
    records: Iterable[Record],
    rejects: Rejects,
    device: torch.device,
    *,
    maps: MapWriter | None,
    key: str,
    **options: Any,
) -> Iterator[Record]:
    """Yield the records with prediction, confidence and, saved by ``maps``, the attention under ``key``."""
    if maps is not None and not model.architecture.attention:
        raise RunError("the network has no attention branch, so there are no maps to save; leave --out away")
    for found in predict(model, records, rejects, device, **options):
        added: Record = {"prediction": found.label, "confidence": found.confidence}
        if model.control != "none":
            added["control"] = model.control
        if maps is not None and found.attention is not None:
            added[key] = maps.save(found.record["id"], found.attention)
        yield found.record | added


def _predict_batch(
    model: TrainedModel, pairs: list[tuple[Record, Example]], device: torch.device, use_maps: bool
) -> Iterator[Prediction]:
    batch = collate([example for _, example in pairs], map_size(model)).to(device)
    images = normalise(batch.images, model.preprocessing)
    with torch.inference_mode():
        output = model.network(images)
        if use_maps:
            output = model.network(images, put_maps(output.attention, batch))
        confidences, labels = output.logits.float().softmax(1).max(1)
    maps = _maps(output.attention, len(pairs))
    for (record, _), label, confidence, attention in zip(
        pairs, labels.tolist(), confidences.tolist(), maps, strict=True
    ):
        yield Prediction(record, label, confidence, attention)


def map_size(model: TrainedModel) -> tuple[int, int]:
    """Return (height, width) of the network's attention map."""
    return model.architecture.map_size(model.preprocessing.size)


def _maps(attention: Tensor | None, count: int) -> list[Map | None]:
    return [None] * count if attention is None else list(attention[:, 0].float().cpu().numpy())


def _example(model: TrainedModel, record: Record, use_maps: bool) -> tuple[Record, Example | HkmapError]:
    try:
        reference = reference_of(record, "image")
        drawn = reference_of(record, "map") if use_maps else None
        if reference is None:
            raise RecordError(f'record "{record["id"]}": no key "image" with a path; the network needs an image')
        image = read_image(reference)
        view = plain_view(model.preprocessing, (image.shape[0], image.shape[1]))
        values = None if drawn is None else load_map(drawn)
        example = Example(
            image=view_image(image, view, model.preprocessing.size),
            map=None if values is None else view_map(values, view, map_size(model)),
            weight=None,
            label=-1,
        )
    except HkmapError as error:
        return record, error
    return record, example


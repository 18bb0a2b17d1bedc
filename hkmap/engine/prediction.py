"""What a trained network says of records: the answer, how sure it is, and where it looked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hkmap.engine.abn import place
from hkmap.engine.data import Example, collate, normalise, put_maps, seen_example
from hkmap.engine.inputs import plain_view
from hkmap.engine.runs import TrainedModel
from hkmap.errors import HkmapError, RecordError, RunError
from hkmap.files.maps import MapWriter
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import View, map_back
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.records import Record, Rejects, reference_of
from hkmap.stream.references import load_certainty_of, load_map, read_image

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """A record's answer: the class, its probability, and where the network looked.

    ``attention`` (h, w) is the map that weighted the features, carried from what the network saw to the whole image: 0
    where a crop left something out, without the padding of a letterbox.
    """

    record: Record
    label: int
    confidence: float
    attention: Map | None


class _Seen(NamedTuple):
    """A record as the network sees it."""

    record: Record
    example: Example
    view: View


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
    if use_maps and model.network.attention is None:
        raise RunError("the network has no attention branch, so no map can take its map's place")
    place(model.network, device).eval()
    for chunk in map_ahead(lambda record: _seen(model, record, use_maps), records, batch_size, threads=2):
        good = []
        for seen in chunk:
            if isinstance(seen, HkmapError):
                rejects.reject(seen)
            else:
                good.append(seen)
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
    if maps is not None and model.network.attention is None:
        raise RunError("the network has no attention branch, so there are no maps to save; leave --out away")
    for found in predict(model, records, rejects, device, **options):
        added: Record = {"prediction": found.label, "confidence": found.confidence}
        if model.control != "none":
            added["control"] = model.control
        if maps is not None and found.attention is not None:
            added[key] = maps.save(found.record["id"], found.attention)
        yield found.record | added


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], size: int, *, threads: int
) -> Iterator[list[Result]]:
    """Yield the results in order, in lists of ``size``, while threads work on the next two lists."""
    rest = iter(items)
    with thread_pool(threads) as pool:
        chunks = iter(lambda: list(islice(rest, size)), [])
        begun = ([pool.submit(function, item) for item in chunk] for chunk in chunks)
        yield from ahead(begun, lambda chunk: [future.result() for future in chunk], depth=2)


def _predict_batch(
    model: TrainedModel, seen: list[_Seen], device: torch.device, use_maps: bool
) -> Iterator[Prediction]:
    batch = collate([one.example for one in seen]).to(device)
    images = normalise(batch.images, model.preprocessing)
    with torch.inference_mode():
        output = model.network(images)
        if use_maps:
            output = model.network(images, put_maps(output.attention, batch))
        confidences, labels = output.logits.float().softmax(1).max(1)
    maps = _maps(output.attention, len(seen))
    for one, label, confidence, attention in zip(seen, labels.tolist(), confidences.tolist(), maps, strict=True):
        whole = None if attention is None else map_back(attention, one.view, model.map_size)
        yield Prediction(one.record, label, confidence, whole)


def _maps(attention: Tensor | None, count: int) -> list[Map | None]:
    return [None] * count if attention is None else list(attention[:, 0].float().cpu().numpy())


def _seen(model: TrainedModel, record: Record, use_maps: bool) -> _Seen | HkmapError:
    try:
        reference = reference_of(record, "image")
        if reference is None:
            raise RecordError(f'record "{record["id"]}": no key "image" with a path; the network needs an image')
        human = _human_map(record) if use_maps else None
        image = read_image(reference)
    except HkmapError as error:
        return error
    view = plain_view(model.preprocessing, (image.shape[0], image.shape[1]))
    example = seen_example(image, human, view, model.preprocessing, map_size=model.map_size)
    return _Seen(record, example, view)


def _human_map(record: Record) -> Weighted | None:
    reference = reference_of(record, "map")
    if reference is None:
        return None
    values = load_map(reference)
    return Weighted(values, load_certainty_of(record, values))

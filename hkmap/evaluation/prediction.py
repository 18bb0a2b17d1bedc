"""What a trained network predicts for records: the answer, how sure it is, and where it looked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from hkmap.engine.answers import answered, check_answers, has_branch
from hkmap.engine.data import Example, check_label, collate, normalise, seen_example
from hkmap.engine.inputs import plain_view
from hkmap.engine.ranks import current, in_turn
from hkmap.engine.runs import TrainedModel, pick_device
from hkmap.errors import HkmapError, RecordError, RunError
from hkmap.files.maps import MapWriter
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import View, map_back
from hkmap.networks.classifier import place
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.records import Record, Rejects, accepted, attempt, reference_of
from hkmap.stream.references import load_certainty_of, load_map, read_image

Seen = tuple[Record, Example, View]      # a record as the network sees it


@dataclass(frozen=True)
class Prediction:
    """A record's answer: the class, its probability, and where the network looked.

    ``attention`` (h, w) is the map that weighted the features, of the whole image: 0 outside the network's crop, and
    without the padding of a letterbox.
    """

    record: Record
    label: int
    confidence: float
    attention: Map | None


def predict(
    model: TrainedModel,
    records: Iterable[Record],
    rejects: Rejects | None = None,
    device: torch.device | None = None,
    *,
    use_maps: bool = False,
    batch_size: int = 16,
) -> Iterator[Prediction]:
    """Yield a Prediction for each record, in order; ``use_maps`` replaces the predicted map by the record's own.

    An error of a record goes to ``rejects``; None raises it. ``device`` None is CUDA where there is one. Of several
    ranks, which all get the same records, each predicts a part, and has the predictions of all.
    """
    rejects, device = rejects or Rejects(), device or pick_device("auto")
    if use_maps and not has_branch(model.network):
        raise RunError("the network has no attention branch, so no map can replace its own")
    place(model.network, device).eval()
    rank, ranks = current()
    with thread_pool(2) as pool:
        seen = partial(_seen, model, use_maps=use_maps)
        begun = (pool.submit(attempt, seen, record) for record in islice(records, rank, None, ranks))
        outcomes = ahead(begun, Future.result, 2 * batch_size)
        while found := in_turn(_predicted(model, list(islice(outcomes, batch_size)), device, use_maps=use_maps)):
            yield from accepted(found, rejects)


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
    """Yield the records with prediction, its class, confidence and, saved by ``maps``, the attention under ``key``."""
    if maps is not None and not model.architecture.has_attention:
        raise RunError("the network has no attention branch, so there are no maps to save; omit --out")
    for found in predict(model, records, rejects, device, **options):
        added: Record = {"prediction": found.label, "confidence": found.confidence}
        name = model.class_names[found.label] or None
        if name or "predicted_class" in found.record:
            added["predicted_class"] = name
        if model.control != "none":
            added["control"] = model.control
        if maps is not None and found.attention is not None:
            added[key] = maps.save(found.record["id"], found.attention)
        yield found.record | added


def _predicted(
    model: TrainedModel, batch: list[Seen | HkmapError], device: torch.device, *, use_maps: bool
) -> list[Prediction | HkmapError]:
    """Return a Prediction for each record that could be read, in order with the errors of the others."""
    good = [seen for seen in batch if not isinstance(seen, HkmapError)]
    predictions = iter(_predict_batch(model, good, device, use_maps=use_maps) if good else ())
    return [seen if isinstance(seen, HkmapError) else next(predictions) for seen in batch]


def _predict_batch(
    model: TrainedModel, batch: list[Seen], device: torch.device, *, use_maps: bool
) -> Iterator[Prediction]:
    records, examples, views = zip(*batch, strict=True)
    samples = collate(examples).to(device)
    images = normalise(samples.images, model.preprocessing)
    with torch.inference_mode():
        output, _, _ = answered(model.network, images, samples if use_maps else None)
        confidences, labels = output.logits.float().softmax(1).max(1)
        check_answers(output.logits.isfinite().all(1).tolist(), lambda row: f'record "{records[row]["id"]}"')
    maps = [None] * len(batch) if output.attention is None else output.attention[:, 0].float().cpu().numpy()
    rows = zip(records, views, labels.tolist(), confidences.tolist(), maps, strict=True)
    for record, view, label, confidence, values in rows:
        yield Prediction(record, label, confidence, None if values is None else map_back(values, view, model.map_size))


def _seen(model: TrainedModel, record: Record, *, use_maps: bool) -> Seen:
    reference = reference_of(record, "image")
    if reference is None:
        raise RecordError(f'record "{record["id"]}": no key "image" with a path; the network needs an image')
    check_label(model, record)
    human, drawn = None, reference_of(record, "map") if use_maps else None
    if drawn is not None:
        values = load_map(drawn)
        human = Weighted(values, load_certainty_of(record, values))
    image = read_image(reference)
    view = plain_view(model.preprocessing, (image.shape[0], image.shape[1]))
    return record, seen_example(image, human, view, model.preprocessing, map_size=model.map_size), view

"""What a trained network predicts for records: the answer, how sure it is, and where it looked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hkmap.engine.answers import answered, check_answers, has_branch
from hkmap.engine.data import Example, check_label, collate, normalise, seen_example
from hkmap.engine.inputs import plain_view
from hkmap.engine.ranks import current, in_turn
from hkmap.engine.runs import TrainedModel, pick_device
from hkmap.errors import HkmapError, RecordError, RunError
from hkmap.evaluation.explain import Asked, Explain, maps_of_batch
from hkmap.files.maps import MapWriter
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import View, map_back
from hkmap.networks.classifier import place
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.records import Record, Rejects, accepted, attempt, label_of, reference_of
from hkmap.stream.references import load_certainty_of, load_map, read_image

Seen = tuple[Record, Example, View]      # a record as the network sees it


@dataclass(frozen=True)
class Prediction:
    """A record's answer: the class, its probability, and where the network looked.

    ``attention`` (h, w) is the map that weighted the features, ``explained`` the one that was asked for, None where
    there is none. Both are of the whole image: 0 outside the network's crop, and without the padding of a letterbox.
    """

    record: Record
    label: int
    confidence: float
    attention: Map | None
    explained: Map | None = None


def predict(
    model: TrainedModel,
    records: Iterable[Record],
    rejects: Rejects | None = None,
    device: torch.device | None = None,
    *,
    use_maps: bool = False,
    batch_size: int = 16,
    explain: Explain | None = None,
) -> Iterator[Prediction]:
    """Yield a Prediction for each record, in order; ``use_maps`` replaces the predicted map by the record's own.

    ``explain`` gives a map of each answer, as `explain.explainer` returns it. An error of a record goes to ``rejects``;
    None raises it. ``device`` None is CUDA where there is one. Of several ranks, which all get the same records, each
    predicts a part, and has the predictions of all.
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
        ask = partial(_predict_batch, model, device=device, use_maps=use_maps, explain=explain)
        while found := in_turn(_predicted(ask, list(islice(outcomes, batch_size)))):
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
    """Yield the records with prediction, its class, confidence and, saved by ``maps``, a map under ``key``.

    It is what ``explain`` of the options of `predict` gives, without it the attention.
    """
    explained = options.get("explain") is not None
    if maps is not None and not explained and not model.architecture.has_attention:
        raise RunError(
            "the network has no attention branch, so there are no maps to save; use --maps gradcam, or omit --out"
        )
    for found in predict(model, records, rejects, device, **options):
        added: Record = {"prediction": found.label, "confidence": found.confidence}
        name = model.class_names[found.label] or None
        if name or "predicted_class" in found.record:
            added["predicted_class"] = name
        if model.control != "none":
            added["control"] = model.control
        values = found.explained if explained else found.attention
        if maps is not None and values is not None:
            added[key] = maps.save(found.record["id"], values)
        yield found.record | added


def _predicted(
    ask: Callable[[list[Seen]], Iterable[Prediction]], batch: list[Seen | HkmapError]
) -> list[Prediction | HkmapError]:
    """Return a Prediction for each record that could be read, in order with the errors of the others."""
    good = [seen for seen in batch if not isinstance(seen, HkmapError)]
    predictions = iter(ask(good) if good else ())
    return [seen if isinstance(seen, HkmapError) else next(predictions) for seen in batch]


def _predict_batch(
    model: TrainedModel, batch: list[Seen], device: torch.device, *, use_maps: bool, explain: Explain | None
) -> Iterator[Prediction]:
    records, examples, views = zip(*batch, strict=True)
    labels = torch.tensor([label_of(record) for record in records])
    samples = collate(examples)._replace(labels=labels).to(device)
    images = normalise(samples.images, model.preprocessing)
    with torch.inference_mode():
        output, own, _ = answered(model.network, images, samples if use_maps else None)
        confidences, predictions = output.logits.float().softmax(1).max(1)
        check_answers(output.logits.isfinite().all(1).tolist(), lambda row: f'record "{records[row]["id"]}"')
    explained = None
    if explain is not None:      # not in inference mode, as it may take gradients
        ids = [record["id"] for record in records]
        explained = maps_of_batch(explain, Asked(
            model.network, images, output.logits.argmax(1), own, samples, ids, range(len(ids))
        ))
    columns = predictions.tolist(), confidences.tolist(), _arrays(output.attention, batch), _arrays(explained, batch)
    for record, view, label, confidence, *maps in zip(records, views, *columns, strict=True):
        whole = (None if values is None else map_back(values, view, values.shape) for values in maps)
        yield Prediction(record, label, confidence, *whole)


def _arrays(maps: Tensor | None, batch: list[Seen]) -> Sequence[Map | None]:
    """Return maps (B, 1, h, w) as arrays (h, w)."""
    return [None] * len(batch) if maps is None else list(maps[:, 0].float().cpu().numpy())


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

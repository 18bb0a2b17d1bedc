"""A whole run from its parts: the data, the network, the folder. What `hkmap train` and `hkmap finetune` do."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hkmap.engine.crossvalidation import HeldOut, named
from hkmap.engine.data import ShardExamples, exchange_maps
from hkmap.engine.evaluation import EvaluationOptions, evaluate, pixel_step, reported
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.resnet import Architecture, build
from hkmap.engine.runs import TrainedModel, load_model
from hkmap.engine.training import Data, Training, TrainingOptions, Validation
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.shards.folds import groups_of, ids_of, part_of
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:1" names; auto is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f'--device "{name}" is unknown; expected auto, cpu, cuda or cuda:N') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"--device {name}: this machine has no CUDA device that torch can use; say --device cpu")
    return device


def new_model(
    architecture: Architecture, preprocessing: Preprocessing, class_names: Sequence[str], seed: int
) -> TrainedModel:
    """Return an untrained network; the seed fixes its weights."""
    if not class_names:
        raise RunError("the training shard has no labels; expected records with a label, as `hkmap folder` gives them")
    torch.manual_seed(seed)
    return TrainedModel(build(architecture), architecture, preprocessing, tuple(class_names), "none", {})


def make_data(
    model: TrainedModel,
    shards: ShardSequence,
    val: ShardSequence | None,
    *,
    val_share: float = 0.0,
    augmentations: tuple[str, ...] = (),
    seed: int = 0,
    held_out: HeldOut | None = None,
) -> Data:
    """Return the data of a run; ``val_share`` of the shards is held out for validation where ``val`` is None.

    What is ``held_out`` has no part in any of it; its group, if it has one, keeps the validation's records apart too.
    With model.control "shuffled" every training image gets another image's human map.
    """
    check_classes(model, shards)
    if np.any(shards.labels < 0):
        place = shards.place(int(np.argmax(shards.labels < 0)))
        raise RunError(f"{place}: has no label; training needs one for each record")
    map_size = model.architecture.map_size(model.preprocessing.size)
    free = np.ones(len(shards), dtype=np.bool_) if held_out is None else ~held_out.inside
    map_of = exchange_maps(shards.has_map & free, seed) if model.control == "shuffled" else None
    examples = ShardExamples(
        shards, model.preprocessing, map_size, augmentations=augmentations, seed=seed, map_of=map_of
    )
    indices = np.flatnonzero(free)
    if val is not None:
        check_classes(model, val)
        _warn_of_shared(shards, indices, val)
        validated = ShardExamples(val, model.preprocessing, map_size)
        return Data(examples, indices, Validation(validated, np.flatnonzero(val.labels >= 0)))
    if val_share == 0:
        return Data(examples, indices, None)
    group = None if held_out is None else held_out.folding.group
    if group is None:
        chosen = _share_of(indices, val_share, seed)
    else:
        chosen = _groups_share_of(shards, indices, val_share, seed, group)
    validation = Validation(ShardExamples(shards, model.preprocessing, map_size), indices[chosen])
    return Data(examples, indices[~chosen], validation)


def _share_of(indices: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which of the samples (n,) are held out for validation."""
    # a stream of its own, so that the split does not follow the order of the first epoch
    mixed = np.random.default_rng([seed, 0, 0]).permutation(indices)
    count = min(max(1, round(share * len(indices))), len(indices) - 1)
    return np.isin(indices, mixed[:count])


def _groups_share_of(
    shards: ShardSequence, indices: npt.NDArray[np.int64], share: float, seed: int, group: str
) -> npt.NDArray[np.bool_]:
    """Like _share_of, but a group is held out as a whole or not at all."""
    ids, groups = ids_of(shards), groups_of(shards, group) or []
    shares = {"training": 1 - Fraction(str(share)), "validation": Fraction(str(share))}
    own_ids, own_groups = ([names[index] for index in indices] for names in (ids, groups))
    return part_of(own_ids, shards.labels[indices], own_groups, shares, seed=seed) == 1


def _warn_of_shared(shards: ShardSequence, indices: npt.NDArray[np.int64], val: ShardSequence) -> None:
    """Warn where an epoch is to be chosen on records that the network learns from."""
    ids = ids_of(shards)
    shared = {ids[index] for index in indices} & {*ids_of(val)}
    if shared:
        logger.warning(
            '%d records of --val are trained on too, such as "%s"; the best epoch is not one for other images',
            len(shared), min(shared),
        )


def check_classes(model: TrainedModel, shards: ShardSequence) -> None:
    """Raise RunError where the shards' labels are not the network's."""
    known = model.class_names
    if len(shards) and int(shards.labels.max()) >= len(known):
        raise RunError(
            f"{shards.name}: label {int(shards.labels.max())} is beyond the network's {len(known)} classes; "
            "pack all shards with the same --classes"
        )
    for label, (ours, theirs) in enumerate(zip(known, shards.classes, strict=False)):
        if ours and theirs and ours != theirs:
            raise RunError(
                f'{shards.name}: label {label} is "{theirs}", for the network it is "{ours}"; '
                "pack all shards with the same --classes"
            )


def prepare(model: TrainedModel, data: Data, options: TrainingOptions, device: torch.device) -> Training:
    """Return the training of ``model``, ready to begin; raise RunError where the data or the network do not fit."""
    shards = data.examples.shards
    if options.gamma > 0 and not shards.has_map[data.indices].any():
        raise RunError(f"{shards.name}: no training sample has a map; the map loss needs some, or say --gamma 0")
    if len(data.indices) < 2:
        raise RunError(f"{shards.name}: {len(data.indices)} sample to train on; batch norm needs at least two")
    return Training(model.network, options, device)


def go_on(model: TrainedModel, training: Training, folder: Path) -> None:
    """Set a training to where the run in ``folder`` stood after its last whole epoch."""
    last = load_model(folder / "last.pt")
    model.network.load_state_dict(last.network.state_dict())
    model.state.update(last.state)
    training.load_state(last.state)
    _cut_log(folder / "log.jsonl", training.step)


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
    examples = ShardExamples(shards, model.preprocessing, model.architecture.map_size(model.preprocessing.size))
    found: dict[str, list[float]] = {name: [] for name in reported(options.metrics)}
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
            "step": pixel_step(options, model.preprocessing.size),
            "hold_attention": options.hold_attention,
            "blur": "rise",
            "image_size": list(model.preprocessing.size),
            "map_size": list(examples.map_size),
            "device": device.type,
        },
    }


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of an unfinished epoch, which will be trained again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with replacing(path, overwrite=True) as beside:
        beside.write_text("".join(line for line in lines if _step_of(line) <= step), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:          # a line cut short by a kill
        return float("inf")

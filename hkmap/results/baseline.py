"""The records that a baseline gets wrong: a set that is fixed once, on which others are then measured.

The attention mining branch (Iwayoshi et al.) is measured so, on what a plain ABN misclassifies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from hkmap.engine.data import Numbers
from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.results.folder import Results
from hkmap.shards.folds import ids_of
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")

Predict = Callable[[Numbers], Numbers]      # numbers of records (n,) → the classes that a baseline predicts (n,)


def misclassified(shards: ShardSequence, numbers: Numbers, predict: Predict) -> tuple[Numbers, int]:
    """Return which records of ``numbers`` have another label than what is predicted, and how many have a label.

    Those without a label are left out, with a warning. Raises RunError where no record is left.
    """
    labelled = numbers[shards.labels[numbers] >= 0]
    if len(labelled) < len(numbers):
        logger.warning(
            "%d of %d records have no label, so nobody knows whether they are misclassified; they are left out",
            len(numbers) - len(labelled), len(numbers),
        )
    found = labelled[predict(labelled) != shards.labels[labelled]] if len(labelled) else labelled
    if not len(found):
        what = f"of {len(labelled)} records with a label none is misclassified"
        raise RunError(f"{shards.name}: {what}, so nothing is left to measure; omit --only, or use other shards")
    return found, len(labelled)


def asked(model: TrainedModel, shards: ShardSequence, device: torch.device, batch_size: int) -> Predict:
    """Return what asks a network, which uses its own maps."""
    options = EvaluationOptions(("top1",), maps="none", batch_size=batch_size)

    def predict(numbers: Numbers) -> Numbers:
        return np.array([row.prediction for row in evaluate(model, shards, options, device, chosen=numbers)])

    return predict


def looked_up(results: Results, shards: ShardSequence) -> Predict:
    """Return what looks records up by their ids; it raises RunError where results lack one, or label it otherwise.

    Raises RunError for results with human maps, as what is asked is what a network misclassifies with its own.
    """
    if results.header["settings"].get("use_maps"):
        raise RunError(
            f"{results.path}: the baseline answered with human maps in place of its own; evaluate it without --use-maps"
        )
    rows, ids = {row["id"]: row for row in results.rows}, ids_of(shards)

    def predict(numbers: Numbers) -> Numbers:
        missing = [ids[number] for number in numbers if ids[number] not in rows]
        if missing:
            raise RunError(
                f'{results.path}: the baseline has no record "{missing[0]}", and lacks {len(missing)} of the '
                f"{len(numbers)} that are asked for; evaluate it on the same shards, without --only"
            )
        for number in numbers:
            kept, label = rows[ids[number]]["label"], int(shards.labels[number])
            if kept != label:
                raise RunError(
                    f'{results.path}: in the baseline record "{ids[number]}" has label {kept}, in '
                    f"{shards.place(number)} {label}; evaluate it on the same shards"
                )
        return np.array([rows[ids[number]]["prediction"] for number in numbers])

    return predict

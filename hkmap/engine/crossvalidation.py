"""The fold that a run holds out: never trained on, never used to choose an epoch, and the one to be measured on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.shards.folds import Folding, digest_of, folds_of, ids_of
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")


@dataclass(frozen=True)
class HeldOut:
    """Fold ``number``, from 1, of shards whose records are cut by ``folding``.

    ``inside`` (n,) tells which records are in it; ``digest`` stands for which record is in which fold.
    """

    number: int
    folding: Folding
    inside: npt.NDArray[np.bool_]
    digest: str


def hold_out(shards: ShardSequence, number: int, folding: Folding) -> HeldOut:
    """Cut the records of shards into folds and take one; raise RecordError where they cannot be cut."""
    folds = folds_of(shards, folding)
    return HeldOut(number, folding, folds == number, digest_of(ids_of(shards), folds))


def described(held_out: HeldOut) -> dict[str, Any]:
    """Return what a checkpoint keeps of the fold that was held out."""
    return {**named(held_out), "digest": held_out.digest}


def named(held_out: HeldOut) -> dict[str, Any]:
    """Return a fold as commands print it."""
    folding = held_out.folding
    return {"fold": f"{held_out.number}/{folding.folds}", "fold_seed": folding.seed, "group": folding.group}


def check_fold(model: TrainedModel, held_out: HeldOut | None) -> None:
    """Raise RunError where a network learnt from the records of the fold; warn where that may be.

    Another number, seed or group than the run's puts records that it learnt from into the fold, and so do other shards,
    as a fold depends on all records.
    """
    kept = model.fold
    if held_out is None:
        if kept is not None:
            logger.warning("the network held out fold %s of its shards; if these are they, say --fold", kept["fold"])
        return
    if kept is None:
        logger.warning("the network was trained without --fold, so it may have learnt from the records of this fold")
        return
    now = named(held_out)
    for key, found in now.items():
        if found != kept[key]:
            told = f"--{key.replace('_', '-')} is {'not given' if found is None else found}"
            raise RunError(f"{told}, but the network held out {_options(kept)} and learnt from the rest; say so too")
    if held_out.digest != kept["digest"]:
        raise RunError(
            f"the records, or their labels, are not those of which the network held out {_options(kept)}, so the folds "
            "differ; name all the shards that it was trained with"
        )


def _options(kept: dict[str, Any]) -> str:
    group = f" --group {kept['group']}" if kept["group"] else ""
    return f"--fold {kept['fold']} --fold-seed {kept['fold_seed']}{group}"

"""A training from its first or next epoch to its last, and the run folder that keeps the results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hkmap.engine.checkpoints import check_finite, plain_weights, read_state, save_state
from hkmap.engine.data import Data
from hkmap.engine.evaluation import accuracy
from hkmap.engine.folders import settle, write_json
from hkmap.engine.runs import BEST, LAST, TrainedModel, save_model
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.training.optimisation import SELECTIONS, TrainingOptions
from hkmap.training.steps import Step, Training


def go_on(model: TrainedModel, training: Training, folder: Path) -> dict[str, Any]:
    """Continue the run in ``folder`` after its last complete epoch; return its state, of which `fit` takes the rest.

    Raises RunError where its state or log.jsonl are not those of such a run.
    """
    state, log = read_state(folder, model.network), folder / "log.jsonl"
    try:
        training.load_state(state)
    except ValueError as error:
        raise RunError(f"{folder}: its state is not that of this run: {error}; use --overwrite") from error
    if training.epoch > training.options.epochs:
        done, asked = training.epoch, training.options.epochs
        raise RunError(f"{folder}: has {done} epochs done, --epochs is {asked}; give --epochs {done} or more")
    model.network.load_state_dict(state["weights"])
    lines = file_content(log).splitlines(keepends=True)[: training.step]
    kept = b"".join(lines)
    digest = state["log"] or hashlib.sha256(kept).hexdigest()      # the first runs had none
    if len(lines) < training.step or hashlib.sha256(kept).hexdigest() != digest:
        raise RunError(f"{log}: not the log of this run's state, of {training.step} steps; use --overwrite")
    with replacing(log, overwrite=True) as beside:      # without the steps of an unfinished epoch, which are repeated
        beside.write_bytes(kept)
    return state


def fit(
    model: TrainedModel, training: Training, data: Data, folder: Path, begun: Path | None = None,
    state: dict[str, Any] | None = None,
) -> Iterator[Step]:
    """Train to the last epoch, yielding every Step, and keep the run in ``folder``.

    log.jsonl gets one line per step; last.safetensors, best.safetensors (the epoch that ``select`` of the options
    chooses) and state.pt are replaced after each epoch, summary.json is written at the end. Until the first checkpoint
    the files are in ``begun``, as `opened_run` gives it. ``state`` is that of a run that goes on.
    """
    begun, options, state = begun or folder, training.options, state or {}
    best, seconds, began = state.get("best"), state.get("seconds", 0.0), time.monotonic()
    with _Log(begun / "log.jsonl") as log:
        while training.epoch < options.epochs:
            for step in training.run_epoch(data.examples, data.indices):
                if step.epoch_ends and data.validation is not None:
                    step = replace(step, validation=_validated(training, data.validation, step))
                # before the checkpoint: a resumed run cuts the log back to it, but cannot fill in a missing line
                log.write(step)
                if step.epoch_ends:
                    check_finite(training.network)
                    best = _chosen(options, step, best)
                    state = {"best": best, "log": log.digest(), "seconds": seconds + time.monotonic() - began}
                    _keep(begun, model, {
                        **training.state(), **state, "weights": plain_weights(training.network), "average": None,
                        "scaler": None, "patience": 0, "step_in_epoch": 0,
                        "steps_per_epoch": data.steps(options.batch_size),
                    })
                    settle(begun, folder)
                    begun = folder
                yield step
    if best is not None:
        summary = {
            "epochs": training.epoch, "steps": training.step, "select": options.select, "best": best,
            "control": model.control,
        }
        write_json(folder / "summary.json", summary | {"seconds": round(state["seconds"], 1)})


class _Log:
    """log.jsonl, open to append, with the digest of its lines; a link in its place is not followed."""

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256(file_content(path) if path.exists() else b"")
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._descriptor)

    def write(self, step: Step) -> None:
        line = (json.dumps(asdict(step)) + "\n").encode()
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):      # the disk is nearly full: the rest says so
                os.write(self._descriptor, line[written:])
        except OSError as error:
            error.filename = str(self._path)
            raise
        self._digest.update(line)

    def digest(self) -> str:
        return self._digest.hexdigest()


def _validated(training: Training, validation: Data, step: Step) -> dict[str, float]:
    options = training.options
    found = accuracy(
        training.network, validation, training.device, options.batch_size, gamma=options.gamma,
        map_loss=training.map_loss,
    )
    if not all(map(math.isfinite, found.values())):
        raise RunError(f"the validation after epoch {step.epoch} gives {found}; try a lower --lr")
    return found


def _chosen(options: TrainingOptions, step: Step, best: dict[str, Any] | None) -> dict[str, Any]:
    """Return the best epoch up to now: the one that ends with ``step``, or ``best``."""
    found = {"epoch": step.epoch, "validation": step.validation, "loss": step.loss}
    rank = SELECTIONS[options.select].rank
    if best is None or rank is None or step.validation is None or rank(step.validation) > rank(best["validation"]):
        return found
    return best


def _keep(folder: Path, model: TrainedModel, state: dict[str, Any]) -> None:
    """Save the epoch that has ended."""
    if state["best"]["epoch"] == state["epoch"]:
        save_model(folder / BEST, model)
    save_model(folder / LAST, model)
    save_state(folder, state)     # last: until it is there, the epoch counts as not done

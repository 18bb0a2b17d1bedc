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

from hkmap.engine.data import Data
from hkmap.engine.evaluation import accuracy
from hkmap.engine.runs import TrainedModel, load_model, save_model, settle, write_json
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.training.optimisation import SELECTIONS, TrainingOptions
from hkmap.training.steps import Step, Training

#: What a run to resume and its last.pt have in common.
_SAME = ("architecture", "preprocessing", "class_names", "control", "fold")


def go_on(model: TrainedModel, training: Training, folder: Path) -> None:
    """Continue the run in ``folder`` after its last complete epoch.

    Raises RunError where its last.pt or log.jsonl are not those of such a run.
    """
    last = load_model(folder / "last.pt")
    try:
        if not last.state or any(getattr(last, name) != getattr(model, name) for name in _SAME):
            raise ValueError(f"another {', '.join(_SAME)}, or no state")
        training.load_state(last.state)
    except ValueError as error:
        raise RunError(f"{folder / 'last.pt'}: not the checkpoint of this run: {error}; use --overwrite") from error
    model.network.load_state_dict(last.network.state_dict())
    model.state.update(last.state)
    log = folder / "log.jsonl"
    lines = file_content(log).splitlines(keepends=True)[: training.step]
    kept = b"".join(lines)
    digest = last.state.get("log") or hashlib.sha256(kept).hexdigest()      # the first runs had none
    if len(lines) < training.step or hashlib.sha256(kept).hexdigest() != digest:
        raise RunError(f"{log}: not the log that last.pt belongs to, of {training.step} steps; use --overwrite")
    with replacing(log, overwrite=True) as beside:      # without the steps of an unfinished epoch, which are repeated
        beside.write_bytes(kept)


def fit(
    model: TrainedModel, training: Training, data: Data, folder: Path, begun: Path | None = None
) -> Iterator[Step]:
    """Train to the last epoch, yielding every Step, and keep the run in ``folder``.

    log.jsonl gets one line per step, last.pt and best.pt (the epoch that ``select`` of the options chooses) are
    replaced after each epoch, summary.json is written at the end. Until the first checkpoint the files are in
    ``begun``, as `opened_run` gives it.
    """
    begun, options = begun or folder, training.options
    best: dict[str, Any] | None = model.state.get("best")
    began = time.monotonic()
    with _Log(begun / "log.jsonl") as log:
        while training.epoch < options.epochs:
            for step in training.run_epoch(data.examples, data.indices):
                if step.epoch_ends and data.validation is not None:
                    step = replace(step, validation=_validated(training, data.validation, step))
                # before the checkpoint: a resumed run cuts the log back to it, but cannot fill in a missing line
                log.write(step)
                if step.epoch_ends:
                    best = _chosen(options, step, best)
                    _keep(begun, replace(model, state={**training.state(), "best": best, "log": log.digest()}))
                    settle(begun, folder)
                    begun = folder
                yield step
    if best is not None:
        summary = {
            "epochs": training.epoch, "steps": training.step, "select": options.select, "best": best,
            "control": model.control,
        }
        write_json(folder / "summary.json", summary | {"seconds": round(time.monotonic() - began, 1)})


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


def _keep(folder: Path, now: TrainedModel) -> None:
    """Save the epoch that has ended."""
    if now.state["best"]["epoch"] == now.state["epoch"]:
        save_model(folder / "best.pt", now)
    save_model(folder / "last.pt", now)     # last: until it is there, the epoch counts as not done

"""A training from its first or next step to its last, and the run folder that keeps the results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hkmap.engine.checkpoints import check_finite, plain_weights, read_state, save_state
from hkmap.engine.data import Data
from hkmap.engine.folders import settle, write_json
from hkmap.engine.runs import BEST, LAST, TrainedModel, save_model
from hkmap.engine.validation import accuracy
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.training.feeding import Feed
from hkmap.training.optimisation import SELECTIONS, TrainingOptions
from hkmap.training.steps import Step, Training


@dataclass
class Progress:
    """What a run keeps beside its training: the best epoch up to now, and the seconds that it took."""

    best: dict[str, Any] | None = None
    seconds: float = 0.0


def go_on(training: Training, folder: Path) -> Progress:
    """Continue the run in ``folder`` after the last step that its state.pt has; return how far it got.

    Raises RunError where its state.pt or log.jsonl are not those of such a run.
    """
    state = read_state(folder, training.network)
    try:
        training.load_state(state)
    except ValueError as error:
        raise RunError(f"{folder}: its state is not that of this run: {error}; use --overwrite") from error
    if training.epoch > training.options.epochs:
        raise RunError(f"{folder}: has {training.epoch} epochs done, --epochs is {training.options.epochs}; give more")
    if training.ranks.first:
        _cut_log(folder / "log.jsonl", training.step, state["log"])
    return Progress(state["best"], state["seconds"])


def _cut_log(path: Path, steps: int, digest: str | None) -> None:
    """Remove the lines of steps that are not in the state, and will be repeated."""
    lines = file_content(path).splitlines(keepends=True)[:steps]
    kept = b"".join(lines)
    now = hashlib.sha256(kept).hexdigest()
    if len(lines) < steps or now != (digest or now):      # the first runs had no digest
        raise RunError(f"{path}: not the log of this run's state, of {steps} steps; use --overwrite")
    with replacing(path, overwrite=True) as beside:
        beside.write_bytes(kept)


class Keeping(NamedTuple):
    """Where a run is kept, and every how many seconds.

    Until the first checkpoint the files are in ``begun``, as `opened_run` gives it.
    """

    folder: Path
    begun: Path
    every: float = 60.0


def fit(
    model: TrainedModel, training: Training, data: Data, feed: Feed, keeping: Keeping, progress: Progress | None = None
) -> Iterator[Step]:
    """Train to the last epoch, yielding every Step, and keep the run in its folder.

    log.jsonl gets one line per step. As often as ``keeping`` says, at the end, and where the training is asked to stop,
    the others are replaced: last.safetensors (the last complete epoch), best.safetensors (the epoch that ``select`` of
    the options chooses) and state.pt (the last step). summary.json is written at the end. Of several processes only the
    first one writes.
    """
    with _Run(model, training, keeping, progress or Progress()) as run:
        training.due = run.is_due
        while not run.finished() and not training.stopping:
            for step in training.run_epoch(feed):
                if step.epoch_ends and data.validation is not None:
                    step = replace(step, validation=_validated(training, data.validation, step))
                # before the checkpoint: a resumed run cuts the log back to it, but cannot fill in a missing line
                run.log(step)
                newest = step.step == training.step
                if step.epoch_ends:
                    run.end_epoch(step)
                elif newest and (training.stopping or training.saving):
                    run.keep()
                yield step
                if newest and training.stopping:
                    break
        if run.finished():
            run.summarise()


class _Run:
    """The folder of a run that is going on."""

    def __init__(self, model: TrainedModel, training: Training, keeping: Keeping, progress: Progress) -> None:
        self.model, self.training, self.progress = model, training, progress
        self.folder, self.begun, self.every = keeping
        self.began = self.kept = self.kept_epoch = time.monotonic()
        self.best: dict[str, Tensor] | None = None      # weights that best.safetensors does not have yet
        self.writes = training.ranks.first
        self._log = _Log(self.begun / "log.jsonl") if self.writes else None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._log is not None:
            self._log.close()

    def finished(self) -> bool:
        """Say whether there is no further epoch: all are done, or none was better for ``patience`` epochs."""
        options, best = self.training.options, self.progress.best
        early = options.patience is not None and best is not None
        waited = self.training.epoch - best["epoch"] if best is not None else 0
        return self.training.epoch >= options.epochs or bool(early and waited >= (options.patience or 0))

    def log(self, step: Step) -> None:
        if self._log is not None:
            self._log.write(step)

    def is_due(self) -> bool:
        """Say whether it is time to save the state."""
        return time.monotonic() - self.kept >= self.every

    def end_epoch(self, step: Step) -> None:
        """Choose the best epoch, and save the one that has ended where it is time, or there is no other."""
        training = self.training
        self.progress.best = _chosen(training.options, step, self.progress.best)
        saves = self.finished() or training.stopping or time.monotonic() - self.kept_epoch >= self.every
        chosen = self.progress.best["epoch"] == step.epoch
        if not saves and not (chosen and SELECTIONS[training.options.select].rank):
            return
        with nullcontext() if training.average is None else training.average.swapped(training.network):
            if chosen:
                self.best = {name: value.clone() for name, value in plain_weights(training.network).items()}
            if saves and self.writes:
                check_finite(training.network)
                save_model(self.begun / LAST, self.model)
        if saves:
            self.kept_epoch = time.monotonic()
            self.keep()

    def keep(self) -> None:
        """Save what a resumed run begins with; until it is there, the steps before it count as not done."""
        self.kept = time.monotonic()
        self.progress.seconds += self.kept - self.began
        self.began = self.kept
        if self._log is None:
            return
        check_finite(self.training.network)
        if self.best is not None:
            save_model(self.begun / BEST, self.model, self.best)
            self.best = None
        state = {
            **self.training.state(), "weights": plain_weights(self.training.network), "best": self.progress.best,
            "log": self._log.digest(), "seconds": self.progress.seconds,
        }
        save_state(self.begun, state)
        settle(self.begun, self.folder)
        self.begun = self.folder

    def summarise(self) -> None:
        best = self.progress.best
        if not self.writes or best is None:
            return
        summary = {
            "epochs": self.training.epoch, "steps": self.training.step, "select": self.training.options.select,
            "best": best, "control": self.model.control, "seconds": round(self.progress.seconds, 1),
        }
        write_json(self.folder / "summary.json", summary)


class _Log:
    """log.jsonl, open to append, with the digest of its lines; a link in its place is not followed."""

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256(file_content(path) if path.exists() else b"")
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
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
    options, network = training.options, training.network
    with nullcontext() if training.average is None else training.average.swapped(network):
        found = accuracy(
            network, validation, training.device, options.batch_size, gamma=options.gamma, map_loss=training.map_loss,
        )
    if not all(map(math.isfinite, found.values())):
        raise RunError(f"the validation after epoch {step.epoch} gives {found}; try a lower --lr")
    return found


def _chosen(options: TrainingOptions, step: Step, best: dict[str, Any] | None) -> dict[str, Any]:
    """Return the best epoch up to now: the one that ends with ``step``, or ``best``."""
    found = {
        "epoch": step.epoch, "validation": step.validation, "loss": step.loss, "attention_mean": step.attention_mean,
    }
    rank = SELECTIONS[options.select].rank
    if best is None or rank is None or step.validation is None or rank(step.validation) > rank(best["validation"]):
        return found
    return best

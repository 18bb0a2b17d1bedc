"""Training and fine-tuning: a generator of Steps, and the run folder that keeps the results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hkmap.choices import Choices
from hkmap.engine.abn import AttentionBranchNetwork, place
from hkmap.engine.data import Data, ShardExamples, normalise, tensors
from hkmap.engine.evaluation import accuracy
from hkmap.engine.losses import MAP_LOSSES, MapLoss, losses
from hkmap.engine.runs import TrainedModel, load_model, save_model, settle, write_json
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.shards.loader import ShardLoader, Shares

Schedule = Callable[[int, int], float | Fraction]      # the epoch, from 1, and their number: the factor of the rate


def step(epoch: int, epochs: int) -> Fraction:
    """A tenth after a half of the epochs, a hundredth after three quarters; the paper's.

    >>> [str(step(epoch, 4)) for epoch in (1, 2, 3, 4)]
    ['1', '1', '1/10', '1/100']
    """
    return Fraction(1, 10 ** sum(epoch > share * epochs for share in (0.5, 0.75)))


SCHEDULES: Choices[Schedule] = Choices("schedule", {"step": step})


@dataclass(frozen=True)
class TrainingOptions:
    """How to optimise; the defaults are the paper's where it gives them.

    ``update``, ``precision`` and ``optimizer`` are names in UPDATES, PRECISIONS and OPTIMIZERS; ``select``, which epoch
    best.pt is, in SELECTIONS; ``map_loss`` and ``schedule`` are names in MAP_LOSSES and SCHEDULES, or such functions.
    ``gamma`` scales the map loss. Parts that are not updated keep their batch-norm statistics too. Raises ChoiceError
    for an unknown name.
    """

    epochs: int
    batch_size: int = 16
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 0.0
    update: str = "all"
    seed: int = 0
    precision: str = "float32"
    threads: int = 2
    map_loss: str | MapLoss = "norm"
    schedule: str | Schedule = "step"
    optimizer: str = "sgd"
    select: str = "last"

    def __post_init__(self) -> None:
        UPDATES.check(self.update)
        PRECISIONS.check(self.precision)
        OPTIMIZERS.check(self.optimizer)
        MAP_LOSSES.row(self.map_loss)
        SCHEDULES.row(self.schedule)
        SELECTIONS.check(self.select)


def sgd(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum and weight decay."""
    return torch.optim.SGD(
        parameters, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay
    )


OPTIMIZERS = Choices("optimizer", {"sgd": sgd})


def everything(network: AttentionBranchNetwork) -> list[nn.Module]:
    """The whole network."""
    return [network]


def both_branches(network: AttentionBranchNetwork) -> list[nn.Module]:
    """The attention and the perception branch; the extractor stays as it is."""
    return [*attention_branch(network), network.perception]


def attention_branch(network: AttentionBranchNetwork) -> list[nn.Module]:
    """The attention branch alone."""
    if network.attention is None:
        raise RunError("the network has no attention branch to fine-tune; train one with an --arch that ends in +abn")
    return [network.attention]


UPDATES: Choices[Callable[[AttentionBranchNetwork], list[nn.Module]]] = Choices(
    "update", {"all": everything, "both": both_branches, "attention": attention_branch}
)


def float32(device: torch.device) -> AbstractContextManager[Any]:
    """All in float32."""
    return nullcontext()


def bfloat16(device: torch.device) -> AbstractContextManager[Any]:
    """Automatic mixed precision: convolutions and products in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16)


PRECISIONS = Choices("precision", {"float32": float32, "bfloat16": bfloat16})


@dataclass(frozen=True)
class Selection:
    """How to choose the epoch of best.pt: ``rank`` of its validation figures, the highest; None takes the last epoch.

    ``needs_maps``: the validation samples need human maps, and the network an attention branch.
    """

    title: str
    rank: Callable[[dict[str, float]], tuple[float, ...]] | None
    needs_maps: bool = False


SELECTIONS = Choices("selection", {
    "last": Selection("The last epoch; validation data only tell how it went.", None),
    "top1": Selection("The highest validation accuracy, then the lowest loss.", lambda f: (f["top1"], -f["loss"])),
    "loss": Selection("The lowest validation loss (cross entropy of the answer).", lambda f: (-f["loss"],)),
    "total": Selection("The lowest validation value of what is minimised, gamma * map loss included.",
                       lambda f: (-f["total"],)),
    "mse": Selection("The lowest validation MSE between the attention map and the human map.",
                     lambda f: (-f.get("mse", math.inf),), needs_maps=True),
}, kind=Selection)


@dataclass(frozen=True)
class Step:
    """What one optimisation step reports; losses are means over its batch, ``loss`` is what was minimised.

    ``validation`` is set at the last step of an epoch, where there are samples to validate on.
    """

    epoch: int                  # from 1
    step: int                   # from 1, over the whole run
    loss: float
    loss_attention: float
    loss_perception: float
    loss_map: float             # without gamma
    accuracy: float             # share of the batch
    learning_rate: float
    epoch_ends: bool = False
    validation: dict[str, float] | None = None


def learning_rate(options: TrainingOptions, epoch: int) -> float:
    """Return the learning rate of an epoch (from 1)."""
    factor = SCHEDULES.row(options.schedule)(epoch, options.epochs)
    return float(Fraction(options.learning_rate) * Fraction(factor))       # exact: a tenth of 0.05 is 0.005


class Training:
    """A network being optimised, and what must persist from step to step."""

    def __init__(self, network: AttentionBranchNetwork, options: TrainingOptions, device: torch.device) -> None:
        self.options = options
        self.device = device
        self.network = place(network, device)
        self.modules = UPDATES[options.update](network)
        network.requires_grad_(False)
        for module in self.modules:
            module.requires_grad_(True)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = OPTIMIZERS[options.optimizer](trained, options)
        self.map_loss = MAP_LOSSES.row(options.map_loss)
        self.precision = PRECISIONS[options.precision]
        self.epoch = 0          # epochs done
        self.step = 0           # steps done

    def state(self) -> dict[str, Any]:
        """Return what load_state needs to continue exactly."""
        return {"optimizer": self.optimizer.state_dict(), "epoch": self.epoch, "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned; raise ValueError where it is another network's."""
        own = self.optimizer.state_dict()
        found = state["optimizer"].get("state")
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not isinstance(found, dict) or found.keys() != set(range(len(trained))):
            raise ValueError(f"the optimizer's state is not that of {len(trained)} parameters")
        for number, parameter in enumerate(trained):
            kept = found[number]
            if not isinstance(kept, dict) or not all(_belongs(value, parameter) for value in kept.values()):
                raise ValueError(f"the optimizer's state of parameter {number} does not fit")
        # the options are this run's own: they are the same, or it would not be resumed
        self.optimizer.load_state_dict({"state": found, "param_groups": own["param_groups"]})
        self.epoch, self.step = state["epoch"], state["step"]

    def run_epoch(self, examples: ShardExamples, indices: npt.NDArray[np.int64]) -> Iterator[Step]:
        """Train one epoch on the samples ``indices``; yield a Step for each batch."""
        options, epoch = self.options, self.epoch + 1
        rate = learning_rate(options, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.eval()                 # what is frozen keeps its batch-norm statistics
        for module in self.modules:
            module.train()
        shares = Shares(len(indices), options.batch_size, seed=options.seed, equal_steps=False, least=2)
        loader = ShardLoader(examples, shares, indices=indices, threads=options.threads)
        for number, loaded in enumerate(loader.epoch(epoch), start=1):
            batch = tensors(loaded).to(self.device)
            with self.precision(self.device):
                output = self.network(normalise(batch.images, examples.preprocessing))
                parts = losses(output, batch.labels, batch.maps, batch.certainty, map_loss=self.map_loss)
            loss = parts.total(options.gamma)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            right = (output.logits.argmax(1) == batch.labels).float().mean()
            # copied to the host once per step
            figures = torch.stack([loss, parts.attention, parts.perception, parts.map, right]).tolist()
            total, of_attention, of_perception, of_map, share = figures
            if not math.isfinite(total):
                remedy = "--lr or --gamma" if options.gamma else "--lr"
                raise RunError(f"the loss became {total} in epoch {epoch}, at step {self.step}; try a lower {remedy}")
            ends = number == len(loader)
            self.epoch += ends
            yield Step(epoch, self.step, total, of_attention, of_perception, of_map, share, rate, ends)


def prepare(model: TrainedModel, data: Data, options: TrainingOptions, device: torch.device) -> Training:
    """Return the training of ``model``, ready to start; raise RunError where the data or the network do not fit."""
    shards = data.examples.shards
    if options.gamma > 0 and not shards.has_map[data.indices].any():
        raise RunError(f"{shards.name}: no training sample has a map, which the map loss needs; use --gamma 0")
    if len(data.indices) < 2:
        raise RunError(f"{shards.name}: {len(data.indices)} sample to train on; batch norm needs at least two")
    if len(found := np.unique(shards.labels[data.indices])) < 2:
        name = model.class_names[found[0]] or f"label {found[0]}"
        raise RunError(f'{shards.name}: only one class to train on, "{name}"; give records of two classes or more')
    _check_selection(model, data, options.select)
    return Training(model.network, options, device)


def _belongs(value: object, parameter: nn.Parameter) -> bool:
    """Say whether a value of an optimizer's state can be the parameter's: of its shape, a number, or None."""
    if isinstance(value, torch.Tensor):
        return value.shape == parameter.shape and value.dtype == parameter.dtype and bool(value.isfinite().all())
    return value is None or isinstance(value, (int, float))


def _check_selection(model: TrainedModel, data: Data, name: str) -> None:
    selection, validation = SELECTIONS[name], data.validation
    if selection.rank is None:
        return
    if validation is None:
        raise RunError(f"--select {name} needs validation data; give --val or --val-share, or use --select last")
    has_maps = validation.examples.shards.has_map[validation.indices].any()
    if selection.needs_maps and (model.network.attention is None or not has_maps):
        raise RunError(
            f"--select {name} needs human maps of validation samples, and a network with an attention branch; "
            "use --select last"
        )


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

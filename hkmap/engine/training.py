"""Training and fine-tuning: a generator of Steps, and the run folder that keeps the results."""

from __future__ import annotations

import json
import math
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
from hkmap.engine.runs import TrainedModel, load_model, save_model, write_json
from hkmap.engine.schedules import SCHEDULES, Schedule
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.shards.loader import ShardLoader, Shares


@dataclass(frozen=True)
class TrainingOptions:
    """How to optimise; the defaults are the paper's where it gives them.

    ``update``, ``precision`` and ``optimizer`` are names in UPDATES, PRECISIONS and OPTIMIZERS; ``map_loss`` and
    ``schedule`` are names in MAP_LOSSES and SCHEDULES, or such functions. ``gamma`` scales the map loss. Parts that are
    not updated keep their batch-norm statistics too. Raises ChoiceError for an unknown name.
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

    def __post_init__(self) -> None:
        UPDATES.check(self.update)
        PRECISIONS.check(self.precision)
        OPTIMIZERS.check(self.optimizer)
        MAP_LOSSES.row(self.map_loss)
        SCHEDULES.row(self.schedule)


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
        self.optimizer.load_state_dict(state["optimizer"])
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
                raise RunError(f"the loss became {total} at step {self.step}; try a lower --lr or --gamma")
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
    return Training(model.network, options, device)


def go_on(model: TrainedModel, training: Training, folder: Path) -> None:
    """Continue the run in ``folder`` after its last complete epoch."""
    last = load_model(folder / "last.pt")
    model.network.load_state_dict(last.network.state_dict())
    model.state.update(last.state)
    training.load_state(last.state)
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    with replacing(log, overwrite=True) as beside:      # without the steps of an unfinished epoch, which are repeated
        beside.write_text("".join(lines[: training.step]), encoding="utf-8")


def fit(model: TrainedModel, training: Training, data: Data, folder: Path) -> Iterator[Step]:
    """Train to the last epoch, yielding every Step, and keep the run in ``folder``.

    log.jsonl gets one line per step, last.pt and best.pt (the highest validation accuracy, then the lowest loss;
    without validation the last epoch) are replaced after each epoch, summary.json is written at the end.
    """
    best: dict[str, Any] | None = model.state.get("best")
    began = time.monotonic()
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        while training.epoch < training.options.epochs:
            for step in training.run_epoch(data.examples, data.indices):
                if step.epoch_ends and data.validation is not None:
                    found = accuracy(training.network, data.validation, training.device, training.options.batch_size)
                    step = replace(step, validation=found)
                # before the checkpoint: a resumed run cuts the log back to it, but cannot fill in a missing line
                log.write(json.dumps(asdict(step)) + "\n")
                log.flush()
                if step.epoch_ends:
                    best = _keep(model, training, folder, step, best)
                yield step
    if best is not None:
        summary = {"epochs": training.epoch, "steps": training.step, "best": best, "control": model.control}
        write_json(folder / "summary.json", summary | {"seconds": round(time.monotonic() - began, 1)})


def _keep(
    model: TrainedModel, training: Training, folder: Path, step: Step, best: dict[str, Any] | None
) -> dict[str, Any]:
    """Save the epoch that ends with ``step``, and return the best one up to now."""
    found = {"epoch": step.epoch, "validation": step.validation, "loss": step.loss}
    if best is None or step.validation is None or _rank(found) > _rank(best):
        best = found
    now = replace(model, state={**training.state(), "best": best})
    if best is found:
        save_model(folder / "best.pt", now)
    save_model(folder / "last.pt", now)     # last: until it is there, the epoch counts as not done
    return best


def _rank(best: dict[str, Any]) -> tuple[float, float]:
    return best["validation"]["top1"], -best["validation"]["loss"]

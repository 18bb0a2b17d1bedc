"""One optimisation step after another: a generator of Steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hkmap.engine.data import Data, ShardExamples, normalise, tensors
from hkmap.engine.losses import MAP_LOSSES, losses
from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import place
from hkmap.shards.loader import ShardLoader, Shares
from hkmap.training.optimisation import OPTIMIZERS, PRECISIONS, SELECTIONS, UPDATES, TrainingOptions, learning_rate


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

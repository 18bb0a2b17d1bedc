"""One optimisation step after another: a generator of Steps."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hkmap.engine.data import Data
from hkmap.engine.losses import MAP_LOSSES, losses
from hkmap.engine.processor import warn_of_slow
from hkmap.engine.ranks import add_up, current, reduced, shared
from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Output, place
from hkmap.sources.images import few
from hkmap.training.averaging import Average
from hkmap.training.feeding import Fed, Feed, Numbers
from hkmap.training.graphs import EAGER_STEPS, LARGEST_BATCH, Recorded, record
from hkmap.training.mining import mining_loss
from hkmap.training.optimisation import (
    CLASS_WEIGHTS,
    OPTIMIZERS,
    PRECISIONS,
    SELECTIONS,
    UPDATES,
    TrainingOptions,
    gamma,
    learning_rate,
)

logger = logging.getLogger("hkmap")

_TENSORS = ("inputs", "maps", "certainty", "labels", "weights")     # of a Fed, which change from step to step
LATE = 8        # steps that a CUDA device may be behind before its figures are waited for


@dataclass(frozen=True)
class Step:
    """What one optimisation step reports; losses are means over its samples, ``loss`` is what was minimised.

    ``validation`` is set at the last step of an epoch, where there are samples to validate on.
    """

    epoch: int                  # from 1
    step: int                   # from 1, over the whole run
    loss: float
    loss_attention: float
    loss_perception: float
    loss_map: float             # without gamma
    accuracy: float             # share of the samples
    learning_rate: float
    epoch_ends: bool = False
    validation: dict[str, float] | None = None
    loss_mining: float = 0.0            # a sum over the samples, as in its paper; without alpha
    attention_mean: float | None = None     # of the samples' maps; None without attention branch
    samples: int = 0


class _Taken(NamedTuple):
    """A step that was taken; its figures may still be on their way from the device."""

    epoch: int
    step: int
    rate: float
    indices: list[Numbers]      # of this process's records
    samples: int
    figures: Tensor             # (9,) on the host: those of `Training.take`; whether a save, and an end, is asked for
    there: torch.cuda.Event | None      # when they are on the host


class Training:
    """A network being optimised, and what must persist from step to step.

    ``class_weights`` (K,) scale the cross entropies of each class. ``stop`` asks for the training's end, and ``due``
    for a moment at which its state can be saved: then the Step that is yielded is the last one taken, and ``stopping``
    and ``saving`` say so, in all processes after the same step.
    """

    def __init__(
        self, network: AttentionBranchNetwork, options: TrainingOptions, device: torch.device, *,
        class_weights: Tensor | None = None, stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options, self.device, self.ranks, self.stop = options, device, current(), stop
        self.network = shared(place(network, device))
        self.modules = UPDATES[options.update](network)
        network.requires_grad_(False)
        for module in self.modules:
            module.requires_grad_(True)
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.frozen = not any(parameter.requires_grad for parameter in network.extractor.parameters())
        self.optimizer = OPTIMIZERS[options.optimizer](self.trained, options)
        self.map_loss = MAP_LOSSES.row(options.map_loss)
        self.precision = PRECISIONS[options.precision]
        self.scaler = self.precision.scaler(device)
        self.average = None if options.ema is None else Average(network, options.ema)
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.losses = torch.compile(self._losses) if options.compile else self._losses
        self.scale = torch.zeros((), device=device)     # gamma, which a schedule changes
        small = options.batch_size <= LARGEST_BATCH and options.accumulate == 1 and self.ranks.ranks == 1
        self.graphs: list[Recorded] | None = (
            [] if device.type == "cuda" and small and not self.precision.scaled else None
        )
        self.epoch = 0              # epochs done
        self.step_in_epoch = 0      # steps done of the next one
        self.step = 0               # steps done
        self.first = 0              # steps done when this process began
        self.due: Callable[[], bool] = lambda: False
        self.stopping = self.saving = False

    def state(self) -> dict[str, Any]:
        """Return what load_state needs to continue exactly."""
        return {
            "optimizer": self.optimizer.state_dict(), "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch, "step": self.step,
            "average": None if self.average is None else self.average.state(),
            "scaler": self.scaler.state_dict() or None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned; raise ValueError where it is another network's."""
        own = self.optimizer.state_dict()
        found = state["optimizer"].get("state")
        if not isinstance(found, dict) or found.keys() != set(range(len(self.trained))):
            raise ValueError(f"the optimizer's state is not that of {len(self.trained)} parameters")
        for number, parameter in enumerate(self.trained):
            kept = found[number]
            if not isinstance(kept, dict) or not all(_belongs(value, parameter) for value in kept.values()):
                raise ValueError(f"the optimizer's state of parameter {number} does not fit")
        # the options are this run's own: they are the same, or it would not be resumed
        self.optimizer.load_state_dict({"state": found, "param_groups": own["param_groups"]})
        self.network.load_state_dict(state["weights"])
        if self.average is not None:
            self.average.load_state(state["average"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
        self.first = self.step

    def steps(self, feed: Feed) -> int:
        """Return the steps of an epoch."""
        return -(-len(feed) // self.options.accumulate)

    def run_epoch(self, feed: Feed) -> Iterator[Step]:
        """Train the rest of an epoch; yield a Step for each batch, or several batches whose gradients accumulate.

        On CUDA the Steps come some steps late, so that nobody waits for the device. Raises RunError, naming the
        records, where the loss is not finite.
        """
        self.network.eval()                 # what is frozen keeps its batch-norm statistics
        for module in self.modules:
            module.train()
        options, steps, epoch = self.options, self.steps(feed), self.epoch + 1
        batches = feed.epoch(epoch, self.step_in_epoch * options.accumulate)
        late = LATE if self.device.type == "cuda" else 0
        taken: deque[_Taken] = deque()
        self.saving = False
        while batch := list(islice(batches, options.accumulate)):
            done = self.epoch + Fraction(self.step_in_epoch, steps)
            rate = learning_rate(options, done)
            figures = self.optimise(batch, rate, gamma(options, done))
            self.step += 1
            self.step_in_epoch += 1
            ends = self.step_in_epoch == steps
            if ends:
                self.epoch, self.step_in_epoch = epoch, 0
            samples, indices = sum(fed.samples for fed in batch), [fed.indices for fed in batch]
            taken.append(_Taken(epoch, self.step, rate, indices, samples, *self._sent(figures)))
            while taken and (ends or self.stopping or self.saving or len(taken) > late):
                yield self._step(taken.popleft(), feed, ends=ends and not taken)
            self.saving = False

    def optimise(self, batch: list[Fed], rate: float, scale: float) -> Tensor:
        """Take one step on the batches; return its figures (7,), still on the device, this process's part of each."""
        self._seed(self.options.seed << 31 ^ self.step << 8 ^ self.ranks.rank)
        self.scale.fill_(scale)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)     # on CUDA, where a graph reads it
            else:
                group["lr"] = rate
        figures = self.take(batch) if self.graphs is None or len(batch) > 1 else self._replayed(batch[0])
        if self.average is not None:
            self.average.update(self.network)
        return figures

    def _seed(self, seed: int) -> None:
        """Fix what dropout draws in a step; `torch.manual_seed` would also look for devices of other kinds."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def _replayed(self, fed: Fed) -> Tensor:
        """Take one step on a batch by the graph of its shape, where there is one, or becomes one."""
        assert self.graphs is not None
        if fed.samples != self.options.batch_size or self.step < self.first + EAGER_STEPS:
            return self.take([fed])
        tensors = (fed.inputs, fed.maps, fed.certainty, fed.labels, fed.weights)
        if not self.graphs:
            self.graphs.append(record(
                lambda *given: self.take([fed._replace(**dict(zip(_TENSORS, given, strict=True)))]), *tensors
            ))
        return self.graphs[0](*tensors)

    def take(self, batch: list[Fed]) -> Tensor:
        """Compute gradients and change the weights; return the figures (7,)."""
        self.optimizer.zero_grad(set_to_none=True)
        count = sum(fed.samples for fed in batch)
        figures = torch.zeros(7, device=self.device)
        for fed in batch:
            # a smaller last batch would be compiled anew
            of_batch = self.losses if fed.samples == self.options.batch_size else self._losses
            with self.precision(self.device):
                loss, found = of_batch(fed.inputs, fed.maps, fed.certainty, fed.labels, fed.weights, fed.cached, count)
            self.scaler.scale(loss).backward()
            figures += found
        reduced(self.network)
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures

    def _losses(
        self, inputs: Tensor, maps: Tensor, certainty: Tensor, labels: Tensor, weights: Tensor, cached: bool, count: int
    ) -> tuple[Tensor, Tensor]:
        """Return a batch's part of the loss, and of the figures (7,), of a step on ``count`` samples."""
        features, output = self._output(inputs, cached)
        parts = losses(
            output, labels, maps, certainty, map_loss=self.map_loss, weights=weights, count=count,
            class_weights=self.class_weights,
        )
        loss = parts.total(self.scale)
        mined = drawn = torch.zeros_like(loss)
        if self.options.mining and output.attention is not None:
            threshold = self.options.mask_threshold
            mined = (mining_loss(self.network, features, output.attention, labels, threshold) * weights).sum()
            loss = loss + self.options.mining * mined
        if output.attention is not None:
            drawn = (output.attention.float().mean((1, 2, 3)) * weights).sum() / count
        right = ((output.logits.argmax(1) == labels) * weights).sum() / count
        return loss, torch.stack([loss, parts.attention, parts.perception, parts.map, mined, right, drawn]).detach()

    def _output(self, inputs: Tensor, cached: bool) -> tuple[Tensor, Output]:
        """Return the features and the output; nothing of a frozen extractor is kept for the backward pass."""
        network = self.network
        with torch.set_grad_enabled(not self.frozen):
            features = inputs if cached else network.features(inputs)
        if network.attention is None:
            return features, Output(network.answer(features), None, None)
        own = network.look(features)
        return features, Output(network.answer(features, own.attention), own.logits, own.attention)

    def _sent(self, figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Send figures (7,) to the host, with whether a save and the end is asked for, added up over all processes."""
        asked = torch.tensor([float(self.due()), float(self.stop())])
        if self.ranks.ranks > 1:
            figures = torch.cat([figures, asked.to(self.device, non_blocking=True)])
            add_up([figures])
        if self.device.type != "cuda":
            return torch.cat([figures, asked])[:9], None
        host = torch.empty(9, pin_memory=True)
        host[7:] = asked
        host[: len(figures)].copy_(figures, non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        return host, there

    def _step(self, taken: _Taken, feed: Feed, *, ends: bool) -> Step:
        """Return the Step, once its figures are there."""
        if taken.there is not None:
            taken.there.synchronize()
        total, attention, perception, of_map, mined, right, drawn, saving, stopping = taken.figures.tolist()
        self.saving, self.stopping = self.saving or saving > 0, self.stopping or stopping > 0
        if not math.isfinite(total):
            raise RunError(self._diverged(taken, total, feed))
        return Step(
            taken.epoch, taken.step, total, attention, perception, of_map, right, taken.rate, epoch_ends=ends,
            loss_mining=mined, attention_mean=None if self.network.attention is None else drawn, samples=taken.samples,
        )

    def _diverged(self, step: _Taken, total: float, feed: Feed) -> str:
        remedy = "--lr or --gamma" if self.options.gamma else "--lr"
        places = few([feed.place(index) for index in np.concatenate(step.indices).tolist()], 3)
        return f"the loss became {total} in epoch {step.epoch}, at step {step.step}, on {places}; try a lower {remedy}"


def prepare(
    model: TrainedModel, data: Data, options: TrainingOptions, device: torch.device, *,
    stop: Callable[[], bool] = lambda: False,
) -> Training:
    """Return the training of ``model``, ready to start; raise RunError where the data or the network do not fit."""
    shards = data.examples.shards
    if options.gamma > 0 and not shards.has_map[data.indices].any():
        raise RunError(f"{shards.name}: no training sample has a map, which the map loss needs; use --gamma 0")
    if options.mining and model.network.attention is None:
        raise RunError("attention mining needs an attention branch; train a network with an --arch that ends in +abn")
    if len(data.indices) < 2:
        raise RunError(f"{shards.name}: {len(data.indices)} sample to train on; batch norm needs at least two")
    labels = shards.labels[data.indices]
    if len(found := np.unique(labels)) < 2:
        name = model.class_names[found[0]] or f"label {found[0]}"
        raise RunError(f'{shards.name}: only one class to train on, "{name}"; give records of two classes or more')
    _check_selection(model, data, options)
    _tell_of_few_maps(data, options.gamma)
    class_weights = CLASS_WEIGHTS[options.class_weights](labels, len(model.class_names))
    warn_of_slow("--precision", options.precision, PRECISIONS[options.precision].units, device)
    return Training(model.network, options, device, class_weights=class_weights, stop=stop)


def _tell_of_few_maps(data: Data, gamma: float) -> None:
    drawn, count = int((data.examples.map_of[data.indices] >= 0).sum()), len(data.indices)
    if gamma > 0 and drawn < count / 4:
        logger.warning(
            "%d of %d training samples have a map; the map loss is a mean over all samples, so it counts %.3g times "
            "less than with a map for each; a larger --gamma makes up for it", drawn, count, count / max(1, drawn),
        )


def _belongs(value: object, parameter: nn.Parameter) -> bool:
    """Say whether a value of an optimizer's state can be the parameter's: of its shape, a number, or None."""
    if isinstance(value, torch.Tensor):
        fits = value.shape == parameter.shape or value.ndim == 0        # AdamW counts its steps in a tensor
        return fits and value.dtype == parameter.dtype and bool(value.isfinite().all())
    return value is None or isinstance(value, (int, float))


def _check_selection(model: TrainedModel, data: Data, options: TrainingOptions) -> None:
    name = options.select
    selection, validation = SELECTIONS[name], data.validation
    if selection.rank is None:
        if options.patience is not None:
            raise RunError("--patience stops by the validation figure of --select; give --select top1, loss or another")
        return
    if validation is None:
        raise RunError(f"--select {name} needs validation data; give --val or --val-share, or use --select last")
    has_maps = validation.examples.shards.has_map[validation.indices].any()
    if selection.needs_maps and (model.network.attention is None or not has_maps):
        raise RunError(
            f"--select {name} needs human maps of validation samples, and a network with an attention branch; "
            "use --select last"
        )

"""How to optimise, by name: learning rates, optimizers, what is updated, precision, and which epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from hkmap.choices import Choices
from hkmap.engine.losses import MAP_LOSSES, MapLoss
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork

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
    map_loss: str | MapLoss = "l2norm"
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


def learning_rate(options: TrainingOptions, epoch: int) -> float:
    """Return the learning rate of an epoch (from 1)."""
    factor = SCHEDULES.row(options.schedule)(epoch, options.epochs)
    return float(Fraction(options.learning_rate) * Fraction(factor))       # exact: a tenth of 0.05 is 0.005

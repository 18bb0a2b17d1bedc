"""How to optimise, by name: learning rates, optimizers, what is updated, precision, and which epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.engine.losses import MAP_LOSSES, MapLoss
from hkmap.engine.processor import BFLOAT16_UNITS
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork

#: The epochs done, from 0, with the fraction of the running one, and their number → the factor of the first value.
Schedule = Callable[[Fraction, int], float | Fraction]

_COLD = Fraction(1, 100)        # where the warm-up begins, as in torchvision's reference training
_GAMMA_RISE = Fraction(1, 10)   # of the epochs


def step(done: Fraction, epochs: int) -> Fraction:
    """A tenth after a half of the epochs, a hundredth after three quarters; the paper's.

    It falls between epochs alone, so a single epoch has the whole rate.

    >>> [str(step(Fraction(done), 4)) for done in (0, 1, 2, 3)]
    ['1', '1', '1/10', '1/100']
    """
    return _tenths(done, epochs, (Fraction(1, 2), Fraction(3, 4)))


def thirds(done: Fraction, epochs: int) -> Fraction:
    """A tenth after a third of the epochs, a hundredth after two thirds; the usual one for ImageNet.

    It falls between epochs alone. He et al., CVPR 2016; the ABN's authors drop one epoch later.
    """
    return _tenths(done, epochs, (Fraction(1, 3), Fraction(2, 3)))


def _tenths(done: Fraction, epochs: int, shares: tuple[Fraction, ...]) -> Fraction:
    return Fraction(1, 10 ** sum(math.floor(done) >= share * epochs for share in shares))


def cosine(done: Fraction, epochs: int) -> float:
    """Half a cosine from 1 down to 0 (Loshchilov and Hutter, ICLR 2017, without restarts).

    >>> [round(cosine(Fraction(done), 4), 3) for done in (0, 1, 2, 4)]
    [1.0, 0.854, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * done / epochs)) / 2


def constant(done: Fraction, epochs: int) -> int:
    """The same throughout."""
    return 1


SCHEDULES: Choices[Schedule] = Choices("schedule", {
    "step": step, "thirds": thirds, "cosine": cosine, "constant": constant,
})


def rise(done: Fraction, epochs: int) -> Fraction:
    """A linear rise from 0 over the first tenth of the epochs, then the same; ours.

    >>> [str(rise(Fraction(done), 40)) for done in (0, 1, 4, 39)]
    ['0', '1/4', '1', '1']
    """
    return min(Fraction(1), done / (epochs * _GAMMA_RISE))


GAMMA_SCHEDULES: Choices[Schedule] = Choices("gamma schedule", {"constant": constant, "warmup": rise, "cosine": cosine})


@dataclass(frozen=True)
class TrainingOptions:
    """How to optimise; the defaults are the paper's where it gives them.

    ``update``, ``precision``, ``optimizer`` and ``class_weights`` are names in UPDATES, PRECISIONS, OPTIMIZERS and
    CLASS_WEIGHTS; ``select``, which epoch is the best, in SELECTIONS; ``map_loss``, ``schedule`` and ``gamma_schedule``
    are names in MAP_LOSSES, SCHEDULES and GAMMA_SCHEDULES, or such functions. Parts that are not updated keep their
    batch-norm statistics too. Raises ChoiceError for an unknown name, and RunError for a warm-up that does not end.
    """

    epochs: int
    batch_size: int = 16
    learning_rate: float = 0.01
    momentum: float = 0.9               # AdamW's first beta
    weight_decay: float = 1e-4
    gamma: float = 0.0                  # scales the map loss
    update: str = "all"
    seed: int = 0
    precision: str = "float32"
    threads: int | None = None          # that decode images; None: 2 to 4, as there are cores
    map_loss: str | MapLoss = "l2norm"
    schedule: str | Schedule = "step"
    optimizer: str = "sgd"
    select: str = "last"
    gamma_schedule: str | Schedule = "constant"
    warmup: float = 0                   # epochs in which the learning rate rises
    accumulate: int = 1                 # batches of one step
    clip_norm: float | None = None      # of the gradient over all that is updated
    class_weights: str = "none"
    ema: float | None = None            # decay of the average of the weights, below 1
    patience: int | None = None         # epochs without a better validation figure before training stops
    mining: float = 0.0                 # alpha, scales the mining loss
    mask_threshold: float = 0.5         # sigma of the mining loss
    compile: bool = False

    def __post_init__(self) -> None:
        UPDATES.check(self.update)
        PRECISIONS.check(self.precision)
        OPTIMIZERS.check(self.optimizer)
        MAP_LOSSES.row(self.map_loss)
        SCHEDULES.row(self.schedule)
        GAMMA_SCHEDULES.row(self.gamma_schedule)
        CLASS_WEIGHTS.check(self.class_weights)
        SELECTIONS.check(self.select)
        if self.warmup and self.warmup >= self.epochs:
            took = f"a warm-up of {self.warmup:g} epochs never ends in {self.epochs}"
            raise RunError(f"--warmup {self.warmup:g}: {took}; give fewer than --epochs")


def sgd(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum and weight decay."""
    weights = list(parameters)
    return torch.optim.SGD(
        weights, momentum=options.momentum, weight_decay=options.weight_decay, **_on_device(weights, options)
    )


def adamw(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW, whose first beta is the momentum; 0.001 or less is a usual learning rate.

    Loshchilov and Hutter, ICLR 2019; the second beta is torch's 0.999.
    """
    weights = list(parameters)
    return torch.optim.AdamW(
        weights, betas=(options.momentum, 0.999), weight_decay=options.weight_decay,
        capturable=weights[0].is_cuda, **_on_device(weights, options),
    )


def _on_device(weights: list[nn.Parameter], options: TrainingOptions) -> dict[str, Any]:
    """Return the learning rate for an optimizer; on CUDA as a tensor, for a step of few kernels that waits for nothing.

    Scaled gradients that overflow are then found on the device too, and a CUDA graph reads the rate of its step.
    """
    if not weights[0].is_cuda:
        return {"lr": options.learning_rate}
    return {"lr": torch.tensor(options.learning_rate, device=weights[0].device), "fused": True}


OPTIMIZERS = Choices("optimizer", {"sgd": sgd, "adamw": adamw})


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


@dataclass(frozen=True)
class Precision:
    """A type of number to compute with; weights and losses stay float32.

    ``dtype`` is what automatic mixed precision computes convolutions and products in, None without it. ``scaled``: its
    gradients need scaling, as their range is small. ``units`` are the features of a processor, as Linux names them, one
    of which it needs to be fast.
    """

    title: str
    dtype: torch.dtype | None = None
    scaled: bool = False
    units: frozenset[str] = frozenset()

    def __call__(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context to compute in."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return what scales the loss and its gradients; it does nothing where they need no scaling."""
        return torch.amp.GradScaler(device.type, enabled=self.scaled)


PRECISIONS = Choices("precision", {
    "float32": Precision("All in float32."),
    "bfloat16": Precision("Automatic mixed precision: convolutions and products in bfloat16.", torch.bfloat16,
                          units=BFLOAT16_UNITS),
    "float16": Precision("The same in float16, with scaled gradients; for GPUs without bfloat16.", torch.float16, True,
                         units=frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})),
}, kind=Precision)


Labels = npt.NDArray[np.int64]


def unweighted(labels: Labels, classes: int) -> None:
    """Each sample counts the same."""


def balanced(labels: Labels, classes: int) -> Tensor:
    """Each class counts the same, however many samples it has.

    Returns (K,) float32: n / (K' n_c) for a class with n_c of the n labels (n,), 0 for one without; K' have some. So
    the mean over the samples is 1. Source: scikit-learn's class_weight="balanced".

    >>> balanced(np.array([0, 0, 0, 2]), 4).tolist()
    [0.6666666865348816, 0.0, 2.0, 0.0]
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


#: The labels to train on (n,), the number of classes K → what a sample of each class counts (K,), None for all 1.
CLASS_WEIGHTS: Choices[Callable[[Labels, int], Tensor | None]] = Choices(
    "class weights", {"none": unweighted, "balanced": balanced}
)


@dataclass(frozen=True)
class Selection:
    """How to choose the epoch of best.safetensors: the highest ``rank`` of its validation figures; None takes the last.

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


def learning_rate(options: TrainingOptions, done: Fraction) -> float:
    """Return the learning rate where ``done`` epochs are done, from 0, with the fraction of the running one.

    In the warm-up it rises to the schedule's, linearly from a hundredth.
    """
    factor = Fraction(SCHEDULES.row(options.schedule)(done, options.epochs))
    if done < options.warmup:
        factor *= _COLD + (1 - _COLD) * done / Fraction(options.warmup)
    return float(Fraction(options.learning_rate) * factor)      # exact: a tenth of 0.05 is 0.005


def gamma(options: TrainingOptions, done: Fraction) -> float:
    """Return the scale of the map loss where ``done`` epochs are done, from 0, with the fraction of the running one."""
    factor = GAMMA_SCHEDULES.row(options.gamma_schedule)(done, options.epochs)
    return float(Fraction(options.gamma) * Fraction(factor))

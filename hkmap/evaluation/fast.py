"""How a network answers many frames fast: norms folded into convolutions, channels last, the type of number."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hkmap.choices import Choices
from hkmap.engine.processor import BFLOAT16_UNITS, warn_of_slow
from hkmap.errors import RunError
from hkmap.networks.classifier import Classifier, place
from hkmap.networks.outside import is_layered

AT_ONCE = 16            # frames in a forward pass on the CPU, and the least on CUDA
MOST_AT_ONCE = 1024
_SAME = 1e-4            # of the largest logit: what folding may change by rounding

logger = logging.getLogger("hkmap")


@dataclass(frozen=True)
class Numbers:
    """A type of number for frames; ``units`` are the features of a processor, one of which it needs to be fast."""

    title: str
    dtype: torch.dtype
    units: frozenset[str] = frozenset()


DTYPES = Choices("dtype", {
    "float32": Numbers("Numbers of 32 bits.", torch.float32),
    "bfloat16": Numbers("Weights and frames of 16 bits, probabilities of 32; areas change by up to about .001.",
                        torch.bfloat16, BFLOAT16_UNITS),
}, kind=Numbers)


def prepared(network: Classifier, image: Tensor, dtype: str | Numbers = "float32") -> Classifier:
    """Return a copy of a network that answers images like ``image`` (3, H, W) faster; the given one stays as it is.

    Batch norms are folded into the convolutions before them where that changes the answer by rounding alone. ``dtype``
    is a row of DTYPES. What is not made of torch's layers is returned as it is. Raises RunError where the network
    cannot compute in that type of number.
    """
    numbers = DTYPES.row(dtype)
    if numbers.dtype != image.dtype and not (is_layered(network) and list(network.parameters())):
        raise RunError(f"the network has no weights in torch, so it cannot compute in {_name(numbers)}; use "
                       "--dtype float32")
    if not is_layered(network):
        return network
    warn_of_slow("--dtype", _name(numbers), numbers.units, image.device)
    images = torch.randn(2, *image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):     # on CUDA it rounds to fewer bits than float32
        copy = place(folded(network, images).to(numbers.dtype), image.device)
    if numbers.dtype != image.dtype:
        _check(copy, images.to(numbers.dtype), numbers)
    return copy


def folded(network: nn.Module, images: Tensor) -> Any:
    """Return a copy of a network with its norms folded, or not where that changes what it answers to ``images``."""
    copy = _copy(network)
    names = {module: name for name, module in copy.named_modules()}
    before, pairs = _answer_and_pairs(copy, images)
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
        )
        parent, _, child = names[norm].rpartition(".")
        rest = nn.Sequential(*norm.children())      # timm's norms have an activation inside
        setattr(copy.get_submodule(parent), child, rest)
    if (copy(images).logits - before).abs().max() <= _SAME * before.abs().max():
        return copy.eval().requires_grad_(False)        # what is new in it too
    logger.info("the network's norms cannot be folded into its convolutions, so frames take longer")
    return _copy(network)


def frames_that_fit(forward: Callable[[int], object]) -> int:
    """Return how many frames a forward pass on CUDA takes: doubled while ``forward`` of twice as many has the memory.

    The other half is for the frames as they are made, and for what the allocator cannot join.
    """
    count = AT_ONCE
    while count < MOST_AT_ONCE:
        try:
            forward(4 * count)
        except torch.OutOfMemoryError:
            break
        count *= 2
    torch.cuda.empty_cache()
    return count


def _copy(network: nn.Module) -> Any:
    return deepcopy(network).eval().requires_grad_(False)


def _answer_and_pairs(network: Any, images: Tensor) -> tuple[Tensor, list[tuple[Any, Any]]]:
    """Return the logits (B, K) of images, and the convolutions whose output goes to a batch norm alone, each with it.

    Only modules are seen to take it. Both are called once.
    """
    made: dict[int, nn.Module] = {}         # by the identity of the output
    takers: dict[int, list[nn.Module]] = defaultdict(list)
    calls: Counter[nn.Module] = Counter()
    kept = []       # so that no identity is given twice

    def note(module: nn.Module, given: tuple[object, ...], output: object) -> None:
        kept.append((given, output))
        calls[module] += 1
        for tensor in given:
            takers[id(tensor)].append(module)
        if isinstance(module, nn.Conv2d) and "weight" in module._parameters:       # it is not computed from others
            made[id(output)] = module

    noted = [module for module in network.modules() if _is_norm(module) or not list(module.children())]
    handles = [module.register_forward_hook(note) for module in noted]
    logits = network(images).logits
    for handle in handles:
        handle.remove()
    pairs = [(convolution, takers[output][0]) for output, convolution in made.items() if len(takers[output]) == 1]
    return logits, [pair for pair in pairs if _is_norm(pair[1]) and calls[pair[0]] == calls[pair[1]] == 1]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _check(network: Classifier, images: Tensor, numbers: Numbers) -> None:
    try:
        network(images)
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"the network cannot compute in {_name(numbers)} ({reason}); use --dtype float32") from error


def _name(numbers: Numbers) -> str:
    return str(numbers.dtype).removeprefix("torch.")

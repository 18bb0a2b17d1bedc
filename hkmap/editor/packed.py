"""Convolutions that keep their weights as oneDNN reads them, so that an answer to one image does not begin with that.

On a CPU PyTorch lays weights out anew at each call, which is long beside the convolution of a single image. The
operators are those that `torch.compile` calls for a frozen network, where a C++ compiler is at hand.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Packed(nn.Module):
    """A convolution on a CPU, without gradients, for inputs of a shape (B, C, H, W); others take longer."""

    def __init__(self, convolution: Any, shape: torch.Size) -> None:
        super().__init__()
        sizes = convolution.padding, convolution.stride, convolution.dilation
        self._how = [*map(list, sizes), convolution.groups]
        pack = torch.ops.mkldnn._reorder_convolution_weight
        self._weight, self._bias = pack(convolution.weight.detach(), *self._how, list(shape)), convolution.bias

    def forward(self, values: Tensor) -> Any:
        return torch.ops.mkldnn._convolution_pointwise(values, self._weight, self._bias, *self._how, "none", [], "")


def packed(network: nn.Module, images: Tensor) -> Any:
    """Return a copy of a network on the CPU that has packed those convolutions that ``images`` (B, C, H, W) go through.

    It shares the other weights, and answers what the network does, as far as float32 goes.
    """
    copy = deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return copy
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes[module] = given[0].shape

    hooks = [module.register_forward_pre_hook(note) for module in copy.modules() if _is_plain(module)]
    with torch.inference_mode():
        copy(images)
    for hook in hooks:
        hook.remove()
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if child in shapes:
                setattr(parent, name, Packed(child, shapes[child]))
    return copy


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)

"""CUDA graphs: a step's kernels recorded once and started together, where small batches leave the device waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EAGER_STEPS = 3         # before a recording: libraries choose kernels, the optimizer makes its momenta
LARGEST_BATCH = 64      # beyond it the device is busy anyway, and a graph would hold its activations twice


class Recorded(NamedTuple):
    """A function of tensors on a CUDA device, as a graph: it reads ``given`` and writes ``result``."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    result: Tensor

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Run the function on tensors of the recorded shapes; the caller owns the result."""
        for own, new in zip(self.given, tensors, strict=True):
            own.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.result.clone()


def record(function: Callable[..., Tensor], *tensors: Tensor) -> Recorded:
    """Record a function, which must not wait for the device; nothing is computed yet."""
    given = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*given)
    return Recorded(graph, given, result)

"""The exponential moving average of a network's weights, which often answers better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of the weights that are trained; ``decay`` in [0, 1) is what remains of it at each step.

    It begins with the network's weights as they are. What is frozen has no average, and the statistics of batch norm
    are the network's own. Polyak and Juditsky 1992; with a decay as in Tarvainen and Valpola, NeurIPS 2017.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._mix = get_ema_multi_avg_fn(decay)
        self._values = {name: weight.detach().clone() for name, weight in _trained(network).items()}

    def update(self, network: nn.Module) -> None:
        """Add the weights after a step."""
        self._mix(list(self._values.values()), list(_trained(network).values()), 1)     # the count has no part in it

    def state(self) -> dict[str, Tensor]:
        """Return what load_state needs to continue exactly: the averages by the names of their weights."""
        return dict(self._values)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state`` returned; raise ValueError where it is another network's."""
        found, own = ({name: value.shape for name, value in values.items()} for values in (state, self._values))
        if found != own:
            differing = sorted({name for name, _ in found.items() ^ own.items()})
            raise ValueError(f"the averaged weights are of another network: {', '.join(differing):.80}")
        for name, value in self._values.items():
            value.copy_(state[name])

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """Put the averages into the network, to measure or to save it, and its own weights back at the end."""
        self._exchange(network)
        try:
            yield
        finally:
            self._exchange(network)

    def _exchange(self, network: nn.Module) -> None:
        with torch.no_grad():
            for name, weight in _trained(network).items():
                own = weight.clone()
                weight.copy_(self._values[name])
                self._values[name].copy_(own)


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

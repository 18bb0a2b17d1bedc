"""What an architecture is made of: the name and numbers that a run keeps, and the parts that a row builds from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from hkmap.networks.abn import Gate

ABN = "+abn"        # what a name ends in where the attention branch is added


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network again; ``name``, ``stem`` and ``gate`` are in ARCHITECTURES, STEMS, GATES.

    ``width`` is the number of channels of the first stage; each stage doubles it.
    """

    name: str
    classes: int
    stem: str = "standard"
    width: int = 64
    gate: str = "residual"

    @property
    def has_attention(self) -> bool:
        return self.name.endswith(ABN)

    @property
    def backbone(self) -> str:
        """The name without the attention branch."""
        return self.name.removesuffix(ABN)


class Backbone(NamedTuple):
    """A network cut before its last stage; what a row of ARCHITECTURES returns for an Architecture.

    ``last_stage`` builds that stage, of random weights, with stride 1 (attention branch) or 2 (perception branch); it
    takes what ``extractor`` gives and gives (B, ``channels``, h, w). ``perception`` builds the perception branch for a
    number of classes where it is more than that stage, average pooling and a linear layer. ``adapt`` makes a gate fit
    features that are not (B, C, h, w). ``initialised``: the parts have the initial weights that they should have.
    ``names`` are the prefixes under which others publish the plain network's weights, by ours; the one of
    "attention.stage." says which of them the attention branch starts from.
    """

    extractor: nn.Module
    last_stage: Callable[[int], nn.Module]
    channels: int
    perception: Callable[[int], nn.Module] | None = None
    adapt: Callable[[Gate], Gate] = lambda gate: gate
    initialised: bool = False
    names: Mapping[str, str] = MappingProxyType({})

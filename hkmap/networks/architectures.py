"""Every network by name, and how it is built from a backbone, with or without the attention branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import torch
from torch import nn

from hkmap.choices import Choices
from hkmap.errors import RunError
from hkmap.networks.abn import GATES, AttentionBranch, AttentionBranchNetwork, PerceptionBranch
from hkmap.networks.backbone import ABN, Architecture, Backbone
from hkmap.networks.resnet import RESNETS
from hkmap.networks.timm import PREFIX, backbone, check_name

Row = Callable[[Architecture], Backbone]


class Architectures(Choices[Row]):
    """Backbones by name; with "+abn" after it, each name also stands for the backbone with the attention branch.

    "timm/NAME" is a network of timm, which are too many to list.
    """

    def __getitem__(self, name: str) -> Row:
        if name.startswith(PREFIX):
            check_name(name.removesuffix(ABN))
            return backbone
        return super().__getitem__(name.removesuffix(ABN))

    def __iter__(self) -> Iterator[str]:
        return (name + suffix for name in super().__iter__() for suffix in ("", ABN))

    def __contains__(self, name: object) -> bool:
        return str(name).startswith(PREFIX) or super().__contains__(str(name).removesuffix(ABN))

    def describe(self) -> dict[str, str]:
        return {**super().describe(), f"{PREFIX}NAME[{ABN}]": str(backbone.__doc__)}

    def entry_point(self, name: str) -> EntryPoint | None:
        return super().entry_point(name.removesuffix(ABN))

    def _described(self, name: str) -> str:
        text = super()._described(name)
        return f"{text.removesuffix('.')}, with the attention branch." if name.endswith(ABN) else text


ARCHITECTURES = Architectures("architecture", RESNETS, group="hkmap.architectures")


def build(architecture: Architecture) -> AttentionBranchNetwork:
    """Build a network with random weights.

    Raises ChoiceError where its name, stem or gate is unknown, and RunError where there are no classes.
    """
    if architecture.classes < 1:
        raise RunError(
            "the training shard has no labels; give its records a class or a label, as `hkmap folder` and "
            "`hkmap join labels.csv --on image` do, and pack them again"
        )
    GATES.check(architecture.gate)
    backbone = ARCHITECTURES[architecture.name](architecture)
    attention = perception = None
    if architecture.has_attention:
        attention = AttentionBranch(backbone.last_stage(1), backbone.channels, architecture.classes)
    if backbone.perception is not None:
        perception = backbone.perception(architecture.classes)
    network = AttentionBranchNetwork(
        extractor=backbone.extractor,
        attention=attention,
        perception=perception or PerceptionBranch(backbone.last_stage(2), backbone.channels, architecture.classes),
        gate=architecture.gate,
        adapt=backbone.adapt,
    )
    for name, module in network.named_modules():
        own = name.startswith(("extractor.", "attention.stage.", "perception."))
        if isinstance(module, nn.Conv2d) and not (own and backbone.initialised):       # as the ABN authors do
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def on_meta(architecture: Architecture) -> AttentionBranchNetwork:
    """Build a network whose tensors have shapes and no numbers, so that any size takes no memory."""
    with torch.device("meta"):
        return build(architecture)


def map_size(architecture: Architecture, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the attention map for images of (height, width); nothing is computed for it."""
    with torch.device("meta"):
        backbone = ARCHITECTURES[architecture.name](architecture)
        drawn = backbone.last_stage(1).eval()(backbone.extractor.eval()(torch.empty(1, 3, *image_size)))
    return drawn.shape[2], drawn.shape[3]

"""Every network by name, and how it is built from a backbone, with or without the attention branch."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.errors import ChoiceError, RunError
from hkmap.networks.abn import GATES, AttentionBranch, AttentionBranchNetwork, PerceptionBranch
from hkmap.networks.alexnet import alexnet
from hkmap.networks.backbone import ABN, Architecture, Backbone
from hkmap.networks.classifier import Output
from hkmap.networks.resnet import RESNETS
from hkmap.networks.timm import PREFIX, backbone, check_name, described

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
        return {**super().describe(), f"{PREFIX}NAME[{ABN}]": described()}

    def origin(self, name: str) -> str:
        return super().origin(name.removesuffix(ABN))

    def figures(self, name: str) -> dict[str, Any]:
        """Return what `figures` says of a network; nothing of timm's, or where its package cannot be imported."""
        if name.startswith(PREFIX):
            return {}
        try:
            return figures(name.removesuffix(ABN))[name.endswith(ABN)]
        except ChoiceError:
            return {}

    def _described(self, name: str) -> str:
        text = super()._described(name)
        return f"{text.removesuffix('.')}, with the attention branch." if name.endswith(ABN) else text


_ENOUGH = 1024      # pixels of a side that every network answers to

ARCHITECTURES = Architectures("architecture", {**RESNETS, "alexnet": alexnet}, group="hkmap.architectures")


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
        own = backbone.initialised and name.startswith(("extractor.", "attention.stage.", "perception."))
        # as the ABN authors do; on the meta device it would draw nothing, and import for half a second
        if isinstance(module, nn.Conv2d) and not own and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def on_meta(architecture: Architecture) -> AttentionBranchNetwork:
    """Build a network whose tensors have shapes and no numbers, so that any size takes no memory."""
    with torch.device("meta"):
        return build(architecture)


def dry_run(network: AttentionBranchNetwork, image_size: tuple[int, int]) -> Output:
    """Return what a network of `on_meta` gives for one image of (height, width): shapes, and nothing is computed.

    Raises RunError where the images are too small for the network.
    """
    def answer(size: tuple[int, int]) -> Output:
        with torch.inference_mode():
            return network(torch.empty(1, 3, *size, device="meta"))

    def answers(side: int) -> bool:
        try:
            return bool(answer((side, side)))
        except RuntimeError:      # a convolution or a pooling has nothing left to see
            return False

    try:
        return answer(image_size)
    except RuntimeError as error:
        smallest = bisect_left(range(_ENOUGH), True, key=answers)
        if smallest == _ENOUGH:      # the fault is another
            raise
        raise RunError(
            f"images of {image_size[1]}x{image_size[0]} are too small for the network; "
            f"use --image-size {smallest} or more"
        ) from error


def map_size(architecture: Architecture, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the attention map for images of (height, width); nothing is computed for it.

    Raises RunError where the images are too small for the network.
    """
    network = on_meta(replace(architecture, name=architecture.backbone + ABN)).eval()
    drawn = dry_run(network, image_size).attention
    assert drawn is not None
    return drawn.shape[2], drawn.shape[3]


@cache
def figures(backbone: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a backbone's network costs without and with the attention branch, at 1,000 classes and 224 pixels.

    ``parameters``; ``map_size`` [height, width], None without the branch; ``multiply_adds`` of the convolutions and
    linear layers in one image's forward pass.
    """
    network, done = on_meta(Architecture(backbone + ABN, 1000)).eval(), Counter[nn.Module]()

    def count(module: nn.Module, given: Any, output: Tensor) -> None:
        done[module] += output.numel() * module.weight[0].numel()      # type: ignore[index]

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    drawn = dry_run(network, (224, 224)).attention
    assert drawn is not None
    assert network.attention is not None
    parameters, added = (sum(map(Tensor.numel, part.parameters())) for part in (network, network.attention))
    of_attention = sum(done[module] for module in network.attention.modules())
    return (
        {"parameters": parameters - added, "map_size": None, "multiply_adds": done.total() - of_attention},
        {"parameters": parameters, "map_size": list(drawn.shape[2:]), "multiply_adds": done.total()},
    )

"""Residual networks (He et al., CVPR 2016), cut where the Attention Branch Network cuts them.

All stages but the last are the extractor. The last one is built twice, with stride 1 for the attention branch and with
stride 2 for the perception branch. In bottlenecks the 3x3 convolution has the stride. Names inside (conv1, bn1, layer1,
downsample.0, ...) are torchvision's; those of squeeze and excitation (se.fc1, se.fc2) are timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.networks.backbone import Architecture, Backbone


class SqueezeExcitation(nn.Module):
    """Channels weighted by what their means say of each other (Hu et al., CVPR 2018), at a reduction of 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)        # (B, C, 1, 1)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, *, excited: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcitation(channels) if excited else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(out))) + self.downsample(_every(x, self.stride)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the last is four times as wide."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, *, excited: bool = False) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.se = SqueezeExcitation(channels_out) if excited else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.se(self.bn3(self.conv3(out))) + self.downsample(_every(x, self.stride)))


Kind = type[BasicBlock] | type[Bottleneck]

Layers = OrderedDict[str, nn.Module]


def standard(channels: int) -> Layers:
    """7x7 convolution and pooling, each of stride 2: for images of 200 pixels and more."""
    return OrderedDict(
        conv1=nn.Conv2d(3, channels, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )


def small(channels: int) -> Layers:
    """3x3 convolution of stride 1, at full resolution: for images of 32 to 64 pixels."""
    return OrderedDict(
        conv1=nn.Conv2d(3, channels, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)
    )


STEMS: Choices[Callable[[int], Layers]] = Choices("stem", {"standard": standard, "small": small})


def _resnet(title: str, kind: Kind, depths: tuple[int, ...], *, excited: bool) -> Callable[[Architecture], Backbone]:
    """Return the row of a ResNet; ``depths`` are the blocks in each stage."""

    def backbone(architecture: Architecture) -> Backbone:
        stage = partial(_stage, kind, excited)
        channels = architecture.width
        layers = STEMS[architecture.stem](channels)
        for index, depth in enumerate(depths[:-1]):
            width = architecture.width * 2**index
            layers[f"layer{index + 1}"] = stage(channels, width, depth, 1 if index == 0 else 2)
            channels = width * kind.expansion
        width = architecture.width * 2 ** (len(depths) - 1)
        return Backbone(
            nn.Sequential(layers), lambda stride: stage(channels, width, depths[-1], stride), width * kind.expansion,
            names={
                "extractor.": "", "perception.stage.": "layer4.", "perception.fc.": "fc.",
                "attention.stage.": "layer4.",
            },
        )

    backbone.__doc__ = f"{title}, {sum(depths)} blocks."
    return backbone


#: The depth of each, from the first stage to the last.
_DEPTHS: dict[str, tuple[Kind, tuple[int, ...]]] = {
    "8": (BasicBlock, (1, 1, 1)),
    "18": (BasicBlock, (2, 2, 2, 2)),
    "34": (BasicBlock, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
    "101": (Bottleneck, (3, 4, 23, 3)),
    "152": (Bottleneck, (3, 8, 36, 3)),
}

#: Each depth, plain and with squeeze and excitation in every block.
RESNETS: dict[str, Callable[[Architecture], Backbone]] = {
    f"resnet{depth}{suffix}": _resnet(f"{title}-{depth}", *row, excited=bool(suffix))
    for depth, row in _DEPTHS.items() for suffix, title in (("", "ResNet"), ("+se", "SE-ResNet"))
}


def _stage(kind: Kind, excited: bool, channels_in: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [kind(channels_in, channels, stride, excited=excited)]
    blocks += [kind(channels * kind.expansion, channels, 1, excited=excited) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))


def _every(x: Tensor, stride: int) -> Tensor:
    """Take every ``stride``-th pixel, which is all that a 1x1 convolution of that stride sees.

    With the stride in the convolution, torch 2.13 on a CPU writes beyond its memory in the backward pass of fewer than
    12 channels, channels last, for an odd batch.
    """
    return x[:, :, ::stride, ::stride]

"""Residual networks (He et al., CVPR 2016), cut where the Attention Branch Network cuts them.

All stages but the last are the extractor. The last one is built twice, with stride 1 for the attention branch and with
stride 2 for the perception branch. In bottlenecks the 3x3 convolution has the stride. Names inside (conv1, bn1, layer1,
downsample.0, ...) are torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.networks.backbone import Architecture, Backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(_every(x, self.stride)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the last is four times as wide."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(_every(x, self.stride)))


Block = type[BasicBlock] | type[Bottleneck]

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


def _resnet(name: str, block: Block, depths: tuple[int, ...]) -> Callable[[Architecture], Backbone]:
    """Return the row of a ResNet; ``depths`` are the blocks in each stage."""

    def backbone(architecture: Architecture) -> Backbone:
        channels = architecture.width
        layers = STEMS[architecture.stem](channels)
        for index, depth in enumerate(depths[:-1]):
            width = architecture.width * 2**index
            layers[f"layer{index + 1}"] = _stage(block, channels, width, depth, 1 if index == 0 else 2)
            channels = width * block.expansion
        width = architecture.width * 2 ** (len(depths) - 1)
        return Backbone(
            nn.Sequential(layers), lambda stride: _stage(block, channels, width, depths[-1], stride),
            width * block.expansion,
        )

    backbone.__doc__ = f"{name}, {sum(depths)} blocks."
    return backbone


#: The depth of each, from the first stage to the last.
RESNETS: dict[str, Callable[[Architecture], Backbone]] = {
    name: _resnet(name.replace("resnet", "ResNet-"), block, depths)
    for name, block, depths in (
        ("resnet8", BasicBlock, (1, 1, 1)),
        ("resnet18", BasicBlock, (2, 2, 2, 2)),
        ("resnet34", BasicBlock, (3, 4, 6, 3)),
        ("resnet50", Bottleneck, (3, 4, 6, 3)),
        ("resnet101", Bottleneck, (3, 4, 23, 3)),
        ("resnet152", Bottleneck, (3, 8, 36, 3)),
    )
}


def _stage(block: Block, channels_in: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [block(channels_in, channels, stride)]
    blocks += [block(channels * block.expansion, channels, 1) for _ in range(depth - 1)]
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

"""The network of the studies, `--arch lite0+abn`: all of EfficientNet-Lite0 as extractor, with small branches on top.

The attention branch is ABN's head alone, as AlexNet's is in the paper, and the perception branch is what comes after
the last convolution: the average over all places, now weighted by the attention, and the classifier. Without attention
that is a linear probe, so a training takes seconds, and few images are enough. `timm/tf_efficientnet_lite0+abn` is cut
a stage earlier, and trains most of the weights. hkmap has the row, and that of `--optimizer sgd-head`, where this file
is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hkmap.networks.architectures import ARCHITECTURES
from hkmap.networks.backbone import Architecture, Backbone
from hkmap.networks.timm import create
from hkmap.training.optimisation import OPTIMIZERS, TrainingOptions

CHANNELS, STRIDE = 1280, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)     # ImageNet's

_kept: dict[bytes, Tensor] = {}     # features by the digest of their image, for all networks of the process


class Renormalised(nn.Module):
    """Images as `hkmap train` normalises them, made those that these weights were trained on."""

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(colour, device=images.device)[:, None, None] for colour in (MEAN, STD))
        return (images * std + (mean - 0.5)) / 0.5


class Remembering(nn.Module):
    """An extractor that never changes: what it made of an image once is not computed again."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.remembers = True

    def __deepcopy__(self, known: dict[int, Any]) -> Remembering:
        """A copy answers the frames of insertion and deletion, which come once."""
        copy = Remembering(deepcopy(self.net, known))
        copy.remembers = False
        return copy

    def forward(self, images: Tensor) -> Tensor:
        if images.is_meta:      # it is asked for the shape alone, often
            return images.new_empty(len(images), CHANNELS, -(-images.shape[2] // STRIDE), -(-images.shape[3] // STRIDE))
        if not self.remembers or torch.is_grad_enabled():
            return self.net(images)
        own = self.net.conv_stem.weight.detach().sum().numpy().tobytes()     # random ones, or ImageNet's
        digests = [own + hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
        for digest, image in zip(digests, images, strict=True):
            if digest not in _kept:
                _kept[digest] = self.net(image[None])[0]
        return torch.stack([_kept[digest] for digest in digests])


def lite0(architecture: Architecture) -> Backbone:
    """EfficientNet-Lite0 with its last convolution, and small branches."""
    model: Any = create("timm/tf_efficientnet_lite0", num_classes=architecture.classes)
    net, tail = nn.Sequential(), nn.Sequential()
    net.add_module("images", Renormalised())
    for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2"):
        net.add_module(name, getattr(model, name))
    for name in ("global_pool", "classifier"):
        tail.add_module(name, getattr(model, name))
    return Backbone(
        Remembering(net), lambda stride: nn.Identity(), CHANNELS, perception=lambda classes: tail, initialised=True,
        names={"extractor.net.": "", "perception.": ""},
    )


ARCHITECTURES.add("lite0", lite0)


def sgd_head(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    """SGD with the weight decay on the classifier alone, the one matrix; all else has the default, the paper's 0.0001.

    A probe of few images needs a strong one, with which batch norm and ReLU of the attention branch would die: its map
    is then the same everywhere, and no loss can mend it.
    """
    weights = list(parameters)
    groups = [
        {"params": [weight for weight in weights if weight.ndim == 2], "weight_decay": options.weight_decay},
        {"params": [weight for weight in weights if weight.ndim != 2], "weight_decay": TrainingOptions.weight_decay},
    ]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum)


OPTIMIZERS.add("sgd-head", sgd_head)

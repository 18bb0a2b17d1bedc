"""The Attention Branch Network (Fukui et al., CVPR 2019): a network that shows where it looks.

The attention branch classifies the extractor's features and draws the attention map. Weighted by that map, the features
go to the perception branch, which gives the answer. As the map is part of the forward pass, a human map can replace it,
and a loss can pull it towards one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hkmap.choices import Choices
from hkmap.networks.classifier import Output

Gate = Callable[[Tensor, Tensor], Tensor]       # features (B, C, h, w), attention (B, 1, h, w) → features


class Look(NamedTuple):
    """What the attention branch makes of the features."""

    logits: Tensor          # (B, K), the branch's own answer
    attention: Tensor       # (B, 1, h, w) in [0, 1]


class AttentionBranch(nn.Module):
    """Class maps from the features, and from these the branch's own logits and the attention map.

    ``stage`` is the backbone's last stage with stride 1, ``channels`` the number of its outputs.
    """

    def __init__(self, stage: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.stage_norm = nn.BatchNorm2d(channels)
        self.class_conv = nn.Conv2d(channels, classes, 1, bias=False)
        self.class_norm = nn.BatchNorm2d(classes)
        self.logit_conv = nn.Conv2d(classes, classes, 1, bias=False)
        # The paper's text says 1x1; its author states that the published numbers used 3x3.
        self.map_conv = nn.Conv2d(classes, 1, 3, padding=1, bias=False)
        self.map_norm = nn.BatchNorm2d(1)

    def forward(self, features: Tensor) -> Look:
        # no ReLU between stage_norm and class_conv
        class_maps = torch.relu(self.class_norm(self.class_conv(self.stage_norm(self.stage(features)))))
        logits = self.logit_conv(class_maps).mean((2, 3))                  # (B, K)
        attention = torch.sigmoid(self.map_norm(self.map_conv(class_maps)))    # (B, 1, h, w)
        return Look(logits, attention)


class PerceptionBranch(nn.Module):
    """The backbone's last stage, average pooling and the classifier."""

    def __init__(self, stage: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.fc = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.stage(features).mean((2, 3)))      # (B, K)


def residual(features: Tensor, attention: Tensor) -> Tensor:
    """x * (1 + M), as in the paper: a map of zeros changes nothing."""
    return features * (1 + attention)


def product(features: Tensor, attention: Tensor) -> Tensor:
    """x * M: a map can hide a region."""
    return features * attention


GATES: Choices[Gate] = Choices("gate", {"residual": residual, "product": product})


class AttentionBranchNetwork(nn.Module):
    """Extractor, attention branch (or None: a plain network) and perception branch; ``gate`` is a row of GATES.

    ``adapt`` makes a gate fit features that are not (B, C, h, w).

    Three steps make a forward pass: ``features``, ``look`` and ``answer``. Features can be kept, a map can be changed,
    and neither costs the steps before it.
    """

    def __init__(
        self,
        *,
        extractor: nn.Module,
        attention: AttentionBranch | None,
        perception: nn.Module,
        gate: str | Gate = "residual",
        adapt: Callable[[Gate], Gate] = lambda gate: gate,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.attention = attention
        self.perception = perception
        self.gate = adapt(GATES.row(gate))
        self._hide = adapt(product)

    def features(self, images: Tensor) -> Tensor:
        """Return what the extractor makes of images (B, 3, H, W): for convolutional networks (B, C, h, w)."""
        return self.extractor(images)

    def look(self, features: Tensor) -> Look:
        """Return the attention branch's logits and map (B, 1, h, w) of features."""
        if self.attention is None:
            raise ValueError("a network without attention branch has no map")
        return self.attention(features)

    def answer(self, features: Tensor, attention: Tensor | None = None) -> Tensor:
        """Return the logits (B, K) of features that a map (B, 1, h, w) weights; without a map, as they are."""
        if attention is None:
            return self.perception(features)
        if self.attention is None:
            raise ValueError("a network without attention branch has no place for a map")
        return self.perception(self.gate(features, attention.to(features.dtype)))

    def hidden(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the features where ``mask`` (B, 1, h, w) is 0; where it is 1 they become 0."""
        return self._hide(features, (1 - mask).to(features.dtype))

    def forward(self, images: Tensor, attention: Tensor | None = None) -> Output:
        """Classify images (B, 3, H, W); a given map (B, 1, h, w), of the features' size, replaces the predicted one."""
        features = self.features(images)
        if attention is not None:
            return Output(self.answer(features, attention), None, attention.to(features.dtype))
        if self.attention is None:
            return Output(self.answer(features), None, None)
        logits, attention = self.look(features)
        return Output(self.answer(features, attention), logits, attention)

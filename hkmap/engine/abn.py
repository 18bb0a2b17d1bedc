"""The Attention Branch Network (Fukui et al., CVPR 2019): a network that shows where it looks.

The attention branch classifies the extractor's features and draws the attention map. Weighted by that map, the features
go to the perception branch, which gives the answer. As the map is part of the forward pass, a human map can replace it,
and a loss can pull it towards one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hkmap.choices import Choices

Module = TypeVar("Module", bound=nn.Module)
Gate = Callable[[Tensor, Tensor], Tensor]       # features (B, C, h, w), attention (B, 1, h, w) → features


class Output(NamedTuple):
    """What a forward pass gives; the last two are None for a network without attention branch."""

    logits: Tensor                      # (B, K), the perception branch's
    attention_logits: Tensor | None     # (B, K), the attention branch's
    attention: Tensor | None            # (B, 1, h, w) in [0, 1]: the map that weighted the features


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

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        # no ReLU between stage_norm and class_conv
        class_maps = torch.relu(self.class_norm(self.class_conv(self.stage_norm(self.stage(features)))))
        logits = self.logit_conv(class_maps).mean((2, 3))                  # (B, K)
        attention = torch.sigmoid(self.map_norm(self.map_conv(class_maps)))    # (B, 1, h, w)
        return logits, attention


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
    """Extractor, attention branch (or None: a plain network) and perception branch; ``gate`` is a row of GATES."""

    def __init__(
        self,
        *,
        extractor: nn.Module,
        attention: AttentionBranch | None,
        perception: nn.Module,
        gate: str | Gate = "residual",
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.attention = attention
        self.perception = perception
        self.gate = GATES.row(gate)

    def forward(self, images: Tensor, attention: Tensor | None = None) -> Output:
        """Classify images (B, 3, H, W); a given map (B, 1, h, w), of the features' size, replaces the predicted one."""
        features = self.extractor(images)      # (B, C, h, w)
        if self.attention is None:
            if attention is not None:
                raise ValueError("a network without attention branch has no place for a map")
            return Output(self.perception(features), None, None)
        attention_logits, predicted = self.attention(features)
        used = predicted if attention is None else attention.to(features.dtype)
        return Output(self.perception(self.gate(features, used)), attention_logits, used)

    @torch.inference_mode()
    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the attention map, the same as the features', for images of (height, width)."""
        training = self.extractor.training
        self.extractor.eval()       # the zeros below must not count in the batch-norm statistics
        features = self.extractor(next(self.parameters()).new_zeros(1, 3, *image_size))
        self.extractor.train(training)
        return features.shape[2], features.shape[3]


def place(network: Module, device: torch.device) -> Module:
    """Move a network to the device, in channels-last layout, which is faster on CPU and CUDA."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

"""AlexNet (Krizhevsky, 2014, "One weird trick"), as torchvision has it; its +ABN was never published.

We cut it after its last convolutions without pooling between them, features.6 to features.11, at 13x13 for images of
224 pixels. So the extractor is all five convolutions, the perception branch is the pooling after them and the three
linear layers, and the attention branch, as no stage is left that could be copied, is ABN's head alone. Numbers inside
are torchvision's.
"""

from __future__ import annotations

from torch import Tensor, nn

from hkmap.errors import ChoiceError
from hkmap.networks.backbone import Architecture, Backbone


class Perception(nn.Module):
    """Pooling to 6x6 whatever the size, and three linear layers with dropout."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(4 * width * 6 * 6, 64 * width), nn.ReLU(inplace=True),
            nn.Dropout(0.5), nn.Linear(64 * width, 64 * width), nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.classifier(self.pool(features)))       # (B, K)


def alexnet(architecture: Architecture) -> Backbone:
    """AlexNet, 5 convolutions and 3 linear layers."""
    if architecture.stem != "standard":
        raise ChoiceError(f"--stem {architecture.stem}: alexnet has one stem, its own; omit --stem")
    width = architecture.width
    extractor = nn.Sequential(
        nn.Conv2d(3, width, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(width, 3 * width, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(3 * width, 6 * width, 3, 1, 1), nn.ReLU(inplace=True),
        nn.Conv2d(6 * width, 4 * width, 3, 1, 1), nn.ReLU(inplace=True),
        nn.Conv2d(4 * width, 4 * width, 3, 1, 1), nn.ReLU(inplace=True),
    )
    return Backbone(
        extractor, lambda stride: nn.Identity(), 4 * width, perception=lambda classes: Perception(width, classes),
        names={
            "extractor.": "features.", "perception.classifier.": "classifier.", "perception.fc.": "classifier.6.",
        },
    )

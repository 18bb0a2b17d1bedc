"""Where the maps come from that are measured; each way is a row of EXPLANATIONS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hkmap.choices import Choices
from hkmap.engine.data import Batch
from hkmap.errors import RunError
from hkmap.networks.classifier import Classifier


class Asked(NamedTuple):
    """A batch whose answer is to be explained; ``numbers`` are those of the records in their shards.

    The batch may be filled up with samples that nobody asks of: ``ids`` and ``numbers`` are of the first ones.
    """

    network: Classifier
    images: Tensor              # (B, 3, H, W), as the network sees them
    classes: Tensor             # (B,), those to explain
    own: Tensor | None          # (B, 1, h, w), the network's own maps
    batch: Batch                # with the human maps
    ids: Sequence[str]
    numbers: Sequence[int]


#: What is asked → maps (B, 1, h, w) of any size, higher where the class is seen. Gradients can be taken.
Explain = Callable[[Asked], Tensor]


@dataclass(frozen=True)
class Explanation:
    """A way to get maps; with None the network's own attention is measured, or there is none."""

    title: str
    maps: Explain | None


def human(asked: Asked) -> Tensor:
    """Return the human maps, zeros where nobody drew one."""
    return asked.batch.maps


EXPLANATIONS = Choices("maps", {
    "attention": Explanation("The attention map of the network, which weights its features.", None),
    "human": Explanation("The human map of the record.", human),
    "none": Explanation("No map, so that only answers can be measured.", None),
}, kind=Explanation)


def maps_of_batch(explain: Explain, asked: Asked) -> Tensor:
    """Return what ``explain`` gives; raise RunError where it does not have the shape of maps."""
    maps = explain(asked)
    if maps.shape[:2] != (len(asked.images), 1) or maps.ndim != 4:
        raise RunError(f"explain gave maps of shape {tuple(maps.shape)}; expected ({len(asked.images)}, 1, h, w)")
    return maps

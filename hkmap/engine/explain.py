"""What a network answers, with its own map or a person's, and where the maps that explain an answer come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hkmap.engine.data import Batch
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Classifier, Output

#: A network, images (B, 3, H, W) as it sees them, the class to explain of each (B,) → maps (B, 1, h, w) of any size,
#: higher where the class is seen. Gradients can be taken.
Explanation = Callable[[Classifier, Tensor, Tensor], Tensor]


def has_branch(network: Classifier) -> bool:
    """Say whether a network has an attention branch, whose map another one can replace."""
    return getattr(network, "attention", None) is not None


def answered(network: Classifier, images: Tensor, given: Batch | None = None) -> tuple[Output, Tensor | None]:
    """Return a network's output for images (B, 3, H, W), and its own maps (B, 1, h, w), None where it has none.

    The human maps of the batch ``given`` replace its own where somebody knows, which needs an attention branch. The
    features, the network's own maps and the answer are computed once each.
    """
    if given is None:
        output = network(images)
        return output, output.attention
    assert isinstance(network, AttentionBranchNetwork), "without attention branch no map replaces another"
    features = network.features(images)
    own = network.look(features).attention
    used = torch.where(given.certainty > 0, given.maps.to(own.dtype), own)
    return Output(network.answer(features, used), None, used), own


def check_answers(finite: Sequence[bool], place: Callable[[int], str]) -> None:
    """Raise RunError where the answer to a sample is not ``finite``, with the ``place`` of the first, by its number."""
    if not all(finite):
        raise RunError(
            f"{place(finite.index(False))}: the network's answer is NaN or infinite; train again, with a lower --lr"
        )

"""What a network answers, with its own map or a person's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hkmap.engine.data import Batch
from hkmap.errors import RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.classifier import Classifier, Output


class Answer(NamedTuple):
    """What a network answers to a batch.

    ``used`` is the output with the maps that were given, else with the network's ``own`` (B, 1, h, w), None where it
    has none. ``before`` (B, K) are the logits with its own maps.
    """

    used: Output
    own: Tensor | None
    before: Tensor


def has_branch(network: Classifier) -> bool:
    """Say whether a network has an attention branch, whose map another one can replace."""
    return isinstance(network, AttentionBranchNetwork) and network.attention is not None


def answered(network: Classifier, images: Tensor, given: Batch | None = None, *, before: bool = False) -> Answer:
    """Answer images (B, 3, H, W).

    The human maps of the batch ``given`` replace the network's own where somebody knows, which needs an attention
    branch. The features, the network's own maps and the answer are computed once each; ``before`` computes what it
    answered without the human maps too.
    """
    if given is None:
        output = network(images)
        return Answer(output, output.attention, output.logits)
    assert isinstance(network, AttentionBranchNetwork), "without attention branch no map replaces another"
    features = network.features(images)
    own = network.look(features).attention
    maps = torch.where(given.certainty > 0, given.maps.to(own.dtype), own)
    used = Output(network.answer(features, maps), None, maps)
    return Answer(used, own, network.answer(features, own) if before else used.logits)


def check_answers(finite: Sequence[bool], place: Callable[[int], str]) -> None:
    """Raise RunError where the answer to a sample is not ``finite``, with the ``place`` of the first, by its number."""
    if not all(finite):
        raise RunError(
            f"{place(finite.index(False))}: the network's answer is NaN or infinite; train again, with a lower --lr"
        )

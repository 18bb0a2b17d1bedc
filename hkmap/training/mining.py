"""The loss of the attention mining branch (Iwayoshi et al.): what attention leaves must not tell the class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hkmap.networks.abn import AttentionBranchNetwork

_STEEPNESS = 100        # of the mask, nearly a step


def mining_loss(
    network: AttentionBranchNetwork, features: Tensor, attention: Tensor, labels: Tensor, threshold: float
) -> Tensor:
    """Return S_i[c_i] (B,): the probability of each sample's class once the attended features are hidden.

    Iwayoshi et al., Attention Mining Branch for Optimizing Attention Map, equations 1 to 3: the mask of a map A is
    T = 1 / (1 + exp(-100 (A - threshold))), and F - T * F goes through the perception branch, without the gate. Their
    L_am is the sum over the batch, so what they add to L_att + L_per, alpha * L_am, grows with the batch.

    ``features`` are what the extractor gives, ``attention`` (B, 1, h, w) is the map of them, ``labels`` (B,). T is
    computed in float32. The hidden features do not enter the running statistics of the perception branch's batch norms,
    as nothing is hidden when the network is used.
    """
    mask = torch.sigmoid(_STEEPNESS * (attention.float() - threshold))      # (B, 1, h, w)
    with _statistics_kept(network.perception):
        logits = network.answer(network.hidden(features, mask))             # (B, K)
    return logits.float().softmax(1).gather(1, labels[:, None])[:, 0]


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms, which in training still normalise by their batch."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

"""Attention mining, against numbers worked by hand, and what its gradient moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.training.mining import mining_loss


class Mean(nn.Module):
    """Two logits from features of one channel: their mean, and its negative."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean = features.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(("attention", "hidden"), [
    ([0.4, 0.41], [1, 6 * sigmoid(-1)]),        # a half at the threshold, and 1 - 0.731 a hundredth above
    ([0.6, 0.2], [0, 6]),
    ([0.0, 1.0], [2, 0]),
    ([1.0, 1.0], [0, 0]),
    ([0.0, 0.0], [2, 6]),
])
@pytest.mark.parametrize("gate", ["residual", "product"])
def test_worked_by_hand(attention, hidden, gate):
    network = AttentionBranchNetwork(extractor=nn.Identity(), attention=None, perception=Mean(), gate=gate)
    features = torch.tensor([2.0, 6.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    maps = torch.tensor(attention).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    found = mining_loss(network, features, maps, torch.tensor([0, 1]), 0.4)
    first = sigmoid(2 * sum(hidden) / 2)        # the softmax of (mean, -mean)
    assert found.tolist() == pytest.approx([first, 1 - first], abs=1e-5)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return build(Architecture("resnet8+abn", 3, "small", 4))


def mined(network, images, labels, threshold=0.5):
    features = network.features(images)
    return mining_loss(network, features, network.look(features).attention, labels, threshold)


IMAGES, LABELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def test_it_is_the_gradient_of_the_formula(small):
    network = small.double().eval()
    features = network.features(IMAGES.double()).detach()
    attention = torch.rand(4, 1, *features.shape[2:], dtype=torch.float64) * 0.1 + 0.45
    attention.requires_grad_()
    mining_loss(network, features, attention, LABELS, 0.5).sum().backward()
    plain = attention.detach().clone().requires_grad_()
    mask = 1 / (1 + torch.exp(-100 * (plain - 0.5)))
    logits = network.perception(features - mask * features)
    (torch.exp(logits)[range(4), LABELS] / torch.exp(logits).sum(1)).sum().backward()
    assert plain.grad.abs().max() > 1e-3
    assert torch.allclose(attention.grad, plain.grad, rtol=1e-4, atol=1e-5)     # the mask is of float32


@pytest.mark.parametrize(("frozen", "moved"), [
    ((), {"extractor", "attention", "perception"}),
    (("extractor",), {"attention", "perception"}),
    (("extractor", "perception"), {"attention"}),
])
def test_the_gradient_reaches_all_that_is_not_frozen(small, frozen, moved):
    for name in frozen:
        getattr(small, name).requires_grad_(False)
    mined(small.train(), IMAGES, LABELS).sum().backward()
    changed = {
        name.partition(".")[0] for name, value in small.named_parameters()
        if value.grad is not None and value.grad.abs().max() > 0
    }
    assert changed == moved


def test_one_batch_is_two_halves(small):
    network = small.double().eval()
    images = IMAGES.double()
    halves = [mined(network, images[part], LABELS[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(torch.cat(halves), mined(network, images, LABELS), rtol=0, atol=1e-12)


def test_the_running_statistics_stay_those_of_what_is_not_hidden(small):
    small.train()
    features = small.features(IMAGES)
    attention = small.look(features).attention
    before = {name: value.clone() for name, value in small.perception.named_buffers() if "running" in name}
    mining_loss(small, features, attention, LABELS, 0.5)
    assert before
    for name, value in small.perception.named_buffers():
        assert "running" not in name or torch.equal(value, before[name]), name
    small(IMAGES)
    assert not torch.equal(dict(small.perception.named_buffers())[next(iter(before))], before[next(iter(before))])


def test_the_mask_is_computed_in_float32_under_autocast(small):
    small.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = mined(small, IMAGES, LABELS)
    assert found.dtype == torch.float32
    assert torch.allclose(found, mined(small, IMAGES, LABELS), atol=0.05)
    network = AttentionBranchNetwork(extractor=nn.Identity(), attention=None, perception=Mean())
    attention = torch.tensor(0.41, dtype=torch.bfloat16).view(1, 1, 1, 1)
    found = mining_loss(network, torch.ones(1, 1, 1, 1), attention, torch.tensor([0]), 0.4)
    assert found.item() == pytest.approx(sigmoid(2 * sigmoid(-100 * (attention.item() - 0.4))), abs=1e-5)

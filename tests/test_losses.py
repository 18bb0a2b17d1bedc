"""The paper's losses, against numbers worked by hand and against numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch

from hkmap.engine.losses import l2norm, losses
from hkmap.networks.classifier import Output


def known(*samples: bool) -> torch.Tensor:
    """The certainty (B, 1, 1, 1) of samples that have a map or have none."""
    return torch.tensor(samples, dtype=torch.float32).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("difference", "side", "wanted"), [
    (0.3, 7, 2.1), (0.3, 14, 4.2), (0.3, 23, 6.9),     # a uniform difference grows with the side
    (0.0, 14, 0.0), (1.0, 1, 1.0),
])
def test_map_loss_is_the_norm_of_each_sample(difference, side, wanted):
    predicted = torch.full((1, 1, side, side), difference)
    assert l2norm(predicted, torch.zeros_like(predicted), known(True)).item() == pytest.approx(wanted, rel=1e-6)


def test_map_loss_worked_by_hand():
    predicted = torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]], [[[0.3, 0.4], [0.0, 0.0]]]])
    human = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.2]]]])
    # norms 0.5 and sqrt(0.09 + 0.16 + 1.44) = 1.3; the norm of each, not of both, and not its square
    assert l2norm(predicted, human, known(True, True)).tolist() == pytest.approx([0.5, 1.3])
    assert l2norm(predicted, human, known(False, True)).tolist() == pytest.approx([0, 1.3])


def test_a_sample_without_a_map_contributes_nothing():
    predicted = torch.rand(3, 1, 4, 4, requires_grad=True)
    human = torch.rand(3, 1, 4, 4)
    l2norm(predicted, human, known(True, False, True)).sum().backward()
    assert predicted.grad[1].abs().max() == 0
    assert predicted.grad[0].abs().min() > 0
    assert l2norm(predicted, human, known(False, False, False)).tolist() == [0, 0, 0]


def test_an_unknown_cell_contributes_nothing():
    predicted = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    certainty = torch.tensor([[[[1.0, 1.0], [0.0, 0.25]]]])
    loss = l2norm(predicted, torch.zeros(1, 1, 2, 2), certainty)
    assert loss.item() == pytest.approx(math.sqrt(0.25 + 0.25 + 0.25 * 0.25))
    loss.backward()
    assert predicted.grad[0, 0, 1, 0] == 0


def test_map_loss_gradient_is_the_numerical_one():
    predicted = torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    human = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: l2norm(m, human, known(True, True)), predicted)


def test_a_map_met_exactly_has_a_gradient_of_zero_not_nan():
    predicted = torch.full((1, 1, 3, 3), 0.5, requires_grad=True)
    l2norm(predicted, predicted.detach().clone(), known(True)).backward()
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


def test_total_is_equations_1_and_2():
    logits = torch.tensor([[2.0, 0.0]])
    output = Output(logits, torch.zeros(1, 2), torch.full((1, 1, 2, 2), 0.5))
    parts = losses(output, torch.tensor([0]), torch.zeros(1, 1, 2, 2), known(True))
    perception, attention = math.log(1 + math.exp(-2)), math.log(2)
    assert parts.perception.item() == pytest.approx(perception)
    assert parts.attention.item() == pytest.approx(attention)
    assert parts.map.item() == pytest.approx(1.0)
    assert parts.total(gamma=3.0).item() == pytest.approx(perception + attention + 3.0, rel=1e-6)


def test_the_map_loss_is_the_mean_over_the_batch_and_may_be_a_function():
    output = Output(torch.zeros(3, 2), torch.zeros(3, 2), torch.full((3, 1, 2, 2), 0.5))
    maps, labels = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])
    parts = losses(output, labels, maps, known(True, True, False))
    assert parts.map.item() == pytest.approx(2 / 3)      # a sample without a map counts among the batch

    def absolute(attention, maps, certainty):
        return (certainty * (attention - maps).abs()).flatten(1).sum(1)

    assert losses(output, labels, maps, known(True, True, False), map_loss=absolute).map.item() == pytest.approx(4 / 3)


def test_a_plain_network_has_only_its_own_cross_entropy():
    output = Output(torch.zeros(2, 4), None, None)
    parts = losses(output, torch.tensor([0, 1]), torch.zeros(2, 1, 1, 1), known(True, True))
    assert parts.total(gamma=5.0).item() == pytest.approx(math.log(4))


def test_half_precision_is_compared_in_float32():
    logits, attention = torch.zeros(1, 2, dtype=torch.bfloat16), torch.full((1, 1, 64, 64), 0.3, dtype=torch.bfloat16)
    output = Output(logits, logits, attention)
    parts = losses(output, torch.tensor([0]), torch.zeros(1, 1, 64, 64), known(True))
    assert {part.dtype for part in parts} == {torch.float32}
    assert parts.map.item() == pytest.approx(64 * attention[0, 0, 0, 0].item(), rel=1e-6)


def test_parts_of_a_batch_add_up_to_it():
    torch.manual_seed(0)
    output = Output(*(torch.rand(shape, dtype=torch.float64) for shape in [(5, 3), (5, 3), (5, 1, 2, 2)]))
    labels, maps = torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, 1, 2, 2, dtype=torch.float64)
    certainty, weights = known(True, True, False, True, True).double(), torch.tensor([1, 0.5, 2, 0, 1.5])
    balance = torch.tensor([0.5, 2, 1], dtype=torch.float64)

    def of(rows: slice, **more):
        cut = Output(*(part[rows] for part in output))
        given = {"weights": weights[rows], "class_weights": balance, **more}
        return torch.stack([*losses(cut, labels[rows], maps[rows], certainty[rows], **given)])

    whole = of(slice(5))
    assert torch.allclose(of(slice(0, 2), count=5.0) + of(slice(2, 5), count=5.0), whole, rtol=0, atol=1e-12)
    per_sample = [of(slice(row, row + 1), weights=None) for row in range(5)]
    by_hand = sum(weight * sample for weight, sample in zip(weights, per_sample, strict=True)) / 5
    assert torch.allclose(whole, by_hand, rtol=0, atol=1e-12)


def test_class_weights_scale_both_cross_entropies_and_not_the_map_loss():
    output = Output(torch.zeros(2, 2), torch.zeros(2, 2), torch.full((2, 1, 2, 2), 0.5))
    labels, maps = torch.tensor([0, 1]), torch.zeros(2, 1, 2, 2)
    parts = losses(output, labels, maps, known(True, True), class_weights=torch.tensor([3.0, 0.5]))
    assert [part.item() for part in parts] == pytest.approx([1.75 * math.log(2), 1.75 * math.log(2), 1.0])

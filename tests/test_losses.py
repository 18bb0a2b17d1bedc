"""The paper's losses, against numbers worked by hand and against numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch

from hkmap.engine.folders import read_config
from hkmap.engine.losses import MAP_LOSSES, l2norm, losses
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
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


# the rows of MAP_LOSSES

BOTH = [0.2, 0.6], [0.0, 1.0]
LOG = math.log


def row(name: str, attention: list[float], human: list[float], certainty: list[float]) -> float:
    """The loss of one sample, whose maps are 1 x n."""
    cells = (torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1) for values in (attention, human, certainty))
    return MAP_LOSSES[name](*cells).item()


@pytest.mark.parametrize(("name", "attention", "human", "certainty", "wanted"), [
    ("l2norm", *BOTH, [1, 1], math.sqrt(0.04 + 0.16)),
    ("l2norm", *BOTH, [0.25, 1], math.sqrt(0.01 + 0.16)),
    ("mse", *BOTH, [1, 1], 0.1),
    ("mse", *BOTH, [0.25, 1], 0.17 / 1.25),
    ("l1", *BOTH, [1, 1], 0.3),
    ("l1", *BOTH, [0.25, 1], 0.45 / 1.25),
    ("kl", *BOTH, [1, 1], LOG(4 / 3)),                                      # (0, 1) against (1/4, 3/4)
    ("kl", [0.2, 0.2, 0.4], [0.5, 0.5, 0], [1, 1, 1], LOG(2)),              # (1/2, 1/2, 0) against (1/4, 1/4, 1/2)
    ("kl", [0.2, 0.2, 0.4], [0.5, 0.5, 0], [1, 1, 0], 0),                   # equal where it is known
    ("kl", [0.2, 0.6], [0.0, 1.0], [0.5, 1], LOG(0.7 / 0.6)),               # (0, 1) against (1/7, 6/7)
    ("cosine", [0.3, 0.4], [1, 0], [1, 1], 0.4),
    ("cosine", [0.3, 0.4], [0.6, 0.8], [1, 1], 0),                          # twice the level, the same shape
    ("cosine", [0.3, 0.4], [0, 0.5], [0.0, 1], 0),
    ("bce", [0.5, 0.25], [0, 1], [1, 1], (LOG(2) + LOG(4)) / 2),
    ("bce", [0.5, 0.25], [0.5, 1], [1, 0], LOG(2)),
    ("dice", *BOTH, [1, 1], 1 - 2.2 / 2.4),
    ("dice", *BOTH, [0, 1], 1 - 2.2 / 2.36),
    ("energy", *BOTH, [1, 1], 0.25),
    ("energy", [0.2, 0.6], [0.5, 1], [1, 1], 0.125),                        # a half of a quarter
    ("energy", [0.2, 0.6, 0.9], [0, 1, 0], [1, 1, 0], 0.25),
    ("energy", [0.5, 0.5, 0.5], [1, 1, 0], [1, 1, 1], 1 / 3),
    ("energy", [1.0, 0.0, 0.0], [1, 1, 0], [1, 1, 1], 0),                   # one cell of the region is enough
    ("energy+size", [0.2, 0.2], [0, 1], [1, 1], 0.5 + 1),
    ("energy+size", [0, 0.3, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], 1 / 4),
    ("energy+size", [0, 0.3, 0.3, 0], [0, 1, 1, 0], [1, 1, 1, 1], 1 / 2),
    ("energy+size", [0, 0.3, 0.3, 0], [0, 1, 1, 0], [1, 1, 0, 0], 1 / 2),
    ("outside", [0.5, 0.9], [0, 0.1], [1, 1], 0.25),
    ("outside", [0.5, 0.9, 0.1], [0, 0.1, 0], [0.5, 1, 1], (0.125 + 0.01) / 1.5),
    ("outside", [0.5, 0.9], [0.2, 0.1], [1, 1], 0),                         # nowhere is forbidden
])
def test_the_rows_worked_by_hand(name, attention, human, certainty, wanted):
    assert row(name, attention, human, certainty) == pytest.approx(wanted, abs=3e-3 if name == "kl" else 2e-4)


@pytest.mark.parametrize(("name", "level"), [
    ("l2norm", True), ("mse", True), ("l1", True), ("bce", True), ("dice", True), ("outside", True),
    ("kl", False), ("cosine", False), ("energy", False), ("energy+size", False),
])
def test_which_rows_compare_the_level_and_which_the_shape_alone(name, level):
    human, attention = [0.0, 0.4, 0.8, 0.1], [0.2, 0.6, 0.4, 0.8]
    half = [value / 2 for value in attention]
    changes = abs(row(name, half, human, [1] * 4) - row(name, attention, human, [1] * 4)) > 2e-3
    assert changes == level


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_the_gradients_are_the_numerical_ones_and_two_halves_are_the_whole(name):
    torch.manual_seed(0)
    attention, human = (torch.rand(4, 1, 3, 4, dtype=torch.float64) * 0.9 + 0.05 for _ in range(2))
    human[:, :, 0] = 0
    certainty = torch.rand(4, 1, 3, 4, dtype=torch.float64)
    certainty[0], certainty[1, :, 1:] = 0, 0        # no map; a map of which a part is known
    compare = MAP_LOSSES[name]
    assert torch.autograd.gradcheck(lambda m: compare(m, human, certainty), attention.requires_grad_())
    halves = [compare(attention[part], human[part], certainty[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(torch.cat(halves), compare(attention, human, certainty), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", MAP_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("attention", "human"), [
    (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (1e-6, 0.0), (0.0, 1e-6), (0.3, 0.0),
], ids=str)
def test_maps_that_are_equal_empty_or_saturated_give_no_nan(name, dtype, attention, human):
    seen = torch.full((1, 1, 3, 3), attention, dtype=dtype, requires_grad=True)
    output = Output(torch.zeros(1, 2), torch.zeros(1, 2), seen)
    maps = torch.full((1, 1, 3, 3), human)
    found = losses(output, torch.tensor([0]), maps, torch.ones_like(maps), map_loss=name).map
    found.backward()
    assert found.dtype == torch.float32
    assert found.isfinite()
    assert seen.grad.isfinite().all()
    if attention == human and name not in ("bce", "energy", "energy+size", "outside"):
        assert found.item() == pytest.approx(0, abs=1e-6)
        assert seen.grad.abs().max() < 1e-2


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_no_row_learns_from_missing_maps_and_unknown_cells(name):
    torch.manual_seed(0)
    attention = torch.rand(3, 1, 3, 3, requires_grad=True)
    human, certainty = torch.rand(3, 1, 3, 3), torch.ones(3, 1, 3, 3)
    human[:, :, 0] = 0
    human[1], certainty[1] = 0, 0           # no map
    certainty[2, :, :, 1] = 0
    found = MAP_LOSSES[name](attention, human, certainty)
    found.sum().backward()
    assert found[1] == 0
    assert (attention.grad[1] == 0).all()
    assert (attention.grad[2, :, :, 1] == 0).all()
    assert (attention.grad[[0, 2]] != 0).any()
    other = torch.where(certainty > 0, attention, torch.rand_like(attention))
    assert torch.equal(MAP_LOSSES[name](other, human, certainty), found)


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_what_is_minimised_leaves_no_attention_outside(name):
    torch.manual_seed(0)
    human = torch.zeros(1, 1, 5, 5)
    human[..., 1:3, 1:4] = 1
    before = torch.randn(1, 1, 5, 5)
    logits = before.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(500):
        loss = MAP_LOSSES[name](logits.sigmoid(), human, torch.ones_like(human)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = logits.detach().sigmoid()
    assert found[human == 0].sum() / found.sum() < 0.05
    inside = found[human == 1]
    if name in ("l2norm", "mse", "l1", "bce", "dice"):
        assert inside.min() > 0.9
    elif name in ("kl", "cosine"):
        assert inside.max() / inside.min() < 1.1      # as even as the human map, at some level
    elif name == "energy+size":
        assert inside.sum() / inside.max() < 5.5      # not in all six cells
    elif name == "outside":
        assert torch.equal(logits.detach()[human == 1], before[human == 1])


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_the_map_loss_moves_the_attention_branch_alone(name):
    torch.manual_seed(0)
    small = build(Architecture("resnet8+abn", 2, "small", 4)).train()
    small.extractor.requires_grad_(False)
    output = small(torch.rand(2, 3, 16, 16))
    human = torch.zeros_like(output.attention)
    human[..., 0] = 1
    losses(output, torch.tensor([0, 1]), human, torch.ones_like(human), map_loss=name).map.backward()
    moved = {part for part, value in small.named_parameters() if value.grad is not None and value.grad.abs().max() > 0}
    assert "attention.map_conv.weight" in moved
    assert all(part.startswith("attention.") for part in moved)


def test_a_config_of_an_old_run_says_norm(tmp_path):
    (tmp_path / "config.toml").write_text('map_loss = "norm"\nepochs = 3\n')
    assert read_config(tmp_path / "config.toml") == {"map_loss": "l2norm", "epochs": 3}
    (tmp_path / "config.toml").write_text('map_loss = "absolute"\n')
    assert read_config(tmp_path / "config.toml") == {"map_loss": "absolute"}

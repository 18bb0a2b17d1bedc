"""The copy of a network that answers frames: equal to rounding, faster, and the given network as it was."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from literal_curves import lively
from torch import nn
from torch.nn.utils import parametrizations

from hkmap.errors import RunError
from hkmap.evaluation.fast import Numbers, folded, prepared
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output

FLOAT64 = Numbers("Numbers of 64 bits.", torch.float64)
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(name, **options):
    torch.manual_seed(0)
    return lively(build(Architecture(name, 3, **options))).double().eval()


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def answers(network, images=IMAGES):
    with torch.no_grad():
        return network(images)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


SMALL = {"stem": "small", "width": 4}


@pytest.mark.parametrize(("name", "options", "left"), [
    ("resnet8", SMALL, 0), ("resnet8+abn", SMALL, 1), ("resnet8+se+abn", SMALL, 1), ("alexnet+abn", {"width": 8}, None),
    ("resnet50+abn", {"width": 4}, 1),
])
def test_folding_changes_no_answer(name, options, left):
    """One norm of the attention branch comes after a ReLU, and stays."""
    network = ours(name, **options)
    copy = prepared(network, IMAGES[0], FLOAT64)
    assert_equal(answers(copy), answers(network))
    assert norms(copy) < norms(network)
    assert left is None or norms(copy) == left


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["timm/resnet18+abn", "timm/tf_efficientnet_lite0", "timm/convnext_tiny"])
def test_folding_timms_networks_changes_no_answer(name):
    """The norms of efficientnet have an activation inside, which stays; those of convnext are no batch norms."""
    network = ours(name)
    copy = prepared(network, IMAGES[0], FLOAT64)
    assert_equal(answers(copy), answers(network))
    assert norms(copy) == (1 if name.endswith("+abn") else 0)


class Built(nn.Module):
    """A network of 3 -> 4 -> 2 channels with two norms; ``middle`` says what becomes of the first convolution."""

    def __init__(self, middle, **modules):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last, self.last_norm = nn.Conv2d(4, 2, 3, bias=False), nn.BatchNorm2d(2)
        self.middle = middle
        for key, module in modules.items():
            self.add_module(key, module)

    def forward(self, images):
        return Output(self.last_norm(self.last(self.middle(self, images))).mean((2, 3)), None, None)


def both(network, images):
    """A module takes the convolution's output too."""
    output = network.first(images)
    return network.norm(output) + network.relu(output)


def twice(network, images):
    """The convolution is called twice."""
    return network.norm(network.first(images)) + network.first(images)


def norm_twice(network, images):
    """The norm is called twice."""
    return network.norm(network.norm(network.first(images)))


def plain(network, images):
    return network.norm(network.first(images))


@pytest.mark.parametrize(("middle", "modules", "left"), [
    (plain, {}, 0), (both, {"relu": nn.ReLU()}, 1), (twice, {}, 1), (norm_twice, {}, 1),
    (plain, {"first": parametrizations.weight_norm(nn.Conv2d(3, 4, 3))}, 1),
    (plain, {"norm": nn.BatchNorm2d(4, affine=False)}, 0), (plain, {"first": nn.Conv2d(3, 4, 3, bias=False)}, 0),
    (plain, {"norm": nn.BatchNorm2d(4, track_running_stats=False)}, 1),
    (plain, {"norm": nn.InstanceNorm2d(4)}, 0),
])
def test_only_a_norm_that_follows_a_convolution_alone_is_folded(middle, modules, left):
    torch.manual_seed(2)
    network = Built(middle, **modules)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    network.double().eval()
    copy = folded(network, IMAGES[:2])
    assert norms(copy) == left
    assert_equal(answers(copy), answers(network))


def test_where_folding_would_change_the_answer_nothing_is_folded(caplog):
    """No module is seen to take the convolution's output a second time."""

    def unseen(network, images):
        output = network.first(images)
        return network.norm(output) * output

    network = lively(Built(unseen)).double().eval()
    caplog.set_level("INFO", "hkmap")
    copy = folded(network, IMAGES[:2])
    assert norms(copy) == 2
    assert_equal(answers(copy), answers(network))
    assert caplog.messages == ["the network's norms cannot be folded into its convolutions, so frames take longer"]


def test_the_given_network_stays_as_it_is():
    network = ours("resnet8+abn", **SMALL).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    kinds, drawn = Counter(map(type, network.modules())), torch.get_rng_state()
    copy = prepared(network, IMAGES[0], "bfloat16")
    after = network.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in state.items())
    assert Counter(map(type, network.modules())) == kinds
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module.training or module._forward_hooks for module in copy.modules())
    assert {value.dtype for value in copy.state_dict().values()} <= {torch.bfloat16, torch.int64}


def test_what_is_no_module_is_asked_as_it_is():
    def network(images):
        return Output(images.mean((2, 3)), None, None)

    class Called(nn.Module):
        def forward(self, images):
            return network(images)

    assert prepared(network, IMAGES[0].float()) is network
    assert_equal(answers(prepared(Called(), IMAGES[0].float())), answers(network))
    for one in (network, Called()):
        with pytest.raises(RunError, match=r"^the network has no weights in torch, so it cannot compute in bfloat16"):
            prepared(one, IMAGES[0].float(), "bfloat16")


def test_a_network_that_cannot_compute_in_a_type_is_refused():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))

        def forward(self, images):
            return Output(images.mean((2, 3)) @ torch.ones(3, 3) + self.bias, None, None)

    assert isinstance(prepared(Stubborn(), IMAGES[0].float()), Stubborn)
    with pytest.raises(RunError, match=r"^the network cannot compute in bfloat16 \(.*\); use --dtype float32$"):
        prepared(Stubborn(), IMAGES[0].float(), "bfloat16")

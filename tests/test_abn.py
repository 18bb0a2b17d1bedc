"""The network: the authors' parameters, the gates, a person's map in the place of the predicted one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hkmap.networks.architectures import ARCHITECTURES, build, map_size
from hkmap.networks.backbone import Architecture
from hkmap.networks.resnet import BasicBlock
from hkmap.networks.weights import author_name


def resnet50_abn_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """The authors' ResNet50+ABN, written out from the description of the network: name → shape."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def stage(name: str, channels_in: int, channels: int, depth: int) -> None:
        for index in range(depth):
            block, first = f"{name}.{index}", channels_in if index == 0 else 4 * channels
            shapes[f"{block}.conv1.weight"] = (channels, first, 1, 1)
            shapes[f"{block}.conv2.weight"] = (channels, channels, 3, 3)
            shapes[f"{block}.conv3.weight"] = (4 * channels, channels, 1, 1)
            for number, width in ((1, channels), (2, channels), (3, 4 * channels)):
                norm(f"{block}.bn{number}", width)
        shapes[f"{name}.0.downsample.0.weight"] = (4 * channels, channels_in, 1, 1)
        norm(f"{name}.0.downsample.1", 4 * channels)

    norm("bn1", 64)
    stage("layer1", 64, 64, 3)
    stage("layer2", 256, 128, 4)
    stage("layer3", 512, 256, 6)
    stage("att_layer4", 1024, 512, 3)
    stage("layer4", 1024, 512, 3)
    norm("bn_att", 2048)
    shapes["att_conv.weight"] = (classes, 2048, 1, 1)
    norm("bn_att2", classes)
    shapes["att_conv2.weight"] = (classes, classes, 1, 1)
    shapes["att_conv3.weight"] = (1, classes, 3, 3)
    norm("bn_att3", 1)
    shapes["fc.weight"], shapes["fc.bias"] = (classes, 2048), (classes,)
    return shapes


def test_resnet50_abn_has_the_authors_names_and_shapes():
    network = build(Architecture("resnet50+abn", 1000))
    ours = {author_name(name): tuple(value.shape) for name, value in network.state_dict().items()}
    assert ours == resnet50_abn_shapes(1000)


@pytest.mark.parametrize(("name", "classes", "millions"), [
    ("resnet18+abn", 1000, 21.607), ("resnet34+abn", 1000, 36.436), ("resnet50+abn", 1000, 43.585),
    ("resnet101+abn", 1000, 62.577), ("resnet152+abn", 1000, 78.221), ("resnet18+abn", 8, 19.580),
    ("resnet18", 1000, 11.690), ("resnet50", 1000, 25.557),
])
def test_parameters_number_as_published(name, classes, millions):
    with torch.device("meta"):
        network = build(Architecture(name, classes))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize(("name", "stem", "side", "map_side"), [
    ("resnet50+abn", "standard", 224, 14), ("resnet50+abn", "standard", 360, 23),
    ("resnet18+abn", "small", 32, 8), ("resnet8+abn", "small", 49, 25),
])
def test_the_maps_side_follows_the_images(name, stem, side, map_side):
    architecture = Architecture(name, 3, stem=stem, width=4)
    network = build(architecture).eval()
    with torch.inference_mode():
        drawn = network(torch.zeros(1, 3, side, side + 9)).attention
    assert map_size(architecture, (side, side + 9)) == drawn.shape[2:]
    assert drawn.shape[2] == map_side


@pytest.fixture(params=["residual", "product"])
def network(request):
    torch.manual_seed(0)
    return build(Architecture("resnet8+abn", 5, stem="small", width=8, gate=request.param)).eval()


def test_a_given_map_equal_to_the_predicted_one_changes_no_logit(network):
    images = torch.randn(3, 3, 20, 28)
    own = network(images)
    given = network(images, own.attention)
    assert torch.equal(own.logits, given.logits)
    assert given.attention_logits is None       # the attention branch was not asked


def test_gates_on_a_map_of_zeros_and_of_ones():
    images, gates = torch.randn(2, 3, 16, 16), {}
    for gate in ("residual", "product"):
        torch.manual_seed(0)
        gates[gate] = build(Architecture("resnet8+abn", 5, stem="small", width=8, gate=gate)).eval()
    features = gates["product"].extractor(images)
    side = features.shape[-1]
    zeros, ones = torch.zeros(2, 1, side, side), torch.ones(2, 1, side, side)
    plain = gates["product"].perception(features)
    assert torch.equal(gates["residual"](images, zeros).logits, plain)      # the residual gate hides nothing
    assert torch.equal(gates["product"](images, ones).logits, plain)
    hidden = gates["product"](images, zeros).logits
    assert torch.equal(hidden[0], hidden[1])                                # the product gate hides all


def test_nothing_is_kept_on_the_module_in_forward(network):
    before = set(vars(network)) | {name for name, _ in network.named_buffers()}
    network(torch.zeros(1, 3, 16, 16))
    assert set(vars(network)) | {name for name, _ in network.named_buffers()} == before


def test_a_plain_network_has_no_map():
    network = build(Architecture("resnet8", 5, stem="small", width=4)).eval()
    output = network(torch.zeros(1, 3, 16, 16))
    assert output.attention is None
    assert output.attention_logits is None
    with pytest.raises(ValueError, match="no place for a map"):
        network(torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 8, 8))


def test_the_architectures_are_these():
    suffixes = ("", "+abn", "+se", "+se+abn")
    resnets = [f"resnet{n}{suffix}" for n in (8, 18, 34, 50, 101, 152) for suffix in suffixes]
    assert list(ARCHITECTURES) == [*resnets, "alexnet", "alexnet+abn"]


def test_a_shortcut_that_takes_every_other_pixel_is_the_strided_convolution():
    block = BasicBlock(6, 12, 2).eval()
    strided = torch.nn.Conv2d(6, 12, 1, 2, bias=False)
    strided.weight = block.downsample[0].weight
    for side in (8, 9):
        x = torch.randn(2, 6, side, side)
        own = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        assert torch.allclose(block(x), torch.relu(own + block.downsample[1](strided(x))), atol=1e-6)


def test_odd_batches_through_narrow_networks_leave_the_memory_whole():
    """In a process of its own: torch's crash would take the tests with it."""
    code = """
import torch
from hkmap.networks.classifier import place
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
torch.set_num_threads(2)
network = place(build(Architecture("resnet8+abn", 2, "small", 4)), torch.device("cpu")).train()
for _ in range(60):
    output = network(torch.randn(5, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    (output.logits.square().mean() + output.attention.square().mean()).backward()
"""
    quiet = {**os.environ, "OMP_WAIT_POLICY": "passive"}      # a thread that waits takes no time from other tests
    assert subprocess.run([sys.executable, "-c", code], check=False, env=quiet).returncode == 0

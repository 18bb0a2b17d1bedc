"""The networks by the papers' names: sizes worked out by hand, shapes, and a forward pass written independently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hkmap.errors import ChoiceError, RunError
from hkmap.networks.architectures import ARCHITECTURES, build, map_size, on_meta
from hkmap.networks.backbone import Architecture
from hkmap.networks.weights import load_weights

# how many parameters


def of_head(channels: int, classes: int) -> int:
    """What ABN adds to the copied stage: 4 norms' or convolutions' weights, and the map's."""
    return 2 * channels + channels * classes + 2 * classes + classes * classes + 9 * classes + 2


def of_excitation(channels: int) -> int:
    """Two linear layers with biases, from C to C / 16 and back."""
    return 2 * channels * (channels // 16) + channels // 16 + channels


def of_se(depths: tuple[int, ...], expansion: int, *, branch: bool) -> int:
    """All of a network's SE blocks; the attention branch has those of the last stage again."""
    counts = (*depths, depths[-1]) if branch else depths
    widths = [64 * expansion * 2 ** min(stage, 3) for stage in range(len(counts))]
    return sum(depth * of_excitation(width) for depth, width in zip(counts, widths, strict=True))


ALEXNET = sum((
    64 * 3 * 11 * 11 + 64, 192 * 64 * 5 * 5 + 192, 384 * 192 * 3 * 3 + 384, 256 * 384 * 3 * 3 + 256,
    256 * 256 * 3 * 3 + 256, 9216 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000,
))


@pytest.mark.parametrize(("name", "classes", "count"), [
    ("resnet18", 1000, 11_689_512), ("resnet34", 1000, 21_797_672), ("resnet50", 1000, 25_557_032),
    ("resnet101", 1000, 44_549_160), ("resnet152", 1000, 60_192_808),       # as torchvision publishes
    ("resnet18+se", 1000, 11_689_512 + of_se((2, 2, 2, 2), 1, branch=False)),
    ("resnet50+se", 1000, 28_088_024),      # as published for SE-ResNet-50
    ("resnet50+se", 1000, 25_557_032 + of_se((3, 4, 6, 3), 4, branch=False)),
    ("resnet152+se", 1000, 66_821_848),
    ("resnet18+se+abn", 1000, 21_607_266 + of_se((2, 2, 2, 2), 1, branch=True)),
    ("resnet152+se+abn", 1000, 78_220_642 + of_se((3, 8, 36, 3), 4, branch=True)),
    ("alexnet", 1000, 61_100_840), ("alexnet", 1000, ALEXNET),
    ("alexnet+abn", 1000, ALEXNET + of_head(256, 1000)),
    ("alexnet+abn", 8, ALEXNET - 992 * 4097 + of_head(256, 8)),
])
def test_parameters_number_as_worked_out(name: str, classes: int, count: int) -> None:
    network = on_meta(Architecture(name, classes))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(("name", "millions"), [
    ("resnet18+abn", (21.607, 19.580)), ("resnet34+abn", (36.436, 34.408)), ("resnet50+abn", (43.585, 38.510)),
    ("resnet101+abn", (62.577, 57.502)), ("resnet152+abn", (78.221, 73.146)),
])
def test_parameters_of_1000_and_8_classes_number_as_the_authors(name: str, millions: tuple[float, float]) -> None:
    for classes, expected in zip((1000, 8), millions, strict=True):
        network = on_meta(Architecture(name, classes))
        assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 3) == expected


def test_the_list_says_what_each_costs(hk: Callable) -> None:
    """The multiply-adds, in billions, are those that torchvision publishes with its weights."""
    rows = {row["name"]: row for row in hk("list", "architectures").records}
    assert list(rows) == [*ARCHITECTURES, "timm/NAME[+abn]"]
    for name, published in (
        ("resnet18", 1.814), ("resnet34", 3.664), ("resnet50", 4.089), ("resnet101", 7.801), ("resnet152", 11.514),
        ("alexnet", 0.714),
    ):
        assert round(rows[name]["multiply_adds"] / 1e9, 3) == published
        assert rows[name]["map_size"] is None
    assert (rows["resnet50+abn"]["parameters"], rows["resnet50+abn"]["map_size"]) == (43_584_866, [14, 14])
    # the attention branch of AlexNet: three convolutions at 13 x 13
    added = 169 * (256 * 1000 + 1000 * 1000 + 9 * 1000)
    assert rows["alexnet+abn"]["multiply_adds"] - rows["alexnet"]["multiply_adds"] == added
    assert rows["alexnet+abn"]["map_size"] == [13, 13]


def test_the_list_shows_a_network_that_cannot_be_imported_without_figures(hk: Callable, installed: Callable) -> None:
    installed("broken", "import nothing_of_that_name", group="hkmap.architectures", shattered="broken:network")
    row = next(row for row in hk("list", "architectures").records if row["name"] == "shattered")
    assert "cannot be imported" in row.pop("doc")
    assert row == {"name": "shattered", "origin": "broken"}


# shapes


@pytest.mark.parametrize("name", ["resnet18+abn", "resnet50+se+abn", "alexnet+abn"])
@pytest.mark.parametrize(("size", "of_resnets", "of_alexnet"), [
    ((224, 224), (14, 14), (13, 13)), ((256, 256), (16, 16), (15, 15)), ((360, 360), (23, 23), (21, 21)),
    ((97, 131), (7, 9), (5, 7)),
])
def test_shapes(
    name: str, size: tuple[int, int], of_resnets: tuple[int, int], of_alexnet: tuple[int, int]
) -> None:
    architecture = Architecture(name, 5, width=2)
    network = build(architecture).eval()
    expected = of_alexnet if name.startswith("alexnet") else of_resnets
    channels = {"resnet18+abn": 8, "resnet50+se+abn": 32, "alexnet+abn": 8}[name]      # of width 2
    with torch.inference_mode():
        features = network.features(torch.zeros(2, 3, *size))
        output = network(torch.zeros(2, 3, *size))
    assert features.shape == (2, channels, *expected)
    assert output.attention is not None
    assert output.attention.shape == (2, 1, *expected)
    assert map_size(architecture, size) == expected
    assert output.logits.shape == (2, 5)
    assert output.attention_logits is not None
    assert output.attention_logits.shape == (2, 5)


@pytest.mark.parametrize(("name", "smallest"), [("resnet18+abn", 1), ("alexnet", 63), ("alexnet+abn", 63)])
def test_images_too_small_are_a_sentence_with_the_smallest_side(name: str, smallest: int) -> None:
    architecture = Architecture(name, 2, width=2)
    assert map_size(architecture, (smallest, smallest + 9)) >= (1, 1)
    assert build(architecture).eval()(torch.zeros(1, 3, smallest, smallest)).logits.shape == (1, 2)
    if smallest > 1:
        sentence = "images of 300x62 are too small for the network; use --image-size 63 or more"
        with pytest.raises(RunError, match=sentence):
            map_size(architecture, (62, 300))


def test_alexnet_trains_and_is_refused_what_it_does_not_have(hk: Callable, make_shard: Callable[..., Path]) -> None:
    shard = make_shard("a.h5", 4)

    def train(out: str, *more: object) -> object:
        return hk("train", shard, "--arch", "alexnet+abn", "--width", 1, "--epochs", 1, "--out", shard.parent / out,
                  "--device", "cpu", *more)

    assert train("run", "--image-size", 64).exit_code == 0
    refused = train("small", "--image-size", 62)
    assert (refused.exit_code, "use --image-size 63 or more" in refused.stderr) == (1, True)
    refused = train("stem", "--image-size", 64, "--stem", "small")
    assert refused.exit_code == 1
    assert "--stem small: alexnet has one stem, its own; omit --stem" in refused.stderr
    assert not (shard.parent / "small").exists()
    with pytest.raises(ChoiceError, match="omit --stem"):
        build(Architecture("alexnet", 2, "small"))


@pytest.mark.parametrize("name", ["resnet18+se", "alexnet"])
def test_a_map_of_zeros_gives_the_plain_networks_logits(name: str) -> None:
    network = build(Architecture(f"{name}+abn", 3, width=4)).eval()
    plain = build(Architecture(name, 3, width=4)).eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "attention." not in key})
    images = torch.randn(2, 3, 64, 80)
    side = map_size(Architecture(name, 3, width=4), (64, 80))
    assert torch.equal(network(images, torch.zeros(2, 1, *side)).logits, plain(images).logits)


@pytest.mark.parametrize("name", ["resnet18+abn+se", "resnet50+SE", "alexnet+se"])
def test_names_in_another_order_are_refused(name: str) -> None:
    with pytest.raises(ChoiceError, match="is unknown"):
        build(Architecture(name, 2))


# a forward pass written independently, on tensors by the names of torchvision and of the ABN authors


class Written:
    """The networks as functions of a state dict by the published names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        if f"{name}.conv3.weight" in self.state:
            y = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").clamp(min=0)
            y = self.norm(self.conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2").clamp(min=0)
            y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        else:
            y = self.norm(self.conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1").clamp(min=0)
            y = self.norm(self.conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
        if f"{name}.se.fc1.weight" in self.state:
            squeezed = self.conv(functional.adaptive_avg_pool2d(y, 1), f"{name}.se.fc1").clamp(min=0)
            y = y / (1 + (-self.conv(squeezed, f"{name}.se.fc2")).exp())
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (x + y).clamp(min=0)

    def stage(self, x: Tensor, name: str, stride: int) -> Tensor:
        depth = len({key.split(".")[1] for key in self.state if key.startswith(f"{name}.")})
        for index in range(depth):
            x = self.block(x, f"{name}.{index}", stride if index == 0 else 1)
        return x

    def resnet(self, images: Tensor) -> list[Tensor]:
        """Return logits, and of an ABN the attention branch's logits and the map."""
        x = functional.max_pool2d(self.norm(self.conv(images, "conv1", 2, 3), "bn1").clamp(min=0), 3, 2, 1)
        x = self.stage(self.stage(self.stage(x, "layer1", 1), "layer2", 2), "layer3", 2)
        branch = []
        if "att_conv.weight" in self.state:
            maps = self.norm(self.conv(self.norm(self.stage(x, "att_layer4", 1), "bn_att"), "att_conv"), "bn_att2")
            maps = maps.clamp(min=0)
            attention = 1 / (1 + (-self.norm(self.conv(maps, "att_conv3", 1, 1), "bn_att3")).exp())
            branch = [self.conv(maps, "att_conv2").mean((2, 3)), attention]
            x = x * attention + x
        return [self.linear(self.stage(x, "layer4", 2).mean((2, 3)), "fc"), *branch]

    def alexnet(self, images: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(self.conv(images, "features.0", 4, 2).clamp(min=0), 3, 2)
        x = functional.max_pool2d(self.conv(x, "features.3", 1, 2).clamp(min=0), 3, 2)
        for name in ("features.6", "features.8", "features.10"):
            x = self.conv(x, name, 1, 1).clamp(min=0)
        x = functional.adaptive_avg_pool2d(functional.max_pool2d(x, 3, 2), (6, 6)).reshape(len(x), -1)
        x = self.linear(self.linear(x, "classifier.1").clamp(min=0), "classifier.4").clamp(min=0)
        return [self.linear(x, "classifier.6")]


def published(architecture: Architecture) -> dict[str, Tensor]:
    """Random tensors of a network under the published names."""
    torch.manual_seed(7)
    names = {
        **ARCHITECTURES[architecture.name](architecture).names,
        "attention.stage_norm.": "bn_att.", "attention.stage.": "att_layer4.", "attention.class_conv.": "att_conv.",
        "attention.class_norm.": "bn_att2.", "attention.logit_conv.": "att_conv2.",
        "attention.map_conv.": "att_conv3.", "attention.map_norm.": "bn_att3.",
    }
    state = {}
    for name, value in on_meta(architecture).state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        theirs = names[ours] + name.removeprefix(ours)
        if name.endswith("num_batches_tracked"):
            state[theirs] = torch.tensor(1)
        elif value.dim() == 1:
            state[theirs] = torch.rand(value.shape, dtype=torch.float64) + 0.5
        else:
            state[theirs] = torch.randn(value.shape, dtype=torch.float64) / value[0].numel() ** 0.5
    return state


@pytest.mark.parametrize("name", [
    "resnet18", "resnet18+abn", "resnet18+se", "resnet18+se+abn", "resnet50", "resnet50+abn", "resnet50+se",
    "resnet50+se+abn", "alexnet",
])
def test_published_weights_give_what_an_independent_forward_pass_gives(name: str, tmp_path: Path) -> None:
    architecture = Architecture(name, 7, width=16)
    state, images = published(architecture), torch.randn(2, 3, 97, 131, dtype=torch.float64)
    network = build(architecture).double().eval()
    torch.save(state, tmp_path / "published.pth")
    assert load_weights(network, tmp_path / "published.pth", architecture) == []
    written = Written(state)
    expected = (written.alexnet if name == "alexnet" else written.resnet)(images)
    with torch.inference_mode():
        found = [value for value in network(images) if value is not None]
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        assert (own - other).abs().max() < 1e-10
    assert expected[0].std() > 0.01      # the logits say something

"""Backbones of timm: cut where their features have stride 16, equal to timm's own, with the attention branch or not."""

from __future__ import annotations

import math
import sys
from functools import cache

import pytest
import safetensors.torch
import torch
from torch import nn

from hkmap.choices import table
from hkmap.engine.runs import load_model
from hkmap.errors import ChoiceError, RunError
from hkmap.networks.architectures import build, map_size, on_meta
from hkmap.networks.backbone import Architecture
from hkmap.networks.pretrained import preprocessing_of
from hkmap.networks.weights import take_weights
from hkmap.training.feeding import Fed
from hkmap.training.optimisation import TrainingOptions
from hkmap.training.steps import Training

pytestmark = pytest.mark.usefixtures("timm")

#: The side of the test's images; a map at 224 pixels has 14x14 cells for each of them.
SIX = {
    "resnet18": 64, "tf_efficientnet_lite0": 64, "convnext_tiny": 64, "regnety_004": 64, "mobilenetv3_small_100": 64,
    "vit_tiny_patch16_224": 64,
}
six = pytest.mark.parametrize("name", SIX)
#: Norms over the channels of each place after the cut, a transformer of few blocks, a convolution over channels.
OTHERS = ("test_convnext", "convnext_zepto_rms", "poolformerv2_s12", "test_vit", "eca_resnext26ts")


@cache
def trained(name):
    """timm's own network of 5 classes, in float64, whose every number counts: timm starts many a layer at zero."""
    import timm

    torch.manual_seed(0)
    dynamic = {"dynamic_img_size": True} if name.startswith(("vit", "test_vit")) else {}
    network = timm.create_model(name, num_classes=5, **dynamic).double().eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.02)
    return network


def images(name, count=2):
    side = SIX.get(name, 64)
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(name, suffix=""):
    """Our network with the weights of timm's."""
    architecture = Architecture(f"timm/{name}{suffix}", 5)
    network = build(architecture).double().eval()
    return network, take_weights(network, trained(name).state_dict(), architecture, name)


@six
def test_the_plain_network_is_timms_own(name):
    network, fresh = ours(name)
    assert fresh == []
    with torch.no_grad():
        expected, found = trained(name)(images(name)), network(images(name)).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@six
def test_a_map_of_zeros_gives_the_plain_networks_answer(name):
    network, fresh = ours(name, "+abn")
    assert all(key.startswith("attention.") and not key.startswith("attention.stage.") for key in fresh)
    with torch.no_grad():
        features = network.features(images(name))
        logits, attention = network.look(features)
        expected = trained(name)(images(name))
        torch.testing.assert_close(network.answer(features, torch.zeros_like(attention)), expected, rtol=0, atol=1e-10)
        hidden = network.answer(network.hidden(features, torch.ones_like(attention)))
    assert logits.shape == (2, 5)
    assert attention.shape == (2, 1, 4, 4)
    assert (hidden - hidden[:1]).abs().max() < (expected - expected[:1]).abs().max()


@pytest.mark.parametrize("name", [*SIX, *OTHERS])
def test_the_answer_depends_on_the_map(name):
    network, _ = ours(name, "+abn")
    one, other = torch.rand(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        features = network.features(images(name, 4))
        logits = network.answer(features, one)
        moved = (network.answer(features, other) - logits).abs().mean()
    assert moved > 1e-3 * logits.std(0).mean()


def test_a_network_that_would_ignore_its_map_is_refused(monkeypatch):
    monkeypatch.setattr("hkmap.networks.timm._norm_first", lambda *parts: parts[:2])     # it stays behind the gate
    with pytest.raises(RunError, match=r"last stage \(its last stage ignores the map that weights its features\); exp"):
        build(Architecture("timm/test_convnext+abn", 5))


@pytest.mark.parametrize(("name", "size", "expected"), [
    ("resnet18", (224, 224), (14, 14)), ("regnety_004", (97, 131), (7, 9)), ("convnext_tiny", (96, 160), (6, 10)),
    ("tf_efficientnet_lite0", (97, 131), (7, 9)), ("mobilenetv3_small_100", (224, 224), (14, 14)),
    ("resnet50d", (97, 131), (7, 9)), ("vit_tiny_patch16_224", (384, 384), (24, 24)),
])
def test_maps_of_any_size(name, size, expected):
    assert map_size(Architecture(f"timm/{name}+abn", 5), size) == expected


class OneBatch:
    """What feeds a training with one batch of two images and their maps."""

    def __init__(self, name):
        ones, labels = torch.ones(2, 1, 4, 4), torch.tensor([1, 3])
        self.batch = Fed(images(name).float(), False, ones / 2, ones, labels, torch.ones(2), labels.numpy(), 2)

    def __len__(self):
        return 1

    def epoch(self, epoch, start=0):
        yield self.batch

    def place(self, index):
        return str(index)


def changed_by_a_step(network, name, **options):
    """The tensors that one step of training changes, of which part and of which not."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    step, = Training(network, TrainingOptions(1, 2, **options), torch.device("cpu")).run_epoch(OneBatch(name))
    assert math.isfinite(step.loss)
    after = network.state_dict()
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


@six
def test_a_step_of_train_and_of_finetune(name):
    torch.manual_seed(0)
    network = build(Architecture(f"timm/{name}+abn", 5))
    assert changed_by_a_step(network, name) == {"extractor", "attention", "perception"}
    assert changed_by_a_step(network, name, update="both", gamma=1.0) == {"attention", "perception"}
    assert changed_by_a_step(network, name, update="attention", gamma=1.0) == {"attention"}


def test_from_train_to_eval(hk, make_shard, tmp_path):
    """The weights' head is another's, as ImageNet's would be; the run says what it needs to be built again."""
    shard = make_shard("t.h5", 4)
    safetensors.torch.save_file(trained("mobilenetv3_small_100").state_dict(), tmp_path / "five.safetensors")
    given = ["--weights", tmp_path / "five.safetensors", "--image-size", 64, "--epochs", 1, "--batch-size", 4]
    result = hk("train", shard, "--arch", "timm/mobilenetv3_small_100+abn", *given, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "these start fresh: attention.stage_norm.weight" in result.stderr
    assert "perception.classifier.weight" in result.stderr
    result = hk("eval", shard, "--from", tmp_path / "run", "--metric", "mse")
    assert result.exit_code == 0, result.stderr
    assert load_model(tmp_path / "run").map_size == (4, 4)


def test_only_the_attention_head_has_the_abn_authors_initial_weights():
    torch.manual_seed(0)
    network = build(Architecture("timm/regnety_004+abn", 50))
    branch = network.attention
    assert branch is not None
    fan_out = 50        # of the 1x1 convolutions; kaiming's standard deviation is sqrt(2 / fan_out)
    assert branch.class_conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    stage, last = branch.stage.state_dict(), network.perception.state_dict()
    assert all(torch.equal(value, last[key]) for key, value in stage.items())


def test_a_copied_stage_has_no_stride_and_its_own_weights():
    network = on_meta(Architecture("timm/convnext_tiny+abn", 5))
    strides = {module.stride for module in network.attention.stage.modules() if isinstance(module, nn.Conv2d)}
    assert strides == {(1, 1)}
    of_attention, of_perception = ({*map(id, part.parameters())} for part in (network.attention, network.perception))
    assert not of_attention & of_perception


@pytest.mark.parametrize(("name", "error", "sentence"), [
    ("timm/resnet81", ChoiceError, r"'timm/resnet81' is unknown; did you mean 'timm/resnet\d+'\? expected"),
    ("timm/resnet18.nope", ChoiceError, r"'timm/resnet18.nope' is unknown; expected one of timm/resnet18.a1_in1k, "),
    ("timm/hf-hub:timm/resnet18", ChoiceError, "is unknown"),
    ("timm/swin_tiny_patch4_window7_224+abn", RunError, r"cannot be cut before its last stage \(its last stage turns"),
    ("timm/eva02_tiny_patch14_224", RunError, r"its last stage \(its stages have strides \[14, 14"),
    ("timm/hrnet_w18", RunError, "cannot be cut before its last stage"),
])
def test_what_cannot_be_built_is_refused(name, error, sentence):
    with pytest.raises(error, match=sentence):
        on_meta(Architecture(name, 5))


@pytest.mark.parametrize("more", [{"stem": "small"}, {"width": 32}])
def test_stem_and_width_are_timms(more):
    with pytest.raises(RunError, match=r"its first layers and widths are timm's; omit --stem and --width"):
        build(Architecture("timm/resnet18", 5, **more))


@pytest.mark.parametrize(("size", "advice"), [((64, 96), 64), ((70, 70), 64), ((8, 8), 16)])
def test_a_transformer_takes_squares_of_whole_patches(size, advice):
    with pytest.raises(RunError, match=rf"multiple of 16 pixels, so use --image-size {advice}$"):
        map_size(Architecture("timm/vit_tiny_patch16_224+abn", 5), size)


@pytest.mark.parametrize(("name", "stated"), [
    ("timm/tf_efficientnet_lite0+abn", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ("timm/convnext_tiny", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ("resnet18+abn", None),
])
def test_the_preprocessing_is_what_timm_states(name, stated):
    assert preprocessing_of(Architecture(name, 5)) == stated


def test_the_list_says_how_to_name_them():
    assert "pip install 'hkmap[timm]'" in table("architectures").describe()["timm/NAME[+abn]"]


@pytest.mark.parametrize(("broken", "sentence"), [
    (ModuleNotFoundError("No module named 'timm'", name="timm"), r"^timm/x: needs timm; pip install 'hkmap\[timm\]'$"),
    (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "timm cannot be imported .No module named 'yaml'"),
    (RuntimeError("operator torchvision::nms does not exist"), "RuntimeError: operator torchvision::nms does not"),
])
def test_where_timm_cannot_be_imported(monkeypatch, broken, sentence):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise broken

    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ChoiceError, match=sentence):
        build(Architecture("timm/x", 5))


def test_the_list_of_architectures_says_why_timm_cannot_be_imported(monkeypatch, hk):
    monkeypatch.setitem(sys.modules, "timm", None)      # found, and its import fails
    monkeypatch.setattr("hkmap.networks.timm.find_spec", lambda name: object())
    result = hk("list", "architectures")
    assert result.exit_code == 0, result.stderr
    rows = {row["name"]: row["doc"] for row in result.records}
    assert rows["timm/NAME[+abn]"].startswith("timm/NAME: ")
    assert rows["resnet18+abn"].endswith("with the attention branch.")

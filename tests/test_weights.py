"""Weights of others: torchvision's names, the ABN authors', and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import safetensors.torch
import torch

from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import load_model, new_model, save_model
from hkmap.errors import RunError
from hkmap.networks.architectures import ARCHITECTURES, build
from hkmap.networks.backbone import Architecture
from hkmap.networks.weights import author_name, load_weights, recognise

SMALL = Architecture("resnet18+abn", 5, width=4)


def add(prefix, weights):
    """The same weights, with longer names."""
    return {f"{prefix}{name}": value for name, value in weights.items()}


def equal(one, other):
    """Whether two state dicts are bit-equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(architecture=SMALL, seed=1):
    """Another network's weights under the authors' names."""
    torch.manual_seed(seed)
    return {author_name(name): value for name, value in build(architecture).state_dict().items()}


@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {"state_dict": weights, "epoch": 3, "acc": 0.5},
    lambda weights: {"state_dict": {f"module.{name}": weights[name] for name in weights}, "acc": np.float64(0.5)},
])
def test_the_authors_checkpoints_load_whole(tmp_path, wrap):
    weights = state()
    torch.save(wrap(weights), tmp_path / "abn.pth.tar")
    network = build(SMALL)
    assert load_weights(network, tmp_path / "abn.pth.tar", SMALL) == []
    assert all(torch.equal(value, weights[author_name(name)]) for name, value in network.state_dict().items())


def test_a_resnet_starts_both_branches(tmp_path):
    weights = state(Architecture("resnet18", 5, width=4))
    torch.save(weights, tmp_path / "resnet18.pth")
    network = build(SMALL)
    fresh = load_weights(network, tmp_path / "resnet18.pth", SMALL)
    own = network.state_dict()
    assert torch.equal(own["attention.stage.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    assert torch.equal(own["perception.stage.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    assert torch.equal(own["perception.fc.weight"], weights["fc.weight"])
    assert {name.split(".")[1] for name in fresh} == {
        "stage_norm", "class_conv", "class_norm", "logit_conv", "map_conv", "map_norm"
    }


def test_another_number_of_classes_starts_fresh(tmp_path):
    torch.save(state(Architecture("resnet18+abn", 9, width=4)), tmp_path / "nine.pt")
    fresh = load_weights(build(SMALL), tmp_path / "nine.pt", SMALL)
    assert "perception.fc.weight" in fresh
    assert "attention.class_conv.weight" in fresh
    assert not any(name.startswith(("extractor", "attention.stage", "perception.stage")) for name in fresh)


def test_old_files_lack_num_batches_tracked(tmp_path):
    torch.save({k: v for k, v in state().items() if "num_batches" not in k}, tmp_path / "old.pt")
    assert load_weights(build(SMALL), tmp_path / "old.pt", SMALL) == []


@pytest.mark.parametrize(("content", "sentence"), [
    ({"layer4_att.0.weight": torch.zeros(1)}, "a multi-task ABN"),
    ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "has nothing for bn1.weight, expected shape"),
    ({"conv1.weight": torch.zeros(4, 3, 3, 3)}, r"has shape \(4, 3, 3, 3\) for conv1.weight, expected shape \(4, 3, 7"),
    ([1, 2], "expected a state dict of tensors"),
])
def test_what_does_not_fit_is_refused(tmp_path, content, sentence):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(RunError, match=sentence):
        load_weights(build(SMALL), tmp_path / "x.pt", SMALL)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (__import__("os").mkdir, (str(tmp_path / "exploded"),))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(RunError, match="not a checkpoint that can be read safely"):
        load_weights(build(SMALL), tmp_path / "bomb.pt", SMALL)
    assert not (tmp_path / "exploded").exists()


def test_train_takes_weights(hk, make_shard, tmp_path):
    weights = state(Architecture("resnet18+abn", 9, width=4))
    torch.save(weights, tmp_path / "w.pt")
    network = ["--arch", "resnet18+abn", "--width", 4, "--image-size", 32, "--weights", tmp_path / "w.pt"]
    result = hk("train", make_shard("t.h5", 4), *network, "--epochs", 1, "--lr", 1e-12, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "these start fresh: attention.class_conv.weight" in result.stderr
    own = load_model(tmp_path / "run").network.state_dict()
    assert torch.allclose(own["extractor.conv1.weight"], weights["conv1.weight"], atol=1e-6)


@pytest.mark.parametrize("prefix", [
    "module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module.", "model.backbone.",
])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    weights = state()
    torch.save({f"{prefix}{name}": value for name, value in weights.items()}, tmp_path / "x.pt")
    network = build(SMALL)
    assert load_weights(network, tmp_path / "x.pt", SMALL) == []
    assert all(torch.equal(value, weights[author_name(name)]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("theirs", "ours", "unused"), [
    ("resnet34", "resnet18", 80), ("resnet34", "resnet18+abn", 80), ("resnet34+abn", "resnet18+abn", 90),
    ("resnet101", "resnet50", 255), ("resnet18+abn", "resnet18", 40),
])
def test_tensors_without_a_place_are_an_error(tmp_path, theirs, ours, unused):
    """Each block has 10 (of bottlenecks 15) beside its counts; the attention branch of a plain network none."""
    torch.save(state(Architecture(theirs, 5, width=2)), tmp_path / "x.pt")
    with pytest.raises(RunError, match=rf"x\.pt: {unused} of its tensors have no place in this network: \S+, .* more"):
        load_weights(build(Architecture(ours, 5, width=2)), tmp_path / "x.pt", Architecture(ours, 5, width=2))


@pytest.mark.parametrize(("theirs", "sentence"), [
    (Architecture("resnet18", 5, width=8), r"has shape \(8, 3, 7, 7\) for conv1.weight, expected shape \(4, 3, 7"),
    (Architecture("resnet8", 5, width=4), "has nothing for"),
    (Architecture("resnet50", 5, width=4), "has shape|has nothing"),
])
def test_other_widths_and_depths_are_an_error(tmp_path, theirs, sentence):
    torch.save(state(theirs), tmp_path / "x.pt")
    with pytest.raises(RunError, match=sentence):
        load_weights(build(SMALL), tmp_path / "x.pt", SMALL)


def test_heads_of_other_names_are_left_aside(tmp_path):
    weights = state(Architecture("resnet18", 5, width=4))
    heads = {f"{head}.weight": torch.zeros(9, 2) for head in ("model.head", "heads.0", "classifier")}
    torch.save({**{k: v for k, v in weights.items() if not k.startswith("fc.")}, **heads}, tmp_path / "x.pt")
    assert "perception.fc.weight" in load_weights(build(SMALL), tmp_path / "x.pt", SMALL)


@pytest.mark.parametrize("change", [
    lambda value: value.to_sparse(), lambda value: value.to("meta"), lambda value: value * np.nan,
    lambda value: torch.zeros(1).expand(value.shape), lambda value: 5,
    lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
])
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_tensors_that_are_not_plain_are_refused(tmp_path, change):
    weights = state()
    torch.save({**weights, "conv1.weight": change(weights["conv1.weight"])}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=r"x\.pt: (expected a state dict|not a checkpoint that can be read safely)"):
        load_weights(build(SMALL), tmp_path / "x.pt", SMALL)


def test_what_a_file_has_twice_is_refused(tmp_path):
    weights = state()
    torch.save({**weights, "module.conv1.weight": weights["conv1.weight"]}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=r"has conv1.weight twice, once as module.conv1.weight"):
        load_weights(build(SMALL), tmp_path / "x.pt", SMALL)


def test_a_run_of_ours_loads_by_our_own_names(tmp_path):
    model = new_model(SMALL, Preprocessing(32, 32), list("abcde"), 0)
    save_model(tmp_path / "run.safetensors", model)
    torch.save({"format": "hkmap-checkpoint", "weights": model.network.state_dict(), "state": {}}, tmp_path / "run.pt")
    torch.manual_seed(1)
    for file in ("run.safetensors", "run.pt"):      # as runs are, and as they were
        network = build(SMALL)
        assert load_weights(network, tmp_path / file, SMALL) == []
        assert equal(network.state_dict(), model.network.state_dict())


def test_the_plain_run_of_ours_starts_both_branches(tmp_path):
    plain = build(Architecture("resnet18", 5, width=4)).state_dict()
    safetensors.torch.save_file(plain, tmp_path / "run.safetensors")
    network = build(SMALL)
    assert "attention.stage_norm.weight" in load_weights(network, tmp_path / "run.safetensors", SMALL)
    assert torch.equal(network.state_dict()["attention.stage.1.conv2.weight"], plain["perception.stage.1.conv2.weight"])


@pytest.mark.parametrize("wrap", [
    lambda weights: {"model": weights, "optimizer": {}},
    lambda weights: {"model_state_dict": weights, "epoch": 3},
    lambda weights: {"state_dict": {f"model.{name}": weights[name] for name in weights}, "global_step": 3},
    lambda weights: {"state_dict": {}, "state_dict_ema": weights},
    lambda weights: {"model": {}, "model_ema": {"n_averaged": torch.tensor(9), **add("module.", weights)}},
])
def test_wrappers_of_trainers_are_taken_off(tmp_path, wrap, caplog):
    weights = state()
    torch.save(wrap(weights), tmp_path / "x.pt")
    network = build(SMALL)
    assert load_weights(network, tmp_path / "x.pt", SMALL) == []
    assert torch.equal(network.state_dict()["extractor.conv1.weight"], weights["conv1.weight"])
    assert ("takes" in caplog.text) == any("ema" in name for name in wrap(weights))


def test_the_head_of_the_attention_branch_is_one_part(tmp_path):
    """Its norm of the map has the same shape for any number of classes, and belongs to the map's convolution."""
    torch.save(state(Architecture("resnet18+abn", 9, width=4)), tmp_path / "nine.pt")
    fresh = load_weights(build(SMALL), tmp_path / "nine.pt", SMALL)
    assert {name.split(".")[1] for name in fresh if name.startswith("attention.")} == {
        "class_conv", "class_norm", "logit_conv", "map_conv", "map_norm"
    }


KNOWN = [
    Architecture("resnet18", 5), Architecture("resnet18+abn", 5, width=8), Architecture("resnet34+abn", 3, width=4),
    Architecture("resnet50", 1000, width=2), Architecture("resnet101+abn", 7, width=2),
    Architecture("resnet152", 4, width=2), Architecture("resnet8+abn", 2, "small", 4),
    Architecture("resnet50+se+abn", 3, width=2), Architecture("alexnet", 5, width=4),
    Architecture("alexnet+abn", 5, width=4),
]


@pytest.mark.parametrize("architecture", KNOWN, ids=lambda architecture: architecture.name)
def test_a_checkpoint_tells_its_architecture(tmp_path, architecture):
    torch.manual_seed(0)
    own = build(architecture).state_dict()
    names = ARCHITECTURES[architecture.name](architecture).names
    torch.save(add("module.", {author_name(name, names): own[name] for name in own}), tmp_path / "theirs.pt")
    safetensors.torch.save_file(own, tmp_path / "ours.safetensors")
    assert recognise(tmp_path / "theirs.pt") == recognise(tmp_path / "ours.safetensors") == architecture


@pytest.mark.parametrize(("content", "sentence"), [
    ({"layer4_att.0.weight": torch.zeros(1)}, "x.pt: a multi-task ABN"),
    ({"stem.weight": torch.zeros(1)}, "x.pt: its 1 tensors, stem.weight, are no network of `hkmap list architectures`"),
    ({**state(), "more.weight": torch.zeros(1)}, "are no network of"),
])
def test_a_checkpoint_of_no_known_network_is_refused(tmp_path, content, sentence):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(RunError, match=sentence):
        recognise(tmp_path / "x.pt")


@pytest.mark.parametrize(("theirs", "options"), [
    (Architecture("resnet34+abn", 9, width=4), "resnet34+abn --width 4"),
    (Architecture("resnet34", 9, width=4), "resnet34 --width 4"),
    (Architecture("resnet8", 9, "small", 8), "resnet8 --stem small --width 8"),
    (Architecture("resnet18+abn", 9, width=8), "resnet18+abn --width 8"),
])
def test_the_weights_of_another_network_name_the_arch_that_fits(tmp_path, theirs, options):
    safetensors.torch.save_file(build(theirs).state_dict(), tmp_path / "x.safetensors")
    sentence = f"; they are those of {theirs.name}, 9 classes: use --arch {options}"
    with pytest.raises(RunError, match=re.escape(sentence) + "$"):
        load_weights(build(SMALL), tmp_path / "x.safetensors", SMALL)


def test_tensors_of_other_names_are_taken_in_order(tmp_path, caplog):
    plain = Architecture("resnet18", 5, width=4)
    weights = state(plain)
    other = {f"part{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(weights.items())}
    torch.save(other, tmp_path / "x.pt")
    network = build(SMALL)
    load_weights(network, tmp_path / "x.pt", SMALL)
    assert "taken in order, from part0.weight for conv1.weight to part121.bias for fc.bias" in caplog.text
    own = network.state_dict()
    assert all(torch.equal(own[name], weights[author_name(name)]) for name in own if not name.startswith("attention."))
    assert torch.equal(own["attention.stage.0.conv1.weight"], weights["layer4.0.conv1.weight"])


@pytest.mark.parametrize("change", [
    lambda other: other.pop("part3.running_mean"),
    lambda other: other.update({"part3.running_mean": torch.zeros(5)}),
    lambda other: other.update(more=torch.zeros(1)),
])
def test_tensors_of_other_names_and_shapes_are_refused(tmp_path, change):
    weights = state(Architecture("resnet18", 5, width=4))
    other = {f"part{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(weights.items())}
    change(other)
    torch.save(other, tmp_path / "x.pt")
    with pytest.raises(RunError, match="has nothing for conv1"):
        load_weights(build(SMALL), tmp_path / "x.pt", SMALL)

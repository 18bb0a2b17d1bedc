"""`hkmap import`: another program's weights become a run, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hkmap.engine.checkpoints import control_of
from hkmap.engine.folders import read_config
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import load_model
from hkmap.errors import RunError
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.weights import author_name

SMALL = Architecture("resnet18+abn", 2, stem="small", width=4)
SIZE = ["--image-size", 16]


def weights(architecture: Architecture = SMALL, seed: int = 1) -> dict[str, Tensor]:
    """A network's weights under the authors' names."""
    torch.manual_seed(seed)
    return {author_name(name): value for name, value in build(architecture).state_dict().items()}


@pytest.mark.parametrize(("name", "wrap"), [
    ("bare.pt", lambda state: state),
    ("abn.pth.tar", lambda state: {"state_dict": {f"module.{name}": state[name] for name in state}, "acc": 0.5}),
    ("lightning.ckpt", lambda state: {"state_dict": {f"model.{name}": state[name] for name in state}, "epoch": 3}),
    ("timm.pth", lambda state: {"model": state}),
])
def test_a_checkpoint_becomes_a_run(hk, make_shard, here, name, wrap):
    shard, state = make_shard("x.h5", 8), weights()
    torch.save(wrap(state), name)
    result = hk("import", name, "--classes", shard, *SIZE, "--mean", 0.5, "--std", "0.5,0.25,0.125", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert result.records == [{
        "run": "run", "arch": "resnet18+abn", "stem": "small", "width": 4, "gate": "residual", "input": [16, 16],
        "fit": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.125], "channels": "RGB", "control": "none",
        "classes": 2,
    }]
    model = load_model("run")
    assert (model.architecture, model.class_names) == (SMALL, ("class 0", "class 1"))
    assert model.preprocessing == Preprocessing(16, 16, "squash", (0.5, 0.5, 0.5), (0.5, 0.25, 0.125))
    assert all(torch.equal(value, state[author_name(key)]) for key, value in model.network.state_dict().items())
    assert {path.name for path in Path("run").iterdir()} == {"best.safetensors", "config.toml", "run.json"}
    assert json.loads(Path("run/run.json").read_text())["files"]["checkpoint"][0]["path"] == name


def test_the_run_is_evaluated_predicted_with_and_fine_tuned(hk, make_shard, here):
    shard = make_shard("x.h5", 8)
    safetensors.torch.save_file(weights(), "x.safetensors")
    assert hk("import", "x.safetensors", "--classes", 2, *SIZE, "--gate", "product", "--out", "run").exit_code == 0
    assert load_model("run").architecture.gate == "product"
    assert hk("eval", shard, "--from", "run", "--metric", "top1").records[0]["samples"] == 8
    assert len(hk("predict", "--from", "run", stdin=hk("unpack", shard).stdout).records) == 8
    tuned = hk("finetune", shard, "--from", "run", "--epochs", 1, "--out", "tuned")
    assert tuned.exit_code == 0, tuned.stderr
    config = hk("finetune", shard, "--from", "run", "--config", "run/config.toml", "--epochs", 1, "--out", "again")
    assert config.exit_code == 0, config.stderr
    assert read_config(Path("run/config.toml"))["command"] == "import"
    resumed = hk("finetune", shard, "--from", "run", "--epochs", 1, "--out", "run", "--resume")
    assert "run: no run to resume; expected its state.pt and config.toml" in resumed.stderr


@pytest.mark.parametrize(("architecture", "options"), [
    (SMALL, []),
    (Architecture("resnet18", 3, stem="small", width=4), ["--arch", "resnet18"]),
    (Architecture("resnet18", 5, width=4), ["--classes", 5]),
    (Architecture("resnet34+abn", 2, width=2), ["--arch", "resnet34+abn", "--classes", 2]),
    (Architecture("resnet50", 4, width=2), []),
])
def test_the_network_and_its_classes_are_told_by_the_tensors(hk, here, architecture, options):
    torch.save(weights(architecture), "x.pt")
    assert hk("import", "x.pt", *options, "--out", "run").exit_code == 0
    model = load_model("run")
    assert model.architecture == architecture
    assert model.class_names == ("",) * architecture.classes
    assert model.preprocessing == Preprocessing()


def test_names_come_from_a_list_or_a_shard(hk, make_shard, here):
    torch.save(weights(), "x.pt")
    Path("names.txt").write_text("Großer Ani\nowl\n", encoding="utf-8")
    assert hk("import", "x.pt", "--classes", "names.txt", "--out", "a").exit_code == 0
    assert load_model("a").class_names == ("Großer Ani", "owl")
    assert hk("import", "x.pt", "--classes", make_shard("x.h5", 4), "--out", "b").exit_code == 0
    assert load_model("b").class_names == ("class 0", "class 1")


def damaged(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    state = weights()
    change(state)
    return state


@pytest.mark.parametrize(("state", "options", "sentence"), [
    (weights(), ["--classes", 3], "x.pt: has 2 classes, and 3 are named; name its own"),
    (weights(Architecture("resnet18", 2, "small", 4)), ["--arch", "resnet34"],
     "x.pt: has shape (4, 3, 3, 3) for conv1.weight, expected shape (64, 3, 7, 7); they are those of resnet18, "
     "2 classes: use --arch resnet18 --stem small --width 4\n"),
    (damaged(lambda state: state.update(extra=torch.zeros(2))), ["--arch", "resnet34+abn", "--classes", 2],
     "for conv1.weight, expected shape (64, 3, 7, 7); is --arch the file's?"),
    (weights(Architecture("resnet18", 2)), ["--arch", "resnet18", "--classes", 3], "x.pt: has 2 classes, and 3"),
    (weights(Architecture("resnet18", 2)), ["--arch", "resnet18+abn", "--classes", 2],
     "x.pt: has nothing for attention.stage_norm.weight, "),
    (weights(), ["--arch", "resnet34+abn", "--classes", 2], "they are those of resnet18+abn, 2 classes"),
    (damaged(lambda state: state.update(extra=torch.zeros(2))), [], "are no network of `hkmap list architectures`"),
    (damaged(lambda state: state.pop("conv1.weight")), [], "are no network of `hkmap list architectures`"),
    (damaged(lambda state: state["fc.bias"].fill_(float("nan"))), [], "x.pt: expected a state dict of tensors"),
    ({"layer4_att.0.weight": torch.zeros(1)}, [], "x.pt: a multi-task ABN (layer4_att.0.weight), another network"),
])
def test_what_does_not_fit_whole_is_refused(hk, here, state, options, sentence):
    torch.save(state, "x.pt")
    result = hk("import", "x.pt", *options, "--out", "run")
    assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(("options", "sentence"), [
    (["--mean", "124,117,104"], "expected R,G,B from 0 to 1, such as 0.485,0.456,0.406, or one number for all three"),
    (["--mean", "0.5,0.5"], "'0.5,0.5': expected R,G,B from 0 to 1"), (["--mean", "x"], "'x': expected R,G,B"),
    (["--mean", "nan"], "'nan': expected R,G,B"), (["--std", "0"], "'0': expected R,G,B from 0.001 to 100"),
    (["--classes", "0"], "0: expected from 1 to 1,048,576 classes"),
    (["--classes", "none.txt"], "none.txt: no such file; expected a list, a shard or a number"),
    (["--arch", "vgg"], "architecture 'vgg' is unknown"),
])
def test_a_wrong_option_is_a_sentence(hk, here, options, sentence):
    torch.save(weights(), "x.pt")
    result = hk("import", "x.pt", *options, "--out", "run")
    assert (result.exit_code, sentence in result.stderr) == (2, True), result.stderr
    assert not Path("run").exists()


def test_a_run_is_not_overwritten_unasked(hk, here):
    torch.save(weights(), "x.pt")
    assert hk("import", "x.pt", *SIZE, "--out", "run").exit_code == 0
    torch.save(weights(seed=2), "x.pt")
    refused = hk("import", "x.pt", "--out", "run")
    assert "run: holds a run already; choose another --out, or use --overwrite" in refused.stderr
    assert hk("import", "x.pt", *SIZE, "--out", "run", "--overwrite").exit_code == 0
    state = weights(seed=2)
    assert all(torch.equal(v, state[author_name(k)]) for k, v in load_model("run").network.state_dict().items())
    assert {path.name for path in Path("run").iterdir()} == {"best.safetensors", "config.toml", "run.json"}


def test_the_classes_of_a_network_that_is_not_recognised_are_given(hk, here):
    torch.save({"a": torch.zeros(1)}, "x.pt")
    result = hk("import", "x.pt", "--arch", "resnet50", "--out", "run")
    assert "--arch resnet50 does not tell the number of classes; give --classes too" in result.stderr
    result = hk("import", "x.pt", "--arch", "resnet8", "--classes", 2, "--out", "run")
    assert "x.pt: has nothing for conv1.weight, expected shape (64, 3, 7, 7)" in result.stderr
    assert not Path("run").exists()


# shams stay with a network


@pytest.fixture
def sham(hk, make_shard, here) -> Path:
    """The shard of a run, "sham", that was fine-tuned on the maps of other images; sham.safetensors is its export."""
    shard = make_shard("x.h5", 8)
    small = ["--arch", "resnet18+abn", "--stem", "small", "--width", 4, *SIZE, "--batch-size", 8, "--epochs", 1]
    assert hk("train", shard, *small, "--out", "base").exit_code == 0
    tuning = ["--control", "shuffled", "--epochs", 1, "--batch-size", 8]
    assert hk("finetune", shard, "--from", "base", *tuning, "--out", "sham").exit_code == 0
    assert hk("export", "sham", "--to", "safetensors", "--out", "sham.safetensors").exit_code == 0
    return shard


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "state.pt"])
def test_a_file_of_a_run_is_not_imported(hk, sham, name):
    result = hk("import", Path("sham", name), "--out", "run")
    assert (result.exit_code, result.stderr) == (
        1, f"Error: sham/{name}: a run's own file; give it, or its run folder, to --from of the other commands\n"
    )
    assert not Path("run").exists()


def test_an_old_run_is_not_imported(hk, here):
    old = Path(__file__).parent / "golden/data/trained/tuned/best.pt"
    assert "a run's own file" in hk("import", old, "--out", "run").stderr


def test_an_imported_export_keeps_its_control(hk, sham):
    result = hk("import", "sham.safetensors", *SIZE, "--out", "run")
    assert result.records[0]["control"] == load_model("run").control == "shuffled"
    assert "sham control: this network was trained on the maps of other images" in result.stderr
    assert read_config(Path("run/config.toml"))["control"] == "shuffled"
    tuned = hk("finetune", sham, "--from", "run", "--config", "run/config.toml", "--epochs", 1, "--out", "tuned")
    assert tuned.records[0]["control"] == "shuffled", tuned.stderr
    assert read_config(Path("tuned/config.toml"))["control"] == "none"      # the option


@pytest.mark.parametrize("start", ["sham/best.safetensors", "sham/last.safetensors", "sham.safetensors"])
def test_a_training_that_starts_from_a_sham_says_so(hk, sham, start):
    small = ["--arch", "resnet18+abn", "--stem", "small", "--width", 4, *SIZE, "--batch-size", 8, "--epochs", 1]
    result = hk("train", sham, *small, "--weights", start, "--out", "run")
    assert result.records[0]["control"] == load_model("run").control == "shuffled", result.stderr
    assert "sham control: this network was trained on the maps of other images" in result.stderr
    assert read_config(Path("run/config.toml"))["control"] == "shuffled"
    assert hk("train", sham, *small, "--weights", start, "--out", "run", "--resume").exit_code == 0


@pytest.mark.parametrize(("metadata", "control"), [
    ({}, "none"), ({"control": "shuffled"}, "none"), ({"hkmap": '"0.1"', "control": '"center"'}, "center"),
    ({"hkmap": '"0.1"', "control": '"shuffled+center"'}, "shuffled+center"),
    ({"hkmap": '"0.1"', "control": '"most"'}, None),
])
def test_only_our_exports_state_a_control(here, metadata, control):
    safetensors.torch.save_file(weights(), "x.safetensors", metadata)
    if control is None:
        with pytest.raises(RunError, match=r"x\.safetensors: control is 'most'; expected one of none, shuffled"):
            control_of(Path("x.safetensors"))
    else:
        assert control_of(Path("x.safetensors")) == control


def test_the_state_of_a_run_is_no_start(hk, sham):
    result = hk("train", sham, "--arch", "resnet18+abn", "--stem", "small", "--width", 4, "--weights", "sham/state.pt",
                "--out", "run")
    assert result.exit_code == 1
    assert "sham/state.pt: not an hkmap checkpoint" in result.stderr

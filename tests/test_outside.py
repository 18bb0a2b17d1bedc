"""Other people's networks: a factory of a Python module, or an ONNX file, in the place of a run."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkmap.engine.data import normalise
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import load_model, onnx_model, other_model, within_memory
from hkmap.errors import RunError
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.networks.classifier import Output
from hkmap.networks.outside import load_factory, load_onnx
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.stream.references import load_map

NUMBERS = count()
SIZE = ["--image-size", 16]
TOP1 = ["--metric", "top1"]
ALL = ["--metric", "top1,top5,log_loss,mse,insertion,deletion,insertion_accuracy", "--step", 40]
NETWORK = """
import torch
from torch import nn
from hkmap import load_model
from hkmap.networks.classifier import Output


class Network(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.Conv2d(3, 4, 3, padding=1)      # a name that hkmap's own networks use
        self.fc = nn.Linear(4, classes)

    def forward(self, images):
        return self.fc(self.attention(images).relu().mean((2, 3)))


class Looking(Network):
    def forward(self, images):
        return {"logits": super().forward(images), "attention": images.mean(1, keepdim=True)[..., ::2, ::2].sigmoid()}

"""


@pytest.fixture
def module(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a module into the current folder; return its name, which is new."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(here)])
    names = []

    def write(code: str) -> str:
        names.append(f"module_{next(NUMBERS)}")
        (here / f"{names[-1]}.py").write_text(NETWORK + code)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def run(hk: Callable[..., Any], make_shard: Callable[..., Path], here: Path) -> Path:
    """A run of an attention branch network, beside its shard x.h5, some of whose records have maps."""
    options = ["--stem", "small", "--width", "4", *SIZE, "--batch-size", "4", "--epochs", "2", "--out", "run"]
    result = hk("train", make_shard("x.h5", 10, classes=3, maps=7), "--arch", "resnet8+abn", *options)
    assert result.exit_code == 0, result.stderr
    return here / "run"


def load_factory_of(name: str, *, seed: int) -> None:
    """Import a module, whose SEED draws its network's weights."""
    with pytest.raises(RunError, match="has no"):
        load_factory(f"{name}:nothing")
    sys.modules[name].SEED = seed


# a factory


def test_the_network_of_a_run_measures_as_the_run(hk, run, module):
    name = module("def make(): return load_model('run').network")
    for batch_size in (3, 32):
        wanted = hk("eval", "x.h5", "--from", "run", *ALL, "--batch-size", batch_size).records[0]
        result = hk("eval", "x.h5", "--model", f"{name}:make", *SIZE, *ALL, "--batch-size", batch_size)
        assert result.exit_code == 0, result.stderr
        assert result.records[0] == wanted | {"run": f"{name}:make"}
    used = hk("eval", "x.h5", "--model", f"{name}:make", *SIZE, *ALL, "--use-maps").records[0]
    assert used["metrics"] == hk("eval", "x.h5", "--from", "run", *ALL, "--use-maps").records[0]["metrics"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradcam_and_a_folded_copy_are_those_of_the_run(hk, run, module):
    name = module("def make(): return load_model('run').network")
    options = ["--maps", "gradcam", "--metric", "insertion,deletion", "--step", 16]
    for more in ([], ["--layer", "extractor.layer2"], ["--dtype", "bfloat16"]):
        found = hk("eval", "x.h5", "--model", f"{name}:make", *SIZE, *options, *more)
        assert found.exit_code == 0, found.stderr
        wanted = hk("eval", "x.h5", "--from", "run", *options, *more).records[0]
        assert found.records[0]["metrics"] == wanted["metrics"]


def test_layers_are_called_as_its_author_calls_them(hk, make_shard, module):
    shard, name = make_shard("x.h5", 6, classes=3), module("")
    options = ["--model", f"{name}:Network", *SIZE, "--maps", "gradcam", "--metric", "insertion", "--layer"]
    assert hk("eval", shard, *options, "attention").exit_code == 0
    assert "layer 'attentoin' is unknown; did you mean 'attention'?" in hk("eval", shard, *options, "attentoin").stderr


def test_a_function_has_no_layers(hk, make_shard, module):
    shard, name = make_shard("x.h5", 6, classes=3), module("def make(): return Network().forward")
    source, stream = ["--model", f"{name}:make", *SIZE], hk("unpack", shard).stdout
    for maps in ("cam", "gradcam"):
        sentence = "gives no gradients and shows no layers, which cam and gradcam need; give a torch.nn.Module by"
        for refused in (
            hk("eval", shard, *source, "--metric", "insertion", "--maps", maps),
            hk("predict", *source, "--maps", maps, "--out", "maps", stdin=stream),
        ):
            assert (refused.exit_code, sentence in refused.stderr) == (1, True)
    refused = hk("eval", shard, *source, "--metric", "insertion", "--maps", "random", "--dtype", "bfloat16")
    assert (refused.exit_code, "use --dtype float32" in refused.stderr) == (1, True)
    assert hk("eval", shard, *source, "--metric", "insertion", "--maps", "random").exit_code == 0


def test_results_tell_networks_apart_by_their_weights(hk, run, module, here):
    name = module("def make():\n    torch.manual_seed(SEED)\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, 3))")
    (here / "config.toml").write_text("seed = 7")      # of somebody else
    options = ["eval", "x.h5", "--model", f"{name}:make", *SIZE, *TOP1, "--out", "results"]
    load_factory_of(name, seed=0)
    assert hk(*options).exit_code == 0
    header = json.loads((here / "results/records.jsonl").read_text().splitlines()[0])["run"]
    assert (header["path"], header["seed"], header["maps_learnt"]) == (f"{name}:make", None, None)
    (here / "results/eval.json").unlink()
    assert hk(*options, "--resume").exit_code == 0
    (here / "results/eval.json").unlink()
    sys.modules[name].SEED = 1
    assert "weights" in hk(*options, "--resume").stderr


@pytest.mark.parametrize("code", [
    "make = Network", "make = Network()", "def make(): return Network().train()",
    "def make(): return Network().forward", "def make(): return lambda images: (Network()(images),)",
    "def make(): return torch.jit.trace(Network(), torch.rand(2, 3, 16, 16))",
    "def make(): return nn.Sequential(Network(), nn.Identity())",
])
def test_what_a_factory_may_be(hk, make_shard, module, code):
    shard, name = make_shard("x.h5", 9, classes=3), module(code)
    result = hk("eval", shard, "--model", f"{name}:make", *SIZE, "--metric", "top1,log_loss")
    assert result.exit_code == 0, result.stderr
    images = normalise(torch.from_numpy(np.stack([ShardReader(shard).image(i) for i in range(9)])), Preprocessing())
    with torch.no_grad():
        answers = sys.modules[name].Network()(images).softmax(1).numpy()
    labels = ShardReader(shard).labels
    figures = {"top1": np.mean(answers.argmax(1) == labels), "log_loss": -np.log(answers[np.arange(9), labels]).mean()}
    assert result.records[0]["metrics"] == pytest.approx(figures, rel=1e-5)


def test_the_options_say_what_images_it_takes(hk, make_shard, module):
    name = module("def make(): return lambda images: images.mean((2, 3)) + 0 * (images.shape[2:] == (16, 8))")
    shard = make_shard("x.h5", 9, classes=3)
    options = ["--image-size", "8x16", "--fit", "crop", "--mean", 0.5, "--std", "0.1,0.2,0.4", "--metric", "log_loss"]
    result = hk("eval", shard, "--model", f"{name}:make", *options)
    assert result.exit_code == 0, result.stderr
    images = np.stack([ShardReader(shard).image(i) for i in range(9)])[:, :, 4:12] / 255
    logits = (images.mean((1, 2)) - 0.5) / [0.1, 0.2, 0.4]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = -np.log(chances[np.arange(9), ShardReader(shard).labels]).mean()
    assert result.records[0]["metrics"]["log_loss"] == pytest.approx(wanted, rel=1e-5)
    assert result.records[0]["settings"]["image_size"] == [16, 8]


def test_its_attention_is_measured_and_saved_like_any(hk, make_shard, module, here):
    shard, name = make_shard("x.h5", 6, classes=3, maps=4), module("")
    source = ["--model", f"{name}:Looking", *SIZE]
    result = hk("eval", shard, *source, "--metric", "mse,insertion")
    assert result.exit_code == 0, result.stderr
    reader, inputs = ShardReader(shard), Preprocessing(16, 16)
    images = normalise(torch.from_numpy(np.stack([reader.image(i) for i in range(6)])), inputs)
    own = images.mean(1)[:, ::2, ::2].sigmoid().numpy()
    wanted = np.mean([np.mean((own[i] - reader.map(i)) ** 2) for i in range(4)])
    assert result.records[0]["metrics"]["mse"] == pytest.approx(wanted, rel=1e-5)
    assert (result.records[0]["counts"]["insertion"], result.records[0]["settings"]["map_size"]) == (6, [8, 8])
    assert result.records[0]["attention_mean"] == pytest.approx(own.mean(), rel=1e-5)
    saved = hk("predict", *source, "--out", "maps", stdin=hk("unpack", shard, "--out", "files").stdout).records
    assert np.allclose(load_map(saved[5]["attention"]), own[5], atol=1e-5)
    for options in (["eval", shard, *TOP1, "--use-maps"], ["eval", shard, *TOP1, "--hold-attention"]):
        refused = hk(*options, *source)
        assert (refused.exit_code, "no attention branch, so no map can replace" in refused.stderr) == (1, True)


def test_predict_names_the_classes_that_it_is_told(hk, make_shard, module, here):
    stream, source = hk("unpack", make_shard("x.h5", 4, classes=3)).stdout, ["--model", f"{module('')}:Network", *SIZE]
    bare = hk("predict", *source, stdin=stream).records
    assert [record.get("predicted_class") for record in bare] == [None] * 4
    Path("names.txt").write_text("wren\nrook\nkite\n")
    records = [{key: value for key, value in record.items() if key not in ("class", "label")} for record in bare]
    named = hk("predict", *source, "--classes", "names.txt", stdin=records).records
    birds = [("wren", "rook", "kite")[record["prediction"]] for record in bare]
    assert [record["predicted_class"] for record in named] == birds
    wrong = hk("predict", *source, "--classes", 4, stdin=stream)
    assert (wrong.exit_code, "gives logits of 3 classes, expected 4, as the data have" in wrong.stderr) == (1, True)
    saved = hk("predict", *source, "--out", "maps", stdin=stream)
    assert (saved.exit_code, "no maps to save" in saved.stderr) == (1, True)


def test_what_a_factory_prints_is_no_result(hk, make_shard, module):
    name = module("print('imported')\ndef make():\n    print('made')\n    return Network()")
    result = hk("eval", make_shard("x.h5", 3, classes=3), "--model", f"{name}:make", *SIZE, *TOP1)
    assert len(result.records) == 1
    assert result.stderr.startswith("imported\nmade\n")


BAD = [
    ("", "nowhere", '"nowhere": expected MODULE:FACTORY, such as my_package.networks:make'),
    ("", "{}:", '"{}:": expected MODULE:FACTORY'),
    ("", "nowhere.at_all:make", "nowhere.at_all cannot be imported (ModuleNotFoundError: No module named 'nowhere'); "
                                "expected a module that is installed or in the current folder"),
    ("", ".x:make", ".x cannot be imported (TypeError: "),
    ("import nowhere", "{}:make", "{} cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
    ("1 +", "{}:make", "{} cannot be imported (SyntaxError: invalid syntax ({}.py, line 23))"),
    ("import sys\nsys.exit()", "{}:make", "{} cannot be imported (SystemExit: )"),
    ("def make(): return 1", "{}:mkae", '{} has no "mkae"; did you mean "make"?'),
    ("", "{}:xyzzy", '{} has no "xyzzy"; expected a function that returns a network'),
    ("make = {}", "{}:make", "is a dict; expected a function that takes nothing and returns a network"),
    ("def make(): raise KeyError('depth')", "{}:make", "the factory failed (KeyError: 'depth'); mend it; it is called"),
    ("def make(): return load_model('none')", "{}:make", "no such checkpoint"),
    ("def make(depth): pass", "{}:make", "the factory failed (TypeError: make() missing 1 required positional"),
    ("def make(): raise SystemExit(0)", "{}:make", "the factory failed (SystemExit: 0)"),
    ("def make(): pass", "{}:make", "{}:make: returned None; expected a torch.nn.Module"),
    ("def make(): return 3", "{}:make", "{}:make: returned an int; expected a torch.nn.Module"),
    ("def make(): return Network", "{}:make", "{}:make: returned a class; expected a torch.nn.Module"),
    ("def make(): return nn.Conv2d(4, 2, 3)", "{}:make",
     "failed on images of float32 (2, 3, 16, 16) (RuntimeError: Given groups=1, weight of size [2, 4, 3, 3], expected "
     "input[2, 3, 16, 16] to have 4 channels"),
    ("def make(): return nn.Conv3d(1, 2, 3)", "{}:make", "failed on images of float32 (2, 3, 16, 16) (RuntimeError: "),
    ("make = nn.Identity", "{}:make", "gave float32 (2, 3, 16, 16) for 2 images; expected logits (B, K) of floats"),
    ("def make(): return lambda images: torch.zeros(1, 3)", "{}:make", "gave float32 (1, 3) for 2 images"),
    ("def make(): return lambda images: torch.zeros(2, 0)", "{}:make", "gave float32 (2, 0) for 2 images"),
    ("def make(): return lambda images: torch.zeros(2, 3).long()", "{}:make", "gave int64 (2, 3) for 2 images"),
    ("def make(): return lambda images: {{'logit': 1}}", "{}:make", "gave a dict of logit for 2 images; expected"),
    ("def make(): return lambda images: {{}}", "{}:make", "gave a dict for 2 images; expected logits"),
    ("def make(): return lambda images: images.mean((2, 3)).softmax(1)", "{}:make",
     "{}:make: gives probabilities, which add up to 1; expected logits: omit the softmax at the end, or give the "
     "logarithm of its result"),
    ("def make(): return lambda images: [[[0, 1]] * 2] * 3", "{}:make", "gave a list for 2 images; expected logits"),
    ("def make(): return lambda images: (images, images, images)", "{}:make", "gave a tuple for 2 images; expected"),
    ("def make(): return Network(5)", "{}:make",
     "gives logits of 5 classes, expected 3, as the data have; give a network of these classes, or pack"),
    ("def make(): return lambda images: (torch.zeros(2, 3), images)", "{}:make",
     "gave float32 (2, 3, 16, 16) as attention of 2 images; expected floats (B, 1, h, w)"),
    ("def make(): return lambda images: (torch.zeros(2, 3), images[:, :1] > 0)", "{}:make",
     "gave bool (2, 1, 16, 16) as attention"),
    ("def make(): return lambda images: {{'logits': torch.zeros(2, 3), 'attention': [1, 1]}}", "{}:make",
     "gave a list as attention of 2 images"),
    ("def make(): return lambda images: (torch.zeros(2, 3), images[:, :1])", "{}:make",
     "gave attention outside [0, 1]; scale it"),
    ("def make(): return lambda images: (torch.zeros(2, 3), images[:, :1] / 0 * 0)", "{}:make", "outside [0, 1]"),
]


@pytest.mark.parametrize(("code", "source", "sentence"), BAD)
def test_a_bad_factory_is_a_sentence(hk, make_shard, module, code, source, sentence):
    name = module(code.replace("{{", "{").replace("}}", "}"))
    result = hk("eval", make_shard("x.h5", 6, classes=3), "--model", source.format(name), *SIZE, *TOP1)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: ")
    assert sentence.replace("{}", name) in result.stderr


def test_each_answer_is_checked(hk, make_shard, module):
    name = module("def make(): return lambda images: (torch.zeros(len(images), 3), images[:, :1] / 8 + 0.5)")
    result = hk("eval", make_shard("x.h5", 6, classes=3), "--model", f"{name}:make", *SIZE, *TOP1, "--std", 0.001)
    sentence = f"{name}:make: gave attention outside [0, 1]; scale it, as by a sigmoid, or give logits alone"
    assert (result.exit_code, result.stderr) == (1, f"Error: {sentence}\n")


@pytest.mark.parametrize(("line", "sentence"), [
    ("", "No network is given; give one of --from RUN, --model MODULE:FACTORY or --onnx FILE."),
    ("--from run --model m:f", "--from and --model are given; give one of"),
    ("--model m:f --onnx x.h5", "--model and --onnx are given; give one of"),
    ("--from run --image-size 8", "--image-size is for --model and --onnx; omit it, as a run knows its own."),
    ("--from run --std 0.5", "--std is for --model and --onnx"), ("--model m:f --mean 2", "expected R,G,B from 0 to 1"),
    ("--onnx nowhere.onnx", "'nowhere.onnx' does not exist"), ("--model m:f --fit wide", "fit 'wide' is unknown"),
])
@pytest.mark.parametrize("command", ["eval x.h5 --metric top1", "predict"])
def test_one_network_and_what_it_needs(hk, make_shard, here, command, line, sentence):
    make_shard("x.h5", 3)
    Path("run").mkdir()
    result = hk(*command.split(), *line.split())
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_predict_refuses_classes_beside_a_run(hk, here):
    Path("run").mkdir()
    assert "--classes is for --model and --onnx" in hk("predict", "--from", "run", "--classes", 3).stderr


# from Python


@pytest.mark.parametrize("wrap", [
    lambda logits, maps: logits, lambda logits, maps: [logits], lambda logits, maps: (logits, maps),
    lambda logits, maps: {"logits": logits, "attention": maps, "features": 1}, lambda logits, maps: {"logits": logits},
    lambda logits, maps: Output(logits, None, maps), lambda logits, maps: (logits, None),
])
def test_the_kinds_of_answers(wrap):
    maps = torch.rand(2, 1, 4, 6)
    model = other_model(lambda images: wrap(images.mean((2, 3)), maps), "mine", Preprocessing(32, 48))
    output, looks = model.network(torch.ones(2, 3, 32, 48)), wrap(torch.zeros(2, 3), maps)
    assert torch.equal(output.logits, torch.ones(2, 3))
    if any(value is maps for value in (looks.values() if isinstance(looks, dict) else looks)):
        assert torch.equal(output.attention, maps)
        assert (model.map_size, model.architecture.has_attention) == ((4, 6), True)
    else:
        assert output.attention is None
        assert (model.map_size, model.architecture.has_attention) == ((2, 3), False)
    assert (model.architecture.name, model.class_names, model.control, model.fold) == ("mine", ("",) * 3, "none", None)


def test_a_module_stays_itself(module):
    network = load_factory(f"{module('make = Network().train()')}:make")
    model = other_model(network, "mine", Preprocessing(16, 16))
    assert model.network is network
    assert not network.training
    assert {name for name, _ in network.named_modules()} == {"", "attention", "fc"}
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    model.network(images).logits.sum().backward()
    assert images.grad.abs().sum() > 0
    other_model(network, "again", Preprocessing(16, 16))
    assert network(images).logits.shape == copy.deepcopy(network)(images).logits.shape == (2, 3)


def test_evaluate_takes_it(make_shard):
    shards = ShardSequence([make_shard("x.h5", 6, classes=3)])
    model = other_model(lambda images: images.mean((2, 3)), "mine", Preprocessing(16, 16), shards.classes)
    rows = list(evaluate(model, shards, EvaluationOptions(("top1",))))
    assert [row.values["top1"] for row in rows] == [float(row.prediction == row.label) for row in rows]


def test_the_end_of_the_memory_is_a_sentence():
    model = other_model(lambda images: images.mean((2, 3)), "mine", Preprocessing(16, 16))
    said = "ran out of memory with 8 images of 16x16 a batch; about 4 fit; give --batch-size 4 or"
    with pytest.raises(RunError, match=said), within_memory(model, 8, torch.device("cpu")):
        raise torch.OutOfMemoryError("CUDA out of memory")


# ONNX


def write_graph(
    path: Path, shape: list[Any], *, kind: str = "FLOAT", inputs: int = 1, output: str = "logits", **metadata: str
) -> Path:
    """Write a graph whose logits are the means of its images' channels."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    element = getattr(onnx.TensorProto, kind)
    given = [onnx.helper.make_tensor_value_info(f"x{i}", element, shape) for i in range(inputs)]
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x0"], ["means"]),
        onnx.helper.make_node("Flatten", ["means"], ["flat"]),
    ]
    if output == "logits":
        nodes.append(onnx.helper.make_node("Identity", ["flat"], ["logits"]))
        told = onnx.helper.make_tensor_value_info("logits", element, None)
    else:
        nodes.append(onnx.helper.make_node("ArgMax", ["flat"], ["label"], axis=1, keepdims=0))
        told = onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, None)
    graph = onnx.helper.make_graph(nodes, "means", given, [told])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(made, metadata)
    onnx.save(made, path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_run_measures_as_the_run(hk, run):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = Path("x.onnx")
    result = hk("export", run, "--to", "onnx", "--out", exported)
    assert result.exit_code == 0, result.stderr
    wanted = hk("eval", "x.h5", "--from", "run", *ALL).records[0]
    found = hk("eval", "x.h5", "--onnx", exported, *ALL).records[0]
    assert found["metrics"]["top1"] == wanted["metrics"]["top1"]
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=1e-4)
    assert [found[key] for key in ("settings", "control", "counts")] == [
        wanted[key] for key in ("settings", "control", "counts")
    ]
    stream = hk("unpack", "x.h5").stdout
    ours = hk("predict", "--from", "run", stdin=stream).records
    theirs = hk("predict", "--onnx", exported, "--out", "maps", stdin=stream).records
    assert [record["predicted_class"] for record in theirs] == [record["predicted_class"] for record in ours]
    assert load_map(theirs[0]["attention"]).shape == load_model("run").map_size
    refused = hk("eval", "x.h5", "--onnx", exported, *TOP1, "--mean", 0.5)
    assert (refused.exit_code, "an export of hkmap, which says itself what images" in refused.stderr) == (1, True)
    refused = hk("predict", "--onnx", exported, "--classes", 3, stdin=stream)
    assert (refused.exit_code, "omit --image-size, --fit, --mean, --std and --classes" in refused.stderr) == (1, True)


#: What `hkmap export` writes into a file.
OURS = {"hkmap": "1", "input": "[16, 16]", "fit": '"squash"', "mean": "[0, 0, 0]", "std": "[1, 1, 1]",
        "classes": '["class 0", "class 1", "class 2"]', "control": '"none"'}


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"control": '"center"'}, None),
    ({"control": '"centre"'}, "control is 'centre'; expected one of none,"),
    ({"input": "[16]"}, "its metadata are not those of `hkmap export` (ValueError); export it again"),
    ({"input": "7"}, "(TypeError)"), ({"std": None}, "(KeyError)"), ({"classes": '["a", 1, "b"]'}, "class_names is"),
    ({"mean": "[NaN, 0, 0]"}, "preprocessing.mean is a list; expected 3 numbers"),
    ({"fit": '"wide"'}, "'wide' is unknown"),
    ({"classes": '["a", "b"]'}, "gives logits of 3 classes, expected 2"),
])
def test_the_metadata_of_an_export_are_checked(hk, make_shard, here, changes, sentence):
    metadata = {key: value for key, value in (OURS | changes).items() if value is not None}
    graph = write_graph(here / "x.onnx", ["b", 3, 16, 16], **metadata)
    result = hk("eval", make_shard("x.h5", 6, classes=3), "--onnx", graph, *TOP1)
    if sentence is None:
        assert (result.exit_code, result.records[0]["control"]) == (0, "center")
        assert "sham control: this network was trained on blobs in the middle" in result.stderr
    else:
        assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr


@pytest.mark.parametrize("shape", [["b", 3, 16, 16], [None, "c", "h", "w"], [4, 3, 16, 16], [1, 3, "h", "w"]])
def test_a_graph_of_free_or_fixed_batches(hk, make_shard, here, shape):
    path, shard = write_graph(here / "x.onnx", shape), make_shard("x.h5", 10, classes=3)
    result = hk("eval", shard, "--onnx", path, *SIZE, "--metric", "top1,log_loss", "--batch-size", 7)
    assert result.exit_code == 0, result.stderr
    means = np.stack([ShardReader(shard).image(i) for i in range(10)]).mean((1, 2)) / 255
    logits = (means - Preprocessing.mean) / Preprocessing.std
    labels = ShardReader(shard).labels
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(10), labels]
    figures = {"top1": np.mean(logits.argmax(1) == labels), "log_loss": losses.mean()}
    assert result.records[0]["metrics"] == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize(("graph", "sentence"), [
    ({"shape": ["b", 3, 32, 24]}, "takes images of 24x32 pixels, got 16x16; give --image-size 24x32"),
    ({"shape": ["b", 3, 16, 24]}, "give --image-size 24x16"),
    ({"shape": ["b", 16, 16, 3]}, "takes x0: tensor(float) ['b', 16, 16, 3]; expected one input of float images"),
    ({"shape": ["b", 3, 16]}, "expected one input of float images (B, 3, H, W)"),
    ({"shape": ["b", 3, 16, 16], "kind": "FLOAT16"}, "takes x0: tensor(float16)"),
    ({"shape": ["b", 3, 16, 16], "inputs": 2}, "takes x0: tensor(float) ['b', 3, 16, 16], x1: tensor(float)"),
    ({"shape": ["b", 3, 16, 16], "output": "label"}, "gave int64 (2,) for 2 images; expected logits (B, K) of floats"),
])
def test_a_graph_of_another_kind_is_a_sentence(hk, make_shard, here, graph, sentence):
    result = hk("eval", make_shard("x.h5", 6, classes=3), "--onnx", write_graph(here / "x.onnx", **graph), *SIZE, *TOP1)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert sentence in result.stderr


def test_a_file_that_is_no_graph_is_a_sentence(hk, make_shard, here):
    pytest.importorskip("onnxruntime")
    shard = make_shard("x.h5", 3)
    result = hk("eval", shard, "--onnx", shard, *TOP1)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{shard}: onnxruntime cannot read it (" in result.stderr
    assert "; expected an ONNX file, copied whole" in result.stderr


def test_without_onnxruntime_there_is_a_sentence(hk, make_shard, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    shard = make_shard("x.h5", 3)
    result = hk("eval", shard, "--onnx", shard, *TOP1)
    assert (result.exit_code, result.stderr) == (1, "Error: --onnx needs onnxruntime; pip install 'hkmap[onnx]'\n")


def test_a_graph_takes_other_types_and_layouts(here):
    model = onnx_model(write_graph(here / "x.onnx", ["b", 3, "h", "w"]), Preprocessing(16, 24))
    images = torch.rand(5, 3, 16, 24).bfloat16().contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model.network(images).logits, images.float().mean((2, 3)), atol=1e-6)
    with pytest.raises(RunError, match=re.escape(f"{here / 'x.onnx'}: takes images of 24x16")):
        onnx_model(write_graph(here / "x.onnx", ["b", 3, "h", 24]), Preprocessing(16, 16))


def test_a_graph_that_cuda_cannot_compute_says_so(here, caplog):
    graph = load_onnx(write_graph(here / "x.onnx", ["b", 3, "h", "w"]))
    graph._session(torch.device("cuda", 1))      # for images that lie there
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    assert "x.onnx: is computed on the CPU, as this onnxruntime has no CUDA" in caplog.text

"""Networks for other programs: the files answer as the networks do, and say what they need."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import TrainedModel, new_model, save_model
from hkmap.errors import RunError
from hkmap.networks.architectures import ARCHITECTURES
from hkmap.networks.backbone import Architecture
from hkmap.networks.export import EXPORTS, Export, export

CLASSES = ("Große Rohrdommel", 'a "bird"', "")
PREPROCESSING = Preprocessing(64, 80, "letterbox", (0.5, 0.5, 0.25), (0.25, 0.5, 0.5))
METADATA = {
    "stem": "standard", "width": 4, "gate": "product", "input": [64, 80], "fit": "letterbox", "mean": [0.5, 0.5, 0.25],
    "std": [0.25, 0.5, 0.5], "channels": "RGB", "control": "none", "classes": list(CLASSES),
}


def a_run(folder: Path, name: str) -> tuple[TrainedModel, Path]:
    model = new_model(Architecture(name, 3, width=4, gate="product"), PREPROCESSING, CLASSES, 0)
    torch.manual_seed(1)
    for value in model.network.state_dict().values():
        if value.dim() == 1:
            value.uniform_(0.5, 1.5)        # norms whose statistics do something
    path = folder / "best.safetensors"
    save_model(path, model)
    model.network.eval()
    return model, path


def answer_of_onnx(path: Path) -> tuple[Callable[[Tensor], Sequence[Tensor]], dict[str, str]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "attention"][:len(names)]
    return (
        lambda images: [torch.from_numpy(value) for value in session.run(names, {"images": images.numpy()})],
        session.get_modelmeta().custom_metadata_map,
    )


def answer_of_torchscript(path: Path) -> tuple[Callable[[Tensor], Sequence[Tensor]], dict[str, str]]:
    texts = dict.fromkeys(("arch", "hkmap", *METADATA), "")
    loaded = torch.jit.load(path, _extra_files=texts)
    return loaded, {name: bytes(value).decode() for name, value in texts.items()}      # type: ignore[call-overload]


@pytest.mark.parametrize(("to", "read"), [("onnx", answer_of_onnx), ("torchscript", answer_of_torchscript)])
@pytest.mark.parametrize("name", ["resnet8+se+abn", "alexnet"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_graph_answers_as_the_network(name: str, to: str, read: Any, hk: Callable, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript")
    model, run = a_run(tmp_path, name)
    result = hk("export", run, "--to", to, "--out", tmp_path / "network")
    assert result.exit_code == 0, result.stderr
    answer, texts = read(tmp_path / "network")
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 64, 80)
        with torch.inference_mode():
            expected = [value for value in (model.network(images).logits, model.network(images).attention)
                        if value is not None]
            found = answer(images)
        assert [value.shape for value in found] == [value.shape for value in expected]
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(found, expected, strict=True))
    told = result.records[0]
    outputs = {"logits": ["batch", 3], **({} if name == "alexnet" else {"attention": ["batch", 1, 8, 10]})}
    assert (told["inputs"], told["outputs"]) == ({"images": ["batch", 3, 64, 80]}, outputs)
    assert told["checked_with"].startswith({"onnx": "onnxruntime ", "torchscript": "torch "}[to])
    assert told["largest_difference"] < 1e-4
    assert told["bytes"] == (tmp_path / "network").stat().st_size
    kept = {key: json.loads(value) for key, value in texts.items() if key in METADATA or key == "arch"}
    assert kept == {"arch": name, **METADATA}


@pytest.mark.parametrize(("name", "theirs"), [
    ("resnet18", {"conv1.weight", "layer1.0.bn1.bias", "layer4.1.conv2.weight", "fc.bias"}),
    ("resnet18+se+abn", {"layer4.1.se.fc1.weight", "att_layer4.0.se.fc2.bias", "att_conv3.weight", "fc.weight"}),
    ("alexnet", {"features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias"}),
])
def test_safetensors_has_the_weights_by_the_published_names(
    name: str, theirs: set[str], hk: Callable, tmp_path: Path
) -> None:
    model, run = a_run(tmp_path, name)
    out = tmp_path / "network.safetensors"
    assert hk("export", run, "--to", "safetensors", "--out", out).exit_code == 0
    with safe_open(out, "pt") as file:
        texts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}      # noqa: SIM118
    own = model.network.state_dict()
    assert theirs <= set(tensors)
    assert not any(key.startswith(("extractor.", "perception.", "attention.")) for key in tensors)
    assert len(tensors) == len(own)
    names = dict(ARCHITECTURES[name](model.architecture).names)
    names.pop("attention.stage.", None)      # of what it starts from
    for ours, prefix in names.items():
        for key in (key for key in own if key.startswith(ours)):
            assert torch.equal(tensors[prefix + key.removeprefix(ours)], own[key])
    assert {key: json.loads(texts[key]) for key in METADATA} == METADATA


def test_what_is_there_stays_unless_it_may_be_replaced(hk: Callable, tmp_path: Path) -> None:
    _, run = a_run(tmp_path, "resnet8")
    out = tmp_path / "network"
    out.write_text("mine")
    options = ("export", run, "--to", "torchscript", "--out", out)
    refused = hk(*options)
    assert (refused.exit_code, out.read_text()) == (1, "mine")
    assert "exists already; choose another name, or use --overwrite" in refused.stderr
    assert hk(*options, "--overwrite").exit_code == 0
    assert "'h5' is unknown" in hk("export", run, "--to", "h5", "--out", out).stderr


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_a_sentence(
    missing: str, hk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = a_run(tmp_path, "resnet8")
    for other in {"onnx", "onnxscript"} - {missing}:
        monkeypatch.setitem(sys.modules, other, sys)
    monkeypatch.setitem(sys.modules, missing, None)
    refused = hk("export", run, "--to", "onnx", "--out", tmp_path / "x.onnx")
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: --to onnx needs {missing}; pip install 'hkmap[onnx]'\n"
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_nothing_here_reads_is_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(what: Export, path: Path) -> Any:
        raise ImportError("no onnxruntime", name="onnxruntime")

    monkeypatch.setitem(EXPORTS._rows, "onnx", replace(EXPORTS["torchscript"], read=read))
    model, _ = a_run(tmp_path, "resnet8")
    told = export(model.network, model.architecture, (32, 32), to="onnx", path=tmp_path / "x", metadata={})
    assert (told["checked_with"], told["largest_difference"]) == (None, None)
    assert (tmp_path / "x").exists()
    assert "x: not checked, as that needs onnxruntime; pip install 'hkmap[onnx]'" in caplog.text


def test_a_network_that_torch_cannot_export_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(what: Export, path: Path) -> None:
        raise TypeError("type Tensor doesn't define __round__ method\nand more")

    monkeypatch.setitem(EXPORTS._rows, "torchscript", replace(EXPORTS["torchscript"], write=write))
    model, _ = a_run(tmp_path, "resnet8")
    sentence = "--to torchscript: torch cannot write resnet8 (TypeError: type Tensor doesn't define __round__ method); "
    with pytest.raises(RunError, match=re.escape(f"{sentence}use another --to")):
        export(model.network, model.architecture, (32, 32), to="torchscript", path=tmp_path / "x", metadata={})
    monkeypatch.setitem(EXPORTS._rows, "torchscript", replace(EXPORTS["safetensors"], reader="torch", read=write))
    with pytest.raises(RunError, match="torch cannot read what torch wrote of resnet8"):
        export(model.network, model.architecture, (32, 32), to="torchscript", path=tmp_path / "x", metadata={})


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_file_with_other_answers_is_not_written(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = a_run(tmp_path, "resnet8+abn")

    def read(what: Export, path: Path) -> Any:
        return lambda images: (model.network(images).logits, model.network(images).attention + wrong)

    monkeypatch.setitem(EXPORTS._rows, "safetensors", replace(EXPORTS["safetensors"], read=read))
    with pytest.raises(RunError, match=r"the exported network differs from the run's by (1|nan) on random images"):
        export(model.network, model.architecture, (32, 32), to="safetensors", path=tmp_path / "x", metadata={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors"]

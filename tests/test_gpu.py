"""CPU and CUDA agree. Skipped where there is no CUDA device; `make gpu-check` runs it where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hkmap.engine.losses import losses
from hkmap.engine.resize import resize_maps
from hkmap.evaluation.cam import cam, grad_cam
from hkmap.evaluation.curves import Frames, deletion, insertion
from hkmap.evaluation.fast import Numbers
from hkmap.evaluation.metrics import METRICS
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import place

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(params=["resnet18+abn", "resnet50+abn"])
def networks(request):
    """A network on the CPU and its twin on the device, in float64, where the order of a sum does not show."""
    torch.manual_seed(0)
    architecture = Architecture(request.param, 10, width=16)
    network = build(architecture).double()
    twin = build(architecture).double()
    twin.load_state_dict(network.state_dict())
    return place(network, torch.device("cpu")), place(twin, torch.device("cuda"))


def test_logits_and_attention_agree(networks):
    images = torch.randn(4, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        host, device = (network.eval()(images.to(next(network.parameters()).device)) for network in networks)
    for ours, theirs in zip(host, device, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), **TOLERANCE)


def test_losses_and_gradients_agree(networks):
    images, labels = torch.randn(4, 3, 96, 96, dtype=torch.float64), torch.tensor([0, 3, 3, 9])
    maps = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    certainty = torch.tensor([1.0, 1.0, 0.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 6, 6)
    found = []
    for network in networks:
        on = next(network.parameters()).device
        parts = losses(network.train()(images.to(on)), labels.to(on), maps.to(on), certainty.to(on))
        parts.total(1.0).backward()
        gradient = network.attention.map_conv.weight.grad
        found.append([*(part.detach().cpu() for part in parts), gradient.cpu()])
    torch.testing.assert_close(*found, **TOLERANCE)


@pytest.mark.parametrize("method", [cam, grad_cam])
def test_class_maps_agree_and_stay_on_the_device(networks, method):
    images, classes = torch.randn(4, 3, 96, 96, dtype=torch.float64), torch.tensor([0, 3, 3, 9])
    found = []
    for network in networks:
        on = next(network.parameters()).device
        found.append(method(network.eval(), images.to(on), classes.to(on)))
        assert found[-1].device.type == on.type
    torch.testing.assert_close(found[0], found[1].cpu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("measure", [insertion, deletion])
def test_curves_agree_and_stay_on_the_device(networks, measure):
    image, saliency = torch.randn(3, 64, 64, dtype=torch.float64), torch.randint(0, 9, (64, 64)) / 8
    curves = []
    for network in networks:
        on = next(network.parameters()).device
        with torch.no_grad():
            scores = measure(
                lambda frames, network=network: network.eval()(frames).logits.softmax(1)[:, 2],
                image.to(on), saliency.to(on), 200,
            )
        assert scores.device.type == on.type
        curves.append(scores.cpu())
    torch.testing.assert_close(*curves, **TOLERANCE)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["insertion", "deletion"])
def test_curves_of_several_images_agree(networks, kind, held):
    images, saliency = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.randint(0, 9, (3, 1, 64, 64)) / 8
    found = []
    for network in networks:
        on = next(network.eval().parameters()).device
        frames = Frames(network, 200, dtype=Numbers("Numbers of 64 bits.", torch.float64))
        maps = torch.linspace(0, 1, 48, dtype=torch.float64, device=on).view(3, 1, 4, 4) if held else None
        with torch.inference_mode():
            clean = network(images.to(on), *(() if maps is None else (maps,))).logits
            curves = frames.curves(
                kind, images.to(on), saliency.to(on), torch.tensor([2, 0, 9], device=on), clean=clean, held=maps
            )
        found.append([curve.cpu() for curve in curves])
    torch.testing.assert_close(*found, **TOLERANCE)


def test_the_host_does_not_wait_for_frames(networks):
    network = networks[1].float().eval()
    images, saliency = torch.randn(3, 3, 64, 64, device="cuda"), torch.rand(3, 1, 64, 64, device="cuda")
    classes, frames = torch.tensor([2, 0, 9], device="cuda"), Frames(network, 200, dtype="bfloat16")
    with torch.inference_mode():
        clean = network(images).logits
        first = frames.curves("deletion", images, saliency, classes, clean=clean, held=None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = frames.curves("deletion", images, saliency, classes, clean=clean, held=None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(again, first)
    assert 16 <= frames.ready.batch_size <= 1024
    left = [module for module in frames.ready.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) == 1       # the others are folded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gigabytes", [2, 4, 6])
def test_curves_are_drawn_in_the_memory_there_is(gigabytes, dtype):
    network = place(build(Architecture("resnet50+abn", 10)), torch.device("cuda")).eval()
    images, saliency = torch.randn(32, 3, 224, 224, device="cuda"), torch.rand(32, 1, 224, 224, device="cuda")
    classes, frames = torch.zeros(32, dtype=torch.int64, device="cuda"), Frames(network, 1792, dtype=dtype)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 2**30 / whole))
    try:
        with torch.inference_mode():
            clean = network(images).logits
            for kind in ("insertion", "deletion"):
                curves = frames.curves(kind, images, saliency, classes, clean=clean, held=None)
                assert curves.probability.isfinite().all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 16 <= frames.ready.batch_size < 1024


def test_resized_maps_agree():
    maps = torch.rand(3, 1, 56, 56)
    for size in ((14, 14), (23, 23), (224, 224)):
        torch.testing.assert_close(resize_maps(maps, size), resize_maps(maps.cuda(), size).cpu(), rtol=0, atol=1e-6)


def test_bfloat16_autocast_runs_on_the_device(networks):
    network = networks[1].float().eval()
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        output = network(torch.randn(2, 3, 64, 64, device="cuda"))
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("maps", ["attention", "gradcam"])
def test_train_finetune_and_eval_run_on_the_device(hk, make_shard, tmp_path, maps):
    shard = make_shard("t.h5", 16)
    small = ["--arch", "resnet8+abn", "--stem", "small", "--width", 8, "--image-size", 16, "--epochs", 2]
    assert hk("train", shard, *small, "--device", "cuda", "--out", tmp_path / "run").exit_code == 0
    tuned = ["--from", tmp_path / "run", "--epochs", 1, "--device", "cuda", "--out", tmp_path / "tuned"]
    assert hk("finetune", shard, *tuned).exit_code == 0
    metrics = ["--metric", ",".join(name for name in METRICS if name != "confusion"), "--maps", maps]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):     # which would move ranks of cells
        found = [
            hk("eval", shard, "--from", tmp_path / "tuned", *metrics, "--device", device).records[0]["metrics"]
            for device in ("cpu", "cuda")
        ]
    assert found[0] == pytest.approx(found[1], abs=1e-3)

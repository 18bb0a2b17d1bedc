"""What the editor answers while a person paints: what the network itself answers with that map, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hkmap.editor.live import LiveNetwork
from hkmap.editor.packed import Packed, packed
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import new_model, other_model
from hkmap.errors import RunError
from hkmap.maps.certainty import Weighted
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.networks.architectures import map_size
from hkmap.networks.backbone import Architecture

CPU = torch.device("cpu")
NAMES = ("owl", "wren", "crow", "gull", "tern")


def live(name="resnet18+abn", fit="squash", side=64, device=CPU, **more):
    """A network of random weights, whose logits are scaled so that no class has it all."""
    if name.startswith("resnet"):
        more = {"width": 8, **more}
    model = new_model(Architecture(name, 5, **more), Preprocessing(side, side, fit), NAMES, 0)
    last = [layer for layer in model.network.perception.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        spread = model.network.eval()(torch.rand(1, 3, side, side)).logits.std()
        last.weight /= spread
        last.bias /= spread
    return LiveNetwork(model, device)


def picture(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_map(size, seed=1):
    return np.random.default_rng(seed).random(size, np.float32)


def literal(network, image, values, certainty=None):
    """The probabilities by one whole forward pass of an image that is as large as the network's."""
    own = network.model.network
    channels = ((image / 255 - own_mean(network)) / own_std(network)).astype(np.float32)
    images = torch.from_numpy(channels).permute(2, 0, 1)[None]
    with torch.no_grad():
        if certainty is not None:
            predicted = own(images).attention[0, 0].numpy()
            values = np.where(certainty > 0, values, predicted)
        return own(images, attention=torch.from_numpy(values)[None, None]).logits.softmax(1)[0].numpy()


def own_mean(network):
    return np.array(network.model.preprocessing.mean)


def own_std(network):
    return np.array(network.model.preprocessing.std)


@pytest.mark.parametrize(("name", "more"), [
    ("resnet8+abn", {"stem": "small", "width": 4}), ("resnet18+abn", {}), ("resnet50+abn", {}), ("resnet18+se+abn", {}),
    ("resnet50+se+abn", {"gate": "product"}), ("resnet18+abn", {"gate": "product"}), ("alexnet+abn", {}),
])
def test_an_answer_is_that_of_the_network_with_the_map(name, more):
    network, image = live(name, **more), picture()
    assert_equal_answers(network, image)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("gate", ["residual", "product"])
def test_so_it_is_with_timms_networks(name, gate):
    assert_equal_answers(live(f"timm/{name}+abn", gate=gate), picture())


def assert_equal_answers(network, image):
    seen, size = network.see(image, "x"), network.model.map_size
    assert np.abs(seen.before - literal(network, image, seen.attention)).max() < 1e-5
    for values in (random_map(size), np.zeros(size, np.float32), np.ones(size, np.float32)):
        found = network.answer(seen, Weighted(values, None))
        assert np.abs(found - literal(network, image, values)).max() < 1e-5
        assert found.sum() == pytest.approx(1, abs=1e-5)
    maps = np.zeros(size, np.float32), random_map(size)
    erased, edited = (network.answer(seen, Weighted(values, None)) for values in maps)
    assert np.abs(erased - edited).max() > 1e-4


@pytest.mark.parametrize("more", [
    {}, {"stride": 2}, {"padding": 2}, {"dilation": 2, "padding": (2, 1)}, {"groups": 4}, {"groups": 8, "bias": False},
])
def test_a_packed_convolution_is_the_same(more):
    network, images = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, **more)), torch.rand(1, 8, 15, 14)
    found = packed(network, images)
    assert isinstance(found[0], Packed)
    assert isinstance(network[0], torch.nn.Conv2d)
    for size in ((1, 8, 15, 14), (3, 8, 9, 20)):        # any other shape too
        values = torch.rand(size) - 0.5
        with torch.inference_mode():
            for layout in (torch.contiguous_format, torch.channels_last):
                given = values.contiguous(memory_format=layout)
                torch.testing.assert_close(found(given), network(given), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("more", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_other_convolutions_stay_and_share_their_weights(more):
    class Own(torch.nn.Conv2d):
        pass

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, **more), Own(3, 3, 3), torch.nn.Conv2d(3, 3, 3))
    found = packed(network, torch.rand(1, 3, 9, 9))
    assert [type(one) for one in found] == [torch.nn.Conv2d, Own, Packed]
    assert found[0].weight is network[0].weight


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
    found = packed(network, torch.rand(1, 3, 9, 9))
    assert type(found[0]) is torch.nn.Conv2d
    assert found is not network


def test_where_nobody_knows_the_networks_own_map_stays():
    network, image = live(), picture()
    seen, values = network.see(image, "x"), random_map((4, 4))
    certainty = np.ones((4, 4), np.float32)
    certainty[:2] = 0
    certainty[3, 3] = 0.25
    found = network.answer(seen, Weighted(values * (certainty > 0), certainty))
    assert np.abs(found - literal(network, image, values, certainty)).max() < 1e-5
    nothing = network.answer(seen, Weighted(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)))
    assert np.abs(nothing - seen.before).max() < 1e-6


def test_a_network_that_crops_is_shown_the_middle_of_image_and_map():
    network, image, values = live(fit="crop"), picture(64, 96), random_map((4, 6))
    seen = network.see(image, "x")
    found = network.answer(seen, Weighted(values, None))
    assert np.abs(found - literal(network, image[:, 16:80], values[:, 1:5])).max() < 1e-5
    outside = values.copy()
    outside[:, [0, 5]] = 1 - outside[:, [0, 5]]
    assert np.array_equal(network.answer(seen, Weighted(outside, None)), found)


def test_a_network_that_pads_keeps_its_own_map_beyond_the_image():
    network, image, values = live(fit="letterbox"), picture(32, 64), random_map((2, 4))
    padded = np.full((64, 64, 3), (124, 116, 104), np.uint8)
    padded[16:48] = image
    shown, known = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    shown[1:3], known[1:3] = values, 1
    seen = network.see(image, "x")
    found = network.answer(seen, Weighted(values, None))
    assert np.abs(found - literal(network, padded, shown, known)).max() < 1e-5
    assert seen.attention.shape == (4, 4)


def test_a_map_of_another_size_is_averaged_to_the_networks():
    network, image, values = live(), picture(), random_map((8, 12))
    means = values.reshape(4, 2, 4, 3).mean((1, 3))
    found = network.answer(network.see(image, "x"), Weighted(values, None))
    assert np.abs(found - literal(network, image, means)).max() < 1e-5


def test_guesses_are_the_likeliest_and_the_true_class():
    network = live()
    seen = network.see(picture(), "x")
    now = np.array([0.1, 0.3, 0.25, 0.05, 0.3], np.float32)
    found = network.guesses(seen, now, label=3)
    assert [guess.label for guess in found] == [1, 4, 2, 3]      # those that tie in their order
    assert [guess.name for guess in found] == ["wren", "tern", "crow", "gull"]
    assert [guess.probability for guess in found] == [float(now[guess.label]) for guess in found]
    assert [guess.before for guess in found] == [float(seen.before[guess.label]) for guess in found]
    assert len(network.guesses(seen, now, label=4)) == 3
    assert len(network.guesses(seen, now, label=-1)) == 3
    assert len(network.guesses(seen, now, label=77)) == 3        # a class that the network does not have


def test_a_network_without_a_branch_is_refused():
    plain = new_model(Architecture("resnet8", 2, stem="small", width=4), Preprocessing(16, 16), ("a", "b"), 0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2))
    outside = other_model(linear, "mine", Preprocessing(16, 16))
    for model in (plain, outside):
        with pytest.raises(RunError, match="the network has no attention branch, so no edited map can replace its own"):
            LiveNetwork(model, CPU)


def test_an_answer_that_is_no_number_names_its_record():
    model = live().model
    with torch.no_grad():
        next(model.network.perception.parameters()).fill_(torch.nan)
    network = LiveNetwork(model, CPU)
    with pytest.raises(RunError, match=r'^record "7": the network.s answer is NaN or infinite'):
        network.see(picture(), 'record "7"')


def test_the_extractor_sees_an_image_once(monkeypatch):
    network = live()
    seen = network.see(picture(), "x")
    calls = []
    for step in ("features", "look"):
        monkeypatch.setattr(AttentionBranchNetwork, step, lambda *_: calls.append(1))
    first, second = (network.answer(seen, Weighted(random_map((4, 4), seed), None)) for seed in (1, 2))
    assert not calls
    assert (first != second).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["resnet18+abn", "resnet50+se+abn"])
def test_a_gpu_answers_like_the_cpu_and_copies_nothing_back_but_the_answer(name):
    image, values = picture(224, 224), random_map(map_size(Architecture(name, 5), (224, 224)))
    host, device = live(name, side=224), live(name, side=224, device=torch.device("cuda"))
    seen = device.see(image, "x")
    assert seen.features.is_cuda
    assert seen.own.is_cuda
    found = device.answer(seen, Weighted(values, None))
    assert np.abs(found - host.answer(host.see(image, "x"), Weighted(values, None))).max() < 1e-3
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        device.answer(seen, Weighted(values, None))
    copies = [event.name for event in profile.events() if event.name.startswith("Memcpy DtoH")]
    assert len(copies) == 1

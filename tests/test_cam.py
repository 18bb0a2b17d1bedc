"""CAM and Grad-CAM: equal to their equations, worked apart by autograd, on every kind of network that hkmap builds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hkmap.errors import ChoiceError, RunError
from hkmap.evaluation.cam import cam, grad_cam, picture_of
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output, place
from hkmap.networks.outside import Called

CPU = torch.device("cpu")


def network_of(name, *, seed=0, **options):
    """A network of three classes whose norms and biases are no longer those of a new one."""
    torch.manual_seed(seed)
    network = build(Architecture(name, 3, **options)).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.randn_like(value) * 0.1)
    return network


def images_of(count=3, side=16, width=None):
    return torch.randn(count, 3, side, width or side, generator=torch.Generator().manual_seed(1))


SMALL = {"stem": "small", "width": 4}
CLASSES = torch.tensor([2, 0, 1])


def by_hand(head, activations, classes):
    """Selvaraju et al., equations 1 and 2, one image and one channel at a time; ``head`` gives logits of one image."""
    maps = []
    for activation, chosen in zip(activations, classes.tolist(), strict=True):
        leaf = activation.detach().clone().requires_grad_()
        head(leaf.clone()[None])[0, chosen].backward()
        total = torch.zeros(leaf.shape[1:])
        for channel, slope in zip(leaf.detach(), leaf.grad, strict=True):
            total += slope.mean() * channel
        total = total.clamp(min=0)
        maps.append(total / total.max() if total.max() > 0 else total)
    found = torch.stack(maps)[:, None]
    assert found.max() == 1, "nothing speaks for any of the classes, so nothing is compared"
    return found


def class_map_by_hand(activations, weights, classes):
    """Zhou et al., a weighted sum, then stretched from 0 to 1."""
    maps = []
    for activation, chosen in zip(activations, classes.tolist(), strict=True):
        total = sum(weight * channel for weight, channel in zip(weights[chosen], activation, strict=True))
        maps.append((total - total.min()) / (total.max() - total.min()))
    return torch.stack(maps)[:, None].detach()


@pytest.mark.parametrize("name", ["resnet8", "resnet8+abn", "resnet18+se", "resnet50+abn"])
@pytest.mark.parametrize("sides", [(32, 32), (24, 40)])
def test_both_equal_their_equations_on_residual_networks(name, sides):
    network, images = network_of(name, **SMALL), images_of(3, *sides)
    with torch.no_grad():
        features = network.features(images)
        if network.attention is not None:
            features = network.gate(features, network.look(features).attention)
        activations = network.perception.stage(features)

    def head(activation):
        return network.perception.fc(activation.mean((2, 3)))

    expected = by_hand(head, activations, CLASSES)
    network.zero_grad()
    torch.testing.assert_close(grad_cam(network, images, CLASSES), expected, rtol=0, atol=1e-5)
    expected = class_map_by_hand(activations, network.perception.fc.weight, CLASSES)
    found = cam(network, images, CLASSES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found.amin((2, 3)) == 0).all()
    assert (found.amax((2, 3)) == 1).all()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "regnety_004", "resnet18"])
@pytest.mark.usefixtures("timm")
def test_both_equal_their_equations_on_networks_of_timm(name):
    import timm

    theirs = timm.create_model(name, num_classes=3).eval()
    network, images = network_of(f"timm/{name}"), images_of(3, 64)
    keys = {key.partition(".")[2]: value for key, value in network.state_dict().items()}      # without "extractor."
    theirs.load_state_dict(keys)
    with torch.no_grad():
        activations = theirs.forward_features(images)
    expected = by_hand(theirs.forward_head, activations, CLASSES)
    torch.testing.assert_close(grad_cam(network, images, CLASSES), expected, rtol=0, atol=1e-5)
    expected = class_map_by_hand(activations, theirs.get_classifier().weight, CLASSES)
    torch.testing.assert_close(cam(network, images, CLASSES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", ["", "+abn"])
@pytest.mark.usefixtures("timm")
def test_of_a_transformer_grad_cam_takes_the_norm_before_the_last_attention(suffix):
    network, images = network_of(f"timm/vit_tiny_patch16_224{suffix}"), images_of(2, 64)
    model, block = network.perception.model, network.perception.model.blocks[-1]
    with torch.no_grad():
        tokens = network.features(images)
        if network.attention is not None:
            tokens = network.gate(tokens, network.look(tokens).attention)
        before = model.blocks[:-1](tokens)

    maps = []
    for image, chosen in ((0, 2), (1, 0)):
        normed = block.norm1(before[image : image + 1]).detach().requires_grad_()
        after = before[image : image + 1] + block.ls1(block.attn(normed))
        after = after + block.ls2(block.mlp(block.norm2(after)))
        model.forward_head(model.norm(after))[0, chosen].backward()
        alpha = normed.grad[0, 1:].mean(0)
        total = (normed.detach()[0, 1:] @ alpha).clamp(min=0).view(4, 4)
        maps.append(total / total.max())
    found = grad_cam(network, images, torch.tensor([2, 0]))
    torch.testing.assert_close(found, torch.stack(maps)[:, None], rtol=0, atol=1e-5)
    with pytest.raises(RunError, match="is no network of average pooling and one linear layer, which cam needs"):
        cam(network, images, torch.tensor([2, 0]))


@pytest.mark.parametrize("layer", ["extractor.layer1", "extractor.layer1.0.bn1", "attention.class_conv"])
def test_another_layer_whose_gradient_flows_through_the_attention_too(layer):
    network, images = network_of("resnet8+abn", **SMALL), images_of()
    outputs = []
    network.get_submodule(layer).register_forward_hook(lambda _module, _given, output: outputs.append(output.clone()))
    with torch.no_grad():
        network(images)
    expected = []
    for row, chosen in enumerate(CLASSES.tolist()):
        leaf = outputs[0][row : row + 1].clone().requires_grad_()
        handle = network.get_submodule(layer).register_forward_hook(lambda *_, leaf=leaf: leaf.clone())
        network(images[row : row + 1]).logits[0, chosen].backward()
        handle.remove()
        total = (leaf.grad.mean((2, 3), keepdim=True) * leaf.detach()).sum(1, keepdim=True).relu()
        expected.append(total / total.max())
    found = grad_cam(network, images, CLASSES, layer)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_cam_of_a_named_layer_is_that_of_the_last():
    network, images = network_of("resnet8", **SMALL), images_of()
    assert torch.equal(cam(network, images, CLASSES, "perception.stage"), cam(network, images, CLASSES))


def test_the_class_decides():
    network, images = network_of("resnet8", **SMALL), images_of()
    for method in (cam, grad_cam):
        assert (method(network, images, CLASSES) - method(network, images, CLASSES.flip(0)))[0].abs().max() > 0.01
        alone = method(network, images[1:2], CLASSES[1:2])
        torch.testing.assert_close(method(network, images, CLASSES)[1:2], alone, rtol=0, atol=1e-5)


def state_of(network):
    gradients = [values.grad for values in network.parameters()]
    hooks = [module._forward_hooks for module in network.modules()]
    learning = [values.requires_grad for values in network.parameters()]
    return gradients, [len(found) for found in hooks], learning, network.training


@pytest.mark.parametrize("method", [cam, grad_cam])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_network_stays_as_it_is_and_the_caller_may_have_switched_gradients_off(method, around):
    network, images = network_of("resnet8+abn", **SMALL), images_of()
    expected = method(network, images, CLASSES)
    for values in network.extractor.parameters():
        values.requires_grad_(False)
    before, weights = state_of(network), {key: value.clone() for key, value in network.state_dict().items()}
    with around():
        assert torch.equal(method(network, images.clone(), CLASSES.clone()), expected)
    with pytest.raises(ChoiceError):
        method(network, images, CLASSES, "perception.stag")
    with pytest.raises(RuntimeError), around():
        method(network, images[:, :2], CLASSES)
    assert state_of(network) == before
    assert before[0] == [None] * len(before[0])
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert not expected.requires_grad


class Classifier(nn.Module):
    """Somebody's own network: its ``layers`` give the logits."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return Output(self.layers(images), None, None)


class Square(nn.Module):
    """A square of tokens, or pictures whose channels come last, as some transformers have them."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        patches = self.patches(images).permute(0, 2, 3, 1)      # (B, h, w, C)
        patches = self.norm(patches.flatten(1, 2) if self.form == "tokens" else patches)
        return Output(self.fc(patches.flatten(1, -2).mean(1)), None, None)


@pytest.mark.parametrize("form", ["tokens", "channels last"])
def test_tokens_and_channels_that_come_last(form):
    torch.manual_seed(0)
    network, images = Square(form).eval(), images_of()
    activations = network.norm(network.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = by_hand(lambda found: network.fc(found.mean((2, 3))), activations, CLASSES)
    torch.testing.assert_close(grad_cam(network, images, CLASSES), expected, rtol=0, atol=1e-5)
    expected = class_map_by_hand(activations, network.fc.weight, CLASSES)
    torch.testing.assert_close(cam(network, images, CLASSES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["zero", "negative", "alike"])
def test_flat_maps_are_zeros(weights):
    network = Classifier(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    images = torch.ones(3, 3, 8, 8) if weights == "alike" else images_of(3, 8)
    with torch.no_grad():
        network.layers[4].weight.copy_({"zero": 0 * network.layers[4].weight, "negative": -torch.rand(3, 4),
                                        "alike": -torch.rand(3, 4)}[weights])
    expected = torch.zeros(3, 1, 8, 8)
    assert torch.equal(grad_cam(network, images, CLASSES), expected)
    if weights != "negative":
        assert torch.equal(cam(network, images, CLASSES), expected)


def test_a_network_that_sums_one_channel():
    """The logit of class k is the mean of channel k: the map is that channel, by both methods."""
    network = Classifier(nn.Identity(), nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        network.layers[1].weight.copy_(torch.eye(3)[:, :, None, None])
        network.layers[4].weight.copy_(torch.eye(3))
    images = images_of(3, 8).abs()
    images[:, :, 0, 0] = 0
    expected = torch.stack([image[k] for image, k in zip(images, CLASSES, strict=True)])[:, None]
    expected /= expected.amax((2, 3), keepdim=True)
    torch.testing.assert_close(cam(network, images, CLASSES), expected)
    torch.testing.assert_close(grad_cam(network, images, CLASSES), expected)


def test_in_bfloat16_the_map_is_float32():
    network, images = network_of("resnet8+abn", **SMALL), images_of()
    for method in (cam, grad_cam):
        expected = method(network.float(), images, CLASSES)
        found = method(network.bfloat16(), images.bfloat16(), CLASSES)
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.05


def test_channels_last_changes_nothing():
    network, images = network_of("resnet8+abn", **SMALL), images_of()
    expected = grad_cam(network, images, CLASSES)
    torch.testing.assert_close(grad_cam(place(network, CPU), images, CLASSES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "layer", "error", "sentence"), [
    (grad_cam, "perception.stag", ChoiceError, "layer 'perception.stag' is unknown; did you mean 'perception.stage'?"),
    (cam, "nothing", ChoiceError, "expected extractor.conv1, extractor.bn1, extractor.relu"),
    (grad_cam, "", ChoiceError, "layer '' is unknown"),
    (cam, "", ChoiceError, "layer '' is unknown"),
    (grad_cam, "perception.fc", RunError, r"layer 'perception.fc' gives \(3, 3\); expected \(B, C, h, w\)"),
    (grad_cam, "attention", RunError, "layer 'attention' gives a Look; expected"),
    (grad_cam, "attention.logit_conv", RunError, "the answer does not depend on layer 'attention.logit_conv'"),
    (cam, "extractor.layer1", RunError, "the network after layer 'extractor.layer1' is no network of average pooling"),
    (cam, "attention.stage", RunError, "the network after layer 'attention.stage' is no network of average pooling"),
])
def test_a_layer_that_cannot_be_used_is_refused(method, layer, error, sentence):
    network = network_of("resnet8+abn", **SMALL)
    with pytest.raises(error, match=sentence):
        method(network, images_of(), CLASSES, layer)


def test_a_network_without_places_is_refused():
    network = Classifier(nn.Flatten(), nn.Linear(3 * 64, 3))
    with pytest.raises(RunError, match="no layer of torch whose output has places"):
        grad_cam(network, images_of(3, 8), CLASSES)
    with pytest.raises(RunError, match="is no network of average pooling and one linear layer, which cam needs"):
        cam(network, images_of(3, 8), CLASSES)


def test_an_onnx_file_is_refused():
    network = Called(lambda images: Output(images.detach().mean((2, 3)), None, None))      # as it is read
    with pytest.raises(RunError, match="no layer of torch whose output has places"):
        grad_cam(network, images_of(3, 8), CLASSES)


def test_alexnet_has_three_linear_layers_and_so_no_cam():
    network, images = network_of("alexnet", width=4), images_of(3, 96)
    with pytest.raises(RunError, match="use gradcam"):
        cam(network, images, CLASSES)
    assert grad_cam(network, images, CLASSES).shape == (3, 1, 6, 6)


@pytest.mark.parametrize(("shape", "size", "expected"), [
    ((2, 5, 4, 4), (16, 16), (2, 5, 4, 4)), ((2, 4, 4, 5), (16, 16), (2, 5, 4, 4)),
    ((2, 17, 5), (16, 16), (2, 5, 4, 4)), ((2, 16, 5), (16, 16), (2, 5, 4, 4)), ((2, 24, 5), (16, 16), None),
    ((2, 5, 1, 1), (16, 16), None), ((2, 5), (16, 16), None), ((2, 5, 3, 5), (24, 40), (2, 5, 3, 5)),
    ((2, 3, 5, 64), (24, 40), (2, 64, 3, 5)), ((2, 17, 5), (16, 64), None), ((4, 5, 4, 4), (16, 16), None),
    ((2, 3, 65, 64), (128, 128), None),
])
def test_what_has_the_places_of_an_image(shape, size, expected):
    found = picture_of(torch.zeros(shape), torch.zeros(2, 3, *size))
    assert (None if found is None else tuple(found.shape)) == expected
    assert picture_of(torch.zeros(shape, dtype=torch.int64), torch.zeros(2, 3, *size)) is None

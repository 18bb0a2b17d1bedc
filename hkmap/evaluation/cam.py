"""CAM and Grad-CAM: which places of an image speak for a class, for networks with or without a map of their own.

A map is of a layer, a module whose output has places: (B, C, h, w), or (B, h, w, C), or tokens (B, N, D) of which the
last are a square of patches. The network is not changed, and nothing of a pass is left in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from math import isqrt

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hkmap.errors import ChoiceError, RunError
from hkmap.networks.abn import AttentionBranchNetwork
from hkmap.sources.images import few

_NOISE = 2**-20     # of a map's magnitude: a range below it is rounding, and the map is flat
_TINY = torch.finfo(torch.float32).tiny
# what they give is no picture, or another module has given it: attention's weights are as square as an image
_PASSING = (nn.Dropout, nn.Identity, nn.Softmax)


def cam(network: nn.Module, images: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Return class activation maps (B, 1, h, w) of images (B, 3, H, W) for classes (B,), in [0, 1], as float32.

    Zhou et al., CVPR 2016: sum_k w_k A_k, of the channels A of the layer whose mean over the places goes through the
    last linear layer, w; then minus its minimum and divided by its maximum, and zeros where it is flat. ``layer`` None
    is the last such layer. Raises RunError where there is none, which the answer to the first image tells.
    """
    with torch.no_grad():
        name, linear = _averaged(network, images[:1], layer)
        seen, _ = _outputs(network, images, {name: _module(network, name)})
        picture = picture_of(seen[name], images)
        assert picture is not None
        maps = torch.einsum("bc,bchw->bhw", linear.weight[classes].float(), picture.float())[:, None]
        above = maps - maps.amin((2, 3), keepdim=True)
        flat = above.amax((2, 3), keepdim=True) <= _NOISE * maps.abs().amax((2, 3), keepdim=True)
        return _scaled(above.masked_fill(flat, 0))


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Return Grad-CAM's maps (B, 1, h, w) of images (B, 3, H, W) for classes (B,), in [0, 1], as float32.

    Selvaraju et al., ICCV 2017, equations 1 and 2: relu(sum_k alpha_k A_k), of the channels A of the layer, where
    alpha_k is the mean over the places of the gradient of the class's logit; then divided by its maximum, and zeros
    where nothing speaks for the class. ``layer`` None is the last one with places that the answer depends on; of tokens
    a norm, the last that is followed by attention between them. The attention branch's own layers do not count, but a
    gradient of the extractor flows through its map too. Raises RunError where a layer has no places.
    """
    kept: list[Tensor] = []

    def cut(name: str, output: object) -> Tensor:
        if picture_of(output, images) is None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise RunError(
                f"layer {name!r} gives {shape}; expected (B, C, h, w) of several places, or tokens that are a square "
                "of patches; name another --layer"
            )
        assert isinstance(output, Tensor)
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()      # what follows may overwrite it

    with torch.inference_mode(False), torch.enable_grad():
        name = _last_layer(network, images[:1], classes[:1]) if layer is None else layer
        with _hooked({name: _module(network, name)}, cut):
            logits = _logits(network, images)
        if not kept or not logits.requires_grad:
            raise RunError(f"the answer does not depend on layer {name!r}; name another --layer")
        chosen = functional.one_hot(classes, logits.shape[1]).to(logits.dtype)
        (gradient,) = torch.autograd.grad(logits, kept, chosen)
    picture, slope = picture_of(kept[0].detach(), images), picture_of(gradient, images)
    assert picture is not None
    assert slope is not None
    alpha = slope.float().mean((2, 3), keepdim=True)        # (B, C, 1, 1)
    return _scaled((alpha * picture.float()).sum(1, keepdim=True).relu())


def picture_of(output: object, images: Tensor) -> Tensor | None:
    """Return a module's output as (B, C, h, w) where it shows several places of images (B, 3, H, W), else None."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != images.shape[:1]:
        return None
    forms = []
    if output.ndim == 4:
        forms = [output, output.permute(0, 3, 1, 2)]
    if output.ndim == 3:
        side = isqrt(output.shape[1])
        if output.shape[1] - side**2 < side:      # a few tokens stand before the patches
            forms = [output[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))]
    height, width = images.shape[2:]
    spare = 0 if height == width else 2 * max(height, width)      # two cells of a side, which poolings round away
    for form in forms:
        rows, columns = form.shape[2:]
        if rows * columns > 1 and abs(rows * width - columns * height) <= spare:
            return form
    return None


def _scaled(maps: Tensor) -> Tensor:
    """Divide maps (B, 1, h, w), of no value below 0, by their maxima."""
    return maps / maps.amax((2, 3), keepdim=True).clamp(min=_TINY)


# which layer


def _last_layer(network: nn.Module, image: Tensor, chosen: Tensor) -> str:
    """Return the name of the last layer with places that the logit (1,) of an image (1, 3, H, W) depends on."""
    modules = _modules(network)
    seen, logits = _outputs(network, image.clone().requires_grad_().clone(), modules)
    found = {name: output for name, output in seen.items() if _counts(modules[name], output, image)}
    gradients: tuple[Tensor | None, ...] = ()
    if logits.requires_grad and found:
        gradients = torch.autograd.grad(logits[0, chosen[0]], list(found.values()), allow_unused=True)
    for name, gradient in reversed(list(zip(found, gradients, strict=False))):
        slope = picture_of(gradient, image)
        # where only the first token answers, the patches of the last block are no part of it
        if slope is not None and (found[name].ndim == 4 or slope.any()):
            return name
    raise RunError(
        "the network has no layer of torch whose output has places, (B, C, h, w), and on which the answer depends; "
        "name one by --layer, or choose other --maps"
    )


def _counts(module: nn.Module, output: Tensor, image: Tensor) -> bool:
    """Say whether a module that gives ``output`` may be the layer: of tokens a norm, as residual sums have no mean."""
    if picture_of(output, image) is None or not output.requires_grad:
        return False
    return isinstance(module, nn.LayerNorm) if output.ndim == 3 else not isinstance(module, _PASSING)


def _averaged(network: nn.Module, image: Tensor, layer: str | None) -> tuple[str, nn.Linear]:
    """Return the last layer whose mean over the places goes through the last linear layer, and that one.

    Raises RunError where the answer to an image (1, 3, H, W) is not what the two give.
    """
    modules = _modules(network)
    seen, logits = _outputs(network, image, modules)
    linear = next((modules[name] for name in reversed(seen) if isinstance(modules[name], nn.Linear)), None)
    if layer is not None:
        _module(network, layer)      # refuses an unknown name
        seen = {layer: seen[layer]} if layer in seen else {}
    for name in reversed(seen):
        picture = picture_of(seen[name], image)
        if picture is not None and isinstance(linear, nn.Linear) and _gives(picture, linear, logits):
            return name, linear
    which = "the network" if layer is None else f"the network after layer {layer!r}"
    raise RunError(f"{which} is no network of average pooling and one linear layer, which cam needs; use gradcam")


def _gives(picture: Tensor, linear: nn.Linear, logits: Tensor) -> bool:
    """Say whether the mean of a picture (1, C, h, w) over its places, through a linear layer, gives logits (1, K)."""
    if (picture.shape[1], logits.shape[1]) != (linear.in_features, linear.out_features):
        return False
    off = (functional.linear(picture.mean((2, 3)), linear.weight, linear.bias) - logits).abs().max()
    return not off > torch.finfo(logits.dtype).eps ** 0.5 * logits.abs().max()      # NaN is told of as a map's


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules inside a network by their dotted names, without those of the attention branch."""
    branch = "attention." if isinstance(network, AttentionBranchNetwork) else "."
    return {name: module for name, module in network.named_modules() if name and not f"{name}.".startswith(branch)}


def _module(network: nn.Module, name: str) -> nn.Module:
    """Return the module of a dotted name; raise ChoiceError where there is none."""
    modules = dict(network.named_modules(remove_duplicate=False))
    if name and name in modules:
        return modules[name]
    near = get_close_matches(name, modules, 1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    some = few([known for known in modules if known.count(".") == 1], 8)
    raise ChoiceError(f"layer {name!r} is unknown;{hint} expected {some}, or a module inside")


# passes


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (B, K); what learns is taken for fixed, so that only the images' part is remembered."""
    fixed = {name: values.detach() for name, values in network.named_parameters()}
    logits: Tensor = functional_call(network, fixed, (images,)).logits
    return logits


def _outputs(
    network: nn.Module, images: Tensor, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what modules give, in the order in which they are last done, and the logits (B, K)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        seen.pop(name, None)
        seen[name] = output

    with _hooked(modules, keep):
        return seen, _logits(network, images)


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``hook`` with the name and the output of each module that is done; what it returns takes its place."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(
                module.register_forward_hook(lambda _module, _given, output, name=name: hook(name, output))
            )
        yield

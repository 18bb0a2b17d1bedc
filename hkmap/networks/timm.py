"""Backbones of timm (Wightman, PyTorch Image Models), cut before their last stage as the paper cuts a ResNet.

A network of stages is cut where its features have a sixteenth of the image's side: up to there it is the extractor, all
that follows is the perception branch, and a copy of the stages that follow, with stride 1, starts the attention branch.
Where that begins with a norm over the channels of each place, as in ConvNeXt, the norm is the extractor's last layer:
after the gate it would divide by the very factor that the map gives a place. A VisionTransformer has no stages: the
last quarter of its blocks is the perception branch, and the map is one value per patch. Names inside are timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from functools import cache
from importlib.util import find_spec
from math import isqrt
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hkmap.errors import ChoiceError, RunError
from hkmap.networks.abn import Gate, residual
from hkmap.networks.backbone import Architecture, Backbone

PREFIX = "timm/"
_STRIDE = 16        # of the features that a map weights, in pixels
_PLAIN = Architecture("", 1)
_IGNORED = 1e-4     # of what other features move: what a map moves by a norm's epsilon alone is less

Colour = tuple[float, float, float]


def is_timm(name: str) -> bool:
    """Say whether an architecture's name is of timm: "timm/convnext_tiny"."""
    return name.startswith(PREFIX)


def check_name(name: str) -> None:
    """Raise ChoiceError where timm is missing, or has no network of the name "timm/NAME"."""
    bare = name.removeprefix(PREFIX)
    timm = _timm(name)
    if not timm.is_model(bare):
        from difflib import get_close_matches

        near = get_close_matches(bare.partition(".")[0], timm.list_models(), 1)
        hint = f" did you mean '{PREFIX}{near[0]}'?" if near else ""
        raise ChoiceError(f"architecture {name!r} is unknown;{hint} expected a name of timm.list_models()")
    try:
        timm.get_pretrained_cfg(bare)
    except RuntimeError as error:      # it has no weights of that tag
        known = ", ".join(PREFIX + row for row in timm.list_pretrained(f"{bare.partition('.')[0]}.*"))
        raise ChoiceError(f"architecture {name!r} is unknown; expected one of {known}") from error


def described() -> str:
    """Return what timm's networks are, or why timm cannot be imported where it is installed."""
    if find_spec("timm") is not None:
        try:
            _timm(f"{PREFIX}NAME")
        except ChoiceError as error:
            return str(error)
    return str(backbone.__doc__)


def preprocessing_of(name: str) -> tuple[Colour, Colour] | None:
    """Return the mean and the standard deviation (R, G, B) of the images that "timm/NAME" was trained on.

    They are what timm states; nothing is downloaded. None where it states nothing.
    """
    check_name(name)
    stated = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    return (tuple(stated.mean), tuple(stated.std)) if stated else None


def hub_of(name: str) -> str | None:
    """Return the page where the weights of "timm/NAME" are published."""
    stated = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    return f"https://huggingface.co/{stated.hf_hub_id}" if stated and stated.hf_hub_id else None


def create(name: str, **options: Any) -> nn.Module:
    """Build timm's own network "timm/NAME"; a VisionTransformer of any image size."""
    check_name(name)
    dynamic = {"dynamic_img_size": True} if _is_transformer(name) else {}
    made: nn.Module = _timm(name).create_model(name.removeprefix(PREFIX), **options, **dynamic)
    return made


def backbone(architecture: Architecture) -> Backbone:
    """Any network of timm with stages, and any VisionTransformer; pip install 'hkmap[timm]'."""
    name = architecture.backbone
    if (architecture.stem, architecture.width) != (_PLAIN.stem, _PLAIN.width):
        raise RunError(f"{name}: its first layers and widths are timm's; omit --stem and --width")
    model = create(name, num_classes=architecture.classes)
    try:
        parts = _of_transformer(model) if _is_transformer(name) else _of_stages(model)
        _check(model, parts, architecture.classes)
    except Exception as error:      # any of a thousand networks, each of which may be no chain of stages in its own way
        raise RunError(
            f"{name}: cannot be cut before its last stage ({error or type(error).__name__}); expected a network of "
            "timm whose stages follow one another, or a VisionTransformer, such as timm/convnext_tiny"
        ) from error
    return parts


# networks of stages


def _of_stages(model: nn.Module) -> Backbone:
    stages = list(getattr(model, "feature_info", ()))
    inside = [stage for stage in stages if stage["reduction"] <= _STRIDE]
    if not inside or inside[-1]["reduction"] != _STRIDE or inside[-1] is stages[-1]:
        raise ValueError(f"its stages have strides {[stage['reduction'] for stage in stages]}")
    extractor, tail = _norm_first(*_cut(model, inside[-1]["module"].split(".")), inside[-1]["num_chs"])
    stage, _ = _cut(tail, stages[-1]["module"].split("."))
    return Backbone(
        extractor, lambda stride: _dense(deepcopy(stage)) if stride == 1 else deepcopy(stage), stages[-1]["num_chs"],
        perception=lambda classes: tail, initialised=True,
        names={"extractor.": "", "perception.": "", "attention.stage.": ""},
    )


def _cut(chain: nn.Module, path: list[str]) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a chain of modules after the one at ``path``; both parts keep the names."""
    before, after = nn.Sequential(), nn.Sequential()
    children = dict(chain.named_children())
    names = list(children)
    place = names.index(path[0])
    for name in names[:place]:
        before.add_module(name, children[name])
    if len(path) == 1:
        before.add_module(path[0], children[path[0]])
    else:
        first, second = _cut(children[path[0]], path[1:])
        before.add_module(path[0], first)
        after.add_module(path[0], second)
    for name in names[place + 1 :]:
        after.add_module(name, children[name])
    return before, after


def _norm_first(extractor: nn.Module, tail: nn.Module, channels: int) -> tuple[nn.Module, nn.Module]:
    """Move a norm over the channels of each place from the tail's beginning to the extractor's end; its name stays."""
    name, first = next((name, part) for name, part in tail.named_modules() if not list(part.children()))
    if getattr(first, "normalized_shape", None) != (channels,):
        return extractor, tail
    *parents, last = path = name.split(".")
    end = extractor
    for parent in parents:
        if parent not in dict(end.named_children()):
            end.add_module(parent, nn.Sequential())
        end = end.get_submodule(parent)
    end.add_module(last, first)
    return extractor, _without(tail, path)


def _without(chain: nn.Module, path: list[str]) -> Any:
    """Return a copy of a chain that does nothing at ``path``; it shares all other modules."""
    inner = _without(chain.get_submodule(path[0]), path[1:]) if len(path) > 1 else nn.Identity()
    part = copy(chain)
    part._modules = {**chain._modules, path[0]: inner}
    return part


def _dense(stage: nn.Module) -> nn.Module:
    """Set every stride of a stage to 1, and keep the size: its map is then as fine as the features."""
    for name, module in list(stage.named_modules()):
        stride = getattr(module, "stride", 1)
        if stride in (1, (1,), (1, 1)):
            continue
        if isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)) and module.kernel_size == module.stride:
            parent, _, child = name.rpartition(".")
            setattr(stage.get_submodule(parent), child, nn.Identity())      # each pixel is its own mean
            continue
        if type(module) is nn.Conv2d and module.kernel_size[0] % 2 == 0:
            module.register_forward_pre_hook(_pad)
        module.stride = (1, 1) if isinstance(stride, tuple) else 1
    return stage


def _pad(convolution: Any, given: tuple[Tensor]) -> Tensor:
    """Add zeros below and on the right, so that a kernel of even sides keeps the size."""
    rows, columns = (
        side - 1 - 2 * edge for side, edge in zip(convolution.kernel_size, convolution.padding, strict=True)
    )
    return functional.pad(given[0], (0, columns, 0, rows))


# transformers


class _First(nn.Module):
    """The first blocks of a VisionTransformer: images → tokens (B, N, D), those that are no patch first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        side = self.model.patch_embed.patch_size[0]
        if height != width or height % side:
            raise RunError(
                f"images of {width}x{height}; this transformer takes squares whose side is a multiple of {side} "
                f"pixels, so use --image-size {max(1, round(height / side)) * side}"
            )
        tokens: Tensor = self.model.forward_features(images)
        return tokens


class _Last(nn.Module):
    """The last blocks of a VisionTransformer, its norm, pooling and classifier: tokens (B, N, D) → logits (B, K)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(self.model.norm(self.model.blocks(tokens)))
        return logits


class _Picture(nn.Module):
    """Blocks of a VisionTransformer, then its patches as a picture: tokens (B, N, D) → (B, D, h, w)."""

    def __init__(self, blocks: nn.Module, prefix: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        patches = self.blocks(tokens)[:, self.prefix :]
        side = isqrt(patches.shape[1])
        picture: Tensor = patches.transpose(1, 2).unflatten(2, (side, side))
        return picture


def _of_transformer(model: Any) -> Backbone:
    blocks = dict(model.blocks.named_children())
    cut = len(blocks) - max(2, len(blocks) // 4)        # a block's first norm takes the map from what it mixes
    first, last = ({name: blocks[name] for name in names} for names in (list(blocks)[:cut], list(blocks)[cut:]))
    nothing = dict.fromkeys(("norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist"), nn.Identity())
    extractor = _part(model, first, {name: part for name, part in nothing.items() if hasattr(model, name)})
    tail = _part(model, last, dict.fromkeys(("patch_embed", "pos_drop", "patch_drop", "norm_pre"), nn.Identity()))
    tail._parameters = {}       # the positions and prefix tokens are the extractor's
    prefix = model.num_prefix_tokens
    return Backbone(
        _First(extractor), lambda stride: _Picture(deepcopy(tail.blocks), prefix), model.embed_dim,
        perception=lambda classes: _Last(tail), adapt=lambda gate: _on_patches(gate, prefix), initialised=True,
        names={"extractor.model.": "", "perception.model.": "", "attention.stage.": ""},
    )


def _part(model: Any, blocks: Mapping[str, nn.Module], replaced: Mapping[str, nn.Module]) -> Any:
    """Return a transformer of some of the blocks; it shares the modules that are not ``replaced``."""
    kept = nn.Sequential()
    for name, block in blocks.items():
        kept.add_module(name, block)
    part = copy(model)
    part._modules = {**model._modules, **replaced, "blocks": kept}
    return part


def _on_patches(gate: Gate, prefix: int) -> Gate:
    """Return the gate for tokens (B, N, D): it weights the patches, and leaves the ``prefix`` tokens alone."""

    def gated(tokens: Tensor, attention: Tensor) -> Tensor:
        picture = tokens[:, prefix:].transpose(1, 2).unflatten(2, attention.shape[2:])       # (B, D, h, w)
        return torch.cat([tokens[:, :prefix], gate(picture, attention).flatten(2).transpose(1, 2)], 1)

    return gated


# what makes it right


def _check(model: Any, parts: Backbone, classes: int) -> None:
    """Raise ValueError unless the parts give what timm's own does, the copy with stride 1 a map, and a map counts."""
    assert parts.perception is not None
    dense, tail = parts.last_stage(1), parts.perception(classes)
    side = model.pretrained_cfg["input_size"][1] if model.pretrained_cfg.get("fixed_input_size") else 96
    images = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    modules = nn.ModuleList([model, parts.extractor, dense, tail]).eval()
    with torch.no_grad():
        whole, features = model(images), parts.extractor(images)
        kept = features.clone()
        drawn, logits = dense(features), tail(features)
        ignored = not whole.is_meta and _ignores_maps(tail, features)
    modules.train()
    finer = features.shape[2:] if features.dim() == 4 else drawn.shape[2:]
    if drawn.shape != (1, parts.channels, *finer):
        raise ValueError(f"its last stage turns features {tuple(features.shape)} into {tuple(drawn.shape)}")
    if logits.is_meta:
        return
    if not torch.equal(logits, whole):
        raise ValueError("its parts in a row do not give what the whole gives")
    if not torch.equal(features, kept):
        raise ValueError("its last stage overwrites the features")
    if ignored:
        raise ValueError("its last stage ignores the map that weights its features")


def _ignores_maps(tail: nn.Module, features: Tensor) -> bool:
    """Say whether a map moves the answer by nearly nothing, against what other features (B, C, h, w) do."""
    if features.dim() != 4:     # tokens: what they move may begin at nearly nothing, and grow
        return False
    features = features / features.std()
    ramp = torch.linspace(0, 1, features[0, 0].numel()).view_as(features[:1, :1])
    logits, weighted, others = tail(torch.cat([features, residual(features, ramp), features.flip(1)]))
    return bool((weighted - logits).abs().max() < _IGNORED * (others - logits).abs().max())


@cache
def _is_transformer(name: str) -> bool:
    timm = _timm(name)
    with torch.device("meta"):
        return isinstance(timm.create_model(name.removeprefix(PREFIX)), timm.models.VisionTransformer)


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise ChoiceError(f"{name}: timm cannot be imported ({error}); install what it needs") from error
        raise ChoiceError(f"{name}: needs timm; pip install 'hkmap[timm]'") from error
    except Exception as error:      # a torchvision of another torch fails in its own way
        reason = f"{type(error).__name__}: {error}"
        raise ChoiceError(f"{name}: timm cannot be imported ({reason}); mend torchvision's installation") from error
    return timm


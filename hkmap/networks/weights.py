"""Weights of others, in their own names: torchvision's, timm's, the ABN authors' checkpoints; and those of our runs."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from hkmap.errors import HkmapError, RunError
from hkmap.files.opening import file_content
from hkmap.networks.architectures import ARCHITECTURES, on_meta
from hkmap.networks.backbone import ABN, Architecture
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")

Tensors = Mapping[str, Tensor]

#: our names → the ABN authors'
_ABN_NAMES = {
    "attention.stage_norm.": "bn_att.",
    "attention.stage.": "att_layer4.",
    "attention.class_conv.": "att_conv.",
    "attention.class_norm.": "bn_att2.",
    "attention.logit_conv.": "att_conv2.",
    "attention.map_conv.": "att_conv3.",
    "attention.map_norm.": "bn_att3.",
}
#: our names → torchvision's of a ResNet; those of another row of ARCHITECTURES are its ``names``
_RESNET_NAMES = {"extractor.": "", "perception.stage.": "layer4.", "perception.fc.": "fc."}
_HEAD = ("attention.class_", "attention.logit_", "attention.map_")      # of the attention branch: by class, as a whole
_COUNTS = "num_batches_tracked"
_HEADS = ("fc.", "head.", "heads.", "classifier.")      # of a backbone's own classes; there may be none of ours
_PARTS = ("extractor.", "attention.", "perception.")
#: where a training's file has its weights; the average of the weights before the weights themselves, as timm takes them
_INSIDE = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "weights",
)
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|network|net)\.)+")      # of Lightning, ...
_MULTI_TASK = ("layer4_att.", "depth_conv.", "output_per.")
_FIRST = re.compile(r"(?:extractor\.)?(?:conv1|features\.0|0)\.weight")      # its channels are the width
_LAST = re.compile(r"(?:perception\.)?(?:fc|classifier\.6)\.weight")      # a row for each class
_AVERAGED = "n_averaged"        # torch's count of what it averaged


def author_name(name: str, names: Mapping[str, str] = _RESNET_NAMES) -> str:
    """Return the published name of one of our parameters or buffers: the ABN authors', torchvision's or timm's.

    >>> author_name("attention.stage.0.conv1.weight"), author_name("extractor.layer1.0.bn1.bias")
    ('att_layer4.0.conv1.weight', 'layer1.0.bn1.bias')
    """
    for ours, theirs in (*_ABN_NAMES.items(), *names.items()):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def load_weights(network: nn.Module, path: Path, architecture: Architecture) -> list[str]:
    """Load a checkpoint's weights into ``network`` and return the names of what keeps its random weights.

    See `take_weights`; nothing in the file is executed.
    """
    return take_weights(network, read_weights(path), architecture, str(path))


def take_weights(network: nn.Module, given: Tensors, architecture: Architecture, place: str) -> list[str]:
    """Copy weights by name into a network of ``architecture``; return the names of what keeps its random weights.

    The last stage of a plain network goes into both branches (they differ only in stride). Parts that depend on the
    classes keep theirs where ``given`` has another number of classes. Where no name is the network's, but all tensors
    have its shapes in its order, the order decides. Raises RunError, which begins with ``place``, where they do not fit
    otherwise.
    """
    own, names = network.state_dict(), published_names(architecture)
    theirs = {name: author_name(name, names) for name in own}
    of_classes = _of_classes(architecture, own)
    there = _published(given, names)
    if not there.keys() & set(theirs.values()):
        there = _in_order(own, there, theirs, of_classes=of_classes, place=place)
    unused = {name for name in there if not name.startswith(_HEADS) and not name.endswith(_COUNTS)} - {*theirs.values()}
    there = _both_branches(there, names)
    found = {name: there[theirs[name]] for name in own if theirs[name] in there}
    fits = {name for name in found if found[name].shape == own[name].shape}
    head = {name for name in own if name.startswith(_HEAD) and not name.endswith(_COUNTS)}
    if not head <= fits:        # parts of two heads make none
        fits -= head
    fresh = [name for name in own if name not in fits and not name.endswith(_COUNTS)]      # old files lack the counts
    for name in fresh:
        if name not in of_classes and (name in found or not name.startswith("attention.stage_norm.")):
            got = f"shape {tuple(found[name].shape)}" if name in found else "nothing"
            expected = f"{theirs[name]}, expected shape {tuple(own[name].shape)}"
            raise RunError(f"{place}: has {got} for {expected}; {_remedy(given)}")
    if unused:
        raise RunError(
            f"{place}: {len(unused)} of its tensors have no place in this network: {few(sorted(unused), 3)}; "
            f"{_remedy(given)}"
        )
    network.load_state_dict({name: found[name] if name in fits else own[name] for name in own})
    if fresh:
        logger.warning("%s: these start fresh: %s", place, ", ".join(fresh))
    return fresh


def recognise(path: Path) -> Architecture:
    """Return the architecture whose tensors a checkpoint has: its name, number of classes, stem and width.

    All networks of ARCHITECTURES are tried, not those of timm. Raises RunError where it is none of them.
    """
    given = read_weights(path)
    found = _recognised(given)
    if found is None:
        raise RunError(
            f"{path}: its {len(given)} tensors, {few(list(given), 3)}, are no network of `hkmap list architectures`; "
            "name its --arch and --classes"
        )
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without the names of wrappers around the network; on the CPU.

    It is a file of safetensors or of torch: a state dict, or a dict that holds one. Raises RunError where it is none,
    or a multi-task ABN, and where tensors are not plain finite numbers. Nothing in the file is executed.
    """
    content = _unwrapped(path, _content(path))
    if not isinstance(content, dict) or not all(map(_is_plain, content.items())):
        raise RunError(f"{path}: expected a state dict of tensors, or one under the key state_dict or model")
    given: dict[str, Tensor] = {}
    for name, value in content.items():
        bare = _WRAPPERS.sub("", name)
        if bare in given:
            raise RunError(f"{path}: has {bare} twice, once as {name}; keep one of the two networks")
        if bare != _AVERAGED:
            given[bare] = value
    if multi_task := sorted(name for name in given if name.startswith(_MULTI_TASK)):
        raise RunError(f"{path}: a multi-task ABN ({multi_task[0]}), another network; expected a plain ABN")
    return given


def refuse_inflating(data: bytes) -> None:
    """Raise ValueError where a zip's members are compressed, or take more than the whole: torch writes none such."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
        if any(member.compress_type for member in members) or sum(member.file_size for member in members) > len(data):
            raise ValueError("its members are compressed")


# which tensor goes where


def published_names(architecture: Architecture) -> Mapping[str, str]:
    """Return the published prefixes of an architecture by ours, for `author_name`."""
    with torch.device("meta"):
        return ARCHITECTURES[architecture.name](architecture).names or _RESNET_NAMES


def _published(given: Tensors, names: Mapping[str, str]) -> Tensors:
    """Return tensors by their published names where they have ours."""
    return {author_name(name, names) if name.startswith(_PARTS) else name: value for name, value in given.items()}


def _both_branches(given: Tensors, names: Mapping[str, str]) -> Tensors:
    """Return tensors, and those of a plain network's last stage by the attention branch's names too."""
    stage, attention = names.get("attention.stage.", names.get("perception.stage.")), _ABN_NAMES["attention.stage."]
    if stage is None or any(name.startswith(attention) for name in given):
        return given
    copies = {attention + name.removeprefix(stage): value for name, value in given.items() if name.startswith(stage)}
    return {**copies, **given}


def _of_classes(architecture: Architecture, own: Tensors) -> set[str]:
    """Return the names of what depends on the classes: the attention branch's head, and what one class more changes."""
    more = on_meta(replace(architecture, classes=architecture.classes + 1)).state_dict()
    return {name for name, value in own.items() if name.startswith(_HEAD) or value.shape != more[name].shape}


def _in_order(
    own: Tensors, given: Tensors, theirs: Mapping[str, str], *, of_classes: set[str], place: str
) -> Tensors:
    """Return ``given`` under the network's names where its tensors are the network's, in the network's order."""
    ours = [name for name in own if not name.startswith("attention.") and not name.endswith(_COUNTS)]
    found = [name for name in given if not name.endswith(_COUNTS)]
    pairs = list(zip(ours, found, strict=False))
    if len(ours) != len(found) or not all(
        (own[name].shape == given[other].shape or name in of_classes) and _last(name) == _last(other)
        for name, other in pairs
    ):
        return given
    logger.warning(
        "%s: no name of its tensors is the network's; as all have its shapes in its order, they are taken in order, "
        "from %s for %s to %s for %s", place, found[0], theirs[ours[0]], found[-1], theirs[ours[-1]],
    )
    return {theirs[name]: given[other] for name, other in pairs}


def _last(name: str) -> str:
    return name.rpartition(".")[2]      # weight, bias, running_mean, ...


def _remedy(given: Tensors) -> str:
    found = _recognised(given)
    if found is None:
        return "is --arch the file's?"
    stem, width = (f" --{name} {getattr(found, name)}" for name in ("stem", "width"))
    options = found.name + stem * (found.stem != "standard") + width * (found.width != 64)
    return f"they are those of {found.name}, {found.classes} classes: use --arch {options}"


def _recognised(given: Tensors) -> Architecture | None:
    """Return the architecture that has exactly these tensors, by name and shape."""
    for candidate in _candidates(given):
        try:
            names, own = published_names(candidate), on_meta(candidate).state_dict()
        except HkmapError:      # it has no such stem, or another package's row cannot be imported
            continue
        if _shapes(_published(own, names)) == _shapes(_published(given, names)):
            return candidate
    return None


def _candidates(given: Tensors) -> Iterator[Architecture]:
    """Yield the architectures of the file's classes and width, in the table's order."""
    first = next((value for name, value in given.items() if _FIRST.fullmatch(name) and value.dim() == 4), None)
    last = next((value for name, value in given.items() if _LAST.fullmatch(name) and value.dim() == 2), None)
    if first is None or last is None:
        return
    has_attention = any(name.startswith(("att_", "attention.")) for name in given)
    for name in ARCHITECTURES:
        if name.endswith(ABN) == has_attention:
            stem = "small" if first.shape[2] == 3 else "standard"
            yield Architecture(name, last.shape[0], stem=stem, width=first.shape[0])


def _shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items() if not name.endswith(_COUNTS)}


# files


def _content(path: Path) -> Any:
    # some of the authors' files hold an accuracy as a numpy scalar; the guard stays on for everything else
    data = file_content(path)
    allowed: list[Any] = [np.dtype, np.dtypes.Float64DType, np.float64(0).__reduce__()[0]]
    try:
        if path.suffix == ".safetensors" or data[8:9] == b"{":
            return safetensors.torch.load(data)
        refuse_inflating(data)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged or foreign file fails in zipfile, pickle or torch, each in its own way
        raise RunError(f"{path}: not a checkpoint that can be read safely ({type(error).__name__})") from error


def _unwrapped(path: Path, content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    there = [name for name in _INSIDE if isinstance(content.get(name), dict)]
    if len(there) > 1:
        logger.warning("%s: has %s; takes %s", path, " and ".join(there), there[0])
    return content[there[0]] if there else content


def _is_plain(item: tuple[object, object]) -> bool:
    """Say whether a name has numbers: strided, on the CPU, all there, and finite."""
    name, value = item
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.is_quantized:
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.nbytes and bool(value.isfinite().all())

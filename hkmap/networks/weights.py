"""Weights of others, in their own names: torchvision's ResNets, and the ABN authors' checkpoints."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hkmap.errors import RunError
from hkmap.files.opening import file_content
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")

#: our names → the ABN authors', which are torchvision's for all parts that torchvision has
_PREFIXES = {
    "extractor.": "",
    "attention.stage_norm.": "bn_att.",
    "attention.stage.": "att_layer4.",
    "attention.class_conv.": "att_conv.",
    "attention.class_norm.": "bn_att2.",
    "attention.logit_conv.": "att_conv2.",
    "attention.map_conv.": "att_conv3.",
    "attention.map_norm.": "bn_att3.",
    "perception.stage.": "layer4.",
    "perception.fc.": "fc.",
}
_OF_CLASSES = ("attention.class_", "attention.logit_conv.", "attention.map_", "perception.fc.")
_ONLY_ABN = (*_OF_CLASSES, "attention.stage_norm.")
_COUNTS = "num_batches_tracked"
_HEADS = ("fc.", "head.", "heads.", "classifier.")      # of a backbone's own classes; there may be none of ours
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone)\.)+")      # of DataParallel, torch.compile, Lightning
_MULTI_TASK = ("layer4_att.", "depth_conv.", "output_per.")


def author_name(name: str) -> str:
    """Return the ABN authors' name of one of our parameters or buffers.

    >>> author_name("attention.stage.0.conv1.weight"), author_name("extractor.layer1.0.bn1.bias")
    ('att_layer4.0.conv1.weight', 'layer1.0.bn1.bias')
    """
    ours = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[ours] + name.removeprefix(ours)


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Load a checkpoint's weights into ``network`` and return the names of what keeps its random weights.

    A plain ResNet's layer4 is loaded into the stages of both branches (they differ only in stride). Parts that depend
    on the classes keep theirs where the file has another number of classes. Raises RunError where the file does not fit
    otherwise. Nothing in the file is executed.
    """
    given = _read(path)
    if multi_task := sorted(name for name in given if name.startswith(_MULTI_TASK)):
        raise RunError(f"{path}: a multi-task ABN ({multi_task[0]}), another network; expected a plain ABN")
    unused = {name for name in given if not name.startswith(_HEADS) and not name.endswith(_COUNTS)}
    if not any(name.startswith("att_layer4.") for name in given):
        given |= {f"att_{name}": value for name, value in given.items() if name.startswith("layer4.")}
    own = network.state_dict()
    fresh = []
    for name, value in own.items():
        found = given.get(author_name(name))
        unused.discard(author_name(name))
        if found is not None and found.shape == value.shape:
            own[name] = found
        elif not name.endswith(_COUNTS):      # old files lack them
            _refuse_unless_fresh(path, name, value, found)
            fresh.append(name)
    if unused:
        raise RunError(
            f"{path}: {len(unused)} of its tensors have no place in this network: {few(sorted(unused), 3)}; "
            "is --arch the file's?"
        )
    network.load_state_dict(own)
    if fresh:
        logger.warning("%s: these start fresh: %s", path, ", ".join(fresh))
    return fresh


def refuse_inflating(data: bytes) -> None:
    """Raise ValueError where a zip's members are compressed, or take more than the whole: torch writes none such."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
        if any(member.compress_type for member in members) or sum(member.file_size for member in members) > len(data):
            raise ValueError("its members are compressed")


def _refuse_unless_fresh(path: Path, name: str, value: Tensor, found: Tensor | None) -> None:
    """Raise RunError unless a part may keep its random weights, as it depends on the classes or is the ABN's alone."""
    if not name.startswith(_OF_CLASSES) and (found is not None or not name.startswith(_ONLY_ABN)):
        got = "nothing" if found is None else f"shape {tuple(found.shape)}"
        expected = f"{author_name(name)}, expected shape {tuple(value.shape)}"
        raise RunError(f"{path}: has {got} for {expected}; is --arch the file's?")


def _read(path: Path) -> dict[str, Tensor]:
    # some of the authors' files hold an accuracy as a numpy scalar; the guard stays on for everything else
    data = file_content(path)
    allowed: list[Any] = [np.dtype, np.dtypes.Float64DType, np.float64(0).__reduce__()[0]]
    try:
        refuse_inflating(data)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged or foreign file fails in zipfile, pickle or torch, each in its own way
        raise RunError(f"{path}: not a checkpoint that can be read safely ({type(error).__name__})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, dict) and content.get("format") == "hkmap-checkpoint":
        raise RunError(f"{path}: a checkpoint of hkmap; start from it with `hkmap finetune --from`, or omit --weights")
    if not isinstance(content, dict) or not all(map(_is_plain, content.items())):
        raise RunError(f"{path}: expected a state dict of tensors, or one under the key state_dict")
    given: dict[str, Tensor] = {}
    for name, value in content.items():
        bare = _WRAPPERS.sub("", name)
        if bare in given:
            raise RunError(f"{path}: has {bare} twice, once as {name}; keep one of the two networks")
        given[bare] = value
    return given


def _is_plain(item: tuple[object, object]) -> bool:
    """Say whether a name has numbers: strided, on the CPU, all there, and finite."""
    name, value = item
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.is_quantized:
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.nbytes and bool(value.isfinite().all())

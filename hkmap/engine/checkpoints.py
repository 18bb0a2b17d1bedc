"""A checkpoint's file: a zip of torch's that ends in a seal, and what it must hold before anything is built from it.

torch's reader compares no checksums. So the zip's comment is the sha256 of all bytes before it, which other programs
skip. Run folders are files that people share: every value is checked, and every tensor must be there as bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkmap.engine.inputs import CONTROLS
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.networks.weights import refuse_inflating
from hkmap.sources.images import few

CHECKPOINT_VERSION = 2
SEALED_SINCE = 2
MOST_CLASSES, MOST_CHANNELS, LONGEST_SIDE = 2**20, 4096, 8192
_SEAL = b"\x47\x00sha256:"      # the length of the zip's comment, 71 bytes, and how the comment begins
_SEAL_BYTES = len(_SEAL) + 64
_PLAIN = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Z]\w*Storage")
_EXPECTED = "expected a run folder of `hkmap train`, or its best.pt or last.pt"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed checkpoint beside its name, then rename it; an older one is replaced.

    Raises OSError, with the name of the file, where the disk is full.
    """
    written = io.BytesIO()      # torch's own writer tells nothing of a full disk
    torch.save({"format": "hkmap-checkpoint", "version": CHECKPOINT_VERSION, **content}, written)
    body = written.getbuffer()[:-2]      # without the length of the zip's comment, which is 0
    with replacing(path, overwrite=True, durable=True) as beside, open(beside, "wb") as file:
        file.write(body)
        file.write(_SEAL + hashlib.sha256(body).hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, checked against the schema; tensors are on the CPU.

    Raises RunError where the file is damaged, not hkmap's, or holds what no run has. Nothing in the file is executed.
    """
    data = file_content(path)
    if b"\x89HDF\r\n\x1a\n" in data[:1024]:
        raise RunError(f"{path}: an HDF5 file, as shards are; {_EXPECTED}")
    body, seal = memoryview(data)[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    sealed = seal.startswith(_SEAL)
    if sealed and seal != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise RunError(f"{path}: damaged, its bytes do not have the sha256 that hkmap wrote; copy it again")
    try:
        _refuse_strange(data)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged file fails in zipfile, pickle or torch, each in its own way
        reason = type(error).__name__
        raise RunError(f"{path}: not a readable checkpoint ({reason}); {_EXPECTED}, copied whole") from error
    if not isinstance(content, dict) or content.pop("format", None) != "hkmap-checkpoint":
        raise RunError(f"{path}: not an hkmap checkpoint; expected one that `hkmap train` or `hkmap finetune` wrote")
    _check_version(path, content.pop("version", None), sealed=sealed)
    _check_content(path, content)
    return content


def _check_version(path: Path, version: Any, *, sealed: bool) -> None:
    check_values(path, {"version": version}, {"version": whole(1, 2**31)})
    if version > CHECKPOINT_VERSION:
        raise RunError(f"{path}: version {version}, this hkmap reads up to {CHECKPOINT_VERSION}; update hkmap")
    if version >= SEALED_SINCE and not sealed:
        raise RunError(f"{path}: lacks the sha256 at its end, so it is cut short or rewritten; copy it again")


def _check_content(path: Path, content: dict[str, Any]) -> None:
    content.setdefault("fold", None)      # the first runs had none, and no digest of the log
    check_values(path, content, _CHECKPOINT)
    if state := content["state"]:
        check_values(path, {"log": None, **state}, _STATE, "state")
    if content["fold"] is not None:
        check_values(path, content["fold"], _FOLD, "fold")
    names, classes = len(content["class_names"]), content["architecture"]["classes"]
    if names != classes:
        raise RunError(f"{path}: has {names} class_names, but architecture.classes is {classes}; copy it again")


def _refuse_strange(data: bytes) -> None:
    """Raise an error where a zip has other than plain values and tensors, or a member that its CRC does not fit."""
    refuse_inflating(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.testzip() is not None:
            raise ValueError("a CRC does not fit")
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in {"GLOBAL", "INST", "STACK_GLOBAL"} and not _PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it has {argument}")


def check_weights(path: Path, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise RunError where the tensors of a file are not ``own``: by name, shape, type and bytes, and finite."""
    for what, names in (("lacks", own.keys() - given), ("its network has no", given.keys() - own)):
        if names:
            raise RunError(f"{path}: {what} weights {few(sorted(names), 3)}; copy it again, or train again")
    for name, value in own.items():
        found = given[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            raise RunError(f"{path}: weights.{name} is {_shaped(found)}; expected {_shaped(value)}")
        if found.untyped_storage().nbytes() < found.nbytes:
            raise RunError(f"{path}: weights.{name} has fewer numbers than its shape {tuple(found.shape)} says")
        if not found.isfinite().all():
            raise RunError(f"{path}: weights.{name} has numbers that are not finite; train again, with a lower --lr")


def _shaped(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


# the schema


@dataclass(frozen=True)
class Kind:
    """What a value may be: in words, and as a test."""

    what: str
    test: Callable[[Any], bool]


Schema = Mapping[str, "Kind | Schema"]


def check_values(path: Path, content: Any, schema: Schema, inside: str = "") -> None:
    """Raise RunError where the values of a file are not those of the schema: same keys, each of its kind."""
    if not isinstance(content, dict):
        raise RunError(f"{path}: {inside or 'its content'} is {_shown(content)}; expected names with values")
    for name in {**schema, **content}:
        place = f"{inside}.{name}".removeprefix(".")
        if name not in content:
            raise RunError(f"{path}: lacks {place}; copy it again, or train again")
        kind = schema.get(name) if isinstance(name, str) else None
        if kind is None:
            raise RunError(f"{path}: has an unknown {place[:80]}; expected {', '.join(schema)}")
        if not isinstance(kind, Kind):
            check_values(path, content[name], kind, place)
        elif not kind.test(content[name]):
            raise RunError(f"{path}: {place} is {_shown(content[name])}; expected {kind.what}")


def _shown(value: Any) -> str:
    simple = value is None or isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < 10**60)
    return f"{value!r:.60}" if simple else f"a {type(value).__name__}"


def whole(low: int, high: int) -> Kind:
    """A whole number; True and False are none."""
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _numbers(count: int, low: float, high: float) -> Kind:
    def test(value: Any) -> bool:
        return isinstance(value, (tuple, list)) and len(value) == count and all(_in(item, low, high) for item in value)

    return Kind(f"{count} numbers from {low} to {high}", test)


def _in(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high      # NaN is not


def _or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.what}, or None", lambda value: value is None or kind.test(value))


def _of_type(what: str, *types: type) -> Kind:
    return Kind(what, lambda value: isinstance(value, types))


def _of_validation(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in {"top1", "loss", "total", "attention_mean", "mse", "mse_of_zeros"} and _in(figure, 0, math.inf)
        for name, figure in value.items()
    )


def _tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


_TEXT = _of_type("a text", str)
_STATE: Schema = {
    "epoch": whole(1, 2**31),
    "step": whole(1, 2**62),
    "best": {
        "epoch": whole(1, 2**31), "validation": _or_none(Kind("figures by name", _of_validation)),
        "loss": Kind("a number", lambda value: _in(value, -math.inf, math.inf)),
    },
    "optimizer": _of_type("an optimizer's state", dict),      # Training compares it with its own
    "log": _or_none(_TEXT),
}
_FOLD: Schema = {
    "fold": Kind("I/K", lambda value: re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", str(value)) is not None),
    "fold_seed": whole(0, 2**32 - 1), "group": _or_none(_TEXT), "digest": _TEXT,
}
_CHECKPOINT: Schema = {
    "architecture": {
        "name": _TEXT, "classes": whole(1, MOST_CLASSES), "stem": _TEXT, "width": whole(1, MOST_CHANNELS),
        "gate": _TEXT,
    },
    "preprocessing": {
        "height": whole(1, LONGEST_SIDE), "width": whole(1, LONGEST_SIDE), "fit": _TEXT,
        "mean": _numbers(3, 0, 1), "std": _numbers(3, 1e-6, 1e6),
    },
    "class_names": Kind("a list of texts", lambda value: isinstance(value, list) and all(map(_TEXT.test, value))),
    "control": Kind(f"one of {', '.join(CONTROLS)}", lambda value: isinstance(value, str) and value in CONTROLS),
    "fold": _or_none(_of_type("names with values", dict)),
    "weights": Kind("tensors by name", _tensors),
    "state": _of_type("names with values", dict),
}

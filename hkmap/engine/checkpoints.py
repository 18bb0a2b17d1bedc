"""A run's files of numbers, each with a seal, and what they must hold before anything is built from them.

NAME.safetensors has the weights, and as JSON in its metadata what is needed to use them; any reader of safetensors
opens it. state.pt, a zip of torch's, has what training needs to go on. Neither format compares checksums: a sha256 of
all other bytes stands in the first one's metadata, and is the second one's zip comment. Run folders are files that
people share: every value is checked, and every tensor must be there as bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hkmap.engine.controls import CONTROLS, is_control
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.networks.weights import refuse_inflating
from hkmap.sources.images import few

MODEL, STATE = "hkmap-checkpoint", "hkmap-state"
#: Models were zips up to version 2, and are safetensors since; the zips are sealed since 2.
VERSIONS = {MODEL: 3, STATE: 1}
_LAST_ZIP = 2
MOST_CLASSES, MOST_CHANNELS, LONGEST_SIDE = 2**20, 4096, 8192
_SEAL = b"\x47\x00sha256:"      # the length of the zip's comment, 71 bytes, and how the comment begins
_SEAL_BYTES = len(_SEAL) + 64
_HEAD = b'{"__metadata__":{"hkmap":"{\\"sha256\\": \\"'      # how a model's header begins, after 8 bytes of its length
_DIGEST = slice(8 + len(_HEAD), 8 + len(_HEAD) + 64)
_PLAIN = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Z]\w*Storage")
_EXPECTED = "expected a run folder of `hkmap train`, or its best.safetensors or last.safetensors"


# writing


def write_model(path: Path, weights: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    """Write a sealed safetensors file beside its name, then rename it; an older one is replaced.

    Raises OSError, with the name of the file, where the disk is full.
    """
    text = json.dumps({"sha256": "0" * 64, "format": MODEL, "version": VERSIONS[MODEL], **description})
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    data = safetensors.torch.save(tensors, {"hkmap": text})
    with replacing(path, overwrite=True, durable=True) as beside, open(beside, "wb") as file:
        file.write(memoryview(data)[: _DIGEST.start])
        file.write(hashlib.sha256(data).hexdigest().encode())
        file.write(memoryview(data)[_DIGEST.stop :])


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's state.pt, as `read_state` returns it, beside its name, then rename it.

    Raises OSError, with the name of the file, where the disk is full.
    """
    write_zip(folder / "state.pt", {"format": STATE, "version": VERSIONS[STATE], **state})


def write_zip(path: Path, content: dict[str, Any]) -> None:
    """Write a zip of torch's with a seal at its end."""
    written = io.BytesIO()      # torch's own writer tells nothing of a full disk
    torch.save(content, written)
    body = written.getbuffer()[:-2]      # without the length of the zip's comment, which is 0
    with replacing(path, overwrite=True, durable=True) as beside, open(beside, "wb") as file:
        file.write(body)
        file.write(_SEAL + hashlib.sha256(body).hexdigest().encode())


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights by their own names, also where `torch.compile` has wrapped parts of it."""
    return {name.replace("_orig_mod.", ""): value for name, value in network.state_dict().items()}


# reading


def read_model(path: Path) -> dict[str, Any]:
    """Return what `write_model` wrote: the description, and "weights" by name, on the CPU; so also of older files.

    Raises RunError where the file is damaged, not hkmap's, or holds what no run has. Nothing in the file is executed.
    """
    data = file_content(path)
    if b"\x89HDF\r\n\x1a\n" in data[:1024]:
        raise RunError(f"{path}: an HDF5 file, as shards are; {_EXPECTED}")
    if path.suffix == ".safetensors" or data[8:9] == b"{":
        content = _read_safetensors(path, data)
        _check_model(path, content)
        return content
    content = _former(path, data)
    del content["state"]
    return content


def control_of(path: Path) -> str:
    """Return the control of the network whose weights a file has; "none" where it is neither a run's nor our export.

    Raises RunError where a checkpoint of a run is damaged, or what an export says is no control.
    """
    data = file_content(path)
    if is_of_run(path):
        return str(read_model(path)["control"])
    texts: dict[str, str] = {}
    if data[8:9] == b"{":
        with suppress(safetensors.SafetensorError), safetensors.safe_open(path, "pt") as file:
            texts = file.metadata() or {}
    control = texts.get("control", "none").strip('"') if "hkmap" in texts else "none"      # the text is JSON
    check_values(path, {"control": control}, {"control": _MODEL["control"]})
    return control


def described_by_export(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the "preprocessing", "class_names" and "control" of an export of ours, from its metadata, as `read_model`.

    Raises RunError where they are not as `hkmap export` wrote them.
    """
    try:
        told = {name: json.loads(texts[name]) for name in ("input", "fit", "mean", "std", "classes", "control")}
        height, width = told["input"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise RunError(f"{path}: its metadata are not those of `hkmap export` ({reason}); export it again") from error
    content = {
        "preprocessing": {"height": height, "width": width, **{name: told[name] for name in ("fit", "mean", "std")}},
        "class_names": told["classes"], "control": told["control"],
    }
    check_values(path, content, {name: _MODEL[name] for name in content})
    return content


def is_of_run(path: Path) -> bool:
    """Say whether a file is one of a run's checkpoints, of whatever version, or its state; it may be damaged."""
    data = file_content(path)
    return any(form.encode() in data for form in VERSIONS)      # both formats hold it as it is


def read_state(folder: Path, network: nn.Module) -> dict[str, Any]:
    """Return what training needs to go on in a run's folder, from its state.pt, else an older run's last.pt.

    "weights" and, or None, "average" by name; the states of "optimizer" and, or None, "scaler"; "epoch" (those that
    are complete), "step_in_epoch", "step" (over the run); "best", None before the first epoch's end: its "epoch",
    "validation", "loss" and "attention_mean"; "log", the sha256 of the log's lines up to there, or None; "seconds",
    which the run has taken.

    Raises RunError where the file is damaged, holds what no run has, or the weights are not those of ``network``.
    """
    path = folder / "state.pt"
    if path.exists():
        content = _read_zip(path, file_content(path), STATE)
        check_values(path, content, _STATE)
    else:
        path = folder / "last.pt"
        content = _former_state(path)
    if content["best"] is not None:
        check_values(path, content["best"], _BEST, "best")
    own, average = plain_weights(network), content["average"] or {}
    check_weights(path, content["weights"], own)
    check_weights(path, average, {name: own[name] for name in average if name in own})      # what is frozen has none
    return content


def _read_safetensors(path: Path, data: bytes) -> dict[str, Any]:
    if not data.startswith(_HEAD, 8):
        remedy = "`hkmap import` makes a run of other programs' weights"
        raise RunError(f"{path}: not a checkpoint of hkmap, or damaged; {_EXPECTED}; {remedy}")
    digest = hashlib.sha256(data[: _DIGEST.start] + b"0" * 64)
    digest.update(memoryview(data)[_DIGEST.stop :])
    if data[_DIGEST] != digest.hexdigest().encode():
        raise RunError(f"{path}: damaged, its bytes do not have the sha256 that hkmap wrote; copy it again")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content = json.loads(header["__metadata__"]["hkmap"])
        weights = safetensors.torch.load(data)
    except Exception as error:      # it was sealed again by somebody, after whatever change
        reason = type(error).__name__
        raise RunError(f"{path}: not a readable checkpoint ({reason}); {_EXPECTED}, copied whole") from error
    del content["sha256"]
    if content.pop("format", None) != MODEL:
        raise RunError(f"{path}: not an hkmap checkpoint; {_EXPECTED}")
    _check_version(path, content.pop("version", None), MODEL, VERSIONS[MODEL])
    return {**content, "weights": weights}


def _read_zip(path: Path, data: bytes, form: str) -> dict[str, Any]:
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
    if not isinstance(content, dict) or content.pop("format", None) != form:
        raise RunError(f"{path}: not an {form.replace('-', ' ')}; expected one that `hkmap train` wrote")
    version = content.pop("version", None)
    _check_version(path, version, form, _LAST_ZIP if form == MODEL else VERSIONS[STATE])
    if not sealed and (form, version) != (MODEL, 1):
        raise RunError(f"{path}: lacks the sha256 at its end, so it is cut short or rewritten; copy it again")
    return content


def _check_version(path: Path, version: Any, form: str, most: int) -> None:
    check_values(path, {"version": version}, {"version": whole(1, 2**31)})
    if version > most:
        raise RunError(f"{path}: version {version}, this hkmap reads up to {most}; update hkmap")


def _former(path: Path, data: bytes) -> dict[str, Any]:
    """Return what a run's best.pt or last.pt holds: as `read_model`, and "state", empty where it has none."""
    content = {"fold": None, **_read_zip(path, data, MODEL)}      # the first runs had none, and no digest of the log
    check_values(path, {"state": content.get("state")}, {"state": _of_type("names with values", dict)})
    _check_model(path, {name: value for name, value in content.items() if name != "state"})
    if content["state"]:
        state = content["state"] = {"log": None, **content["state"]}
        if isinstance(state.get("best"), dict):
            state["best"] = {"attention_mean": None, **state["best"]}
        check_values(path, state, _FORMER_STATE, "state")
    return content


def _former_state(path: Path) -> dict[str, Any]:
    content = _former(path, file_content(path))
    state = content["state"]
    if not state:
        raise RunError(f"{path}: has no state to resume from; train again, with --overwrite")
    return {
        **state, "weights": content["weights"], "step_in_epoch": 0, "average": None, "scaler": None,
        "seconds": 0.0,
    }


def _check_model(path: Path, content: dict[str, Any]) -> None:
    check_values(path, content, _MODEL)
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


def check_finite(network: nn.Module) -> None:
    """Raise RunError where a weight is not finite; on a GPU it waits once for all of them."""
    numbers = {name: value for name, value in plain_weights(network).items() if value.is_floating_point()}
    largest = torch.stack(torch._foreach_norm([*numbers.values()], math.inf))      # also NaN where one is
    if not (finite := largest.isfinite()).all():
        name = list(numbers)[int(finite.logical_not().nonzero()[0])]
        raise RunError(f"the weights {name} became other than finite; train again, with a lower --lr")


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
        isinstance(name, str) and (figure is None or _in(figure, 0, math.inf)) for name, figure in value.items()
    )


def _tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


TEXT = _of_type("a text", str)
_TENSORS = Kind("tensors by name", _tensors)
_DICT = _of_type("names with values", dict)
_BEST: Schema = {
    "epoch": whole(1, 2**31), "validation": _or_none(Kind("figures by name", _of_validation)),
    "loss": Kind("a number", lambda value: _in(value, -math.inf, math.inf)),
    "attention_mean": _or_none(Kind("a number from 0 to 1", lambda value: _in(value, 0, 1))),
}
_STATE: Schema = {
    "weights": _TENSORS,
    "average": _or_none(_TENSORS),
    "optimizer": _DICT,      # Training compares it with its own
    "scaler": _or_none(_DICT),
    "epoch": whole(0, 2**31),
    "step_in_epoch": whole(0, 2**62),
    "step": whole(0, 2**62),
    "best": _or_none(_DICT),
    "log": _or_none(TEXT),
    "seconds": Kind("a number from 0", lambda value: _in(value, 0, 1e12)),
}
_FORMER_STATE: Schema = {
    "epoch": whole(1, 2**31), "step": whole(1, 2**62), "best": _BEST, "optimizer": _DICT, "log": _or_none(TEXT),
}
_FOLD: Schema = {
    "fold": Kind("I/K", lambda value: re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", str(value)) is not None),
    "fold_seed": whole(0, 2**32 - 1), "group": _or_none(TEXT), "digest": TEXT,
}
CONTROL = Kind(f"one of {', '.join(CONTROLS)}, or shams with + between them", is_control)
PREPROCESSING: Schema = {
    "height": whole(1, LONGEST_SIDE), "width": whole(1, LONGEST_SIDE), "fit": TEXT,
    "mean": _numbers(3, 0, 1), "std": _numbers(3, 1e-6, 1e6),
}
_MODEL: Schema = {
    "architecture": {
        "name": TEXT, "classes": whole(1, MOST_CLASSES), "stem": TEXT, "width": whole(1, MOST_CHANNELS),
        "gate": TEXT,
    },
    "preprocessing": PREPROCESSING,
    "class_names": Kind("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.test, value))),
    "control": CONTROL,
    "fold": _or_none(_DICT),
    "weights": _TENSORS,
}

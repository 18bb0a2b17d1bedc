"""Alter what is in a checkpoint or a config as a clumsy or hostile hand would, and say how the altered file is met."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hkmap.engine.checkpoints import MODEL, read_model, read_state, save_state, write_model, write_zip
from hkmap.engine.folders import read_config
from hkmap.engine.runs import load_model
from hkmap.errors import HkmapError
from hkmap.training.fitting import go_on
from hkmap.training.optimisation import TrainingOptions
from hkmap.training.steps import Training

Content = Any
warnings.filterwarnings("ignore", message=".*quantize", category=UserWarning)
#: What stands where something else is expected; functions, as each use needs its own.
STRANGE: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -3, lambda: 0, lambda: 1, lambda: 7, lambda: 10**6, lambda: 10**9,
    lambda: 2**70, lambda: 10**5000, lambda: 0.5, lambda: math.nan, lambda: math.inf, lambda: -1e308, lambda: "",
    lambda: "x" * 5000, lambda: "resnet152", lambda: "\ud800", lambda: b"bytes", list, dict, lambda: (),
    lambda: {"a": 1}, lambda: [None], lambda: ["class"] * 3, lambda: [1.0, 2.0, 3.0], lambda: {1: 2},
    lambda: torch.zeros(3), lambda: torch.zeros(()), lambda: torch.zeros(1).expand(10**6),
    lambda: torch.zeros(2, 2).to_sparse(), lambda: torch.zeros(10**9, device="meta"),
    lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), lambda: torch.zeros(3, dtype=torch.float16),
    lambda: torch.zeros(3, dtype=torch.complex64), lambda: torch.full((3,), math.nan),
]
#: What a tensor may become.
TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda t: t.double(), lambda t: t.half(), lambda t: t.to(torch.int64), lambda t: t[..., None], lambda t: t[:0],
    lambda t: t.flatten(), lambda t: t * math.nan, lambda t: t.to_sparse(), lambda t: t.to("meta"),
    lambda t: t.flatten()[:1].expand(t.numel()).reshape(t.shape), lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.flatten()[:1].as_strided(t.shape, [0] * t.dim()),
]


def places(value: Content, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value inside, of dictionaries and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def altered(content: Content, dice: random.Random) -> tuple[Content, str]:
    """Return a copy with one to three changes, and what they are."""
    changed, said = copy.deepcopy(content), []
    for _ in range(dice.choice([1, 1, 2, 3])):
        found = list(places(changed))
        if not found:
            break
        path = dice.choice(found if dice.random() < 0.5 else [one for one in found if len(one) <= 2] or found)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        said.append(f"{path}: {_alter(holder, path[-1], dice)}")
    return changed, "; ".join(said)


def _alter(holder: Any, key: Any, dice: random.Random) -> str:
    value = holder[key]
    if isinstance(value, torch.Tensor) and dice.random() < 0.5:
        number = dice.randrange(len(TENSORS))
        with suppress(RuntimeError, IndexError):      # not every change suits every shape and kind
            holder[key] = TENSORS[number](value)
        return f"tensor {number}"
    what = dice.random()
    if what < 0.15:
        del holder[key]
        return "removed"
    number = dice.randrange(len(STRANGE))
    if what < 0.3 and isinstance(holder, dict):
        holder[dice.choice(["more", "", 5, "weights", "layer9.conv1.weight"])] = STRANGE[number]()
        return f"beside it strange {number}"
    holder[key] = STRANGE[number]()
    return f"strange {number}"


def write_as(version: int, path: Path, content: Content) -> None:
    """Write a model as that version has it: a zip of torch's, one with a seal, or safetensors."""
    if version == 3:
        write_model(path, content["weights"], {name: value for name, value in content.items() if name != "weights"})
        return
    whole = {"format": MODEL, "version": version, "state": {}, **content}
    if version == 2:
        write_zip(path, whole)
    else:
        torch.save(whole, path)


def written(folder: Path, content: Content, dice: random.Random) -> bool:
    """Write a model, as last.pt, and a state; False where nothing can write what they have become."""
    with suppress(Exception):
        write_as(dice.randrange(1, 4), folder / "last.pt", content["model"])
        save_state(folder, content["state"])
        return True
    return False


def content_of(run: Path) -> Content:
    """What a run's checkpoint holds, and its state, with plain dictionaries."""
    model, state = read_model(run / "best.pt"), read_state(run, load_model(run).network)
    return {
        "model": {**model, "weights": dict(model["weights"])}, "state": {**state, "weights": dict(state["weights"])},
    }


def meet(run: Path, folder: Path) -> str | None:
    """Load ``folder``'s last.pt and resume from its state; the sentence that refuses one, None where both are taken.

    ``run`` is the one that it was before. Anything but an error of hkmap's is raised.
    """
    try:
        found = load_model(folder / "last.pt")
        found.network(torch.zeros(1, 3, 16, 16))
        model = load_model(run)
        go_on(Training(model.network, TrainingOptions(epochs=3), torch.device("cpu")), folder)
    except HkmapError as error:
        return str(error)
    return None


def altered_text(text: bytes, dice: random.Random) -> bytes:
    """Return a config with a few bytes changed, or a value replaced by a strange one."""
    data = bytearray(text)
    if dice.random() < 0.5:
        lines = text.split(b"\n")
        number = dice.randrange(len(lines))
        strange = [b"[[[[", b"1e400", b"nan", b"-inf", b"true", b"1979-05-27", b"[1, [2]]", b'"\\uD800"', b"{a = 1}",
                   b"1" * 5000, b"[" * 3000, b'"x"', b"[]", b"-1", b"0", b"", b'["a", 1]', b"\xff"]
        lines[number] = lines[number].partition(b"=")[0] + b"= " + dice.choice(strange)
        return b"\n".join(lines)
    for _ in range(dice.randrange(1, 5)):
        place = dice.randrange(len(data))
        kind = dice.randrange(3)
        if kind == 0:
            data[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[place : place + dice.randrange(1, 20)]
        else:
            data[place:place] = data[dice.randrange(len(data)) :][: dice.randrange(1, 40)]
        if not data:
            break
    return bytes(data)


def meet_config(path: Path) -> str | None:
    """Read a config; the sentence that refuses it, None where it is taken."""
    try:
        read_config(path)
    except HkmapError as error:
        return str(error)
    return None

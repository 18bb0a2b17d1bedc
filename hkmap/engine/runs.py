"""A run: its network and all that belongs to it, the fold that it holds out, and its folder.

The folder has config.toml, last.pt, best.pt, log.jsonl and summary.json.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hkmap.engine.abn import AttentionBranchNetwork
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.resnet import Architecture, build
from hkmap.errors import RunError
from hkmap.files.atomic import replacing
from hkmap.shards.folds import Folding, digest_of, folds_of, ids_of
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")

CHECKPOINT_VERSION = 1
#: What runs used before their config.toml named it.
FORMER_OPTIONS = {"map_loss": "norm", "schedule": "step", "optimizer": "sgd"}
RUN_FILES = ("config.toml", "last.pt", "best.pt", "log.jsonl", "summary.json")


@dataclass(frozen=True)
class TrainedModel:
    """A network with all that is needed to use it: no flags, no other file.

    ``control`` is a name in data.CONTROLS: whether its human maps were other images' (the sham control). ``state`` is
    what training needs to continue: optimizer, position, best score so far. ``fold`` is the fold of its shards that it
    held out, as ``described``; None where it learnt from all.
    """

    network: AttentionBranchNetwork
    architecture: Architecture
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    control: str
    state: dict[str, Any]
    fold: dict[str, Any] | None = None

    @cached_property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the attention map."""
        return self.network.map_size(self.preprocessing.size)


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:1" names; auto is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f'--device "{name}" is unknown; expected auto, cpu, cuda or cuda:N') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"--device {name}: this machine has no CUDA device that torch can use; use --device cpu")
    return device


def new_model(
    architecture: Architecture, preprocessing: Preprocessing, class_names: Sequence[str], seed: int
) -> TrainedModel:
    """Return an untrained network; the seed fixes its weights."""
    if not class_names:
        raise RunError(
            "the training shard has no labels; give its records a class or a label, as `hkmap folder` and "
            "`hkmap join labels.csv --on image` do, and pack them again"
        )
    torch.manual_seed(seed)
    return TrainedModel(build(architecture), architecture, preprocessing, tuple(class_names), "none", {})


def save_model(path: Path, model: TrainedModel) -> None:
    """Write a checkpoint beside its name, then rename it; an older one is replaced."""
    content = {
        "format": "hkmap-checkpoint",
        "version": CHECKPOINT_VERSION,
        "architecture": asdict(model.architecture),
        "preprocessing": asdict(model.preprocessing),
        "class_names": list(model.class_names),
        "control": model.control,
        "fold": model.fold,
        "weights": model.network.state_dict(),
        "state": model.state,
    }
    with replacing(path, overwrite=True, durable=True) as beside:
        torch.save(content, beside)


def load_model(path: str | Path) -> TrainedModel:
    """Load the best.pt of the run folder ``path``, or the checkpoint ``path``; on the CPU.

    Raises RunError where it is missing, or not hkmap's. Nothing in the file is executed.
    """
    file = Path(path, "best.pt") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise RunError(f"{file}: no such checkpoint; expected a run folder of `hkmap train`, or its best.pt or last.pt")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:      # a damaged file fails in zipfile, pickle or torch, each in its own way
        reason = type(error).__name__
        raise RunError(f"{file}: not a readable checkpoint ({reason}); copy it again, or train again") from error
    if not isinstance(content, dict) or content.get("format") != "hkmap-checkpoint":
        raise RunError(f"{file}: not an hkmap checkpoint; expected one that `hkmap train` or `hkmap finetune` wrote")
    if content["version"] > CHECKPOINT_VERSION:
        newer = content["version"]
        raise RunError(f"{file}: version {newer}, this hkmap reads up to {CHECKPOINT_VERSION}; update hkmap")
    architecture, preprocessing = Architecture(**content["architecture"]), Preprocessing(**content["preprocessing"])
    network = build(architecture)
    network.load_state_dict(content["weights"])
    return TrainedModel(
        network.eval(), architecture, preprocessing, tuple(content["class_names"]), content["control"],
        content["state"], content.get("fold"),
    )


def describe(model: TrainedModel) -> dict[str, Any]:
    """Return what config.toml holds about a network, beside a command's options."""
    network, inputs = model.architecture, model.preprocessing
    return {
        "arch": network.name, "stem": network.stem, "width": network.width, "gate": network.gate,
        "input": list(inputs.size), "fit": inputs.fit, "mean": list(inputs.mean), "std": list(inputs.std),
        "channels": "RGB", "control": model.control, "classes": list(model.class_names),
    }


def open_run(folder: Path, config: dict[str, Any], *, overwrite: bool, resume: bool) -> None:
    """Make the run's folder and write its config.toml, or check that the run there can be resumed.

    Raises RunError where the folder holds a run that may be neither replaced nor resumed, and where the run to resume
    had other options.
    """
    if resume:
        _check_resumable(folder, config)
        return
    if any((folder / name).exists() for name in RUN_FILES):
        if not overwrite:
            raise RunError(f"{folder}: holds a run already; choose another --out, or use --overwrite or --resume")
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.toml", config)


def _check_resumable(folder: Path, config: dict[str, Any]) -> None:
    if not (folder / "last.pt").is_file() or not (folder / "config.toml").is_file():
        raise RunError(f"{folder}: no run to resume; expected its last.pt and config.toml; omit --resume")
    before = FORMER_OPTIONS | read_config(folder / "config.toml")
    now = FORMER_OPTIONS | {name: json.loads(json.dumps(value)) for name, value in config.items() if value is not None}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise RunError(
                f"{folder}: {name} is {now.get(name)!r}, the run to resume had {before.get(name)!r}; "
                f"repeat its options by --config {folder / 'config.toml'}"
            )


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what `fit` wrote of the finished run."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def write_config(path: Path, options: dict[str, Any]) -> None:
    """Write options as a flat TOML file; None is omitted, as TOML has no such value."""
    # JSON's scalars, and lists of them, are TOML's too, but for DEL, which only TOML wants escaped
    given = {key: json.dumps(value, ensure_ascii=False) for key, value in options.items() if value is not None}
    text = "".join(f"{key} = {value}\n" for key, value in given.items()).replace("\x7f", "\\u007f")
    with replacing(path, overwrite=True) as beside:
        beside.write_text(text, encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """Read what write_config wrote."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a TOML file ({error})") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, indented."""
    with replacing(path, overwrite=True) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# the fold that a run holds out: never used to train or to choose an epoch, only to measure


@dataclass(frozen=True)
class HeldOut:
    """Fold ``number``, from 1, of shards whose records are cut by ``folding``.

    ``inside`` (n,): which records are in it. ``digest`` identifies the assignment of all records to folds.
    """

    number: int
    folding: Folding
    inside: npt.NDArray[np.bool_]
    digest: str


def hold_out(shards: ShardSequence, number: int, folding: Folding) -> HeldOut:
    """Cut the records of shards into folds and take one; raise RecordError where they cannot be cut."""
    folds = folds_of(shards, folding)
    return HeldOut(number, folding, folds == number, digest_of(ids_of(shards), folds))


def described(held_out: HeldOut) -> dict[str, Any]:
    """Return what a checkpoint keeps of the held-out fold."""
    return {**named(held_out), "digest": held_out.digest}


def named(held_out: HeldOut) -> dict[str, Any]:
    """Return a fold as commands print it."""
    folding = held_out.folding
    return {"fold": f"{held_out.number}/{folding.folds}", "fold_seed": folding.seed, "group": folding.group}


def check_fold(model: TrainedModel, held_out: HeldOut | None) -> None:
    """Raise RunError where a network learnt from records of the fold; warn where that is possible.

    With another number, seed or group than the run's, the fold has records that the network learnt from. So it has with
    other shards, as a fold depends on all records.
    """
    kept = model.fold
    if held_out is None:
        if kept is not None:
            logger.warning("the network held out fold %s of its shards; use --fold if these are they", kept["fold"])
        return
    if kept is None:
        logger.warning("the network was trained without --fold, so it may have learnt from the records of this fold")
        return
    now = named(held_out)
    for key, found in now.items():
        if found != kept[key]:
            given = f"--{key.replace('_', '-')} is {'not given' if found is None else found}"
            raise RunError(f"{given}, but the network held out {_options(kept)} and learnt from the rest; use the same")
    if held_out.digest != kept["digest"]:
        raise RunError(
            f"the records, or their labels, differ from those of which the network held out {_options(kept)}, so the "
            "folds differ; name all the shards that it was trained with"
        )


def _options(kept: dict[str, Any]) -> str:
    group = f" --group {kept['group']}" if kept["group"] else ""
    return f"--fold {kept['fold']} --fold-seed {kept['fold_seed']}{group}"

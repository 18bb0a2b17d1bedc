"""A run's folder: who may write it, what a new run replaces, what may differ when a run goes on, and its small files.

It has config.toml (the options), run.json (what they stood for), best.safetensors and last.safetensors (weights),
state.pt (what resuming needs), log.jsonl and summary.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hkmap import __version__
from hkmap.engine.checkpoints import TEXT, Kind, Schema, check_values
from hkmap.engine.runs import BEST, LAST, TrainedModel, in_words
from hkmap.errors import OutputError, RunError
from hkmap.files.atomic import locked, replacing
from hkmap.files.opening import file_content, open_file
from hkmap.records import text_of
from hkmap.shards.sequence import ShardSequence
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")

#: What runs used before their config.toml named it.
FORMER_OPTIONS = {
    "map_loss": "l2norm", "schedule": "step", "optimizer": "sgd", "update": "all", "gamma_schedule": "constant",
    "accumulate": 1, "warmup": 0.0, "class_weights": "none", "mining": 0.0, "mask_threshold": 0.5, "compile": False,
    "cache_features": False, "pretrained": False,
}
#: What runs called a choice before: option, former name → name.
FORMER_NAMES = {"map_loss": {"norm": "l2norm"}}
#: The options with which a run may go on although they were others; of files run.json has what they hold.
_FREE = frozenset({"device", "epochs", "threads"})
_BEGUN = ".begun-"      # how the folder of a run without a checkpoint is called inside the one whose run it replaces
#: In the order in which they come into a folder: with state.pt a run can be resumed.
RUN_FILES = ("config.toml", "run.json", BEST, LAST, "log.jsonl", "state.pt", "summary.json")
FORMER_FILES = ("last.pt", "best.pt")


def describe(model: TrainedModel) -> dict[str, Any]:
    """Return what config.toml holds about a network, beside a command's options."""
    network, inputs = model.architecture, model.preprocessing
    return {
        "arch": network.name, "stem": network.stem, "width": network.width, "gate": network.gate,
        "input": list(inputs.size), "fit": inputs.fit, "mean": list(inputs.mean), "std": list(inputs.std),
        "channels": "RGB", "control": model.control, "classes": list(model.class_names),
    }


def run_info(device: torch.device, **given: ShardSequence | Path | None) -> dict[str, Any]:
    """Return what run.json holds: a sha256 of each file ``given`` by an option of that name, and of now the "sessions".

    A session has the versions, the device in words, and the time, in UTC, when it began.
    """
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "hkmap": __version__,
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "opencv": cv2.__version__, "platform": platform.platform(), "device": in_words(device),
    }
    return {"files": {name: _files(one) for name, one in given.items() if one is not None}, "sessions": [session]}


def _files(given: ShardSequence | Path) -> list[dict[str, str]]:
    if isinstance(given, ShardSequence):
        digests = {shard.path: shard.digest for shard in given.shards}
    else:
        with open_file(given) as file:
            digests = {given: hashlib.file_digest(file, "sha256").hexdigest()}
    return [{"path": text_of(path), "sha256": digest} for path, digest in digests.items()]


@contextmanager
def opened_run(
    folder: Path, config: dict[str, Any], info: dict[str, Any], *, overwrite: bool, resume: bool
) -> Iterator[Path]:
    """Keep other runs out of a run's folder, and yield the folder to write to until the first checkpoint.

    That is ``folder`` itself, or to replace a run there another one inside, so that a run which fails early leaves the
    old one whole; `settle` moves it. `write_run` begins it. ``info`` is `run_info`'s. Raises RunError where the folder
    holds a run that may be neither replaced nor resumed, or had other options or files, and OutputError where it may
    not be written to, or another process is writing it.
    """
    made = not folder.exists()
    try:
        with ExitStack() as stack:
            _lock(folder, stack)
            if resume:
                _check_resumable(folder, config, info)
                yield folder
                return
            there = any(os.path.lexists(folder / name) for name in (*RUN_FILES, *FORMER_FILES))
            if there and not overwrite:
                raise RunError(f"{folder}: holds a run already; choose another --out, or use --overwrite or --resume")
            for left in folder.glob(f"{_BEGUN}*"):      # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            begun = Path(tempfile.mkdtemp(prefix=_BEGUN, dir=folder)) if there else folder
            try:
                yield begun
            finally:
                if begun != folder:
                    shutil.rmtree(begun, ignore_errors=True)
    finally:
        if made:
            with suppress(OSError):      # it holds something
                folder.rmdir()


def _lock(folder: Path, stack: ExitStack) -> None:
    try:
        stack.enter_context(locked(folder / "log.jsonl"))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"{folder}: {error.strerror}; expected a run folder that you may write to") from error
        raise


def write_run(folder: Path, config: dict[str, Any], info: dict[str, Any]) -> None:
    """Write what a run begins with, or goes on with: its config.toml, and run.json with one session more."""
    write_config(folder / "config.toml", config)
    write_json(folder / "run.json", {**info, "sessions": [*read_info(folder)["sessions"], *info["sessions"]]})


def settle(begun: Path, folder: Path) -> None:
    """Put the files of a run that has its first checkpoint in the place of an older run's."""
    if begun == folder:
        return
    for name in reversed((*FORMER_FILES, *RUN_FILES)):
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FILES:
        if (begun / name).exists():
            (begun / name).replace(folder / name)


def _check_resumable(folder: Path, config: dict[str, Any], info: dict[str, Any]) -> None:
    there = any((folder / name).exists() for name in ("state.pt", "last.pt"))
    if not there or not (folder / "config.toml").exists():
        raise RunError(f"{folder}: no run to resume; expected its state.pt and config.toml; omit --resume")
    before, kept = read_config(folder / "config.toml"), read_info(folder)
    validated = before.get("val") or before.get("val_share")
    before = {**FORMER_OPTIONS, "select": "top1" if validated else "last", **before}
    now = FORMER_OPTIONS | {name: json.loads(json.dumps(value)) for name, value in config.items() if value is not None}
    for name in sorted({*before, *now} - _FREE - kept["files"].keys()):
        if before.get(name) != now.get(name):
            raise RunError(
                f"{folder}: {name} is {now.get(name)!r:.80}, the run to resume had {before.get(name)!r:.80}; "
                f"repeat its options by --config {folder / 'config.toml'}"
            )
    for name, files in kept["files"].items():
        _compare(folder, name, info["files"].get(name, []), files)


def _compare(folder: Path, name: str, now: list[dict[str, str]], before: list[dict[str, str]]) -> None:
    """Raise RunError unless the files of an option hold what those of the run to resume did, in the same order."""
    if [file["sha256"] for file in now] == [file["sha256"] for file in before]:
        return
    found, expected = ([f"{file['path']} ({file['sha256'][:12]}…)" for file in files] for files in (now, before))
    raise RunError(
        f"{folder}: {name} is {few(found, 3) or 'not given'}, the run to resume had {few(expected, 3)}, which holds "
        "something else; give the same files"
    )


def read_info(folder: Path) -> dict[str, Any]:
    """Return a run's run.json; older runs have none, and so no files to compare."""
    path = folder / "run.json"
    if not path.exists():
        return {"files": {}, "sessions": []}
    try:
        info = json.loads(file_content(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not a JSON file ({type(error).__name__}); copy it again, or remove it") from error
    check_values(path, info, _INFO)
    return info


def warn_of_training_data(run: Path, shards: ShardSequence) -> None:
    """Warn where a run, a folder or a file of weights in it, learnt from one of the shards, by any name."""
    folder = run if run.is_dir() else run.parent
    known = {file["sha256"] for file in read_info(folder)["files"].get("shards", [])}
    for shard in shards.shards:
        if shard.digest in known:
            logger.warning(
                "%s: the network learnt from this shard, so its figures say little of other images; evaluate it on "
                "shards that it has not seen", shard.path,
            )


def _named_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(files, list) and all(
            isinstance(file, dict) and file.keys() == {"path", "sha256"} and all(map(TEXT.test, file.values()))
            for file in files
        ) for files in value.values()
    )


_INFO: Schema = {
    "files": Kind("paths and digests by option", _named_files),
    "sessions": Kind("a list", lambda value: isinstance(value, list)),
}


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
        options = tomllib.loads(file_content(path).decode())
    except (ValueError, RecursionError) as error:      # a number of thousands of digits, brackets in brackets
        raise RunError(f"{path}: not a TOML file of options ({error})") from error
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if type(item) not in (bool, int, float, str):
                found = f"{name:.80} has a {type(item).__name__}"
                raise RunError(f"{path}: {found}; expected a number, a text, true or false, or a list of such")
    for name in options.keys() & FORMER_NAMES.keys():
        options[name] = FORMER_NAMES[name].get(str(options[name]), options[name])
    return options


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, indented; a figure that does not exist is None, as JSON has no NaN."""
    with replacing(path, overwrite=True) as beside:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")

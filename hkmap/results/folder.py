"""What an evaluation leaves behind: a folder of results, which compare and report read, and a table of its records.

The folder has records.jsonl, whose first line is the header and whose others are a record each, and eval.json, the
report, which comes last: without it the evaluation is not finished.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hkmap.engine.checkpoints import CONTROL, LONGEST_SIDE, PREPROCESSING, TEXT, Kind, whole
from hkmap.engine.data import Numbers
from hkmap.engine.folders import read_config, run_info
from hkmap.engine.ranks import current, of_first
from hkmap.engine.runs import TrainedModel, model_file
from hkmap.errors import OutputError, RunError
from hkmap.evaluation.evaluate import EvaluationOptions, Row
from hkmap.evaluation.summary import settings_of
from hkmap.files.atomic import locked, refuse_existing
from hkmap.files.opening import file_content, open_file
from hkmap.networks.outside import Foreign, digest_of
from hkmap.records import Record, dump_record, parse_record, refuse_constant, text_of
from hkmap.report.tables import table
from hkmap.shards.folds import ids_of
from hkmap.shards.sequence import ShardSequence

RECORDS, REPORT = "records.jsonl", "eval.json"
INSIDE = "eval"         # the folder of results that a run folder stands for
VERSION = 1
OF_CURVES = ("step", "blur", "target")      # settings without which curves cannot be compared
_KNOWN = frozenset({"id", "label", "class", "image", "map", "certainty"})      # keys of a record
_AT_ONCE = 256          # rows of a table

logger = logging.getLogger("hkmap")


@dataclass(frozen=True)
class Results:
    """An evaluation that is finished: its report, its header and its records, in the order of the shards.

    A row is what `line_of` keeps, with arrays of probabilities (K,), of each curve (n + 1,) and of the map (h, w).
    """

    path: Path
    report: dict[str, Any]
    header: dict[str, Any]
    rows: list[dict[str, Any]]


# what is written


def header_of(
    source: Path, model: TrainedModel, shards: ShardSequence, options: EvaluationOptions, device: torch.device,
    **more: Any,
) -> dict[str, Any]:
    """Return what was measured, and how: the first line of records.jsonl. ``more`` is added to it.

    ``source`` is a run folder or a file, or the name of a network that another program made. Of the run, ``seed``,
    ``maps_learnt`` (whether human maps, or a sham of them, taught it) and ``mining`` are those of its config.toml; None
    where that is missing.
    """
    foreign = isinstance(model.architecture, Foreign)
    of_factory = foreign and not source.is_file()
    info = run_info(device, weights=None if of_factory else model_file(source), shards=shards)
    weights = digest_of(model.network) if of_factory else info["files"]["weights"][0]["sha256"]
    file = (source if source.is_dir() else source.parent) / "config.toml"
    taught: dict[str, Any] = dict.fromkeys(("seed", "maps_learnt", "mining"))
    if file.exists() and not foreign:
        config = read_config(file)
        learnt = config.get("command") == "finetune" and config.get("gamma") != 0
        taught = {"seed": config.get("seed"), "maps_learnt": learnt, "mining": config.get("mining", 0.0)}
    return {
        "hkmap_results": VERSION,
        "run": {
            "path": text_of(source), "weights": weights,
            "control": model.control, "arch": model.architecture.name, **taught,
        },
        "shards": info["files"]["shards"], "classes": list(model.class_names),
        "preprocessing": asdict(model.preprocessing), "metrics": list(options.metrics),
        "settings": settings_of(model, options, device),
        "batches": {"size": options.images_at_once, "processes": current().ranks},
        **more,
        "session": info["sessions"][0],
    }


def line_of(row: Row, model: TrainedModel, record: Record) -> dict[str, Any]:
    """Return what records.jsonl keeps of a row; ``keys`` are the record's other texts and numbers.

    All numbers are exact, but for those of the map, which are rounded to 4 decimals.
    """
    return {
        "number": row.number, **answer_of(row, model), "values": row.values,
        "probabilities": [float(text) for text in row.probabilities.astype(str)],      # the shortest of a float32
        "curves": row.curves,
        "map": None if row.map is None else [[round(value, 4) for value in line] for line in row.map.tolist()],
        "keys": {key: value for key, value in record.items() if key not in _KNOWN and fits(value, SIMPLE)},
    }


def answer_of(row: Row, model: TrainedModel) -> dict[str, Any]:
    """Return the answer to a record, with the names of the classes."""
    names = model.class_names
    return {
        "id": row.id, "label": row.label, "class": None if row.label is None else names[row.label] or None,
        "prediction": row.prediction, "predicted_class": names[row.prediction] or None,
        "confidence": float(row.probabilities[row.prediction]), "attention_mean": row.attention,
    }


def row_of(kept: dict[str, Any]) -> Row:
    """Return the row that `line_of` kept."""
    curves = {name: scores.tolist() for name, scores in kept["curves"].items()}
    return Row(
        kept["number"], kept["id"], kept["label"], kept["prediction"], kept["probabilities"], kept["attention_mean"],
        kept["map"], kept["values"], curves,
    )


class Kept(NamedTuple):
    """How many records an evaluation kept that was broken off, and where their lines end in records.jsonl."""

    records: int = 0
    end: int = 0


def kept_rows(
    folder: Path, header: dict[str, Any], measure: Callable[..., Iterator[Row]], numbers: Numbers, *,
    model: TrainedModel, shards: ShardSequence, resume: bool,
) -> Iterator[Row]:
    """Yield what ``measure(chosen=numbers)`` does, and keep it in a folder of results as it comes.

    With ``resume``, what the folder has already is not measured again; `evaluate` asks only for the maps of its last
    batch, as the first sample after it may be given one of these. Of several ranks the first keeps the rows.
    """
    begun = Kept()
    if resume:
        ids = ids_of(shards)
        begun = of_first(lambda: kept(folder, header, [ids[number] for number in numbers]))
    left = begun.records < len(numbers)
    rows = measure(chosen=numbers, known=begun.records) if left else iter(())
    yield from written(folder, header, rows, model, shards, begun) if current().first else rows


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise OutputError where ``folder`` is a file, or holds results that may be neither replaced nor gone on with."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: a file, where a folder of results is to be written; choose another name")
    if not (resume or overwrite) and any((folder / name).exists() for name in (RECORDS, REPORT)):
        raise OutputError(f"{folder}: holds results already; choose another --out, or use --overwrite or --resume")
    refuse_existing(folder / RECORDS, overwrite=True)       # a pipe, on which nobody may ever read


def kept(folder: Path, header: dict[str, Any], ids: Sequence[str]) -> Kept:
    """Return what an evaluation of the records ``ids`` that was broken off has kept, up to a line that is torn.

    That is a whole number of batches, as figures depend on their batch in the last bits: those of the other records are
    then the same as in an unbroken evaluation. Raises RunError where it had another header, or other records.
    """
    if not (folder / RECORDS).exists():
        return Kept()
    with open_file(folder / RECORDS) as file:
        first = file.readline()
        if not first.endswith(b"\n"):
            return Kept()
        before = _header(folder, first)
        if differs := _difference(json.loads(json.dumps(header)), before):
            raise RunError(f"{folder}: {differs}; give the same options to go on, or use --overwrite")
        ends = [len(first)]
        for identifier, text in zip(ids, file, strict=False):
            line = _record(text, before) if text.endswith(b"\n") else None
            if line is None:
                break
            if line["id"] != identifier:
                raise RunError(
                    f'{folder}: record {len(ends)} is "{line["id"]}", and "{identifier}" is to be measured; give the '
                    "same --baseline to go on, or use --overwrite"
                )
            ends.append(ends[-1] + len(text))
    records = len(ends) - 1
    if records < len(ids):
        records -= records % (header["batches"]["size"] * header["batches"]["processes"])
    return Kept(records, ends[records])


def written(
    folder: Path, header: dict[str, Any], rows: Iterable[Row], model: TrainedModel, shards: ShardSequence,
    begun: Kept,
) -> Iterator[Row]:
    """Write records.jsonl as rows come, and pass them on, after those that are kept already.

    What raises before the first row leaves the folder as it is.
    """
    if begun.records:
        with open_file(folder / RECORDS) as file:
            yield from (row_of(_record(text, header)) for text in islice(file, 1, begun.records + 1))
    rows = iter(rows)
    first = list(islice(rows, 1))
    with locked(folder / RECORDS), (folder / RECORDS).open("ab") as file:
        (folder / REPORT).unlink(missing_ok=True)
        file.truncate(begun.end)
        if not begun.end:
            file.write(dump_record(header))
        for row in chain(first, rows):
            record = parse_record(shards.text(row.number), shards.place(row.number))
            file.write(dump_record(line_of(row, model, record)))
            file.flush()
            yield row


def tabled(rows: Iterable[Row], path: Path, model: TrainedModel, *, overwrite: bool) -> Iterator[Row]:
    """Write a table of the rows, with a column per figure, and pass them on; it has its name when they have ended."""
    rows = iter(rows)
    some = list(islice(rows, _AT_ONCE))
    columns = {
        "id": str, "label": int, "class": str, "prediction": int, "predicted_class": str, "confidence": float,
        "correct": bool, "attention_mean": float, **{name: float for row in some[:1] for name in row.values},
    }
    with table(path, columns, overwrite=overwrite) as write:
        while some:
            right = [None if row.label is None else row.label == row.prediction for row in some]
            write([{**answer_of(row, model), **row.values, "correct": one}
                   for row, one in zip(some, right, strict=True)])
            yield from some
            some = list(islice(rows, _AT_ONCE))


# what is read


def results_folder(path: Path) -> Path:
    """Return the folder of results that ``path`` stands for: itself, or the one inside a run folder.

    Raises RunError where there is none, or none that is finished.
    """
    folders = path, path / INSIDE
    for folder in folders:
        if (folder / REPORT).exists():
            return folder
    for folder in folders:
        if (folder / RECORDS).exists():
            raise RunError(f"{folder}: the evaluation is not finished; go on with its `hkmap eval` and --resume")
    raise RunError(
        f"{path}: has no results; expected a folder of `hkmap eval SHARD --from RUN --out {path / INSIDE}`, "
        "or a run folder with one inside"
    )


def read_results(path: Path) -> Results:
    """Read the results in a folder, or in a run folder; raise RunError where they are missing or damaged."""
    folder, again = results_folder(path), "run `hkmap eval` again"
    rows: list[dict[str, Any]] = []
    try:
        report = parsed_json(file_content(folder / REPORT))
        with open_file(folder / RECORDS) as file:
            header = _header(folder, file.readline())
            for number, text in enumerate(file, start=2):
                row = _record(text, header)
                if row is None or row["values"].keys() != (rows or [row])[0]["values"].keys():
                    raise RunError(f"{folder / RECORDS} line {number}: no record that fits the header; {again}")
                rows.append(row)
    except OSError as error:
        raise RunError(f"{folder / RECORDS}: {error.strerror}; {again}") from error
    if not fits(report, _REPORT) or report["samples"] != len(rows) or len({row["id"] for row in rows}) != len(rows):
        raise RunError(f"{folder / REPORT}: no report of the {len(rows)} records beside it; {again}")
    return Results(folder, report, header, rows)


def same_data(results: Sequence[Results]) -> None:
    """Raise RunError unless all results are of the same records, in the same order, with the same labels.

    Warns where the shards hold something else all the same, such as other images or maps under the same ids.
    """
    first, *others = results
    for other in others:
        for one, two in ((first, other), (other, first)):
            there = {row["id"] for row in two.rows}
            if missing := [row["id"] for row in one.rows if row["id"] not in there]:
                raise RunError(
                    f'{two.path}: lacks {len(missing)} of the {len(one.rows)} records of {one.path}, such as '
                    f'"{missing[0]}"; evaluate both on the same records'
                )
        for ours, theirs in zip(first.rows, other.rows, strict=True):
            if ours["id"] != theirs["id"]:
                raise RunError(
                    f"{other.path}: has the records in another order than {first.path}; name the same shards in the "
                    "same order"
                )
            if ours["label"] != theirs["label"] or len({ours["class"], theirs["class"]} - {None}) > 1:
                told = " and ".join(f"{row['label']} ({row['class'] or 'unnamed'})" for row in (theirs, ours))
                raise RunError(
                    f'{other.path}: the labels of record "{ours["id"]}" here and in {first.path} are {told}; evaluate '
                    "both on the same shards"
                )
    digests = [[shard["sha256"] for shard in found.header["shards"]] for found in results]
    if apart := [found.path for found, own in zip(results, digests, strict=True) if own != digests[0]]:
        logger.warning("%s: the shards are not those of %s, though the ids are the same", apart[0], first.path)


def unlike(results: Sequence[Results], names: Sequence[str]) -> dict[str, str]:
    """Return which of the settings ``names`` are not the same in all results, and what they are."""
    given = {name: dict.fromkeys(str(found.header["settings"].get(name)) for found in results) for name in names}
    return {name: ", ".join(values) for name, values in given.items() if len(values) > 1}


# whether it fits

NUMBER = Kind("a finite number", lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max)
_SHARE = Kind("a number from 0 to 1", lambda value: NUMBER.test(value) and 0 <= value <= 1)
BOOL = Kind("true or false", lambda value: isinstance(value, bool))
COUNT, _SIDE, SIMPLE = whole(0, 2**62), whole(1, LONGEST_SIDE), (TEXT, NUMBER, BOOL)
_SIZE = Kind("height and width", lambda value: isinstance(value, list) and [*map(_SIDE.test, value)] == [True, True])
_SETTINGS = {"step": whole(1, LONGEST_SIDE**2), "image_size": _SIZE, "map_size": _SIZE}
#: What JSON must have, as `fits` reads it; it may have more.
_HEADER = {
    "hkmap_results": COUNT, "shards": [{"path": TEXT, "sha256": TEXT}], "classes": [TEXT], "metrics": [TEXT],
    "run": {"path": TEXT, "control": CONTROL, "arch": TEXT, "seed": (COUNT, None), "maps_learnt": (BOOL, None)},
    "settings": _SETTINGS, "preprocessing": PREPROCESSING,
}
_REPORT = {"samples": COUNT, "metrics": {str: (NUMBER, None)}, "counts": {str: COUNT}, "settings": _SETTINGS}
_RECORD = {
    "id": TEXT, "number": COUNT, "label": (COUNT, None), "class": (TEXT, None), "prediction": COUNT,
    "predicted_class": (TEXT, None), "confidence": _SHARE, "attention_mean": (NUMBER, None),
    "values": {str: (NUMBER, None)}, "curves": {}, "keys": {str: SIMPLE},
}


def parsed_json(text: bytes) -> Any:
    """Return what a line holds, None where it is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON has a shape: a Kind, None, a tuple of choices, a list of one shape, or a dict by name.

    A dict with the one name ``str`` is of any names.
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, one) for item, one in product(value, shape))
    if isinstance(shape, dict):
        named = dict.fromkeys(value, shape[str]) if isinstance(value, dict) and str in shape else shape
        return isinstance(value, dict) and all(name in value and fits(value[name], one) for name, one in named.items())
    return value is None if shape is None else shape.test(value)


def _array(value: Any, *, axes: int) -> Any:
    """Return finite numbers in lists of equal length as an array, None where it is something else."""
    try:
        found = np.array(value)
    except ValueError:
        return None
    fits = found.dtype.kind in "if" and found.ndim == axes and found.size and np.isfinite(found).all()
    return found.astype(np.float64) if fits else None


def _record(text: bytes, header: dict[str, Any]) -> Any:
    """Return the row of a line, None where it is no record beside such a header."""
    row = parsed_json(text)
    if not fits(row, _RECORD) or not row.keys() >= {"probabilities", "map"}:
        return None
    shares = _array(row["probabilities"], axes=1)
    shown = None if row["map"] is None else _array(row["map"], axes=2)
    curves = {name: _array(scores, axes=1) for name, scores in row["curves"].items()}
    if shares is None or (shown is None) != (row["map"] is None) or any(scores is None for scores in curves.values()):
        return None
    classes = len(header["classes"])
    if len(shares) != classes or max(row["prediction"], row["label"] or 0) >= classes:
        return None
    if shares.min() < 0 or shares.max() > 1 or any(len(scores) < 2 for scores in curves.values()):
        return None
    row |= {"probabilities": np.float32(shares), "curves": curves, "map": None if shown is None else np.float32(shown)}
    return row


def _header(folder: Path, text: bytes) -> dict[str, Any]:
    """Return the header of results; raise RunError where it is none, or of another version."""
    header = parsed_json(text)
    version = header.get("hkmap_results") if isinstance(header, dict) else None
    if type(version) is int and version != VERSION:
        raise RunError(f"{folder}: results of version {version}, expected {VERSION}; use the hkmap that wrote them")
    if not fits(header, _HEADER):
        raise RunError(f"{folder / RECORDS}: does not begin with a header of results; run `hkmap eval` again")
    return dict(header)


def _difference(now: Any, before: Any, place: str = "") -> str | None:
    """Return in words where two headers differ first, but for where files lie, and for the session."""
    if isinstance(now, list) and isinstance(before, list):
        now, before = (dict(enumerate(items)) for items in (now, before))
    if not (isinstance(now, dict) and isinstance(before, dict)):
        said = f"{place} is {now!r:.80}, the evaluation to go on with had {before!r:.80}"
        return None if now == before else said
    names = [name for name in {**now, **before} if name not in ("path", "session")]
    found = (_difference(now.get(name), before.get(name), f"{place}.{name}".removeprefix(".")) for name in names)
    return next(filter(None, found), None)

"""What an evaluation leaves behind: a folder of results, which compare and report read, and a table of its records.

The folder has records.jsonl, whose first line is the header and whose others are a record each, and eval.json, the
report, which comes last: without it the evaluation is not finished.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

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
_KNOWN = frozenset({"id", "label", "class", "image", "map", "certainty"})      # keys of a record
_AT_ONCE = 256          # rows of a table


@dataclass(frozen=True)
class Results:
    """An evaluation that is finished: its report, its header and its records, in the order of the shards."""

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
    names = model.class_names
    return {
        "id": row.id, "number": row.number,
        "label": row.label, "class": None if row.label is None else names[row.label] or None,
        "prediction": row.prediction, "predicted_class": names[row.prediction] or None,
        "confidence": float(row.probabilities[row.prediction]), "attention_mean": row.attention,
        "values": row.values,
        "probabilities": [float(text) for text in row.probabilities.astype(str)],      # the shortest of a float32
        "curves": row.curves,
        "map": None if row.map is None else [[round(value, 4) for value in line] for line in row.map.tolist()],
        "keys": {key: value for key, value in record.items() if key not in _KNOWN and _fits(value, (str, float, bool))},
    }


def row_of(line: dict[str, Any]) -> Row:
    """Return the row that `line_of` kept."""
    return Row(
        line["number"], line["id"], line["label"], line["prediction"], np.array(line["probabilities"], np.float32),
        line["attention_mean"], None if line["map"] is None else np.array(line["map"], np.float32),
        line["values"], line["curves"],
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
            line = _json(text) if text.endswith(b"\n") else None
            if line is None or not _is_record(line, before):
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
            yield from (row_of(json.loads(text)) for text in islice(file, 1, begun.records + 1))
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
            lines = (line_of(row, model, {}) for row in some)
            write([{**line, "correct": _correct(line), **line["values"]} for line in lines])
            yield from some
            some = list(islice(rows, _AT_ONCE))


def _correct(line: dict[str, Any]) -> bool | None:
    return None if line["label"] is None else line["label"] == line["prediction"]


# what is read


def results_folder(path: Path) -> Path:
    """Return the folder of results that ``path`` stands for: itself, or the one inside a run folder.

    Raises RunError where there is none, or none that is finished.
    """
    for name in (REPORT, RECORDS):
        for folder in (path, path / INSIDE):
            if (folder / name).exists() and name == REPORT:
                return folder
            if (folder / name).exists():
                raise RunError(f"{folder}: the evaluation is not finished; go on with its `hkmap eval` and --resume")
    raise RunError(
        f"{path}: has no results; expected a folder of `hkmap eval SHARD --from RUN --out {path / INSIDE}`, "
        "or a run folder with one inside"
    )


def read_results(path: Path) -> Results:
    """Read the results in a folder, or in a run folder; raise RunError where they are missing or damaged."""
    folder = results_folder(path)
    try:
        report = _json(file_content(folder / REPORT))
        first, *lines = file_content(folder / RECORDS).removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise RunError(f"{folder / RECORDS}: {error.strerror}; run `hkmap eval` again") from error
    header, rows = _header(folder, first), [_json(line) for line in lines]
    for number, row in enumerate(rows, start=2):
        if not _is_record(row, header) or row["values"].keys() != rows[0]["values"].keys():
            raise RunError(f"{folder / RECORDS} line {number}: no record that fits the header; run `hkmap eval` again")
    if not _fits(report, _REPORT) or report["samples"] != len(rows) or len({row["id"] for row in rows}) != len(rows):
        raise RunError(f"{folder / REPORT}: no report of the {len(rows)} records beside it; run `hkmap eval` again")
    return Results(folder, report, header, rows)


def same_data(results: Sequence[Results]) -> None:
    """Raise RunError unless all results are of the same records, in the same order, with the same labels."""
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


# whether it fits

#: What JSON must have, as `_fits` reads it; it may have more.
_HEADER = {
    "hkmap_results": int,
    "run": {"path": str, "control": str, "arch": str, "seed": (int, None), "maps_learnt": (bool, None)},
    "shards": [{"path": str, "sha256": str}], "classes": [str], "settings": {}, "metrics": [str], "preprocessing": {},
}
_REPORT = {"samples": int, "metrics": {str: (float, None)}, "counts": {str: int}}
_RECORD = {
    "id": str, "number": int, "label": (int, None), "class": (str, None), "prediction": int,
    "predicted_class": (str, None), "confidence": float, "attention_mean": (float, None),
    "values": {str: (float, None)}, "probabilities": [float], "curves": {str: [float]}, "map": ([[float]], None),
    "keys": {str: (str, float, bool)},
}


def _json(text: bytes) -> Any:
    """Return what a line holds, None where it is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON has a shape: a type, a tuple of choices, a list of one shape, or a dict by name.

    A dict with the one name ``str`` is of any names. float is any finite number, int a number from 0.
    """
    if isinstance(shape, tuple):
        return any(_fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        named = dict.fromkeys(value, shape[str]) if isinstance(value, dict) and str in shape else shape
        return isinstance(value, dict) and all(name in value and _fits(value[name], one) for name, one in named.items())
    if shape is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return value is None if shape is None else type(value) is shape and (shape is not int or value >= 0)


def _is_record(line: Any, header: dict[str, Any]) -> bool:
    """Whether a line is a record's, beside such a header."""
    if not _fits(line, _RECORD):
        return False
    classes, widths = len(header["classes"]), {len(row) for row in ([[0.0]] if line["map"] is None else line["map"])}
    return (
        max(line["prediction"], line["label"] or 0) < classes == len(line["probabilities"])
        and all(0 <= share <= 1 for share in (line["confidence"], *line["probabilities"]))
        and all(len(scores) > 1 for scores in line["curves"].values())
        and len(widths) == 1 and 0 not in widths
    )


def _header(folder: Path, text: bytes) -> dict[str, Any]:
    """Return the header of results; raise RunError where it is none, or of another version."""
    header = _json(text)
    version = header.get("hkmap_results") if isinstance(header, dict) else None
    if type(version) is int and version != VERSION:
        raise RunError(f"{folder}: results of version {version}, expected {VERSION}; use the hkmap that wrote them")
    if not _fits(header, _HEADER):
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

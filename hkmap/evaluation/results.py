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
from hkmap.engine.folders import read_config, run_info, text_of
from hkmap.engine.ranks import current, of_first
from hkmap.engine.runs import TrainedModel, model_file
from hkmap.errors import OutputError, RunError
from hkmap.evaluation.evaluate import EvaluationOptions, Row
from hkmap.evaluation.summary import settings_of
from hkmap.files.atomic import locked
from hkmap.files.opening import file_content, open_file
from hkmap.files.tables import table
from hkmap.records import Record, dump_record, parse_record, refuse_constant
from hkmap.shards.folds import ids_of
from hkmap.shards.sequence import ShardSequence

RECORDS, REPORT = "records.jsonl", "eval.json"
INSIDE = "eval"         # the folder of results that a run folder stands for
VERSION = 1
_NOT_COMPARED = frozenset({"path", "session"})      # of the headers of an evaluation that goes on: where, and when
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

    Of the run, ``seed``, ``maps_learnt`` (whether human maps, or a sham of them, taught it) and ``mining`` are those of
    its config.toml; None where that is missing.
    """
    info = run_info(device, weights=model_file(source), shards=shards)
    file = (source if source.is_dir() else source.parent) / "config.toml"
    config = read_config(file) if file.exists() else None
    return {
        "hkmap_results": VERSION,
        "run": {
            "path": text_of(source), "weights": info["files"]["weights"][0]["sha256"],
            "seed": config and config.get("seed"), "control": model.control, "arch": model.architecture.name,
            "maps_learnt": config and config.get("command") == "finetune" and config.get("gamma", 1) > 0,
            "mining": config and config.get("mining", 0.0),
        },
        "shards": info["files"]["shards"], "classes": list(model.class_names),
        "preprocessing": asdict(model.preprocessing), "metrics": list(options.metrics),
        "settings": settings_of(model, options, device),
        "batches": {"size": options.batch_size, "processes": current().ranks},
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
        "keys": {key: value for key, value in record.items() if key not in _KNOWN and _is_scalar(value)},
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

    With ``resume``, what the folder has already is not measured again. Of several ranks the first keeps the rows.
    """
    begun = Kept()
    if resume:
        ids = ids_of(shards)
        begun = of_first(lambda: kept(folder, header, [ids[number] for number in numbers]))
    left = numbers[begun.records:]
    rows = measure(chosen=left) if len(left) else iter(())
    yield from written(folder, header, rows, model, shards, begun) if current().first else rows


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise OutputError where ``folder`` is a file, or holds results that may be neither replaced nor gone on with."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: a file, where a folder of results is to be written; choose another name")
    if not (resume or overwrite) and any((folder / name).exists() for name in (RECORDS, REPORT)):
        raise OutputError(f"{folder}: holds results already; choose another --out, or use --overwrite or --resume")


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
        before = _checked_header(folder, _json(first))
        if differs := _difference(json.loads(json.dumps(header)), before):
            raise RunError(f"{folder}: {differs}; give the same options to go on, or use --overwrite")
        ends, tests = [len(first)], _tests(before)
        for identifier, text in zip(ids, file, strict=False):
            line = _json(text) if text.endswith(b"\n") else None
            if line is None or _wrong(line, tests):
                break
            if line["id"] != identifier:
                raise RunError(
                    f'{folder}: record {len(ends)} is "{line["id"]}", and "{identifier}" is to be measured; give the '
                    "same shards and --baseline to go on, or use --overwrite"
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


def tabled(
    rows: Iterable[Row], path: Path, model: TrainedModel, figures: Sequence[str], *, overwrite: bool
) -> Iterator[Row]:
    """Write a table of the rows, with a column per figure, and pass them on; it has its name when they have ended."""
    columns = {
        "id": str, "label": int, "class": str, "prediction": int, "predicted_class": str, "confidence": float,
        "correct": bool, "attention_mean": float, **dict.fromkeys(figures, float),
    }
    rows = iter(rows)
    with table(path, columns, overwrite=overwrite) as write:
        while some := list(islice(rows, _AT_ONCE)):
            lines = (line_of(row, model, {}) for row in some)
            write([{**line, "correct": _correct(line), **line["values"]} for line in lines])
            yield from some


def _correct(line: dict[str, Any]) -> bool | None:
    return None if line["label"] is None else line["label"] == line["prediction"]


# what is read


def results_folder(path: Path) -> Path:
    """Return the folder of results that ``path`` stands for: itself, or the one inside a run folder.

    Raises RunError where there is none, or none that is finished.
    """
    folders = (path, path / INSIDE)
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
    folder = results_folder(path)
    try:
        report = _json(file_content(folder / REPORT))
        first, *lines = file_content(folder / RECORDS).removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise RunError(f"{folder / RECORDS}: {error.strerror}; run `hkmap eval` again") from error
    header, rows = _checked_header(folder, _json(first)), list(map(_json, lines))
    tests, figures = _tests(header), None
    for number, row in enumerate(rows, start=2):
        wrong = _wrong(row, tests)
        figures = figures or (None if wrong else row["values"].keys())
        if wrong or row["values"].keys() != figures:
            what = f"line {number} of {RECORDS} is no record with {wrong or 'the same values'}"
            raise RunError(f"{folder}: {what} as its header says; the file is damaged, run `hkmap eval` again")
    wrong = _wrong(report, _REPORT)
    if wrong or report["samples"] != len(rows) or len({row["id"] for row in rows}) < len(rows):
        what = f"without {wrong}" if wrong else f"of {report['samples']} records"
        raise RunError(
            f"{folder}: {REPORT} is a report {what}, beside {len(rows)} lines in {RECORDS}; run `hkmap eval` again"
        )
    return Results(folder, report, header, rows)


def same_data(results: Sequence[Results]) -> None:
    """Raise RunError unless all results are of the same records, in the same order, with the same labels."""
    first, *others = results
    labels = {row["id"]: (row["label"], row["class"]) for row in first.rows}
    for other in others:
        theirs = {row["id"]: (row["label"], row["class"]) for row in other.rows}
        for one, ids, rest in ((first, labels, theirs), (other, theirs, labels)):
            if missing := [name for name in ids if name not in rest]:
                lacking = other if one is first else first
                raise RunError(
                    f'{lacking.path}: lacks {len(missing)} of the {len(ids)} records of {one.path}, the first is '
                    f'"{missing[0]}"; evaluate both on the same records'
                )
        for name, label in labels.items():
            if theirs[name][0] != label[0] or (label[1] and theirs[name][1] not in (None, label[1])):
                found = " and ".join(f"{one[0]} ({one[1] or 'unnamed'})" for one in (theirs[name], label))
                raise RunError(
                    f'{other.path}: record "{name}" has label {found} in {first.path}; evaluate both on the same shards'
                )
        if list(theirs) != list(labels):
            raise RunError(
                f"{other.path}: has the records in another order than {first.path}; name the same shards in the same "
                "order"
            )


# whether it fits

_KNOWN = frozenset({"id", "label", "class", "image", "map", "certainty"})

Test = Callable[[Any], bool]


def _json(text: bytes) -> Any:
    """Return what a line holds, None where it is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None


def _wrong(content: Any, tests: dict[str, Test]) -> str | None:
    """Return the name of the first value that is missing or does not fit, None where all do."""
    if not isinstance(content, dict):
        return next(iter(tests))
    return next((name for name, fits in tests.items() if name not in content or not fits(content[name])), None)


def _checked_header(folder: Path, header: Any) -> dict[str, Any]:
    """Return the header of results; raise RunError where it is none, or of another version."""
    version = header.get("hkmap_results") if isinstance(header, dict) else None
    if type(version) is int and version != VERSION:
        raise RunError(f"{folder}: results of version {version}, expected {VERSION}; use the hkmap that wrote them")
    if wrong := _wrong(header, _HEADER):
        raise RunError(f"{folder}: {RECORDS} does not begin with a header of results that has {wrong}; run `hkmap "
                       "eval` again")
    return dict(header)


def _difference(now: Any, before: Any, place: str = "") -> str | None:
    """Return in words where two headers differ first, but for paths and sessions."""
    if isinstance(now, list) and isinstance(before, list):
        now, before = (dict(enumerate(items)) for items in (now, before))
    if not (isinstance(now, dict) and isinstance(before, dict)):
        said = f"{place} is {now!r:.80}, the evaluation to go on with had {before!r:.80}"
        return None if now == before else said
    names = [name for name in {**now, **before} if name not in _NOT_COMPARED]
    found = (_difference(now.get(name), before.get(name), f"{place}.{name}".removeprefix(".")) for name in names)
    return next(filter(None, found), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool) or _is_number(value)


def _below(limit: float) -> Test:
    return lambda value: type(value) is int and 0 <= value < limit


def _or_none(fits: Test) -> Test:
    return lambda value: value is None or fits(value)


def _list_of(fits: Test, least: int = 0) -> Test:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(fits, value))


def _named(fits: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _object(**tests: Test) -> Test:
    return lambda value: isinstance(value, dict) and _wrong(value, tests) is None


def _is_grid(value: Any) -> bool:
    return _list_of(_list_of(_is_number, 1), 1)(value) and len({len(line) for line in value}) == 1


_HEADER: dict[str, Test] = {
    "hkmap_results": lambda value: type(value) is int and value == VERSION,
    "run": _object(
        path=_is_text, control=_is_text, arch=_is_text, seed=_or_none(_below(2**32)),
        maps_learnt=lambda value: value in (None, True, False),
    ),
    "shards": _list_of(_object(path=_is_text, sha256=_is_text)),
    "classes": _list_of(_is_text, 1),
    "settings": _object(),
    "metrics": _list_of(_is_text, 1),
    "preprocessing": _object(),
}
_REPORT: dict[str, Test] = {
    "samples": _below(math.inf), "metrics": _named(_or_none(_is_number)), "counts": _named(_below(math.inf)),
}


def _tests(header: dict[str, Any]) -> dict[str, Test]:
    """Return what a record's line must have beside such a header."""
    classes = len(header["classes"])
    probabilities = _list_of(_is_share)
    return {
        "id": _is_text, "number": _below(math.inf), "label": _or_none(_below(classes)), "class": _or_none(_is_text),
        "prediction": _below(classes), "predicted_class": _or_none(_is_text), "confidence": _is_share,
        "attention_mean": _or_none(_is_number), "values": _named(_or_none(_is_number)),
        "probabilities": lambda value: probabilities(value) and len(value) == classes,
        "curves": _named(_list_of(_is_number, 2)), "map": _or_none(_is_grid), "keys": _named(_is_scalar),
    }

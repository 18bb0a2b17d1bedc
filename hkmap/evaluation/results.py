"""What an evaluation leaves behind: a folder of results, which compare and report read.

It has records.jsonl, whose first line is the header and whose others are a record each, and eval.json, the report,
which comes last: without it the evaluation is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.evaluation.evaluate import Row
from hkmap.files.opening import file_content
from hkmap.records import Record

RECORDS, REPORT = "records.jsonl", "eval.json"
INSIDE = "eval"         # the folder of results that a run folder stands for


@dataclass(frozen=True)
class Results:
    """An evaluation that is finished: its report, its header and its records, in the order of the shards."""

    path: Path
    report: dict[str, Any]
    header: dict[str, Any]
    rows: list[dict[str, Any]]


def line_of(row: Row, model: TrainedModel, record: Record) -> dict[str, Any]:
    """Return what records.jsonl keeps of a row; ``keys`` are the record's own texts and numbers.

    Probabilities are rounded to 6 significant digits, maps to 4 decimals.
    """
    names = model.class_names
    return {
        "id": row.id, "number": row.number,
        "label": row.label, "class": None if row.label is None else names[row.label] or None,
        "prediction": row.prediction, "predicted_class": names[row.prediction] or None,
        "confidence": float(row.probabilities[row.prediction]), "attention_mean": row.attention,
        "values": row.values,
        "probabilities": [float(f"{value:.6g}") for value in row.probabilities.tolist()],
        "curves": row.curves,
        "map": None if row.map is None else [[round(value, 4) for value in line] for line in row.map.tolist()],
        "keys": {key: value for key, value in record.items() if isinstance(value, str | int | float)},
    }


def written(folder: Path, header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write records.jsonl as its lines come, and pass them on."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("w", encoding="utf-8") as file:
        for line in (header, *()):
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            yield line


def results_folder(path: Path) -> Path:
    """Return the folder of results that ``path`` stands for: itself, or the one inside a run folder.

    Raises RunError where there is none.
    """
    for folder in (path, path / INSIDE):
        if (folder / REPORT).exists():
            return folder
    raise RunError(
        f"{path}: has no results; expected a folder of `hkmap eval SHARD --from RUN --out {path / INSIDE}`, "
        "or a run folder with one inside"
    )


def read_results(path: Path) -> Results:
    """Read the results in a folder, or in a run folder; raise RunError where they are missing or damaged."""
    folder = results_folder(path)
    try:
        report = json.loads(file_content(folder / REPORT))
        header, *rows = map(json.loads, file_content(folder / RECORDS).splitlines())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder}: damaged results ({type(error).__name__}); run `hkmap eval` again") from error
    return Results(folder, report, header, rows)


def same_data(results: Sequence[Results]) -> None:
    """Raise RunError unless all results are of the same records."""
    first = [row["id"] for row in results[0].rows]
    for other in results[1:]:
        if [row["id"] for row in other.rows] != first:
            raise RunError(
                f"{other.path}: is of other records than {results[0].path}; evaluate both on the same shards"
            )

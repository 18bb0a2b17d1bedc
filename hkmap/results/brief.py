"""An arm in brief: of each figure the mean of every record over the seeds, and of every seed over the records.

The differences, intervals and p of `compare` follow from these alone. So one JSON file, a hundredth of the results,
lets anybody make a paper's statistics again. Figures of all records together, such as auroc, are not kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hkmap.engine.checkpoints import CONTROL, TEXT
from hkmap.errors import RunError
from hkmap.evaluation.metrics import METRICS, SampleMetric
from hkmap.files.atomic import replacing
from hkmap.files.opening import file_content
from hkmap.results.folder import BOOL, COUNT, NUMBER, SIMPLE, Results, fits, parsed_json

VERSION = 1
_OF_SEEDS, _OF_RECORDS = 6, 5       # significant digits
_NUMBERS = [(NUMBER, None)]
_SHAPE = {
    "hkmap_arm": COUNT, "control": CONTROL, "maps_learnt": (BOOL, None), "metrics": [TEXT], "settings": {},
    "shards": [{"path": TEXT, "sha256": TEXT}], "seeds": [(COUNT, None)], "curves": [TEXT],
    "classes": [TEXT], "records": {"id": [TEXT], "label": [(COUNT, None)]}, "keys": {str: [SIMPLE]},
    "figures": {str: {"of_seeds": [NUMBER], "of_records": _NUMBERS}},
}


def write_arm(path: Path, results: Sequence[Results], *, overwrite: bool = False) -> None:
    """Write the results of an arm, one per seed and all of the same records, as a file that `read_arm` reads."""
    with replacing(path, overwrite=overwrite) as beside:
        beside.write_text(json.dumps(brief_of(results), ensure_ascii=False) + "\n", encoding="utf-8")


def brief_of(results: Sequence[Results]) -> dict[str, Any]:
    """Return what the file of an arm holds; a record without a figure in all seeds has None.

    Of the records' keys those are kept in which records differ.
    """
    first = results[0]
    rows, header = first.rows, first.header
    metrics = [name for name in header["metrics"] if isinstance(METRICS[name], SampleMetric)]
    figures = {}
    for name in rows[0]["values"]:
        values = np.array([[row["values"][name] for row in found.rows] for found in results], np.float64)
        known = ~np.isnan(values).any(axis=0)
        if known.any():
            of_records = [None if math.isnan(mean) else _short(mean, _OF_RECORDS) for mean in values.mean(0).tolist()]
            of_seeds = [_short(mean, _OF_SEEDS) for mean in values[:, known].mean(1).tolist()]
            figures[name] = {"of_seeds": of_seeds, "of_records": of_records}
    found = {key: [row["keys"].get(key) for row in rows] for key in rows[0]["keys"]}
    return {
        "hkmap_arm": VERSION, "control": header["run"]["control"], "maps_learnt": header["run"]["maps_learnt"],
        "metrics": metrics, "settings": header["settings"],
        "shards": [{"path": Path(shard["path"]).name, "sha256": shard["sha256"]} for shard in header["shards"]],
        "seeds": [found.header["run"]["seed"] for found in results],
        "curves": [name for name in figures if name in rows[0]["curves"]],
        "classes": header["classes"], "records": {key: [row[key] for row in rows] for key in ("id", "label")},
        "keys": {key: given for key, given in found.items() if None not in given and len(set(given)) > 1},
        "figures": figures,
    }


def read_arm(path: Path) -> tuple[Results, ...]:
    """Return results, one per seed, whose means are those of a file of `write_arm`: all that `compare` asks for.

    A record's value with a seed is its mean plus what the seed differs from all seeds. Raises RunError where the file
    is none.
    """
    kept = parsed_json(file_content(path))
    version = kept.get("hkmap_arm") if isinstance(kept, dict) else None
    if type(version) is int and version != VERSION:
        raise RunError(f"{path}: an arm of version {version}, expected {VERSION}; use the hkmap that wrote it")
    if not fits(kept, _SHAPE) or not _complete(kept):
        raise RunError(f"{path}: no arm as `hkmap compare --keep` writes it; run it again")
    seeds, figures = kept["seeds"], kept["figures"]
    values = {name: _values(**figure) for name, figure in figures.items()}
    return tuple(_result(path, kept, number, values) for number in range(len(seeds)))


def is_kept(found: Results) -> bool:
    """Whether results are of an arm in brief, so that a record's values with single seeds are not known."""
    return "hkmap_arm" in found.header


def _short(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")


def _values(of_seeds: list[float], of_records: list[float | None]) -> list[list[float | None]]:
    apart = np.array(of_seeds) - np.mean(of_seeds)      # 0 of a single seed: its records tie as they did
    return [[None if mean is None else mean + own for mean in of_records] for own in apart]


def _result(path: Path, kept: dict[str, Any], number: int, values: dict[str, Any]) -> Results:
    run = {
        "path": f"{path}#{number}", "control": kept["control"], "maps_learnt": kept["maps_learnt"],
        "seed": kept["seeds"][number],
    }
    header = {"hkmap_arm": VERSION, "run": run, **{key: kept[key] for key in ("metrics", "settings", "shards")}}
    names: dict[int | None, str | None] = {None: None, **dict(enumerate(name or None for name in kept["classes"]))}
    rows = [
        {
            "id": identifier, "label": label, "class": names[label], "curves": dict.fromkeys(kept["curves"]),
            "keys": {key: given[at] for key, given in kept["keys"].items()},
            "values": {name: of_seeds[number][at] for name, of_seeds in values.items()},
        }
        for at, (identifier, label) in enumerate(zip(kept["records"]["id"], kept["records"]["label"], strict=True))
    ]
    means = {name: figure["of_seeds"][number] for name, figure in kept["figures"].items()}
    return Results(path, {"samples": len(rows), "metrics": means}, header, rows)


def _complete(kept: dict[str, Any]) -> bool:
    """Whether every list has as many items as there are records, or seeds, no id comes twice, and the metrics exist."""
    ids, seeds, figures = kept["records"]["id"], kept["seeds"], kept["figures"].values()
    of_records = [*kept["records"].values(), *kept["keys"].values(), *(figure["of_records"] for figure in figures)]
    lengths = {len(given) for given in of_records}
    there = bool(ids and seeds and figures) and all(name in METRICS for name in kept["metrics"])
    there = there and all((label or 0) < len(kept["classes"]) for label in kept["records"]["label"])
    return there and lengths == {len(set(ids))} and {len(figure["of_seeds"]) for figure in figures} == {len(seeds)}

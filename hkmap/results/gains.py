"""The records whose answers gained or lost most from one network to another, with what each network looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hkmap.engine.data import ShardExamples
from hkmap.engine.runs import kept_preprocessing
from hkmap.errors import HkmapError, RunError
from hkmap.files.images import Pixels
from hkmap.maps.check import Map
from hkmap.report.colouring import overlay
from hkmap.report.page import tile
from hkmap.results.folder import Results
from hkmap.shards.sequence import ShardSequence

MOST = 8        # records at each end


class Tile(NamedTuple):
    """A picture of a record, None where there is none, under its name, and what is written below it."""

    name: str
    picture: str | None
    lines: list[str]
    right: bool | None = None       # whether the answer is the label


class Shown(NamedTuple):
    """A record on the sheet; ``change`` is of the label's probability, or None."""

    id: str
    label: str
    change: float | None
    tiles: list[Tile]


class Sheet(NamedTuple):
    """Records from both ends of an order, under headings; ``said`` explains it, or why there is none."""

    halves: list[tuple[str, list[Shown]]]
    said: str


def sheet(results: Sequence[Results], names: Sequence[str], shams: Sequence[bool]) -> Sheet:
    """Return the records that gained and lost most from the first network to the last that is no sham control.

    The gain is that of the label's probability. Of a single network they are the most and the least confident. Where an
    image cannot be read from the shards that were measured, no record is shown.
    """
    after = max([number for number, sham in enumerate(shams) if number and not sham], default=len(results) - 1)
    first, last = results[0].rows, results[after].rows
    if after:
        said = f"Sorted by how much p(label), the probability of the label, changed from {names[0]} to {names[after]}."
        headings, labelled = ["Largest gains", "Largest losses"], [at for at, row in enumerate(last) if _has_label(row)]
        values = {at: _of_label(last[at]) - _of_label(first[at]) for at in labelled}
    else:
        said = "The records of whose answer the network is most and least sure."
        headings, values = ["Most confident", "Least confident"], {at: row["confidence"] for at, row in enumerate(last)}
    shown = [*dict.fromkeys((0, after, *(number for number, sham in enumerate(shams) if sham)))]
    halves = []
    try:
        examples = {number: _examples(results[number]) for number in shown}
        for heading, places in zip(headings, ends(values, signed=bool(after)), strict=True):
            records = []
            for at in places:
                rows = {names[number]: (results[number].rows[at], examples[number]) for number in shown}
                label = _called(first[at]["class"], first[at]["label"])
                records.append(Shown(first[at]["id"], label, values[at] if after else None, list(_tiles(rows))))
            halves.append((heading, records))
    except (HkmapError, OSError) as error:
        return Sheet([], f"No records are shown: {error}.")
    return Sheet([half for half in halves if half[1]], said)


def ends(values: Mapping[int, float], *, signed: bool) -> tuple[list[int], list[int]]:
    """Return the places of the highest and of the lowest values, at most MOST each, none in both; ties in order.

    ``signed`` takes the highest only from those above 0, and the lowest from those below.

    >>> ends({4: 0.5, 5: 0.75, 6: 0.25}, signed=False), ends({4: 0.5, 5: 0.75, 6: 0.25}, signed=True)
    (([5, 4], [6]), ([5, 4, 6], []))
    """
    order = sorted(values, key=lambda place: -values[place])
    middle = sum(value > 0 for value in values.values()) if signed else (len(order) + 1) // 2
    lowest = [place for place in order[middle:] if values[place] < 0 or not signed]
    return order[:middle][:MOST], lowest[::-1][:MOST]


def _has_label(row: Mapping[str, Any]) -> bool:
    return row["label"] is not None


def _of_label(row: Mapping[str, Any]) -> float:
    return float(row["probabilities"][row["label"]])


def _called(name: str | None, label: int | None) -> str:
    return name or ("no label" if label is None else f"label {label}")


def _examples(found: Results) -> ShardExamples:
    """Return the records as the network saw them; raise RunError where the shards are gone, or have changed."""
    for shard in found.header["shards"]:
        if not os.path.exists(shard["path"]):
            raise RunError(f"{shard['path']} is no longer there; write the report where the evaluation ran")
    shards = ShardSequence([Path(shard["path"]) for shard in found.header["shards"]])
    for reader, shard in zip(shards.shards, found.header["shards"], strict=True):
        if reader.digest != shard["sha256"]:
            raise RunError(f"{reader.path} is not what was measured, as its digest differs; evaluate again")
    height, width = found.header["settings"]["map_size"]
    return ShardExamples(shards, kept_preprocessing(found.header["preprocessing"]), (height, width))


def _tiles(rows: Mapping[str, tuple[Mapping[str, Any], ShardExamples]]) -> Iterator[Tile]:
    """Yield a record's image, the human map over it, and by the names of the networks their own maps and answers."""
    seen = {name: (row, examples.example(row["number"])) for name, (row, examples) in rows.items()}
    _, first = next(iter(seen.values()))
    yield Tile("image", tile(first.image), [])
    yield _mapped("human map", first.image, first.map if first.certainty.any() else None, [])
    for name, (row, example) in seen.items():
        said = [_called(row["predicted_class"], row["prediction"])]
        said += [f"p(label) {_of_label(row):.3f}"] if _has_label(row) else []
        right = row["label"] == row["prediction"] if _has_label(row) else None
        yield _mapped(name, example.image, row["map"], said, right)


def _mapped(name: str, image: Pixels, values: Map | None, said: list[str], right: bool | None = None) -> Tile:
    """Return a map over its image, from 0 to the map's own peak."""
    if values is None:
        return Tile(name, None, [*said, "no map"], right)
    peak = float(values.max())
    stretched = np.clip(values / peak if peak > 0 else values, 0, 1)
    return Tile(name, tile(overlay(image, stretched)), [*said, f"peak {peak:.2f}"], right)

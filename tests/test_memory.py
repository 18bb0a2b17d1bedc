"""What many records take in memory: opening and checking shards keeps a few numbers of each, and none of its text."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from hkmap.records import dump_record
from hkmap.shards.duplicates import leaks_between
from hkmap.shards.layout import Sample, ShardBuilder, checksum
from hkmap.shards.sequence import ShardSequence

FEW, MANY = 100, 5000       # records of a shard


def write(path: Path, count: int) -> Path:
    """Write a shard whose images are all alike, are none, and are not looked at."""
    path.touch()
    builder = ShardBuilder(path.parent)
    for number in range(count):
        sample = Sample({"id": f"{path.stem}/a name as long as those of files are/{number}"}, b"x", None, None, -1)
        text = dump_record(sample.record).rstrip(b"\n")
        builder.add(sample, text, checksum(sample, text))
    builder.write(path, [])
    builder.parts.close()
    return path


def traced(function: Callable[[list[Path]], object], paths: list[Path]) -> tuple[int, int]:
    """Return the bytes that what a function makes of shards keeps, and those that it took at most."""
    tracemalloc.start()
    kept = function(paths)
    found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return found


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Two shards of few records each, and two of many."""
    folder = tmp_path_factory.mktemp("series")
    return {count: [write(folder / f"{count}-{part:05d}.h5", count) for part in range(2)] for count in (FEW, MANY)}


def test_a_sequence_of_shards_keeps_numbers_of_each_record_alone(series: dict[int, list[Path]]) -> None:
    ShardSequence(series[FEW])      # what is loaded once is loaded
    few, many = (traced(ShardSequence, series[count])[0] for count in (FEW, MANY))
    assert (many - few) / (2 * (MANY - FEW)) < 64       # bytes; the id alone takes 100


def test_one_series_has_no_leaks_between_its_shards_and_none_are_looked_for(series: dict[int, list[Path]]) -> None:
    assert leaks_between(series[FEW]) == {}
    few, many = (traced(leaks_between, series[count])[1] for count in (FEW, MANY))
    assert (many - few) / (2 * (MANY - FEW)) < 80       # the offsets take 37; pairs of numbers would take 150


def test_shards_of_two_series_are_compared(series: dict[int, list[Path]]) -> None:
    assert sum(map(len, leaks_between([series[FEW][0], series[MANY][0]]).values())) == MANY

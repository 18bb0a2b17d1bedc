"""Series of shards: rolling over by size, and adding to what is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.cli._stream import byte_count
from hkmap.files.hdf5 import SLACK
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.verify import verify_shard
from hkmap.shards.writer import ShardWriter, WriterOptions

Hk = Callable[..., Any]
RANDOM = np.random.default_rng(0)
MAP = RANDOM.random((3, 4), dtype=np.float32)


def png(side: int) -> bytes:
    return bytes(cv2.imencode(".png", RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8))[1])


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    np.save("photos/map.npy", MAP)
    result: list[dict[str, Any]] = []
    for index in range(9):
        Path(f"photos/{index}.png").write_bytes(png(60))
        result.append({"id": str(index), "image": f"photos/{index}.png", "map": "photos/map.npy",
                       "label": index // 3, "class": f"class {index // 3}"})
    return result


def shards() -> list[Path]:
    return sorted(Path().glob("x-*.h5"))


# by size


@pytest.mark.parametrize(("parts", "limit"), [
    ({}, 60_000), ({}, 200_000), ({"certainty": MAP}, 40_000), ({"annotators": {"a": MAP, "ü": MAP}}, 50_000),
    ({"values": None}, 55_000),
])
@pytest.mark.parametrize("pixel_size", [None, (20, 30)])
def test_a_shard_takes_no_more_than_it_may(parts, limit, pixel_size, tmp_path) -> None:
    """As much as there is room for, and not a byte more: what comes late, as certainty or annotators, counts too."""
    sizes = [10, 30, 20, 40, 5, 50, 50, 10, 90, 10, 35, 60, 20, 20, 20, 8, 7, 30, 70, 25] * 2
    options = WriterOptions(shard_bytes=limit, pixel_size=pixel_size)
    parts = {"values": MAP, **parts}
    with ShardWriter(tmp_path / "x.h5", options=options) as writer:
        for index, side in enumerate(sizes):
            own = parts if index % 4 == 3 else {"values": parts["values"]}
            record = {"id": f"é{index}", "image": "x.png", "note": "x" * side}
            writer.add(record, png(side), own["values"], own.get("certainty"), annotators=own.get("annotators"))
    found = [path.stat().st_size for path in sorted(tmp_path.glob("x-*.h5"))]
    readers = [ShardReader(path) for path in sorted(tmp_path.glob("x-*.h5"))]
    assert sum(len(reader) for reader in readers) == len(sizes)
    assert len(found) > 1 or sum(found) <= limit
    for size, reader in zip(found, readers, strict=True):
        assert size <= limit or len(reader) == 1
        assert verify_shard(reader.path, depth="full")["ok"]
    for size, following in zip(found, readers[1:], strict=False):
        first = following.read(0)
        more = len(first.image_bytes) + len(following.text(0)) + 4 * MAP.nbytes
        assert size + more + SLACK > limit, "there was room"


def test_a_record_that_is_too_large_has_a_shard_of_its_own(hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("photos/1.png").write_bytes(png(300))
    done = hk("pack", "x.h5", "--shard-bytes", "100kB", stdin=records)
    assert done.exit_code == 0
    assert [shard["records"] for shard in done.records[0]["shards"]][:2] == [1, 1]
    assert [path.name for path in shards()] == [Path(shard["path"]).name for shard in done.records[0]["shards"]]


def test_what_comes_first_ends_a_shard(hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("photos/1.png").write_bytes(png(300))
    done = hk("pack", "x.h5", "--shard-bytes", "100kB", "--shard-size", 2, stdin=records)
    assert [shard["records"] for shard in done.records[0]["shards"]] == [1, 1, 2, 2, 2, 1]


@pytest.mark.parametrize(("text", "expected"), [
    ("1", 1), ("500000", 500_000), ("500kB", 500_000), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("2G", 2 * 10**9),
    ("1 KiB", 1024), ("3TB", 3 * 10**12), ("1TiB", 1 << 40), ("7B", 7),
])
def test_sizes_in_bytes(text: str, expected: int) -> None:
    assert byte_count(text) == expected


# adding


def test_shards_are_added(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 2, stdin=records[:4])
    before = [path.read_bytes() for path in shards()]
    done = hk("pack", "x.h5", "--append", "--shard-size", 3, stdin=records[4:])
    assert done.exit_code == 0
    result, = done.records
    assert [shard["path"] for shard in result["shards"]] == ["x-00002.h5", "x-00003.h5"]
    assert result["records"] == 5
    assert [path.read_bytes() for path in shards()[:2]] == before
    sequence = ShardSequence(shards())
    assert len(sequence) == 9
    assert sequence.classes == ["class 0", "class 1", "class 2"]
    names = ["class 0", "class 1", "class 2"]
    assert [ShardReader(path).classes for path in shards()] == [names[:1], names[:2], names, names]
    assert [sequence.read(index).record for index in range(9)] == records


def test_one_more_shard_is_added(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 2, stdin=records[:4])
    assert hk("pack", "x.h5", "--append", stdin=records[4:]).exit_code == 0
    assert [len(ShardReader(path)) for path in shards()] == [2, 2, 5]


def test_adding_goes_on_after_a_gap(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 2, stdin=records[:6])
    shards()[1].unlink()
    assert hk("pack", "x.h5", "--append", stdin=records[6:]).exit_code == 0
    assert [path.name for path in shards()] == ["x-00000.h5", "x-00002.h5", "x-00003.h5"]


def small_map(record: dict[str, Any]) -> dict[str, Any]:
    np.save("photos/small.npy", MAP[:2])
    return {**record, "map": "photos/small.npy"}


@pytest.mark.parametrize(("options", "change", "sentence"), [
    ([], lambda record: {**record, "id": "1"}, 'record "1": this id is in the series already; every record needs its'),
    ([], lambda record: {**record, "label": 0}, 'label 0 is class "class 2", but it was "class 0" before'),
    ([], small_map, r"2x4 \(height x width\), but the file's maps are 3x4"),
    (["--classes", "short.txt"], dict, '1 classes given, but label 1 is "class 1" already; give them all'),
    (["--classes", "other.txt"], dict, 'the series: label 1 is class "class 1", but it was "another" before'),
    (["--store", "pixels", "--size", 9], dict, "x-00000.h5: holds image files, and pixels of 9x9 are to be added; a"),
])
def test_what_does_not_fit_the_series(options: list[object], change: Any, sentence: str, hk, records) -> None:
    Path("short.txt").write_text("class 0\n")
    Path("other.txt").write_text("class 0\nanother\nclass 2\n")
    hk("pack", "x.h5", "--shard-size", 3, stdin=records[:6])
    done = hk("pack", "x.h5", "--append", *options, stdin=[records[6], change(records[7])])
    assert done.exit_code == 1
    assert re.search(sentence, done.stderr)
    assert sorted(path.name for path in Path().iterdir()) == [
        "other.txt", "photos", "short.txt", "x-00000.h5", "x-00001.h5"]


def test_given_classes_may_have_more_names(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 3, stdin=records[:6])
    Path("classes.txt").write_text("class 0\nclass 1\nclass 2\nclass 3\n")
    assert hk("pack", "x.h5", "--append", "--classes", "classes.txt", stdin=records[6:]).exit_code == 0
    assert ShardReader(shards()[-1]).classes == [f"class {label}" for label in range(4)]


def test_pixels_are_added_to_pixels(hk: Hk, records: list[dict[str, Any]]) -> None:
    pixels = ("--store", "pixels", "--size", "9")
    hk("pack", "x.h5", "--shard-size", 3, *pixels, stdin=records[:6])
    done = hk("pack", "x.h5", "--append", stdin=records[6:])
    assert "x-00000.h5: holds pixels of 9x9, and image files are to be added; a series holds one kind" in done.stderr
    assert hk("pack", "x.h5", "--append", *pixels, stdin=records[6:]).exit_code == 0
    assert ShardReader(shards()[-1]).pixel_size == (9, 9)


def test_there_must_be_something_to_add_to(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", stdin=records)      # one shard is no series
    done = hk("pack", "x.h5", "--append", stdin=records)
    assert done.exit_code == 1
    assert "Error: x-00000.h5: not there, and --append adds to a series of shards that is; omit it" in done.stderr


def test_adding_is_resumed(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 2, stdin=records[:3])
    options = ("--append", "--shard-size", 2, "--resume")
    bad = [*records[3:8], {"id": "no image"}]
    assert hk("pack", "x.h5", *options, stdin=bad).exit_code == 1
    assert [len(ShardReader(path)) for path in shards()] == [2, 1, 2, 2]
    done = hk("pack", "x.h5", *options, stdin=records[3:])
    assert done.exit_code == 0
    assert [Path(shard["path"]).name for shard in done.records[0]["shards"]] == [
        f"x-0000{number}.h5" for number in (2, 3, 4)]
    assert ShardSequence(shards()).shards[-1].ids == ["7", "8"]
    assert [len(ShardReader(path)) for path in shards()] == [2, 1, 2, 2, 2]


# classes that take much room


@pytest.mark.parametrize("options", [{}, {"shard_size": 4}])
def test_names_that_come_late_and_are_long(options: dict[str, int], tmp_path: Path) -> None:
    """An attribute of HDF5 that is longer than 64 KiB lies elsewhere than a short one."""
    with ShardWriter(tmp_path / "x.h5", **options) as writer:
        for index in range(12):
            record = {"id": str(index), "image": "x", "label": index, "class": f"{index}" * 4000}
            writer.add(record, png(index + 1), MAP if index % 3 else None, MAP if index == 7 else None)
    for number, path in enumerate(sorted(tmp_path.glob("*.h5"))):
        assert verify_shard(path, depth="full")["ok"]
        reader = ShardReader(path)
        assert reader.classes == [f"{label}" * 4000 for label in range(5 + number * 4 if options else 12)][:12]
        for index in range(len(reader)):
            assert reader.image(index).shape[0] == number * 4 + index + 1

"""The structure of a file, by our own reader of it, is what libhdf5 says; and no damage makes it do worse than that."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from test_hostile_shards import HOSTILE, write

from hkmap.errors import ShardError
from hkmap.files.hdf5 import Column, ContiguousFile, Structure, answer, parse_structure, read_structure
from hkmap.files.maps import open_writer
from hkmap.shards.writer import ShardWriter

VALUES = np.full((3, 4), 0.5, np.float32)


def parsed(path: Path) -> Structure | None:
    return parse_structure(path, path.stat().st_size)


def by_libhdf5(path: Path) -> Structure | None:
    """What libhdf5 says, None where it refuses; asked in this process, as the files are no harm to it."""
    found = answer(path, str(path), path.stat().st_size)
    if "refused" in found:
        assert found["refused"].startswith(str(path))
        return None
    columns = {name: Column(*place[:2], np.dtype(place[2])) for name, place in found["columns"].items()}
    return Structure(found["attributes"], columns)


def shard_of(path: Path, *, classes: list[str], annotators: bool = False, weights: bool = False) -> list[Path]:
    image = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
    with ShardWriter(path, classes=classes or None, shard_size=None if classes else 2) as writer:
        for index in range(5):
            own = {"a": VALUES, "é": VALUES} if annotators and index else {}
            record = {"id": str(index), "image": "x.png", "label": index, "class": f"c{index}"}
            writer.add(record, image, VALUES, VALUES if weights else None, annotators=own)
    return [shard.path for shard in writer.written]


@pytest.mark.parametrize("count", [0, 5, 60_000])
@pytest.mark.parametrize("more", [{}, {"annotators": True}, {"annotators": True, "weights": True}])
def test_what_hkmap_writes_is_parsed(count: int, more: dict[str, bool], tmp_path: Path) -> None:
    """Without classes given, the attribute is written twice."""
    for path in shard_of(tmp_path / "x.h5", classes=[f"c{number}" for number in range(count)], **more):
        assert parsed(path) == by_libhdf5(path) is not None
    with open_writer(tmp_path / "maps.h5") as writer:
        writer.save("a", VALUES)
    assert parsed(tmp_path / "maps.h5") == by_libhdf5(tmp_path / "maps.h5") is not None


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("latest", [False, True])
def test_both_say_the_same_of_hostile_files(name: str, latest: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write(path, HOSTILE[name][0], latest=latest, sealed=False)
    found, other = parsed(path), by_libhdf5(path)
    assert found in (None, other)
    assert found is None or not latest


@pytest.mark.parametrize("kind", ["i1", "u2", "<i4", "<f8", ">f4", "<f2"])
def test_numbers_of_other_types_are_left_to_libhdf5(kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["maps"] = np.zeros((2, 3, 4), kind)
    path = tmp_path / "x.h5"
    assert parsed(path) is None
    column = read_structure(path, path.stat().st_size).columns["maps"]
    assert (column.shape, column.dtype) == ((2, 3, 4), np.dtype(kind))
    assert not ContiguousFile(path).whole("maps").any()


ATTRIBUTES: list[tuple[Any, Any]] = [
    ("text", "text"), ("", ""), ("ü", "ü"), (7, 7), (-1, -1), (np.float32(0.5), 0.5), (np.uint8(3), 3), (True, True),
    (np.bytes_(b"fixed"), None), ([1, 2], None), (h5py.Empty("f4"), None), (np.array(["a"], "O"), None),
]


@pytest.mark.parametrize(("value", "expected"), ATTRIBUTES)
def test_attributes(value: Any, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["name"] = value
        file.create_group("g").attrs["other"] = 3
    assert read_structure(path, path.stat().st_size) == Structure({"name": expected}, {})
    assert (parsed(path) is None) == (expected is None)
    assert parsed(path) in (None, by_libhdf5(path))


def damaged(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        place = dice.randrange(len(changed)) if dice.random() < 0.5 else dice.randrange(512, 1200)
        changed[place] = dice.choice([changed[place] ^ 1 << dice.randrange(8), 0, 255])
    return bytes(changed[: dice.randrange(len(changed))] if dice.random() < 0.05 else changed)


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 500), *(pytest.param(seed, 10_000, marks=pytest.mark.soak) for seed in range(1, 4))]
)
def test_damage_gives_a_structure_or_none(seed: int, count: int, tmp_path: Path) -> None:
    path, = shard_of(tmp_path / "x.h5", classes=[f"c{number}" for number in range(5)], annotators=True)
    whole, dice = path.read_bytes(), random.Random(seed)
    refused = 0
    for _ in range(count):
        path.write_bytes(damaged(whole, dice))
        size, begin = path.stat().st_size, time.process_time()
        found = parse_structure(path, size)
        assert time.process_time() - begin < 0.5
        refused += found is None
        for column in found.columns.values() if found else ():
            assert 0 <= column.offset <= column.offset + column.shape[0] * column.row_bytes <= size
    assert refused > count / 10


def test_a_process_of_its_own_may_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    write(path, lambda file: None, latest=True, sealed=False)
    monkeypatch.setattr("hkmap.files.hdf5._WALL_SECONDS", 1e-3)
    with pytest.raises(ShardError, match=r"x\.h5: damaged HDF5, on which libhdf5 hangs or crashes; copy it again"):
        read_structure(path, path.stat().st_size)

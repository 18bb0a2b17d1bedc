"""hkmap check: a flipped bit, a lost byte, and every record that has one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from flip_bits import check_damage

from hkmap.errors import HkmapError, MapError, ShardError
from hkmap.files.hdf5 import Columns
from hkmap.files.maps import open_writer
from hkmap.shards.layout import Sample, ShardBuilder, checksum
from hkmap.shards.reader import ShardReader
from hkmap.shards.verify import verify_shard
from hkmap.shards.writer import ShardWriter
from hkmap.stream.references import load_certainty, load_map

Hk = Callable[..., Any]
RANDOM = np.random.default_rng(0)
MAPS = RANDOM.random((12, 5, 4), dtype=np.float32)
COUNT = 12


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve records; number 5 has no map, the odd ones have certainty, 3 and 8 maps of annotators."""
    monkeypatch.chdir(tmp_path)
    path = Path("x.h5")
    with ShardWriter(path) as writer:
        for index in range(COUNT):
            image = cv2.imencode(".png", RANDOM.integers(0, 256, (6, 5, 3), dtype=np.uint8))[1].tobytes()
            values = None if index == 5 else MAPS[index]
            certainty = MAPS[index] if index % 2 and index != 5 else None
            annotators = {"é": MAPS[0], "b": MAPS[1]} if index in (3, 8) else {}
            record = {"id": f"número {index}", "image": f"{index}.png", "label": index % 3}
            writer.add(record, image, values, certainty, annotators=annotators)
    return path


def flip(path: Path, *places: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= mask
    path.write_bytes(data)


def read_all(path: Path) -> None:
    reader = ShardReader(path)
    for index in range(len(reader)):
        reader.read(index)


def place_of(path: Path, name: str, row: int) -> int:
    """The first byte of a row; of byte strings, of string number ``row``."""
    file = Columns(path)
    column = file.by_name[name]
    if name.endswith("/bytes"):
        return column.offset + int(file.whole(name.replace("/bytes", "/offsets"))[row])
    return column.offset + row * column.row_bytes


def test_a_sound_shard(shard: Path, hk: Hk) -> None:
    for options, checked in (
        ([], ["user-block", "digest", "structure", "checksums"]),
        (["--quick"], ["user-block", "structure"]),
        (["--full"], ["user-block", "digest", "structure", "checksums", "images"]),
    ):
        done = hk("check", *options, shard)
        assert (done.exit_code, done.stderr) == (0, "x.h5: 12 records, nothing wrong\n")
        assert done.records == [{"path": "x.h5", "ok": True, "checked": checked, "records": 12, "problems": []}]
    assert hk("check", "-q", shard).stderr == ""


DATA = [
    ("images/bytes", 7, 7), ("maps", 4, 4), ("certainty", 3, 3), ("certainty", 4, 4), ("has_map", 2, 2),
    ("has_map", 5, 5), ("labels", 9, 9), ("ids/bytes", 6, 6), ("records/bytes", 11, 11), ("crc32", 0, 0),
    ("annotator_maps/maps", 0, 3), ("annotator_maps/maps", 3, 8), ("annotator_maps/names/bytes", 0, 3),
]


@pytest.mark.parametrize(("name", "row", "record"), DATA)
def test_the_damaged_record_is_named(name: str, row: int, record: int, shard: Path, hk: Hk) -> None:
    flip(shard, place_of(shard, name, row))
    digest, problem = hk("check", shard).records[0]["problems"]
    assert (digest["record"], digest["id"]) == (None, None)
    assert digest["sentence"].startswith("x.h5: its bytes have the sha256")
    assert problem["record"] == record
    assert problem["sentence"].startswith(f"x.h5#{record} (record ")
    assert name == "ids/bytes" or problem["id"] == f"número {record}"
    with pytest.raises(HkmapError, match=rf"^x\.h5#{record} \(record "):      # as does who reads it
        read_all(shard)


OFFSETS = [
    ("images/offsets", 4, 1 << 3, {3, 4}), ("ids/offsets", 4, 1 << 6, {3, 4}), ("records/offsets", 12, 1, {11}),
    ("records/offsets", 0, 1, {0}), ("annotator_maps/offsets", 4, 1 << 7, {3, 4}),
    ("annotator_maps/names/offsets", 4, 1 << 7, {8}), ("annotator_maps/offsets", 12, 1, {11}),
]


@pytest.mark.parametrize(("name", "row", "mask", "records"), OFFSETS)
@pytest.mark.parametrize("byte", [0, 5])
def test_damaged_offsets(name: str, row: int, mask: int, records: set[int], byte: int, shard: Path) -> None:
    flip(shard, place_of(shard, name, row) + byte, mask=mask)
    result = verify_shard(shard)
    named = {problem["record"] for problem in result["problems"]} - {None}
    assert named
    assert named <= records | {record - 1 for record in records}
    with pytest.raises(ShardError, match=r"^x\.h5"):
        read_all(shard)
    if byte:      # far beyond the end
        assert {problem["record"] for problem in verify_shard(shard, depth="quick")["problems"]} == named


def test_every_damaged_record_is_named(shard: Path, hk: Hk) -> None:
    flip(shard, *(place_of(shard, "images/bytes", index) + 3 for index in (1, 6, 10)), place_of(shard, "labels", 4) + 7)
    done = hk("check", shard)
    assert done.exit_code == 3
    assert [problem["record"] for problem in done.records[0]["problems"]] == [None, 1, 4, 6, 10]
    assert 'error: x.h5#4 (record "número 4"): label 72057594037927937 for 3 classes; the file is' in done.stderr
    assert len(done.stderr.splitlines()) == 5
    assert [problem["record"] for problem in hk("check", "--quick", shard).records[0]["problems"]] == [4]


def test_of_many_sentences_stderr_has_some(shard: Path, hk: Hk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkmap.cli.check._SENTENCES", 3)
    flip(shard, *(place_of(shard, "images/bytes", index) for index in range(COUNT)))
    done = hk("check", shard)
    assert len(done.records[0]["problems"]) == 13
    assert done.stderr.splitlines()[3:] == ["error: x.h5: 10 more; stdout lists them all"]


def test_each_byte_of_the_user_block_counts(shard: Path) -> None:
    """A digest cannot cover itself: the block is compared with what would be written anew."""
    whole = shard.read_bytes()
    dice = random.Random(0)
    for place in [*range(0, 256, 7), *range(256, 512, 17), 511]:
        shard.write_bytes(whole)
        flip(shard, place, mask=1 << dice.randrange(8))
        result = verify_shard(shard)
        assert not result["ok"], place
        assert result["records"] in (12, None)


def test_a_flipped_bit_anywhere_is_found_and_gives_no_other_data(shard: Path) -> None:
    """`make soak` flips thousands."""
    assert sum(check_damage(shard, 2, 300, "bit")) == 300


def test_a_shard_cut_short_anywhere(shard: Path) -> None:
    whole, dice = shard.read_bytes(), random.Random(0)
    for length in [0, 1, 100, 511, 512, 513, *(dice.randrange(514, len(whole)) for _ in range(14))]:
        shard.write_bytes(whole[:length])
        result = verify_shard(shard)
        assert not result["ok"]
        assert all(problem["sentence"].startswith("x.h5") for problem in result["problems"])
        with pytest.raises(ShardError, match=r"^x\.h5: (cut short|empty|damaged HDF5|\d+ bytes without)"):
            ShardReader(shard)
    shard.write_bytes(whole + b"more")
    assert [problem["record"] for problem in verify_shard(shard)["problems"]] == [None]


def test_one_bad_shard_does_not_stop_the_others(shard: Path, hk: Hk) -> None:
    Path("bad.h5").write_bytes(shard.read_bytes())
    flip(Path("bad.h5"), place_of(shard, "maps", 1))
    done = hk("check", "bad.h5", shard)
    assert (done.exit_code, [result["ok"] for result in done.records]) == (3, [False, True])
    Path("empty").mkdir()
    done = hk("check", "gone.h5", "bad.h5", "empty", shard)
    assert (done.exit_code, [result["ok"] for result in done.records]) == (1, [False, False, False, True])
    assert "error: gone.h5: No such file or directory; expected an HDF5 file\n" in done.stderr
    assert "error: empty: not a plain file; expected an HDF5 file\n" in done.stderr
    assert done.records[0] == {"path": "gone.h5", "ok": False, "checked": [], "records": None, "problems": [
        {"sentence": "gone.h5: No such file or directory; expected an HDF5 file", "record": None, "id": None}]}


def test_what_is_no_shard(hk: Hk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.h5").write_text("text" * 200)
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with open_writer(Path("maps.h5")) as writer:
        writer.save("a", MAPS[0])
    done = hk("check", "text.h5", "other.h5", "maps.h5")
    assert done.exit_code == 3
    text, other, maps = ([problem["sentence"] for problem in result["problems"]] for result in done.records)
    assert text[0] == "text.h5: its first 512 bytes are not as hkmap writes them; copy it again, or pack it again"
    assert text[1] == "text.h5: states no sha256 of its bytes, as every shard of `hkmap pack` does; pack it again"
    assert text[2].startswith("text.h5: 800 bytes without the signature of HDF5")
    assert other[2].startswith("other.h5: HDF5, but no shard")
    assert [sentence[:20] for sentence in maps] == ["maps.h5: states no s", "maps.h5: HDF5, but n"]


def build(path: Path, *samples: Sample, texts: tuple[bytes, ...] = ()) -> None:
    """Write a shard whose checksums are right and whose content nobody checked."""
    path.write_bytes(b"")
    builder = ShardBuilder(path.parent)
    for index, sample in enumerate(samples):
        text = texts[index] if texts else b'{"id": "%d"}' % index
        builder.add(sample, text, checksum(sample, text))
    builder.write(path, ["a"])
    builder.parts.close()


def test_full_looks_at_what_was_wrong_before_it_was_packed(tmp_path: Path, hk: Hk) -> None:
    path = tmp_path / "x.h5"
    image = cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes()
    two, nothing = np.full((2, 2), 2, np.float32), np.zeros((2, 2), np.float32)
    build(
        path,
        Sample({"id": "0"}, image, nothing, None, 0), Sample({"id": "1"}, b"text", nothing, None, 0),
        Sample({"id": "2"}, image[:-20], nothing, None, 0), Sample({"id": "3"}, image, two, None, 0),
        Sample({"id": "4"}, image, nothing, two, 0), Sample({"id": "5"}, image, nothing, None, 0, {"b": two}),
    )
    assert hk("check", path).exit_code == 0
    done = hk("check", "--full", path)
    assert done.exit_code == 3
    found = [problem["sentence"].partition(": ")[2] for problem in done.records[0]["problems"]]
    assert [sentence[:26] for sentence in found] == [
        "its image: starts with b't", "its image: cut short at 55", "its map: values span [2, 2",
        "its certainty: values span", 'its map of annotator "b": ']


def test_a_record_that_is_not_what_its_place_says(tmp_path: Path) -> None:
    samples = [Sample({"id": str(number)}, b"x", None, None, 0) for number in range(3)]
    build(tmp_path / "x.h5", *samples, texts=(b"[]", b'{"id": "other"}', b'{"id": "2"}'))
    first, second = (problem["sentence"] for problem in verify_shard(tmp_path / "x.h5")["problems"])
    assert '#0 (record "0"): expected a JSON object, got list' in first
    assert "#1 (record \"1\"): the record calls itself 'other'; the file is damaged" in second


# --- the same promise where a single part is read


@pytest.mark.parametrize(
    ("name", "load"), [("maps", load_map), ("certainty", load_certainty), ("images/bytes", load_map)]
)
def test_a_reference_into_a_damaged_record_is_refused(name: str, load: Callable[[str], Any], shard) -> None:
    flip(shard, place_of(shard, name, 7))
    with pytest.raises(MapError, match=r'x\.h5#7 \(record "número 7"\): its checksum does not fit'):
        load("x.h5#7")
    assert load("x.h5#6").shape == (5, 4)


def test_a_row_of_maps_has_a_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_writer(Path("maps.h5")) as writer:
        for index in range(4):
            writer.save(str(index), MAPS[index])
    flip(Path("maps.h5"), place_of(Path("maps.h5"), "maps", 2))
    with pytest.raises(MapError, match=r"^maps\.h5#2: its checksum does not fit, so the file is damaged"):
        load_map("maps.h5#2")
    assert np.array_equal(load_map("maps.h5#3"), MAPS[3])

"""Shards as files: what went in comes out, and every damage has its sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from conftest import replace, rewrite

from hkmap.errors import HkmapError, ImageError, MapError, OutputError, RecordError, ShardError
from hkmap.maps.check import Map
from hkmap.shards.info import content_digest
from hkmap.shards.layout import dump_classes
from hkmap.shards.reader import ShardReader, open_shard
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.verify import verify_shard
from hkmap.shards.writer import ShardWriter
from hkmap.stream.references import image_bytes, load_certainty, load_map, read_image

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
MAPS = RANDOM.random((6, 3, 4), dtype=np.float32)
CERTAINTY = RANDOM.random((6, 3, 4), dtype=np.float32)


def png(index: int) -> bytes:
    return bytes(cv2.imencode(".png", PIXELS[index][..., ::-1])[1])


def record(index: int, **keys: Any) -> dict[str, Any]:
    return {"id": f"bird/{index}", "image": f"photos/{index}.png", "label": index % 3, "class": "abc"[index % 3],
            "size": [10, 12], "extra": {"ü": [index]}, **keys}


def no_class(index: int, label: int | None) -> dict[str, Any]:
    return {"id": f"{index}", "image": "x.png", "label": label}


def write(path: Path, *, count: int = 6, without: tuple[int, ...] = (), certain: tuple[int, ...] = (),
          **options: Any) -> list[Path]:
    with ShardWriter(path, **options) as writer:
        for index in range(count):
            certainty = CERTAINTY[index] if index in certain else None
            writer.add(record(index), png(index), None if index in without else MAPS[index], certainty)
    return [shard.path for shard in writer.written]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "train.h5")[0]


def test_what_went_in_comes_out(shard: Path) -> None:
    reader = ShardReader(shard)
    assert len(reader) == 6
    assert reader.classes == ["a", "b", "c"]
    assert reader.ids == [f"bird/{index}" for index in range(6)]
    assert reader.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert reader.labels.dtype == np.int64
    assert reader.has_map.tolist() == [True] * 6
    assert reader.map_size == (3, 4)
    assert reader.maps.dtype == np.float32
    assert np.array_equal(reader.maps, MAPS)
    assert not reader.has_certainty
    assert reader.attributes["format"] == "hkmap-shard"
    for index in range(6):
        sample = reader.read(index)
        assert sample.record == reader.record(index) == record(index)
        assert sample.image_bytes == png(index)
        assert np.array_equal(reader.image(index), PIXELS[index])
        assert np.array_equal(reader.map(index), MAPS[index])
        assert sample.certainty is None
        assert sample.label == index % 3


def test_no_map_is_not_an_empty_map(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train.h5") as writer:
        for index, values in enumerate([None, None, np.zeros((3, 4), np.float32), MAPS[3], None]):
            writer.add(record(index), png(index), values)
    reader = ShardReader(tmp_path / "train.h5")
    assert reader.has_map.tolist() == [False, False, True, True, False]
    assert reader.maps.shape == (5, 3, 4)
    assert not reader.maps[[0, 1, 2, 4]].any()
    assert reader.map(1) is None
    assert np.array_equal(load_map(f"{tmp_path}/train.h5#3"), MAPS[3])
    with pytest.raises(MapError, match=r"train\.h5#4: this record of the shard has no map"):
        load_map(f"{tmp_path}/train.h5#4")


@pytest.mark.parametrize("certain", [(0, 1, 2, 3, 4, 5), (3,), (0,)])
def test_records_without_certainty_count_everywhere(certain: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path / "train.h5", certain=certain, without=(5,) if 5 not in certain else ())
    reader = ShardReader(tmp_path / "train.h5")
    assert reader.has_certainty
    for index in range(6):
        certainty = reader.read(index).certainty
        if reader.has_map[index]:
            assert np.array_equal(certainty, CERTAINTY[index] if index in certain else np.ones((3, 4)))
            assert np.array_equal(load_certainty(f"{tmp_path}/train.h5#{index}"), certainty)
        else:
            assert certainty is None


def test_a_reference_into_a_shard_reads_image_and_map(shard: Path) -> None:
    assert image_bytes(f"{shard}#4") == png(4)
    assert np.array_equal(read_image(f"{shard}#4"), PIXELS[4])
    assert np.array_equal(load_map(f"{shard}#4"), MAPS[4])
    with pytest.raises(ImageError, match=r"train\.h5#6: the shard has 6 records, counted from 0"):
        image_bytes(f"{shard}#6")
    with pytest.raises(MapError, match=r"train\.h5#6: the shard has 6 records, counted from 0"):
        load_map(f"{shard}#6")
    with pytest.raises(ShardError, match=r"gone\.h5: No such file"):
        image_bytes("gone.h5#6")


@pytest.mark.parametrize("index", [-1, 6])
def test_there_is_no_record_beyond_the_end(index: int, shard: Path) -> None:
    with pytest.raises(IndexError):
        ShardReader(shard).read(index)


def test_a_replaced_shard_is_read_anew(shard: Path) -> None:
    assert open_shard(shard) is open_shard(shard)
    with ShardWriter(shard, overwrite=True) as writer:
        writer.add(record(5), png(5), None)
    assert image_bytes(f"{shard}#0") == png(5)


def test_classes(tmp_path: Path) -> None:
    def classes(name: str, labels: list[int | None], given: list[str] | None = None) -> list[str]:
        with ShardWriter(tmp_path / name, classes=given) as writer:
            for index, label in enumerate(labels):
                writer.add(no_class(index, label), png(0), None)
        assert ShardReader(tmp_path / name).labels.tolist() == [-1 if label is None else label for label in labels]
        return ShardReader(tmp_path / name).classes

    assert classes("none.h5", [None, -1]) == []
    assert classes("holes.h5", [2, None]) == ["", "", ""]
    assert classes("given.h5", [1], ["cat", "Großer Ani", "owl"]) == ["cat", "Großer Ani", "owl"]
    many = [f"a rather long name of a class {number}" for number in range(20_000)]
    assert classes("many.h5", [19_999], many) == many


BAD: list[tuple[dict[str, Any], type[HkmapError], str]] = [
    ({"id": "bird/0"}, RecordError, r'record "bird/0": this id comes twice; every record needs its own'),
    ({"label": 1, "class": "owl"}, ShardError, r'label 1 is class "owl", but it was "b" before; one label has one'),
    ({"label": 100_000}, RecordError, "label is 100000; expected a whole number from 0 to 99,999"),
    ({"label": "b"}, RecordError, 'label is "b"; expected a whole number'),
    ({"label": 1, "class": 4}, RecordError, "class is 4; expected a name"),
    ({"size": [12, 10]}, ImageError, r"its size is 12x10 \(width x height\), but the image is 10x12 once turned as"),
    ({"size": [120, 100]}, ImageError, "once turned as its EXIF says; give the coordinates in the image as it is"),
    ({"size": "12x10"}, RecordError, 'size is "12x10"; expected'),
    ({"extra": float("inf")}, RecordError, "cannot be written as JSON in UTF-8"),
    ({"extra": "\ud800"}, RecordError, "a name in it is not UTF-8"),
]


@pytest.mark.parametrize(("keys", "kind", "sentence"), BAD)
def test_a_bad_record_is_refused_and_leaves_no_trace(keys, kind, sentence, tmp_path) -> None:
    with ShardWriter(tmp_path / "train.h5") as writer:
        for index in (0, 1):
            writer.add(record(index), png(index), MAPS[index])
        with pytest.raises(kind, match=sentence):
            writer.add(record(2, **keys), png(2), MAPS[2])
        writer.add(record(3), png(3), MAPS[3])
    assert ShardReader(tmp_path / "train.h5").ids == ["bird/0", "bird/1", "bird/3"]
    assert ShardReader(tmp_path / "train.h5").classes == ["a", "b"]
    assert np.array_equal(ShardReader(tmp_path / "train.h5").maps[2], MAPS[3])


@pytest.mark.parametrize(("image", "values", "certainty", "sentence"), [
    (png(2)[:-30], MAPS[2], None, r'record "bird/2": image photos/2.png: cut short at \d+ bytes'),
    (b"text", MAPS[2], None, 'record "bird/2": image photos/2.png: starts with'),
    (png(2), MAPS[2] * 2, None, 'record "bird/2": map: values span'),
    (png(2), MAPS[2] * np.nan, None, 'record "bird/2": map: holds NaN'),
    (png(2), MAPS[2].T, None, r'record "bird/2": 4x3 \(height x width\), but the file\'s maps are 3x4'),
    (png(2), None, CERTAINTY[2], 'record "bird/2": has certainty but no map'),
    (png(2), MAPS[2], CERTAINTY[2].T, r'record "bird/2": certainty: 4x3 \(height x width\), but the file\'s maps are'),
    (png(2), MAPS[2], CERTAINTY[2] * 2, 'record "bird/2": certainty: values span'),
])
def test_bad_parts_are_refused(image: bytes, values: Map, certainty: Map, sentence: str, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train.h5") as writer:
        writer.add(record(0), png(0), MAPS[0])
        with pytest.raises(HkmapError, match=sentence):
            writer.add(record(2), image, values, certainty)
    assert len(ShardReader(tmp_path / "train.h5")) == 1


def test_a_label_beyond_the_given_classes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train.h5", classes=["a", "b"]) as writer:
        writer.add(record(0), png(0), None)
        with pytest.raises(ShardError, match=r'record "2": label 2 is beyond the 2 classes, counted from 0'):
            writer.add(no_class(2, 2), png(2), None)
        with pytest.raises(RecordError, match=r"""class "c" is none of the 2 given \['a', 'b'\]; add it"""):
            writer.add(record(2), png(2), None)


@pytest.mark.parametrize("size", [[10, 12], [100, 120], [7, 8], [224, 224], None])
def test_a_frame_may_have_another_scale(size: list[int] | None, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train.h5") as writer:
        writer.add(record(0, size=size), png(0), None)
    assert ShardReader(tmp_path / "train.h5").record(0)["size"] == size


# --- names of shards --------------------------------------------------------------------------------------------


def test_shards_roll_over(tmp_path: Path) -> None:
    paths = write(tmp_path / "train.h5", shard_size=4, without=(0, 1, 2, 3))
    assert [path.name for path in paths] == ["train-00000.h5", "train-00001.h5"]
    readers = [ShardReader(path) for path in paths]
    assert [reader.ids for reader in readers] == [[f"bird/{i}" for i in range(4)], ["bird/4", "bird/5"]]
    assert readers[1].map_size == (3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-00000.h5", "train-00001.h5"]
    assert all(verify_shard(path)["ok"] for path in paths)


def test_a_shard_knows_the_classes_that_came_before_its_end(tmp_path: Path) -> None:
    """One is finished when the first record of the next has come."""
    paths = write(tmp_path / "train.h5", shard_size=1)
    assert [ShardReader(path).classes for path in paths] == [["a", "b"], *[["a", "b", "c"]] * 5]
    assert ShardSequence(paths).classes == ["a", "b", "c"]
    paths = write(tmp_path / "given.h5", shard_size=3, classes=["a", "b", "c"])
    assert [ShardReader(path).classes for path in paths] == [["a", "b", "c"]] * 2


def test_a_former_series_is_replaced_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.h5", shard_size=2)
    (tmp_path / "train-1.h5").write_text("another file")
    with pytest.raises(OutputError, match=r"train-00000\.h5: exists already"):
        write(tmp_path / "train.h5", shard_size=5)
    write(tmp_path / "train.h5", shard_size=5, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-00000.h5", "train-00001.h5", "train-1.h5"]
    assert "train-00002.h5: removed, as it belonged to the shards that were replaced" in caplog.text


def test_a_shard_ends_in_h5(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"train\.hdf5: a shard's name ends in \.h5; call it train\.h5"):
        ShardWriter(tmp_path / "train.hdf5")


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "sentence"), [
    (0, r"empty \(0 bytes\), expected an HDF5 file; copy it again"),
    (100, "100 bytes without the signature of HDF5; expected a file that hkmap wrote, and whole"),
    (600, r"cut short at 600 bytes \(its header says more\); copy it again"),
    (2500, r"cut short at 2500 bytes \(its header says more\); copy it again"),
    (-1, "cut short at"),
])
def test_a_shard_cut_short(keep: int, sentence: str, shard: Path) -> None:
    size = shard.stat().st_size
    os.truncate(shard, keep % size)
    with pytest.raises(ShardError, match=rf"train\.h5: .*{sentence}"):
        ShardReader(shard)


def test_a_foreign_file_cut_short(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["maps"] = np.zeros((100, 100))
    os.truncate(tmp_path / "x.h5", 5000)
    with pytest.raises(ShardError, match=r"x\.h5: cut short at 5000 bytes \(its header says more\); copy it again"):
        ShardReader(tmp_path / "x.h5")


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gone\.h5: No such file or directory; expected an HDF5 file"):
        ShardReader(tmp_path / "gone.h5")
    with pytest.raises(ShardError, match=r"gone\.h5: No such file"):
        open_shard(tmp_path / "gone.h5")
    (tmp_path / "x.h5").write_bytes(b"text" * 500)
    with pytest.raises(ShardError, match="2000 bytes without the signature of HDF5"):
        ShardReader(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["images"] = np.zeros((3, 3))
        file.attrs["format"] = [1, 2]
    with pytest.raises(ShardError, match=r'y\.h5: HDF5, but no shard \(it lacks the attribute format = "hkmap-shard"'):
        ShardReader(tmp_path / "y.h5")


def test_what_the_system_refuses_is_no_damage(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Unable to open file")

    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(ShardError, match=r"train\.h5: Permission denied; expected an HDF5 file"):
        ShardReader(shard)


KILLED = """
import h5py, os, sys
file = h5py.File(sys.argv[1], "r+", libver="v110")
file["labels"][0] = 7
os.kill(os.getpid(), 9)
"""


def test_the_mark_of_a_killed_writer_is_named(shard: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(shard)], check=False, timeout=60)
    with pytest.raises(ShardError, match=r"train\.h5: a program that was killed has left its mark .* `h5clear -s .*/"):
        ShardReader(shard)
    assert not verify_shard(shard)["ok"]


def test_foreign_files_with_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        place = file.create_dataset("maps", data=np.zeros((2, 3, 4), np.float32)).id.get_offset()
    whole = path.read_bytes()
    before, after = (start.to_bytes(8, "little") + (96).to_bytes(8, "little") for start in (place, place + 4000))
    assert before in whole      # where the dataset lies, and its size
    path.write_bytes(whole.replace(before, after))
    with pytest.raises(ShardError, match=r"x\.h5: (damaged HDF5 |maps was never written, or lies beyond the file's)"):
        ShardReader(path)      # by libhdf5 itself, if it is a recent one
    path.write_bytes(whole.replace(b"HEAP", b"XXXX"))
    with pytest.raises(ShardError, match=r"x\.h5: damaged HDF5 \(.*\); copy it again"):
        ShardReader(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("maps", (2, 3, 4), "f4")
    with pytest.raises(ShardError, match=r"x\.h5: maps was never written, or lies beyond the file's \d+ bytes"):
        ShardReader(path)


FOREIGN: list[tuple[Callable[[h5py.File], object], str]] = [
    (lambda f: f.attrs.update(version=3), "shard version 3, this hkmap reads up to 2; update hkmap"),
    (lambda f: f.attrs.update(version="x"), "version 'x', expected a whole number from 1"),
    (lambda f: f.attrs.update(version=0), "version 0, expected a whole number from 1"),
    (lambda f: f.attrs.update(classes="a,b"), "its attribute classes is no JSON list of names"),
    (lambda f: f.attrs.update(classes='["a", 1]'), "its attribute classes is no JSON list of names"),
    (lambda f: f.attrs.pop("classes"), "its attribute classes is no JSON list of names"),
    (lambda f: f.attrs.update(classes='["a"]'), "label 1 for 1 classes; the file is damaged"),
    (lambda f: f.pop("crc32"), "has no dataset crc32"),
    (lambda f: f.pop("labels"), "has no dataset labels"),
    (replace("labels", np.zeros(6, np.int32)), r"labels is int32 \(6,\), expected int64 with 1 dimensions and 6 rows"),
    (replace("has_map", np.zeros(5, bool)), r"has_map is bool \(5,\), expected bool with 1 dimensions and 6 rows"),
    (replace("maps", np.zeros((6, 3), "f4")), r"maps is float32 \(6, 3\), expected float32 with 3 dimensions"),
    (replace("maps", np.zeros((6, 0, 0), "f4")), r"has a map, but maps are \(0, 0\)"),
    (lambda f: f.create_dataset("certainty", data=np.zeros((6, 1, 1), "f4")), "certainty and maps differ in size"),
    (replace("ids/offsets", np.array([0, 6, 12, 9, 24, 30, 36], "u8")), "ids/offsets do not rise to the end of its"),
    (replace("ids/offsets", np.array([1, 6, 12, 18, 24, 30, 36], "u8")), "ids/offsets do not rise to the end of its"),
    (replace("images/offsets", np.arange(7, dtype="u8")), "images/offsets do not rise to the end of its"),
    (replace("ids/bytes", np.full(36, 255, np.uint8)), "the record calls itself 'bird/0'"),
    (replace("ids/bytes", np.full(36, 65, np.uint8)), "the record calls itself 'bird/0'"),
]


@pytest.mark.parametrize(("change", "sentence"), FOREIGN)
def test_what_does_not_fit_the_layout_is_refused(change: Callable[[h5py.File], object], sentence: str, shard) -> None:
    rewrite(shard, change)
    with pytest.raises(ShardError, match=rf"train\.h5(#\d( .*)?)?: {sentence}"):
        ShardReader(shard).read(0)


def test_ids_that_are_no_text(shard: Path) -> None:
    rewrite(shard, replace("ids/bytes", np.full(36, 255, np.uint8)))
    with pytest.raises(ShardError, match=r"train\.h5#0: its id is no UTF-8 text, so the file is damaged; copy"):
        _ = ShardReader(shard).ids


def test_a_damaged_user_block_never_hides_the_content(shard: Path) -> None:
    before = content_digest(ShardReader(shard))
    shard.write_bytes(RANDOM.bytes(512) + shard.read_bytes()[512:])
    assert content_digest(ShardReader(shard)) == before


def test_what_lies_under_weights_in_version_2_is_not_certainty(shard: Path) -> None:
    rewrite(shard, lambda file: file.create_dataset("weights", data=CERTAINTY))
    assert not ShardReader(shard).has_certainty


def test_the_digest_of_the_content_leaves_paths_aside(tmp_path: Path) -> None:
    def digest(name: str, *, values: Map = MAPS[0], known: Map | None = None, own: Any = None, **keys: Any) -> str:
        with ShardWriter(tmp_path / name) as writer:
            writer.add(record(0, **keys), png(0), values, known, annotators=own)
        return content_digest(ShardReader(tmp_path / name))

    first = digest("a.h5", map="maps/0.npy", masks={"EX": "x.tif"})
    assert digest("b.h5", image="elsewhere.png", map="b.h5#0", certainty="w.npy") == first
    assert digest("c.h5", known=np.ones((3, 4), np.float32)) == first
    others = [digest("d.h5", values=MAPS[1]), digest("e.h5", known=CERTAINTY[0]), digest("f.h5", extra=1),
              digest("g.h5", label=2, **{"class": "c"}), digest("h.h5", id="x"),
              *(digest(f"{name}.h5", own={name: values}) for name, values in (("i", MAPS[1]), ("j", MAPS[1])))]
    assert len({first, *others, digest("k.h5", own={"j": MAPS[2]})}) == 9


def test_class_names_are_json() -> None:
    assert dump_classes(["a", "ü"]) == '["a", "ü"]'
    with pytest.raises(ShardError, match="the classes' names take 6000004 bytes, expected at most 4194304"):
        dump_classes(["é" * 3_000_000])


def test_the_longest_list_of_class_names_is_read_again(tmp_path: Path) -> None:
    names = ["a", "é" * 2_097_147]      # two bytes a letter, and ["a", ""]: 4 MiB less one byte
    with ShardWriter(tmp_path / "x.h5", classes=names) as writer:
        writer.add(record(0), png(0), None)
    assert ShardReader(tmp_path / "x.h5").classes == names

"""hkmap pack, unpack and info, as a user runs them."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import lines
from PIL import Image

from hkmap.cli._stream import track
from hkmap.shards.reader import ShardReader

Hk = Callable[..., Any]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Six records in the current folder: PNG and JPEG images, maps for all but the last."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("maps").mkdir()
    result: list[dict[str, Any]] = []
    for index in range(6):
        image = f"photos/{index}.{'png' if index % 2 else 'jpg'}"
        cv2.imwrite(image, RANDOM.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        np.save(f"maps/{index}.npy", RANDOM.random((3, 4), dtype=np.float32))
        result.append({"id": f"bird/{index}", "image": image, "label": index % 2, "class": "ab"[index % 2],
                       "note": "ü", "masks": {"EX": "x.tif"}, "map": f"maps/{index}.npy"})
    del result[5]["map"]
    return result


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("photos", "maps", "records.jsonl"))


def test_pack_prints_one_result(hk: Hk, records: list[dict[str, Any]], tmp_path: Path) -> None:
    done = hk("pack", "out/train.h5", stdin=records)
    assert (done.exit_code, done.stderr) == (0, "")
    result, = done.records
    assert result["shards"][0]["path"] == "out/train.h5"
    assert len(result["shards"][0]["sha256"]) == 64
    assert {key: result[key] for key in ("records", "maps", "map_size", "classes")} == {
        "records": 6, "maps": 5, "map_size": [3, 4], "classes": ["a", "b"]}
    reader = ShardReader(Path("out/train.h5"))
    for index, record in enumerate(records):
        assert reader.read(index).image_bytes == Path(record["image"]).read_bytes()
        assert reader.record(index) == record
        assert bool(reader.has_map[index]) == ("map" in record)
    assert np.array_equal(reader.maps[2], np.load("maps/2.npy"))


@pytest.mark.parametrize("folder", [None, "files"])
@pytest.mark.parametrize("shard_size", [[], ["--shard-size", 4]])
def test_pack_unpack_pack_keeps_the_content(folder: str | None, shard_size: list[Any], hk, records) -> None:
    np.save("maps/w.npy", RANDOM.random((3, 4), dtype=np.float32))
    records[2]["certainty"] = "maps/w.npy"
    hk("pack", "train.h5", *shard_size, stdin=records)
    shards = sorted(Path().glob("train*.h5"))
    unpacked = hk("unpack", *shards, *(["--out", folder] if folder else []))
    assert unpacked.exit_code == 0
    changed = {"image", "map", "certainty"}
    for before, after in zip(records, unpacked.records, strict=True):
        assert before.keys() == after.keys()
        assert all(before[key] == after[key] for key in before.keys() - changed)
    assert hk("pack", "again.h5", *shard_size, stdin=unpacked.stdout).exit_code == 0
    first, second = hk("info", "--full", *shards), hk("info", "--full", *sorted(Path().glob("again*.h5")))
    assert [one["content_sha256"] for one in first.records] == [one["content_sha256"] for one in second.records]
    assert np.array_equal(ShardReader(shards[0]).read(2).certainty, np.load("maps/w.npy"))


def test_unpack_writes_the_files_that_went_in(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "train.h5", stdin=records)
    unpacked = hk("unpack", "train.h5", "--out", "files").records
    assert unpacked[0]["image"] == "files/images/bird%2F0.jpg"
    assert unpacked[1]["map"] == "files/maps/bird%2F1.npy"
    for before, after in zip(records, unpacked, strict=True):
        assert Path(after["image"]).read_bytes() == Path(before["image"]).read_bytes()
    assert np.array_equal(np.load(unpacked[1]["map"]), np.load("maps/1.npy"))


def test_a_folder_is_never_replaced(hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("train.h5").mkdir()
    for options in ([], ["--overwrite"]):
        done = hk("pack", "train.h5", *options, stdin=records)
        assert done.exit_code == 1
        assert "train.h5: a folder, where a file is to be written; choose another name" in done.stderr
        assert list(Path("train.h5").iterdir()) == []
        assert left(Path()) == ["train.h5"]


def test_two_shards_with_one_id_are_not_unpacked_over_each_other(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "train.h5", stdin=records)
    done = hk("unpack", "train.h5", "train.h5", "--out", "files", "--overwrite")
    assert done.exit_code == 1
    assert 'record "bird/0": its files are there already, of another record with this id; unpack the two' in done.stderr


# --- what is refused ----------------------------------------------------------------------------------------------


def write_odd_image(name: str) -> None:
    pixels = RANDOM.integers(0, 256, (12, 10, 4), dtype=np.uint8)
    if name == "four.png":
        cv2.imwrite(name, pixels)
    elif name == "sixteen.png":
        cv2.imwrite(name, pixels.astype(np.uint16) * 257)
    elif name == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels[..., :3]).save(name, exif=exif)


REFUSED = [
    ({"image": "gone.jpg"}, "gone.jpg: No such file or directory; expected an image file"),
    ({"image": None}, 'record "x": has no image; expected the path of its image under "image"'),
    ({"image": 7}, 'record "x": image is 7; expected a path or a reference'),
    ({"image": "turned.jpg", "size": [10, 12]}, r"size is 10x12 \(width x height\), but the image is 12x10 once"),
    ({"map": "maps/gone.npy"}, "gone.npy: No such file or directory; expected a .npy file"),
    ({"map": "maps/outside.npy"}, r"outside.npy: values span \[0, 2\], expected \[0, 1\]"),
    ({"map": "maps/small.npy"}, r'record "x": 2x2 \(height x width\), but the file\'s maps are 3x4; it holds maps of '
                                "one size: pass them through `hkmap resize` first"),
    ({"map": "maps/0.npy", "annotator_maps": {"y": "maps/gone.npy"}}, "gone.npy: No such file or directory"),
    ({"id": "bird/0"}, 'record "bird/0": this id comes twice'),
    ({"label": 2}, 'record "x": label 2 is beyond the 2 classes, counted from 0'),
]


@pytest.mark.parametrize(("keys", "sentence"), REFUSED)
def test_a_bad_record_leaves_no_shard(keys: dict[str, Any], sentence: str, hk, records, tmp_path) -> None:
    for name, values in [("outside", [[0, 2]]), ("small", np.zeros((2, 2)))]:
        np.save(f"maps/{name}.npy", np.asarray(values, np.float32))
    write_odd_image(str(keys.get("image")))
    Path("classes.txt").write_text("a\nb\n")
    before = left(tmp_path)
    bad = [*records[:3], {"id": "x", "image": "photos/0.jpg", **keys}, records[4]]
    done = hk("pack", "train.h5", "--classes", "classes.txt", stdin=bad)
    assert done.exit_code == 1
    assert re.search(sentence, done.stderr)
    assert set(done.records[-1]) == {"error"}
    assert left(tmp_path) == before
    done = hk("pack", "train.h5", "--classes", "classes.txt", "--on-error", "skip", "--max-errors", 1, stdin=bad)
    assert done.exit_code == 0
    assert "warning: skipped: " in done.stderr
    assert len(ShardReader(Path("train.h5"))) == 4


@pytest.mark.parametrize("name", ["four.png", "sixteen.png", "turned.jpg"])
def test_odd_images_are_packed_as_they_are(name: str, hk: Hk, records: list[dict[str, Any]]) -> None:
    write_odd_image(name)
    size = [12, 10] if name == "turned.jpg" else [10, 12]
    assert hk("pack", "train.h5", stdin=[{"id": "x", "image": name, "size": size}]).exit_code == 0
    reader = ShardReader(Path("train.h5"))
    assert reader.read(0).image_bytes == Path(name).read_bytes()
    assert reader.image(0).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(("text", "sentence"), [
    ("a\n\nb\n", "classes.txt line 2: 'blank', expected one class name per line, each once"),
    ("a\nb\na\n", "classes.txt line 3: 'a', expected one class name per line, each once"),
    (b"\xff\xfea", "classes.txt: not UTF-8 text"),
])
def test_a_bad_file_of_classes(text: str | bytes, sentence: str, hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = hk("pack", "train.h5", "--classes", "classes.txt", stdin=records)
    assert done.exit_code == 1
    assert sentence in done.stderr


def test_classes_are_kept_though_no_record_has_them(hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("classes.txt").write_text("a\nb\nnever seen\n\n", encoding="utf-8-sig")
    hk("pack", "train.h5", "--classes", "classes.txt", stdin=records)
    assert ShardReader(Path("train.h5")).classes == ["a", "b", "never seen"]


def test_expect_counts(hk: Hk, records: list[dict[str, Any]], tmp_path: Path) -> None:
    done = hk("pack", "train.h5", "--expect", 7, stdin=records)
    assert done.exit_code == 1
    assert "6 records packed, expected 7; no shard is left" in done.stderr
    done = hk("pack", "train.h5", "--expect", 7, "--shard-size", 2, stdin=records)
    assert done.exit_code == 1
    assert left(tmp_path) == []
    assert hk("pack", "train.h5", "--expect", 6, stdin=records).exit_code == 0


# --- real processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [4, 64])
def test_a_full_disk_leaves_nothing(kilobytes: int, shell: Hk, records: list[dict[str, Any]], tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: met while spooling, or while assembling."""
    many = [{**records[index % 5], "id": str(index), "note": "x" * 1000} for index in range(30)]
    Path("records.jsonl").write_text(lines(many))
    done = shell(f"trap '' XFSZ; ulimit -f {kilobytes}; hkmap pack train.h5 records.jsonl")
    assert done.exit_code == 1
    assert done.stderr == (
        "Error: train.h5: File too large; nothing is left of it, make room\n")
    assert left(tmp_path) == []


def test_an_interrupt_leaves_nothing(records: list[dict[str, Any]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hkmap", "pack", "train.h5", "--shard-size", "1", "--on-error", "skip"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),      # whatever the tests were started from
    ) as process:
        process.stdin.write(lines([*records[:2], {"id": "no image"}]))
        process.stdin.flush()
        assert "skipped" in process.stderr.readline()      # so the records before it are packed; it waits for more
        assert left(tmp_path) == [".train.h5.lock", "train-00000.h5"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted\n"
    assert left(tmp_path) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("level", "shown"), [(logging.WARNING, True), (logging.ERROR, False)])
@pytest.mark.parametrize("total", [3, None])
def test_progress_is_for_terminals(level: int, shown: bool, total: int | None, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("hkmap"), "level", level)
    logging.getLogger("hkmap").manager._clear_cache()      # type: ignore[attr-defined]
    for stderr, expected in ((io.StringIO(), False), (Terminal(), shown)):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert list(track(iter(range(3)), "counting", total=total)) == [0, 1, 2]
        assert ("counting" in stderr.getvalue()) is expected


def test_real_images_travel_unchanged(hk: Hk, data_root: Path, tmp_path: Path) -> None:
    paths = [*sorted((data_root / "cub10").rglob("*.jpg"))[::120], *sorted((data_root / "busi").rglob("*.jpg"))[::300]]
    records = [{"id": path.stem, "image": str(path)} for path in paths]
    assert hk("pack", tmp_path / "real.h5", "--expect", len(paths), stdin=records).exit_code == 0
    reader = ShardReader(tmp_path / "real.h5")
    assert [reader.read(index).image_bytes for index in range(len(paths))] == [path.read_bytes() for path in paths]


def test_ids_longer_than_a_file_name(hk, make_shard, tmp_path, monkeypatch):
    """An id may have any length; a letter of Japanese takes nine bytes of a file name, and there are 255."""
    monkeypatch.chdir(tmp_path)
    ids = ["\u9ce5" * 40, "\u9ce5" * 40 + "b", "x" * 300]
    np.save("map.npy", np.full((4, 4), 0.5, np.float32))
    records = [record | {"id": name, "image": f"a.h5#{row}", "map": "map.npy"}
               for row, (record, name) in enumerate(zip(hk("unpack", make_shard("a.h5", 3)).records, ids, strict=True))]
    assert hk("resize", "--size", 2, "--out", "maps", stdin=records).exit_code == 0
    assert len(list(Path("maps").iterdir())) == 3
    assert hk("pack", "b.h5", stdin=records).exit_code == 0
    unpacked = hk("unpack", "b.h5", "--out", "files")
    assert unpacked.exit_code == 0, unpacked.stderr
    assert [record["id"] for record in unpacked.records] == ids
    assert all(Path(record["image"]).is_file() and Path(record["map"]).is_file() for record in unpacked.records)

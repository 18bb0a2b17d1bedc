"""Maps in files: what goes in comes back, and nothing else is taken for a map."""

from __future__ import annotations

import gc
import os
import pickle
import re
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from hkmap.errors import MapError, OutputError, ShardError
from hkmap.files.atomic import replacing
from hkmap.files.hdf5 import Columns
from hkmap.files.maps import open_writer
from hkmap.maps.check import Map
from hkmap.stream.references import load_certainty, load_map

MAPS = np.random.default_rng(0).random((5, 14, 9), dtype=np.float32)
MAPS[0] = 0
MAPS[1, 0, 0] = 1


def save_all(out: Path, suffix: str = "npy", **options: Any) -> list[str]:
    with open_writer(out, suffix=suffix, **options) as writer:
        return [writer.save(f"a/{index}", values) for index, values in enumerate(MAPS)]


@pytest.mark.parametrize(("name", "suffix", "error"), [
    ("maps", "npy", 0), ("maps.h5", "npy", 0), ("maps", "png", 0.5001 / 65535),
])
def test_maps_come_back(name: str, suffix: str, error: float, tmp_path: Path) -> None:
    references = save_all(tmp_path / "new" / name, suffix)
    for reference, values in zip(references, MAPS, strict=True):
        loaded = load_map(reference)
        assert loaded.dtype == np.float32
        assert np.abs(loaded - values).max() <= error
    assert np.array_equal(load_map(references[0]), MAPS[0])      # 0 and 1 come back exactly from a .png too
    assert load_map(references[1])[0, 0] == 1


def test_the_names_are_quoted_ids(tmp_path: Path) -> None:
    assert save_all(tmp_path / "maps")[3] == str(tmp_path / "maps" / "a%2F3.npy")
    assert save_all(tmp_path / "rows.h5")[3] == f"{tmp_path / 'rows.h5'}#3"


def test_only_rows_of_a_file_are_deferred(tmp_path: Path) -> None:
    with open_writer(tmp_path / "maps") as writer:
        assert not writer.deferred
    with open_writer(tmp_path / "maps.h5") as writer:
        assert writer.deferred
        writer.save("x", MAPS[0])
        assert not (tmp_path / "maps.h5").exists()
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file.attrs["format"] == b"hkmap-maps"
    assert [path.name for path in tmp_path.iterdir()] == ["maps.h5"]


def test_png_is_sixteen_bit_grey_and_rounds(tmp_path: Path) -> None:
    with open_writer(tmp_path, suffix="png") as writer:
        reference = writer.save("x", MAPS[2])
    pixels = cv2.imread(reference, cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, np.rint(MAPS[2].astype(np.float64) * 65535))


def test_an_eight_bit_grey_png_is_divided_by_255(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.array([[0, 51, 255]], np.uint8))
    assert load_map(str(tmp_path / "m.png")) == pytest.approx(np.array([[0, 0.2, 1]]))


@pytest.mark.parametrize("name", ["maps", "maps.h5"])
def test_what_the_writer_refuses(name: str, tmp_path: Path) -> None:
    with open_writer(tmp_path / name, overwrite=True) as writer:
        writer.save("x", MAPS[1])
        with pytest.raises(OutputError, match=r'record "x": comes twice, and .* holds one map of a name'):
            writer.save("x", MAPS[1])
        for values, sentence in [(MAPS[1] * 255, "values span"), (MAPS[1] * np.nan, "NaN"), (MAPS, "shape")]:
            with pytest.raises(MapError, match=rf'^map of "y": .*{sentence}'):
                writer.save("y", values)
        writer.save("y", MAPS[1])      # what was refused left no trace


def test_one_file_holds_maps_of_one_size(tmp_path: Path) -> None:
    with open_writer(tmp_path / "maps.h5") as writer:
        writer.save("x", MAPS[0])
        with pytest.raises(OutputError, match=r'map of "y": 9x14 \(height x width\), but the file\'s maps are 14x9; .*'
                                              "hkmap resize"):
            writer.save("y", MAPS[0].T)
        assert writer.save("z", MAPS[1]).endswith("#1")
    assert np.array_equal(load_map(f"{tmp_path}/maps.h5#1"), MAPS[1])


@pytest.mark.parametrize(("name", "there"), [("maps", "maps/a%2F0.npy"), ("maps.h5", "maps.h5")])
def test_nothing_is_overwritten_unasked(name: str, there: str, tmp_path: Path) -> None:
    save_all(tmp_path / name)
    before = (tmp_path / there).read_bytes()
    with pytest.raises(OutputError, match="exists already; choose another name, or use --overwrite"):
        save_all(tmp_path / name)
    assert (tmp_path / there).read_bytes() == before
    save_all(tmp_path / name, overwrite=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("")
    with pytest.raises(OutputError, match=r"maps: a file; expected a folder for the maps, or NAME\.h5"):
        save_all(tmp_path / "maps")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OutputError])
def test_a_run_that_stops_leaves_no_rows(stop: type[BaseException], tmp_path: Path) -> None:
    def run() -> None:
        with open_writer(tmp_path / "maps.h5") as writer:
            writer.save("x", MAPS[0])
            raise stop

    with pytest.raises(stop):
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkmap.files.hdf5.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    sentence = r"No space left on device; nothing is left of it, make room for all of its maps: '.*/maps\.h5'"
    with pytest.raises(OSError, match=sentence):
        save_all(tmp_path / "maps.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["maps", "maps.h5"])
def test_a_file_that_cannot_grow(name: str, tmp_path: Path) -> None:
    """A limit on the size of files; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"), open_writer(tmp_path / name) as writer:
            writer.save("x", np.zeros((99, 99), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_ctrl_c_just_when_a_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come between the lines that make a temporary file: that one is removed too."""
    close = os.close

    def interrupted(handle: int) -> None:
        close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "new" / "last.pt"):
        pytest.fail("the file is not made yet")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def write_npy(path: Path, values: object) -> None:
    np.save(path, np.asarray(values), allow_pickle=True)


def write_promise(path: Path) -> None:
    """A header that promises 4 TB."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})


def spoil(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def write_png(path: Path, *shape: int) -> None:
    cv2.imwrite(str(path), np.zeros(shape, np.uint8))


@contextmanager
def busy_collector() -> Iterator[None]:
    """Garbage is collected all the time, under the eyes of somebody's Python code, and threads change as often."""
    def watch(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(watch)
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        gc.callbacks.remove(watch)
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)


def test_maps_are_loaded_in_threads(tmp_path: Path) -> None:
    """numpy reads a header by `ast`: in two threads at once, Python 3.11.7 ends some in a SystemError."""
    references = save_all(tmp_path) * 400
    with busy_collector(), ThreadPoolExecutor(2) as pool:
        assert {values.shape for values in pool.map(load_map, references)} == {(14, 9)}


def write_h5(path: Path, **datasets: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("m.npy", lambda p: None, "No such file or directory; expected a .npy file"),
    ("m.npy", lambda p: p.write_text(""), "no plain .npy array"),
    ("m.npy", lambda p: p.write_text("0,1\n"), "no plain .npy array"),
    ("m.npy", lambda p: p.write_bytes(pickle.dumps([1])), "no plain .npy array .* without pickle"),
    ("m.npy", lambda p: write_npy(p, np.array([{}], object)), "no plain .npy array .* without pickle"),
    ("m.npy", write_promise, "no plain .npy array"),
    ("m.npy", lambda p: (write_npy(p, MAPS[0]), spoil(p, b"}", b"\0")), "save it with numpy.save"),      # in tokenize
    ("m.png", lambda p: (write_png(p, 3, 3), spoil(p, b"\0\0\0\3" * 2, b"@\0\0\0" * 2)), "scale it down"),
    ("m.npy", lambda p: write_npy(p, np.zeros((1, 3, 3))), r"shape \(1, 3, 3\), .* width\); drop the channel or bat"),
    ("m.npy", lambda p: write_npy(p, [[0, np.nan]]), "holds NaN or infinite values, .*; unknown cells are 0, of cert"),
    ("m.npy", lambda p: write_npy(p, [[0, np.inf]]), "holds NaN or infinite values"),
    ("m.npy", lambda p: write_npy(p, [[0, 255]]), r"values span \[0, 255\], expected \[0, 1\]; divide by the max"),
    ("m.npy", lambda p: write_npy(p, [[-0.1, 1]]), r"values span \[-0.1, 1\]"),
    ("m.npy", lambda p: write_npy(p, [[1j]]), "type complex128, expected real numbers"),
    ("m.png", lambda p: None, "No such file or directory; expected a grey .png file"),
    ("m.png", lambda p: p.write_text(""), r"empty \(0 bytes\)"),
    ("m.png", lambda p: write_png(p, 3, 3, 3), "a colour PNG, expected a grey one"),
    ("m.png", lambda p: write_png(p, 3, 3, 4), "a colour PNG, expected a grey one"),
    ("m.png", lambda p: p.write_bytes(cv2.imencode(".jpg", np.zeros((3, 3), np.uint8))[1]), "not a PNG that can be"),
    ("m.csv", lambda p: p.write_text("0,1"), "expected a map in a .npy or .png file, or a row of an .h5 file"),
    ("m.h5", lambda p: write_h5(p, maps=MAPS), "expected a map in a .npy or .png file, or a row of an .h5 file"),
    ("m.h5#0", lambda p: None, "No such file or directory; expected an HDF5 file"),
    ("m.h5#0", lambda p: p.write_bytes(b""), r"empty \(0 bytes\), expected an HDF5 file"),
    ("m.h5#0", lambda p: p.write_bytes(b"x" * 999), "999 bytes without the signature of HDF5"),
    ("m.h5#0", lambda p: write_h5(p, other=MAPS), r"has no dataset `maps` \(rows, height, width\)"),
    ("m.h5#0", lambda p: write_h5(p, maps=MAPS[0]), r"has no dataset `maps` \(rows, height, width\)"),
    ("m.h5#1", lambda p: write_h5(p, maps=MAPS * 9), "values span"),
    ("m.h5#5", lambda p: write_h5(p, maps=MAPS), "the file has 5 rows, counted from 0"),
    ("m.h5#0", lambda p: write_h5(p, maps=h5py.SoftLink("/x")), "maps is a soft or external link"),
    ("m.h5#0", lambda p: write_h5(p, maps=h5py.ExternalLink("x.h5", "/x")), "maps is a soft or external link"),
    ("m.h5#0", lambda p: write_h5(p, maps=np.float32(1)), r"maps holds float32 \(\), expected rows of plain numbers"),
    ("m.h5#0", lambda p: write_h5(p, maps="text"), "maps holds object"),
]


@pytest.mark.parametrize(("name", "write", "sentence"), BAD)
def test_what_is_no_map_gets_its_sentence(name: str, write: Callable[[Path], object], sentence: str, tmp_path) -> None:
    write(tmp_path / name.partition("#")[0])
    with pytest.raises(MapError, match=rf"m\.(npy|png|csv|h5)(#\d)?: .*{sentence}"):
        load_map(str(tmp_path / name))


def test_plain_hdf5_of_others_is_read_chunked_or_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("maps", data=MAPS, chunks=True)
    assert np.array_equal(load_map(f"{tmp_path}/m.h5#4"), MAPS[4])
    write_h5(tmp_path / "n.h5", maps=MAPS.astype(np.float64), deep=MAPS)
    assert np.array_equal(load_map(f"{tmp_path}/n.h5#4"), MAPS[4])
    assert np.array_equal(load_certainty(f"{tmp_path}/n.h5#4"), MAPS[4])      # no certainty there: its maps


def test_external_storage_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("maps", (1, 2, 2), "f4", external=[(str(tmp_path / "raw"), 0, 16)])
    with pytest.raises(MapError, match="maps is kept elsewhere"):
        load_map(f"{tmp_path}/m.h5#0")


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    reference = f"{tmp_path}/maps.h5#0"
    for values in (MAPS[1], MAPS[2], MAPS[3]):
        with open_writer(tmp_path / "maps.h5", overwrite=True) as writer:
            writer.save("x", values)
        assert np.array_equal(load_map(reference), values)


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    save_all(tmp_path / "maps.h5")
    file = Columns(tmp_path / "maps.h5")
    file.read("ids/bytes", 0, 1)
    os.truncate(tmp_path / "maps.h5", 600)
    with pytest.raises(ShardError, match=r"ends at byte \d+, it was longer when it was opened; open it again"):
        file.whole("maps")


def test_a_map_is_the_same_through_any_layout_of_memory(tmp_path: Path) -> None:
    views: list[Map] = [MAPS[1][::-1, ::-1], np.asfortranarray(MAPS[1]), MAPS[1].T]
    with open_writer(tmp_path / "maps") as writer:
        for index, view in enumerate(views):
            assert np.array_equal(load_map(writer.save(str(index), view)), view)


def test_rows_of_other_programs_need_no_checksum_and_ours_are_compared_with_theirs(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    with open_writer(path) as writer:
        writer.save("a", MAPS[0])
    with h5py.File(path, "r+") as file:
        file["maps"][0, 0, 0] = 0.5
    with pytest.raises(MapError, match=r"maps\.h5#0: its checksum does not fit"):
        load_map(f"{path}#0")
    with h5py.File(path, "r+") as file:
        del file["crc32"]
    assert load_map(f"{path}#0")[0, 0] == 0.5


def test_the_rows_of_an_h5_are_written_where_they_stay(tmp_path: Path) -> None:
    """Large or small; a second copy of gigabytes of maps took a quarter of the time."""
    for size, rows in (((224, 224), 3), ((2, 2), 1)):
        path = tmp_path / f"{rows}.h5"
        maps = [np.full(size, (row + 1) / 8, np.float32) for row in range(rows)]
        with open_writer(path) as writer:
            references = [writer.save(str(row), values) for row, values in enumerate(maps)]
        with h5py.File(path) as file:
            assert file["maps"].id.get_offset() == 512 + (1 << 14)
            assert np.array_equal(file["maps"], maps)
        assert all(np.array_equal(load_map(one), values) for one, values in zip(references, maps, strict=True))


ONE = np.float32(1)
STEP = np.float32(1) - np.nextafter(ONE, np.float32(0))


@pytest.mark.parametrize("value", [np.nextafter(ONE, np.float32(2)), ONE + 8 * STEP, -STEP, np.float32(-1e-7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_rounding_carried_beyond_the_range_is_taken(value: np.float32, dtype: type, tmp_path: Path) -> None:
    values = np.array([[0, 0.25], [1, value]], dtype)
    np.save(tmp_path / "map.npy", values)
    assert load_map(str(tmp_path / "map.npy")).tolist() == [[0, 0.25], [1, float(value > 0)]]


@pytest.mark.parametrize(("value", "shown"), [(1.00001, "[0, 1.00001]"), (-1e-5, "[-1e-05, 0]"), (255, "[0, 255]")])
def test_what_is_further_beyond_is_refused_with_enough_digits(value: float, shown: str, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([[0, value]]))
    with pytest.raises(MapError, match=re.escape(f"values span {shown}, expected [0, 1]; divide by the maximum")):
        load_map(str(tmp_path / "map.npy"))

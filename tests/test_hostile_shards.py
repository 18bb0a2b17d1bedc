"""Shards that somebody made to do harm: each is refused with a sentence, before it takes memory."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

pytestmark = pytest.mark.xdist_group("hostile shards")      # one process opens them all, once
MEGABYTES = 100
IMAGE = bytes(cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1])
RECORD = b'{"id": "a"}'
HUGE = 2**60


def strings(file: h5py.File, name: str, content: bytes) -> None:
    file[f"{name}/bytes"] = np.frombuffer(content, "u1")
    file[f"{name}/offsets"] = np.array([0, len(content)], "<u8")


def good(file: h5py.File) -> None:
    """The smallest shard: one record without a map."""
    file.attrs.update({"format": "hkmap-shard", "version": 1, "classes": '["a"]', "created_with": "somebody"})
    for name, content in (("images", IMAGE), ("ids", b"a"), ("records", RECORD)):
        strings(file, name, content)
    file["maps"] = np.zeros((1, 0, 0), "<f4")
    file["has_map"] = np.zeros(1, bool)
    file["labels"] = np.zeros(1, "<i8")
    file["crc32"] = np.array([zlib.crc32(RECORD, zlib.crc32(bytes(8), zlib.crc32(IMAGE)))], "<u4")


def put(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Replace a dataset by another."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, **options)

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def low_level(name: str, shape: tuple[int, ...], kind: str) -> Callable[[h5py.File], None]:
    """A contiguous dataset for which no byte is allocated: its shape is but a number in the header."""

    def change(file: h5py.File) -> None:
        del file[name]
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(kind)), h5py.h5s.create_simple(shape))

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.update({name: value})


def pixels(shape: tuple[int, ...], *, alone: bool = False) -> Callable[[h5py.File], None]:
    """Decoded pixels, in the place of the image's file or beside it; beyond some bytes none is allocated."""

    def change(file: h5py.File) -> None:
        if alone:
            del file["images"]
        data = np.zeros(shape, "u1") if math.prod(shape) < 1000 else None
        if data is not None:
            file["images/pixels"] = data
            return
        file.require_group("images")
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, b"images/pixels", h5py.h5t.py_create(np.dtype("u1")), space)

    return change


def dense(file: h5py.File) -> None:
    for number in range(300):
        file.attrs[f"a{number}"] = "x" * 100


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(100):
        group = group.create_group("g")


def many_groups(file: h5py.File) -> None:
    for number in range(300):
        h5py.h5g.create(file.id, b"g%d" % number)


def circle(file: h5py.File) -> None:
    file.create_group("a/b")
    file["a/b/c"] = file["a"]
    file["a/b/d"] = file["/"]


def image_bomb(file: h5py.File) -> None:
    """A PNG whose header promises 30,000 x 30,000 pixels of one colour; its checksum is right."""
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(1 << 20), 9)
    chunks = [(len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
              for part in (header, b"IDAT" + data, b"IEND")]
    image = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    del file["images"], file["crc32"]
    strings(file, "images", image)
    file["crc32"] = np.array([zlib.crc32(RECORD, zlib.crc32(bytes(8), zlib.crc32(image)))], "<u4")


def named_in_json(depth: int) -> Callable[[h5py.File], None]:
    """A record of brackets in brackets."""

    def change(file: h5py.File) -> None:
        text = b'{"id": "a", "x": ' + b"[" * depth + b"]" * depth + b"}"
        del file["records"], file["crc32"]
        strings(file, "records", text)
        file["crc32"] = np.array([zlib.crc32(text, zlib.crc32(bytes(8), zlib.crc32(IMAGE)))], "<u4")

    return change


def bomb(file: h5py.File) -> None:
    """A gigabyte of zeros, compressed to a megabyte."""
    chunk = 1 << 24
    put("images/bytes", shape=(64 * chunk,), dtype="u1", chunks=(chunk,), compression="gzip")(file)
    squeezed = zlib.compress(bytes(chunk))
    for number in range(64):
        file["images/bytes"].id.write_direct_chunk((number * chunk,), squeezed)


def large_chunk(file: h5py.File) -> None:
    """A dataset of six bytes in a chunk of 64 MiB, in a file of as many kilobytes."""
    chunk = 1 << 26
    put("images/bytes", shape=(6,), maxshape=(None,), dtype="u1", chunks=(chunk,), compression="gzip")(file)
    file["images/bytes"].id.write_direct_chunk((0,), zlib.compress(bytes(chunk)))


def rows_of_nothing(file: h5py.File) -> None:
    """2^60 maps of 0 x 0 pixels, which take no byte."""
    low_level("maps", (HUGE, 0, 0), "<f4")(file)


def annotators_of_nothing(file: h5py.File) -> None:
    parts = (("maps", (HUGE, 0, 0), "<f4"), ("names/bytes", (0,), "u1"), ("names/offsets", (1,), "<u8"))
    for name, shape, kind in parts:
        file.create_dataset(f"annotator_maps/{name}", shape, kind)
    file["annotator_maps/offsets"] = np.array([0, HUGE], "<u8")


Change = Callable[[h5py.File], None]
HOSTILE: dict[str, tuple[Change, str]] = {
    "external-link": (link("records/bytes", h5py.ExternalLink("secret.h5", "/key")), "is a soft or external link"),
    "external-group": (link("records", h5py.ExternalLink("secret.h5", "/")), "is a soft or external link"),
    "soft-link": (link("maps", h5py.SoftLink("/labels")), "is a soft or external link"),
    "soft-circle": (link("maps", h5py.SoftLink("/maps")), "is a soft or external link"),
    "external-storage": (
        put("images/bytes", shape=(6,), dtype="u1", external=[("secret.txt", 0, 6)]), "is kept elsewhere"),
    "absolute-external-storage": (
        put("images/bytes", shape=(6,), dtype="u1", external=[("/etc/passwd", 0, 6)]), "is kept elsewhere"),
    "virtual": (lambda file: virtual(file), "is kept elsewhere"),
    "offsets-beyond": (put("images/offsets", data=np.array([0, HUGE], "<u8")), "do not rise to the end of"),
    "offsets-wrapped": (put("images/offsets", data=np.array([2**64 - 1, 5], "<u8")), "do not rise to the end of"),
    "offsets-falling": (put("ids/offsets", data=np.array([1, 0], "<u8")), "do not rise to the end of"),
    "rows": (low_level("labels", (HUGE,), "<i8"), "was never written, or lies beyond"),
    "bytes": (low_level("images/bytes", (HUGE,), "u1"), "was never written, or lies beyond"),
    "wide-maps": (low_level("maps", (1, 2**31, 2**28), "<f4"), "was never written, or lies beyond|damaged HDF5"),
    "rows-of-nothing": (rows_of_nothing, "expected float32 with 3 dimensions and 1 rows"),
    "annotators-of-nothing": (annotators_of_nothing, "annotator_maps/maps differ in number"),
    "no-rows": (put("labels", data=np.zeros(0, "<i8")), "expected .* rows"),
    "scalar": (put("labels", data=np.int64(1)), "expected rows of plain numbers"),
    "null": (put("labels", data=h5py.Empty("<i8")), "expected rows of plain numbers"),
    "many-dimensions": (put("maps", data=np.zeros((1,) * 32, "<f4")), "expected float32 with 3 dimensions"),
    "strings": (put("ids/bytes", data=["a" * 100], dtype=h5py.string_dtype()), "expected rows of plain numbers"),
    "lists": (
        put("labels", shape=(1,), dtype=h5py.vlen_dtype("f8")),
        "expected rows of plain numbers"),
    "references": (put("labels", shape=(1,), dtype=h5py.ref_dtype), "expected rows of plain numbers"),
    "records-in-one": (put("labels", data=np.zeros(1, "i4,i4")), "expected rows of plain numbers"),
    "opaque": (put("labels", data=np.zeros(1, "V8")), "expected rows of plain numbers"),
    "big-endian": (put("labels", data=np.zeros(1, ">i8")), "labels is >i8"),
    "bomb": (bomb, "datasets take .* bytes unpacked, expected at most .*; if you trust it, unpack it with `h5repack"),
    "bomb-of-maps": (
        put("maps", shape=(1, 4096, 4096), dtype="<f4", compression="gzip"),
        "chunked datasets take .* bytes unpacked, expected at most"),
    "large-chunk": (large_chunk, r"has chunks of \(67108864,\) numbers, 1 in all, .*; if you trust it, unpack it"),
    "single-chunks": (
        put("images/bytes", shape=(1 << 24,), dtype="u1", chunks=(1,)), "16,777,216 in all, more than"),
    "small-chunks": (
        put("images/bytes", shape=(1 << 24,), dtype="u1", chunks=(64,), compression="gzip"), "262,144 in all, more"),
    "thin-chunks": (
        put("maps", shape=(1, 1, 1 << 22), dtype="<f4", chunks=(1, 1, 1)), "4,194,304 in all, more than"),
    "classes": (attribute("classes", "[" + '"a",' * 2_000_000 + '"a"]'), "takes more than|damaged HDF5"),
    "nested-classes": (attribute("classes", "[" * 100_000), "its attribute classes is no JSON list of names"),
    "classes-of-numbers": (attribute("classes", np.zeros(8000)), "its attribute classes is no JSON list of names"),
    "format": (attribute("format", np.bytes_(b"hkmap-\xff")), "damaged HDF5 .*decode byte 0xff"),
    "version": (attribute("version", HUGE), "shard version"),
    "attributes": (dense, "attributes, a shard has 4"),
    "deep": (deep, ""),
    "many-groups": (many_groups, "holds more than 256 groups and datasets"),
    "circle": (circle, ""),
    "pixels-and-files": (pixels((1, 2, 2, 3)), "holds images both as files and as pixels"),
    "wide-pixels": (pixels((1, 2**15, 2**14, 3), alone=True), "images/pixels is .*, expected .* at most|was never"),
    "no-pixels": (pixels((1, 0, 2**60, 3), alone=True), "images/pixels is .*, expected"),
    "pixels-of-four": (pixels((1, 2, 2, 4), alone=True), "images/pixels is .*, expected"),
    "pixels-of-nobody": (pixels((HUGE, 0, 0, 3), alone=True), "with 4 dimensions and 1 rows"),
    "rows-of-pixels": (pixels((HUGE >> 4, 2, 2, 3), alone=True), "was never written, or lies beyond|damaged HDF5"),
    "image": (image_bomb, "an image of 30000x30000 pixels, expected at most"),
    "nested-record": (named_in_json(100_000), "JSON"),
}


# in the older form of HDF5; in the newer one too, where that makes a difference
KINDS = ("earliest", "latest")
LATEST = ("good", "external-link", "external-storage", "classes", "attributes", "deep", "many-groups", "bomb")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6,), "u1")
    layout[:] = h5py.VirtualSource("secret.h5", "key", (6,))
    del file["images/bytes"]
    file.create_virtual_dataset("images/bytes", layout)


def write(path: Path, change: Change, *, libver: str) -> None:
    with h5py.File(path, "w", libver=libver, userblock_size=512) as file:
        good(file)
        change(file)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each file, by its name; all are opened by one program, each in a fork of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["key"] = np.frombuffer(b"SECRET", "u1")
    (folder / "secret.txt").write_bytes(b"SECRET")
    cases: dict[str, tuple[Change, str]] = {**HOSTILE, "good": (lambda file: None, "")}
    for name, (change, _) in cases.items():
        for kind in KINDS:
            if kind != "latest" or name in LATEST:
                write(folder / f"{name}-{kind}.h5", change, libver=kind)
    names = sorted(path.name for path in folder.glob("*-*.h5"))
    program = Path(__file__).with_name("measured_opening.py")
    done = subprocess.run(
        [sys.executable, str(program), *names], cwd=folder, capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {result["path"]: result for result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in HOSTILE for kind in KINDS if kind != "latest" or name in LATEST]
)
def test_a_hostile_shard_is_refused(name: str, kind: str, measured: dict[str, dict[str, Any]]) -> None:
    result = measured[f"{name}-{kind}.h5"]
    assert result["exit"] == 0, "a crash, or another exception"
    assert re.search(HOSTILE[name][1], result["said"]), result["said"]
    if HOSTILE[name][1]:
        assert result["said"].startswith(f"{name}-{kind}.h5"), "names no place"
        assert result["problems"], "verify finds nothing wrong"
    assert "SECRET" not in json.dumps(result)
    assert result["megabytes"] < MEGABYTES


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_harm_is_read(kind: str, measured: dict[str, dict[str, Any]]) -> None:
    result = measured[f"good-{kind}.h5"]
    assert (result["exit"], result["said"]) == (0, "")

"""docs/shards.md says all that a reader in another language needs: its reader runs, and its words hold to the byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from conftest import ROOT

from hkmap.files.hdf5 import Columns
from hkmap.shards.info import content_digest
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter, WriterOptions

PAGE = (ROOT / "docs" / "shards.md").read_text(encoding="utf-8")
READER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1]
MAPS = np.random.default_rng(0).random((6, 3, 4), dtype=np.float32)


@pytest.fixture(params=["plain", "certain", "annotated", "without-maps", "pixels"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.h5"
    options = WriterOptions(pixel_size=(3, 4) if request.param == "pixels" else None)
    with ShardWriter(path, options=options) as writer:
        for index in range(6):
            image = cv2.imencode(".png", np.full((3, 4, 3), index, np.uint8))[1].tobytes()
            record = {"id": f"ü{index}", "image": "x.png", "label": index % 2, "class": "ab"[index % 2], "extra": [1]}
            values = None if index == 2 or request.param == "without-maps" else MAPS[index]
            certainty = MAPS[index] if request.param == "certain" and index in (1, 4) else None
            own = {"é": MAPS[0], "a": MAPS[1]} if request.param == "annotated" and index in (0, 3) else None
            writer.add(record, image, values, certainty, annotators=own)
    return path


def read_by_page() -> Callable[[Path], Iterator[tuple[dict[str, Any], bytes, Any]]]:
    scope: dict[str, Any] = {}
    exec(READER, scope)
    return scope["read_shard"]


def test_no_text_lies_in_a_heap_without_a_checksum(shard: Path) -> None:
    """A read of such a heap that is damaged may never end; the header that holds text of a fixed length has a sum."""
    assert b"GCOL" not in shard.read_bytes()


def test_the_reader_on_the_page_needs_h5py_alone(shard: Path) -> None:
    assert re.findall(r"^\s*(?:import|from) (\w+)", READER, re.MULTILINE) == ["json", "zlib", "h5py"]
    reader = ShardReader(shard)
    found = list(read_by_page()(shard))
    assert len(found) == len(reader)
    for index, (record, image, values) in enumerate(found):
        sample = reader.read(index)
        assert (record, image) == (sample.record, sample.image_bytes)
        assert (values is None) == (sample.map is None)
        assert values is None or np.array_equal(values, sample.map)


def test_the_reader_on_the_page_is_short_and_finds_damage(shard: Path) -> None:
    body = READER.partition('pixels."""\n')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    column = Columns(shard).by_name["labels"]
    data = bytearray(shard.read_bytes())
    data[column.offset + 4 * 8] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="record 4 is damaged"):
        list(read_by_page()(shard))
    with h5py.File(shard, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(ValueError, match="not a shard this reader knows"):
        list(read_by_page()(shard))


def test_the_datasets_and_attributes_are_those_of_the_page(shard: Path) -> None:
    table = set(re.findall(r"`([a-z0-9_/]+)`", "".join(re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE))))
    found: set[str] = set()
    with h5py.File(shard) as file:
        file.visititems(lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None)
        found |= set(file.attrs)
        assert all(not item.attrs for item in file.values())
    assert found <= table
    with h5py.File(shard) as file:
        assert all(file[name].chunks is None for name in ("maps", "labels", "crc32", "records/bytes"))
    optional = {name for name in table if name.startswith(("annotator_maps", "certainty", "images/"))}
    assert table - found <= optional


def test_the_user_block_is_that_of_the_page(shard: Path) -> None:
    data = shard.read_bytes()
    first, second, rest = data[:512].decode("ascii").split("\n", 2)
    assert first == "HDF5 of hkmap, from byte 512 on"
    assert second == f"sha256 {hashlib.sha256(data[512:]).hexdigest()}"
    assert rest == " " * (511 - len("\n".join((first, second, "")))) + "\n"
    assert data[512:520] == b"\x89HDF\r\n\x1a\n"


def test_the_digest_of_the_content_is_that_of_the_page(shard: Path) -> None:
    def pieces() -> Iterator[bytes]:
        reader = ShardReader(shard)
        for index, (record, image, values) in enumerate(read_by_page()(shard)):
            sample = reader.read(index)
            paths = ("image", "map", "masks", "unknown", "dont_look", "certainty", "annotator_maps")
            text = json.dumps({key: value for key, value in record.items() if key not in paths}, sort_keys=True)
            certainty = b"" if sample.certainty is None or (sample.certainty == 1).all() else sample.certainty.tobytes()
            own = b"".join(name.encode() + one.tobytes() for name, one in sample.annotators.items())
            parts = [text.encode(), image, b"" if values is None else values.tobytes(), certainty]
            for part in [*parts, own] if own else parts:
                yield len(part).to_bytes(8, "little") + part
            yield sample.label.to_bytes(8, "little", signed=True)

    assert content_digest(ShardReader(shard)) == hashlib.sha256(b"".join(pieces())).hexdigest()

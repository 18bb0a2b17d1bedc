"""Shards of decoded pixels: `pack --store pixels`, and every reader of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from hkmap.engine.data import ShardExamples
from hkmap.engine.inputs import Preprocessing
from hkmap.errors import OutputError, ShardError
from hkmap.files.images import decode_image
from hkmap.shards.info import describe_shard, outline_shard
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.verify import verify_shard
from hkmap.shards.writer import ShardWriter, WriterOptions
from hkmap.stream.references import image_bytes, read_image

Hk = Callable[..., Any]
RANDOM = np.random.default_rng(0)
SIZES = [(40, 30), (8, 6), (12, 10), (40, 5), (9, 50)]      # (height, width): larger, smaller, equal, and of both kinds
SIZE = (12, 10)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A JPEG of each size, the last one turned by its EXIF; maps for all but one."""
    monkeypatch.chdir(tmp_path)
    result: list[dict[str, Any]] = []
    for index, (height, width) in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = 6 if index == len(SIZES) - 1 else 1
        Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(f"{index}.jpg", exif=exif)
        np.save(f"{index}.npy", RANDOM.random((3, 4), dtype=np.float32))
        result.append({"id": f"{index}", "image": f"{index}.jpg", "map": f"{index}.npy", "label": index % 2})
    del result[3]["map"]
    return result


@pytest.fixture
def shard(hk: Hk, records: list[dict[str, Any]]) -> Path:
    done = hk("pack", "x.h5", "--store", "pixels", "--size", "10x12", stdin=records)
    assert (done.exit_code, done.stderr) == (0, "")
    return Path("x.h5")


def squashed(path: str) -> np.ndarray[Any, Any]:
    """Area averages along what shrinks, then bilinear along what grows; as displayed."""
    pixels = cv2.imread(path)[..., ::-1]
    height, width = (min(side, own) for side, own in zip(SIZE, pixels.shape, strict=False))
    shrunk = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, SIZE[::-1], interpolation=cv2.INTER_LINEAR)


def test_the_pixels_are_those_of_the_image(shard: Path, records: list[dict[str, Any]]) -> None:
    reader = ShardReader(shard)
    with h5py.File(shard) as file:
        assert file["images/pixels"].shape == (5, 12, 10, 3)
        assert file["images/pixels"].chunks is None
        assert set(file["images"]) == {"pixels"}
        stored = file["images/pixels"][:]
    assert reader.pixel_size == (12, 10)
    assert reader.image_sizes.tolist() == [360] * 5
    for index, record in enumerate(records):
        expected = squashed(record["image"])
        assert np.array_equal(stored[index], expected)
        assert np.array_equal(reader.image(index), expected)
        assert np.array_equal(read_image(f"x.h5#{index}"), expected)
        for data in (reader.read(index).image_file(), image_bytes(f"x.h5#{index}")):
            assert data.startswith(b"\x89PNG")
            assert np.array_equal(decode_image(data, "x"), expected)
        assert reader.record(index) == record
        assert (reader.map(index) is None) == ("map" not in record)


def test_training_sees_what_it_sees_of_the_files(hk: Hk, shard: Path, records: list[dict[str, Any]]) -> None:
    hk("pack", "files.h5", stdin=records)
    pixels, files = (
        ShardExamples(ShardSequence([Path(name)]), Preprocessing(12, 10, "squash"), (3, 4)) for name in
        ("x.h5", "files.h5")
    )
    for index in range(len(records)):
        assert np.array_equal(pixels.example(index).image, files.example(index).image)


def test_every_check_knows_pixels(hk: Hk, shard: Path) -> None:
    assert verify_shard(shard, depth="full")["ok"]
    outline, whole = outline_shard(shard), describe_shard(shard)
    assert outline["pixel_size"] == [12, 10]
    assert outline["image_bytes_histogram"] == {"edges": [360, 360], "counts": [5]}
    assert whole["image_sizes"] == [{"size": [10, 12], "records": 5}]
    unpacked = hk("unpack", shard)
    assert "bad-image" not in hk("check", stdin=unpacked.stdout).stdout
    assert hk("show", "--out", "sheet.png", stdin=unpacked.stdout).exit_code == 0


@pytest.mark.parametrize("pixel_size", [None, (12, 10), (6, 5)])
def test_samples_go_from_shard_to_shard(pixel_size: tuple[int, int] | None, shard: Path) -> None:
    reader = ShardReader(shard)
    with ShardWriter(Path("y.h5"), options=WriterOptions(pixel_size=pixel_size)) as writer:
        for index in range(len(reader)):
            writer.add_sample(reader.read(index))
    other = ShardReader(Path("y.h5"))
    assert other.pixel_size == pixel_size
    if pixel_size == (6, 5):
        expected = cv2.resize(reader.image(0), (5, 6), interpolation=cv2.INTER_AREA)
        assert np.array_equal(other.image(0), expected)
    else:
        assert np.array_equal(other.image(0), reader.image(0))
    assert other.record(4) == reader.record(4)


def test_a_flipped_bit_in_the_pixels_is_found_and_named(shard: Path) -> None:
    with h5py.File(shard) as file:
        offset = file["images/pixels"].id.get_offset()
    data = bytearray(shard.read_bytes())
    data[offset + 2 * 360 + 7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r'x\.h5#2 \(record "2"\): its checksum does not fit'):
        ShardReader(shard).image(2)
    assert ShardReader(shard).image(1).shape == (12, 10, 3)
    problems = verify_shard(shard)["problems"]
    assert [problem["record"] for problem in problems] == [None, 2]


def test_pixels_have_a_limit(hk: Hk, records: list[dict[str, Any]]) -> None:
    done = hk("pack", "y.h5", "--store", "pixels", "--size", 20_000, stdin=records)
    assert done.exit_code == 2
    assert "20000: expected sides from 1 to 16,384, and at most 33,554,432 pixels in all." in done.stderr
    with pytest.raises(OutputError, match="expected at most"):
        ShardWriter(Path("y.h5"), options=WriterOptions(pixel_size=(1, 1 << 29)))

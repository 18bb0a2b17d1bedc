"""Shards that another program wrote again, chunked and compressed, are read like the ones they were made from."""

from __future__ import annotations

import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hkmap.errors import ShardError
from hkmap.files.hdf5 import Columns
from hkmap.shards.info import content_digest
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.verify import verify_shard
from hkmap.shards.writer import ShardWriter, WriterOptions
from hkmap.stream.references import load_map

Options = Callable[[str, tuple[int, ...]], dict[str, Any]]


def whole(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"chunks": shape}


def small(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"chunks": tuple(max(1, -(-size // 3)) for size in shape)}


def squeezed(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """As `h5repack -f SHUF -f GZIP=6` has it, which leaves small datasets as they are."""
    return {"chunks": shape, "compression": 6, "shuffle": True} if np.prod(shape) >= 100 else {}


def growing(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """As a program that appends has it: chunks are larger than the datasets."""
    return {"chunks": (1024, *shape[1:]), "maxshape": (None, *shape[1:]), "fletcher32": True, "compression": "lzf"}


LAYOUTS: list[Options] = [whole, small, squeezed, growing]


def rewritten(shard: Path, name: str, options: Options, *, libver: str = "earliest", block: bool = True) -> Path:
    """Copy a shard dataset by dataset, its user block too if ``block``, as h5repack does."""
    target = shard.with_name(name)
    with h5py.File(shard) as old, h5py.File(target, "w", libver=libver, userblock_size=512 if block else 0) as new:
        new.attrs.update(old.attrs)

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                new.create_dataset(name, data=item[...], **(options(name, item.shape) if 0 not in item.shape else {}))

        old.visititems(copy)
    if block:
        with target.open("r+b") as file:
            file.write(shard.read_bytes()[:512])
    return target


@pytest.fixture
def shard(make_shard: Callable[..., Path]) -> Path:
    return make_shard("train.h5", 12, maps=9)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("options", LAYOUTS)
def test_it_reads_like_the_one_it_was_made_from(options: Options, libver: str, shard: Path) -> None:
    other = rewritten(shard, "other.h5", options, libver=libver)
    assert content_digest(ShardReader(other)) == content_digest(ShardReader(shard))


def test_what_training_reads(shard: Path) -> None:
    one, other = ShardSequence([shard]), ShardSequence([rewritten(shard, "other.h5", squeezed)])
    assert one.classes == other.classes
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.has_map, other.has_map)
    assert np.array_equal(one.shards[0].maps, other.shards[0].maps)
    for index in range(12):
        bare, same = one.read_bare(index), other.read_bare(index)
        assert (bare.image_bytes, bare.label) == (same.image_bytes, same.label)
        assert same.map is None if bare.map is None else np.array_equal(bare.map, same.map)
    assert np.array_equal(load_map(f"{other.shards[0].path}#3"), load_map(f"{shard}#3"))


@pytest.mark.parametrize("options", [small, squeezed])
def test_pixels_certainty_and_annotators(options: Options, shard: Path, tmp_path: Path) -> None:
    drawn = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    with ShardWriter(tmp_path / "pixels.h5", options=WriterOptions(pixel_size=(9, 7))) as writer:
        for sample in map(ShardReader(shard).read, range(5)):
            writer.add(sample.record, sample.image_bytes, drawn, drawn / 2, annotators={"é": drawn, "f": drawn})
    other = ShardReader(rewritten(tmp_path / "pixels.h5", "other.h5", options))
    assert content_digest(other) == content_digest(ShardReader(tmp_path / "pixels.h5"))
    batch = np.zeros((2, 9, 7, 3), np.uint8)
    assert other.read_bare(4, batch[1]).image("x").base is not None
    assert np.array_equal(batch[1], ShardReader(tmp_path / "pixels.h5").image(4))


@pytest.mark.parametrize(("block", "depth", "sentences"), [
    (True, "quick", []), (True, "full", ["its bytes have the sha256 .* another program such as h5repack rewrote"]),
    (False, "quick", ["its first 512 bytes are not as"]),
    (False, "records", ["its first 512 bytes are not as", "states no sha256 of its bytes"]),
])
def test_verify_says_only_that_the_digest_is_of_another_file(block, depth, sentences, shard) -> None:
    result = verify_shard(rewritten(shard, "other.h5", squeezed, block=block), depth=depth)
    for problem, sentence in zip(result["problems"], sentences, strict=True):
        assert re.search(rf"other\.h5: {sentence}", problem["sentence"])
    assert (result["records"], result["ok"]) == (12, not sentences)


def test_chunks_that_were_never_written_are_what_fills_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("maps", (50, 9, 9), "f4", chunks=(7, 4, 4), fillvalue=0.25)
    assert (load_map(f"{tmp_path}/m.h5#49") == 0.25).all()


# damage


def place_of_chunk(path: Path, name: str) -> tuple[int, int]:
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    return chunk.byte_offset, chunk.size


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["images/bytes", "records/bytes", "maps"])
def test_a_damaged_chunk_is_named(name: str, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shard.parent)
    other = Path(rewritten(shard, "other.h5", squeezed).name)
    place, size = place_of_chunk(other, name)
    flip(other, place + size // 2)
    with pytest.raises(ShardError, match=rf"^other\.h5: {name} cannot be unpacked \(.*: damaged, or packed with a fil"):
        ShardReader(other).read(3)
    problem = next(problem for problem in verify_shard(other)["problems"] if problem["record"] == 3)
    assert problem["sentence"].startswith(f"other.h5: {name} cannot be unpacked")


def test_a_damaged_chunk_of_numbers_is_found_at_once(shard: Path) -> None:
    other = rewritten(shard, "other.h5", growing)
    place, size = place_of_chunk(other, "labels")
    flip(other, place + size // 2)
    with pytest.raises(ShardError, match=r"other\.h5: labels cannot be unpacked"):
        ShardReader(other)
    assert not verify_shard(other)["ok"]


def test_damage_in_a_chunk_without_a_filter_is_found_by_the_checksum(shard: Path) -> None:
    other = rewritten(shard, "other.h5", whole)
    place, _ = place_of_chunk(other, "images/bytes")
    flip(other, place + int(ShardReader(shard).image_sizes[0]) + 20)
    reader = ShardReader(other)
    reader.read(0)
    with pytest.raises(ShardError, match=r'other\.h5#1 \(record "train\.h5-1"\): its checksum does not fit'):
        reader.read(1)
    assert [problem["record"] for problem in verify_shard(other)["problems"]] == [None, 1]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_one_that_was_cut_short(libver: str, shard: Path) -> None:
    whole_file = rewritten(shard, "other.h5", squeezed, libver=libver).read_bytes()
    for length in (540, 2000, len(whole_file) // 2, len(whole_file) - 1):
        path = shard.with_name("cut.h5")
        path.write_bytes(whole_file[:length])
        with pytest.raises(ShardError, match=r"cut\.h5: .*"):
            ShardReader(path)
        assert not verify_shard(path)["ok"]


# limits


def chunked(path: Path, shape: tuple[int, ...], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("maps", shape, "f4", **{"chunks": True, **options})
    return path


def said_of(path: Path) -> str:
    with pytest.raises(ShardError) as caught:
        Columns(path).whole("maps")
    return str(caught.value)


def test_chunks_without_number(tmp_path: Path) -> None:
    """For each of them libhdf5 takes some kilobytes, though none was ever written."""
    said = said_of(chunked(tmp_path / "x.h5", (5000,), chunks=(1,)))
    assert "x.h5: maps has chunks of (1,) numbers, 5,000 in all" in said
    assert Columns(chunked(tmp_path / "y.h5", (4000,), chunks=(1,))).whole("maps").shape == (4000,)


def test_datasets_without_a_byte_need_no_unpacking(tmp_path: Path) -> None:
    path = chunked(tmp_path / "x.h5", (0, 9, 9), chunks=(1, 9, 9), maxshape=(None, 9, 9))
    assert Columns(path).whole("maps").shape == (0, 9, 9)


# files


def test_a_file_that_is_replaced_before_it_is_unpacked(tmp_path: Path) -> None:
    path = chunked(tmp_path / "x.h5", (10, 9, 9))
    file = Columns(path)
    chunked(tmp_path / "y.h5", (10, 9, 9), compression="gzip").replace(path)
    with pytest.raises(ShardError, match=r"x\.h5: another file than when it was opened, somebody replaced it"):
        file.whole("maps")


def texts(reader: ShardReader) -> list[bytes]:
    return [reader.text(index) for index in range(len(reader))]


def test_it_is_read_from_threads_and_from_other_processes(shard: Path) -> None:
    reader, expected = ShardReader(rewritten(shard, "other.h5", small)), texts(ShardReader(shard))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.text, range(12))) == expected
    assert texts(pickle.loads(pickle.dumps(reader))) == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(texts, [reader, reader]) == [expected, expected]


def test_many_files_in_turn_leave_few_open(tmp_path: Path) -> None:
    files = [Columns(chunked(tmp_path / f"{number}.h5", (2, 3, 3), fillvalue=number)) for number in range(20)]
    before = open_files()
    assert [file.whole("maps")[0, 0, 0] for file in files] == list(range(20))
    assert open_files() <= before + 8


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())

"""hkmap info: what a shard holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.shards.info import content_digest, describe_shard, histogram, outline_shard
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter

Hk = Callable[..., Any]
SIZES = [(6, 4), (6, 4), (6, 4), (9, 9), (2, 3)]      # (width, height)


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five records: two of class a, two of [bold], one without label or map."""
    monkeypatch.chdir(tmp_path)
    with ShardWriter(Path("x.h5")) as writer:
        for index, (width, height) in enumerate(SIZES):
            image = cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()
            record: dict[str, Any] = {"id": str(index), "image": "x.png", "split": "train" if index < 3 else "test"}
            if index < 4:
                record |= {"label": index % 2, "class": ("a", "[bold]")[index % 2], "bubbles": []}
            values = np.full((2, 3), index / 4, np.float32) if index < 4 else None
            writer.add(record, image, values, None)
    return Path("x.h5")


def test_the_outline(shard: Path, hk: Hk) -> None:
    done = hk("info", shard)
    assert (done.exit_code, done.stderr) == (0, "")
    result, = done.records
    sizes = ShardReader(shard).image_sizes
    assert result == outline_shard(shard) == {
        "path": "x.h5", "version": 2, "created_with": result["created_with"], "records": 5, "maps": 4,
        "annotator_maps": 0, "map_size": [2, 3], "certainty": False, "pixel_size": None,
        "image_bytes": int(sizes.sum()),
        "file_bytes": shard.stat().st_size, "unlabelled": 1,
        "classes": [{"label": 0, "class": "a", "records": 2, "maps": 2},
                    {"label": 1, "class": "[bold]", "records": 2, "maps": 2}],
        "image_bytes_histogram": histogram(sizes),
    }
    assert result["created_with"].startswith("hkmap ")
    assert sum(result["image_bytes_histogram"]["counts"]) == 5
    assert result["image_bytes_histogram"]["edges"][0] == sizes.min()


def test_all_of_it(shard: Path, hk: Hk) -> None:
    outline, = hk("info", shard).records
    whole, = hk("info", "--full", shard).records
    assert whole == describe_shard(shard)
    assert whole.items() >= outline.items()
    assert whole["splits"] == {"test": 2, "train": 3}
    assert whole["keys"] == {"bubbles": 4, "class": 4, "id": 5, "image": 5, "label": 4, "split": 5}
    assert whole["image_sizes"][0] == {"size": [6, 4], "records": 3}
    assert {tuple(item["size"]) for item in whole["image_sizes"]} == set(SIZES)
    assert whole["other_image_sizes"] == 0
    assert whole["map_mean_histogram"] == whole["map_max_histogram"]
    assert whole["map_max_histogram"]["counts"] == [1, 0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert whole["sha256"] in shard.read_bytes()[:512].decode()
    assert whole["content_sha256"] == content_digest(ShardReader(shard))


def test_only_the_frequent_sizes_are_listed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x.h5") as writer:
        for index in range(13):
            image = cv2.imencode(".png", np.zeros((index + 1, 3, 3), np.uint8))[1].tobytes()
            writer.add({"id": str(index), "image": "x.png"}, image, None)
    whole = describe_shard(tmp_path / "x.h5")
    assert (len(whole["image_sizes"]), whole["other_image_sizes"]) == (10, 3)
    assert (whole["map_size"], whole["classes"], whole["unlabelled"], whole["splits"]) == (None, [], 13, {"": 13})
    assert whole["map_mean_histogram"] is None


@pytest.mark.parametrize(("values", "expected"), [
    ([], None),
    ([7, 7], {"edges": [7, 7], "counts": [2]}),
    ([0, 10], {"edges": list(range(11)), "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]}),
])
def test_histograms(values: list[int], expected: dict[str, list[int]] | None) -> None:
    assert histogram(np.array(values)) == expected


def test_the_outline_reads_no_record(shard: Path, hk: Hk) -> None:
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x89PNG") + 30] ^= 1
    shard.write_bytes(data)
    assert hk("info", shard).exit_code == 0
    done = hk("info", "--full", shard)
    assert done.exit_code == 1
    assert 'x.h5#0 (record "0"): its checksum does not fit, so the file is damaged; copy it again' in done.stderr
    data[data.index(b"OHDR") + 20] ^= 1
    shard.write_bytes(data)
    done = hk("info", shard)
    assert done.exit_code == 1
    assert "x.h5: damaged HDF5 (" in done.stderr


def test_the_digest_is_of_the_bytes_and_verify_compares_it(shard: Path, hk: Hk) -> None:
    data = bytearray(shard.read_bytes())
    data[100:140] = b" " * 40
    shard.write_bytes(data)
    whole, = hk("info", "--full", shard).records
    assert whole["sha256"] == hashlib.sha256(data[512:]).hexdigest()


def test_a_table_for_people(shard: Path, terminal: Callable) -> None:
    code, table, printed = terminal("info", "--full", str(shard), stream="stderr", COLUMNS="150")
    assert "label 1 [bold]" in table
    assert "#" * 20 in table
    assert "content_sha256" in table
    assert "map_mean 0.9 to 1" in table
    assert "{" not in table
    assert (code, json.loads(printed)["records"]) == (0, 5)

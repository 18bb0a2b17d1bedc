"""Tell what a shard holds: what `hkmap info` does."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.files.hdf5 import file_digest
from hkmap.files.images import encoded_size
from hkmap.shards.layout import Sample, annotator_bytes, certainty_bytes, map_bytes
from hkmap.shards.reader import ShardReader

# What differs between two copies of the same content: where its parts lie.
PATH_KEYS = frozenset({"image", "map", "masks", "unknown", "dont_look", "certainty", "annotator_maps"})

_BINS = 10
_SIZES = 10      # sizes of images that are listed

Histogram = dict[str, list[float]]


def outline_shard(path: Path) -> dict[str, Any]:
    """Return what a shard says of itself; map_size is [height, width], sizes are in bytes.

    "pixel_size" is [height, width] of the images where it holds decoded pixels, None where it holds image files. Only
    the structure and the columns of numbers are read, so it takes a moment whatever the shard's size.
    Raises ShardError where they are damaged.
    """
    return _outline(ShardReader(path))


def describe_shard(path: Path) -> dict[str, Any]:
    """Return outline_shard's and what the records hold, after a check of every record's checksum.

    "splits", "keys": how many records have which; "image_sizes": [width, height] in pixels, the most frequent ones;
    histograms over the maps of each map's mean and maximum; "sha256", of all that follows the user block;
    "content_sha256", which leaves paths aside. Raises ShardError where a record's checksum does not fit.
    """
    reader, contents = ShardReader(path), _Contents()
    content = _content_digest(contents.seen(_samples(reader)))
    return {**_outline(reader), **contents.summary(), "sha256": file_digest(path)[1], "content_sha256": content}


def content_digest(reader: ShardReader) -> str:
    """Return a sha256 over what the shard holds, paths aside: a shard unpacked and packed again has the same."""
    return _content_digest(_samples(reader))


def histogram(values: npt.NDArray[np.generic], limits: tuple[float, float] | None = None) -> Histogram | None:
    """Return ten bins of equal width over ``limits``, or all there is: "edges" (11) and "counts" (10).

    One bin where all values are alike; None where there are none.

    >>> histogram(np.array([0, 0, 5, 10]))["counts"]
    [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    """
    if not values.size:
        return None
    low, high = limits or (float(values.min()), float(values.max()))
    counts, edges = np.histogram(values, _BINS if high > low else 1, (low, high))
    edges = edges if high > low else np.array([low, high])
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts.tolist()}


def _outline(reader: ShardReader) -> dict[str, Any]:
    counts = np.bincount(reader.labels[reader.labels >= 0], minlength=len(reader.classes))
    maps = np.bincount(reader.labels[reader.has_map & (reader.labels >= 0)], minlength=len(reader.classes))
    return {
        "path": str(reader.path),
        "version": reader.attributes["version"],
        "created_with": reader.attributes.get("created_with", ""),
        "records": len(reader),
        "maps": int(reader.has_map.sum()),
        "annotator_maps": reader.annotator_map_count,
        "map_size": list(reader.map_size) if reader.has_map.any() else None,
        "certainty": reader.has_certainty,
        "pixel_size": list(reader.pixel_size) if reader.pixel_size else None,
        "image_bytes": int(reader.image_sizes.sum()),
        "file_bytes": reader.path.stat().st_size,
        "classes": [
            {"label": label, "class": name, "records": int(count), "maps": int(mapped)}
            for label, (name, count, mapped) in enumerate(zip(reader.classes, counts, maps, strict=True))
        ],
        "unlabelled": int((reader.labels < 0).sum()),
        "image_bytes_histogram": histogram(reader.image_sizes),
    }


def _samples(reader: ShardReader) -> Iterator[Sample]:
    return (reader.read(index) for index in range(len(reader)))


def _content_digest(samples: Iterable[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        record = {key: value for key, value in sample.record.items() if key not in PATH_KEYS}
        text = json.dumps(record, sort_keys=True).encode()
        pieces = (text, sample.image_bytes, map_bytes(sample), certainty_bytes(sample))
        for piece in (*pieces, annotator_bytes(sample)) if sample.annotators else pieces:
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
        digest.update(sample.label.to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def _image_size(sample: Sample) -> tuple[int, int]:
    if sample.pixel_size is None:
        return encoded_size(sample.image_bytes, f'image of record "{sample.record["id"]}"')
    height, width = sample.pixel_size
    return width, height


class _Contents:
    """Counts what samples hold while they pass by."""

    def __init__(self) -> None:
        self._splits: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._means: list[float] = []
        self._maxima: list[float] = []

    def seen(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples."""
        for sample in samples:
            self._splits[str(sample.record.get("split") or "")] += 1
            self._keys.update(list(sample.record))
            self._sizes[_image_size(sample)] += 1
            if sample.map is not None:
                self._means.append(float(sample.map.mean()))
                self._maxima.append(float(sample.map.max()))
            yield sample

    def summary(self) -> dict[str, Any]:
        frequent = self._sizes.most_common(_SIZES)
        return {
            "splits": dict(sorted(self._splits.items())),
            "keys": dict(sorted(self._keys.items())),
            "image_sizes": [{"size": list(size), "records": count} for size, count in frequent],
            "other_image_sizes": self._sizes.total() - sum(count for _, count in frequent),
            "map_mean_histogram": histogram(np.array(self._means), (0, 1)),
            "map_max_histogram": histogram(np.array(self._maxima), (0, 1)),
        }

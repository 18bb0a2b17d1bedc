"""Make a shard one of layout version 1, as this program wrote it before certainty had its name."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from hkmap.shards.layout import checksum
from hkmap.shards.reader import ShardReader


def make_version_1(shard: Path) -> None:
    """Another number, another dataset, another key of the records, other checksums."""
    reader, other = ShardReader(shard), shard.with_name(f"{shard.name}.part")
    samples = [reader.read(index) for index in range(len(reader))]
    texts = [reader.text(index).replace(b'"certainty"', b'"weights"') for index in range(len(reader))]
    changed = {
        "records/bytes": np.frombuffer(b"".join(texts), "u1"),
        "records/offsets": np.cumsum([0, *map(len, texts)], dtype="<u8"),
        "crc32": np.array([checksum(sample, text) for sample, text in zip(samples, texts, strict=True)], "<u4"),
    }
    with h5py.File(shard) as old, h5py.File(other, "w", userblock_size=512) as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        new.attrs["version"] = 1
        new.move("certainty", "weights")
        for name, values in changed.items():
            del new[name]
            new[name] = values
    other.replace(shard)

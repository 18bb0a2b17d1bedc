"""Make a shard one of layout version 1, as this program wrote it before certainty had its name.

Version 1 was written in the older form of HDF5, which has no checksums; its user block has a digest of the structure.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np

from hkmap.shards.layout import checksum
from hkmap.shards.reader import ShardReader


def make_version_1(shard: Path) -> None:
    """Another number, another dataset, another key of the records, other digests."""
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
    seal(other)
    other.replace(shard)


def seal(shard: Path) -> None:
    """Write the user block: the sha256 of all that follows, and that of what lies between the datasets."""
    data, holes, structure, place = shard.read_bytes(), [], hashlib.sha256(), 512
    with h5py.File(shard) as file:
        file.visititems(lambda _, item: holes.append(item) if isinstance(item, h5py.Dataset) and item.nbytes else None)
        holes = sorted((item.id.get_offset(), item.nbytes) for item in holes)
    for start, length in holes:
        structure.update(data[place:start])
        place = start + length
    structure.update(data[place:])
    without = ",".join(f"{start}+{length}" for start, length in holes)
    text = f"HDF5 of hkmap, from byte 512 on\nsha256 {hashlib.sha256(data[512:]).hexdigest()}\n"
    text += f"size {len(data)} structure {structure.hexdigest()} without {without}\n"
    shard.write_bytes(text.encode().ljust(511) + b"\n" + data[512:])

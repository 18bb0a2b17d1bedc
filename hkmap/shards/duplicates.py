"""Images that stand in shards more than once, byte for byte."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hkmap.errors import HkmapError
from hkmap.shards.reader import ShardReader

_MIDDLE = 64      # bytes that tell nearly all images of one length apart

Place = tuple[int, int]      # the number of a reader, and of a record in it


def same_images(readers: Sequence[ShardReader]) -> list[list[Place]]:
    """Return the sets of records that hold one image, in order; each has two or more.

    Few images are read whole: those of a length, and with bytes in their middle, that others have too.
    """
    sizes = [reader.image_sizes for reader in readers]

    def length(place: Place) -> Hashable:
        number, row = place
        return readers[number].pixel_size, int(sizes[number][row])

    def middle(place: Place) -> Hashable:
        number, row = place
        return readers[number].stored_image(row, middle=_MIDDLE)

    def whole(place: Place) -> Hashable:
        number, row = place
        return hashlib.sha256(readers[number].stored_image(row)).digest()

    sets = [[(number, row) for number, reader in enumerate(readers) for row in range(len(reader))]]
    for key in (length, middle, whole):
        sets = [alike for places in sets for alike in _alike(places, key)]
    return sorted(sets)


def leaks_between(paths: Iterable[Path]) -> dict[Path, list[dict[str, Any]]]:
    """Return the images of each shard that an earlier one holds too, unless both are of one series.

    Each is an object with sentence, record (from 0) and id. A shard that cannot be read is left out.
    """
    readers = [reader for path in dict.fromkeys(paths) if (reader := _opened(path))]
    series = [re.sub(r"-[0-9]{5}$", "", str(reader.path.with_suffix(""))) for reader in readers]
    leaks: dict[Path, list[dict[str, Any]]] = {}
    for first, *others in same_images(readers) if len({*series}) > 1 else []:
        for number, row in others:
            if series[number] != series[first[0]]:
                reader = readers[number]
                sentence = f"{_named(reader, row)}: its image is that of {_named(readers[first[0]], first[1])} too"
                leaks.setdefault(reader.path, []).append({"sentence": sentence, "record": row, "id": reader.id_of(row)})
    return leaks


def _opened(path: Path) -> ShardReader | None:
    try:
        return ShardReader(path)
    except (HkmapError, OSError):
        return None


def _named(reader: ShardReader, row: int) -> str:
    label = int(reader.labels[row])
    return f'{reader.path}#{row} (record "{reader.id_of(row)}"{f", label {label}" if label >= 0 else ""})'


def _alike(places: Iterable[Place], key: Callable[[Place], Hashable]) -> list[list[Place]]:
    found: dict[Hashable, list[Place]] = {}
    for place in places:
        found.setdefault(key(place), []).append(place)
    return [alike for alike in found.values() if len(alike) > 1]

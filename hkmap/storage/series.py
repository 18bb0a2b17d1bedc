"""A series of files, NAME-00000.h5, NAME-00001.h5, and so on: its names, and what is in shards that are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hkmap.errors import OutputError
from hkmap.storage.sequence import ShardSequence


def numbered(path: Path, number: int) -> Path:
    """Return the name of one file of the series that ``path`` stands for.

    >>> numbered(Path("out/train.h5"), 3).as_posix()
    'out/train-00003.h5'
    """
    return path.with_name(f"{path.stem}-{number:05d}{path.suffix}")


def series_of(path: Path) -> list[Path]:
    """Return the files that have names of the series, in their order."""
    pattern = re.compile(re.escape(path.stem) + r"-[0-9]{5}" + re.escape(path.suffix))
    return sorted(other for other in path.parent.glob(f"*{path.suffix}") if pattern.fullmatch(other.name))


def number_of(path: Path) -> int:
    """Return the number in the name of a file of a series."""
    return int(path.stem[-5:])


@dataclass(frozen=True)
class Earlier:
    """What the shards hold to which others are added; ``map_size`` is () where they have no map."""

    ids: frozenset[str] = field(default_factory=frozenset)
    classes: tuple[str, ...] = ()
    map_size: tuple[int, ...] = ()


NOTHING = Earlier()


def read_earlier(paths: Sequence[Path], pixel_size: tuple[int, int] | None) -> Earlier:
    """Return what the shards hold; raise OutputError where their images are not stored as ``pixel_size`` says."""
    sequence = ShardSequence(paths)
    for shard in sequence.shards:
        if shard.pixel_size != pixel_size:
            raise OutputError(
                f"{shard.path}: holds {stored_as(shard.pixel_size)}, and {stored_as(pixel_size)} are to be added; "
                "a series holds one kind: say the same --store and --size"
            )
    sizes = [shard.map_size for shard in sequence.shards if shard.has_map.any()]
    ids = frozenset(identifier for shard in sequence.shards for identifier in shard.ids)
    return Earlier(ids, tuple(sequence.classes), sizes[0] if sizes else ())


def stored_as(pixel_size: tuple[int, int] | None) -> str:
    """Return how a shard holds its images, for messages."""
    return "image files" if pixel_size is None else f"pixels of {pixel_size[0]}x{pixel_size[1]}"

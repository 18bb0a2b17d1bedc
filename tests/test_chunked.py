"""Shards that another program wrote again, chunked and compressed, are read like the ones they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hkmap.storage.description import content_digest
from hkmap.storage.shards import ShardReader

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


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("options", LAYOUTS)
def test_it_reads_like_the_one_it_was_made_from(options: Options, libver: str, block: bool, shard: Path) -> None:
    other = rewritten(shard, "other.h5", options, libver=libver, block=block)
    assert content_digest(ShardReader(other)) == content_digest(ShardReader(shard))

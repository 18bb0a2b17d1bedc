from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import shards_argument
from hkmap.cli._stream import print_result, show_table

_BAR = 30      # columns of a terminal


@click.command("info")
@shards_argument
@click.option("--full", is_flag=True, help="Also read every record, compare its checksum, and tell more.")
def info(shards: tuple[Path, ...], full: bool) -> None:
    """Describe shards.

    Prints one JSON object per shard: its records, maps, annotators' maps, map size [height, width], classes with their
    numbers of records and maps, pixel_size [height, width] if it holds decoded pixels, sizes in bytes, what wrote it,
    and a histogram of the images' bytes. `hkmap check` looks for damage. On a terminal, stderr gets a table.

    With --full also: the numbers of records per split and per key; the ten most frequent sizes of images, [width,
    height]; histograms of the maps; sha256, of all but the first 512 bytes; and
    content_sha256, which stays the same if a shard is unpacked and packed again, or goes through h5repack.

    \b
    Example:
      hkmap info train.h5 | jq .classes
      hkmap info --full train.h5 | jq .content_sha256
    """
    from hkmap.shards.info import describe_shard, outline_shard

    for shard in shards:
        description = describe_shard(shard) if full else outline_shard(shard)
        if sys.stderr.isatty():
            show_table(("", ""), _rows(description), title=description["path"])
        print_result(description)


def _rows(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the table's rows; counts are drawn as bars."""
    for key, value in description.items():
        if key == "classes":
            yield from _bars([(f"label {item['label']} {item['class']}", item["records"]) for item in value])
        elif key in ("splits", "keys"):
            yield from _bars([(f"{key} {name or '(none)'}", count) for name, count in value.items()])
        elif key == "image_sizes":
            yield from _bars([("image {} x {}".format(*item["size"]), item["records"]) for item in value])
        elif key.endswith("_histogram"):
            yield from _bars(_bins(key.removesuffix("_histogram"), value)) if value else ()
        elif key != "path":
            yield key, str(value)


def _bins(name: str, histogram: dict[str, Any]) -> list[tuple[str, int]]:
    names = (f"{name} {low:g} to {high:g}" for low, high in pairwise(histogram["edges"]))
    return list(zip(names, histogram["counts"], strict=True))


def _bars(rows: list[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    longest = max((count for _, count in rows), default=1)
    for name, count in rows:
        yield name, f"{'#' * round(_BAR * count / max(longest, 1))} {count}".strip()

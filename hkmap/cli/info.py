"""hkmap info: what is in a shard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hkmap.cli.stream import EXISTING, StreamCommand, print_result


@click.command("info", cls=StreamCommand)
@click.argument("shards", type=EXISTING, nargs=-1, required=True, metavar="SHARD...")
def info(shards: tuple[Path, ...]) -> None:
    """Check shards byte by byte and say what they hold.

    Prints one JSON object a shard: its records, maps, annotators' maps, map size [height, width] in map pixels, classes
    with their numbers of records, sizes in bytes, and two digests: sha256 is the file's own; content_sha256 leaves
    paths aside, so that a shard unpacked and packed again keeps it. A damaged shard ends in exit code 1, with a
    sentence. On a terminal a table goes to stderr.

    \b
    Example:
      hkmap info train.h5 | jq .classes
    """
    from hkmap.storage.packing import describe_shard

    for shard in shards:
        description = describe_shard(shard)
        _show(description)
        print_result(description)


def _show(description: dict[str, Any]) -> None:
    if not sys.stderr.isatty():
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=description["path"], show_header=False)
    for key, value in description.items():
        if key not in ("path", "classes"):
            table.add_row(key, Text(str(value)))
    for item in description["classes"]:
        table.add_row(Text(f"label {item['label']} {item['class']}"), str(item["records"]))
    Console(stderr=True).print(table)

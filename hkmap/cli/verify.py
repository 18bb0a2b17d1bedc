"""hkmap verify: is a shard as it was written?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import shards_argument
from hkmap.cli._progress import track
from hkmap.cli._stream import StreamCommand, print_result

logger = logging.getLogger("hkmap")

_SENTENCES = 20      # a shard on stderr; stdout lists all


@click.command("verify", cls=StreamCommand)
@shards_argument(missing=True)
@click.option("--quick", is_flag=True,
              help="Look at the first 512 bytes, the structure and the numbers that say where things lie alone: "
                   "milliseconds, whatever the shard's size, and no damage to an image, map or record is found.")
@click.option("--full", is_flag=True,
              help="Decode every image too, and look at every value of a map: what was wrong before it was packed.")
@click.pass_context
def verify(ctx: click.Context, shards: tuple[Path, ...], quick: bool, full: bool) -> None:
    """Tell whether shards are as they were written, to the bit, and which records are not; exit code 3 if any is not.

    First comes the sha256 of the whole file, then the structure, then the checksum of each record. Every damaged
    record is named, not only the first. The HDF5 library is not asked to open a file whose structure is damaged.
    Exit code 1 says that a file is missing or cannot be read; the shards after it are checked all the same. What a
    stranger wrote on purpose, checksums and all, no checksum finds: --full looks at what can be wrong in it.

    Prints one JSON object a shard: {"path", "ok", "checked": [NAME, ...], "records": N, "problems": [{"sentence",
    "record", "id"}, ...]}; record (counted from 0) and id are null where a problem is not one record's. A sentence a
    shard or problem goes to stderr.

    \b
    Example:
      hkmap verify train-*.h5
      hkmap verify train.h5 | jq -r '.problems[].id'
    """
    from hkmap.shards.verify import Depth, verify_shard

    if quick and full:
        raise click.UsageError("--quick and --full are opposites; say one of them.")
    depth: Depth = "quick" if quick else "full" if full else "records"
    results = []
    for shard in track(shards, "verifying", total=len(shards)):
        result = verify_shard(shard, depth=depth)
        _say(result)
        print_result(result)
        results.append(result)
    if not all(result["ok"] for result in results):
        ctx.exit(3 if all(result["checked"] for result in results) else 1)


def _say(result: dict[str, Any]) -> None:
    """Write a sentence a problem, or that all is well; -q leaves out the latter."""
    problems = result["problems"]
    for problem in problems[:_SENTENCES]:
        logger.error("%s", problem["sentence"])
    if len(problems) > _SENTENCES:
        logger.error("%s: %d more; stdout lists them all", result["path"], len(problems) - _SENTENCES)
    if not problems and logger.getEffectiveLevel() < logging.ERROR:
        click.echo(f"{result['path']}: {result['records']} records, nothing wrong", err=True)

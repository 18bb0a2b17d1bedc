from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hkmap.cli._options import COUNT, named_option
from hkmap.cli._stream import Records, print_result, quiet, read, say, show_table, track
from hkmap.errors import ShardError
from hkmap.records import Rejects

_SENTENCES = 20      # of a shard on stderr; stdout lists all
_OF_SHARDS, _OF_RECORDS = {"quick", "full"}, {"ignored", "limit"}      # options of one kind only


@click.command("check")
@click.argument("inputs", nargs=-1, metavar="[RECORDS | SHARD...]")
@named_option("--ignore", "ignored", table="findings", multiple=True,
              help="Of records: omit the findings of this name; repeatable.")
@click.option("--ids", "limit", type=COUNT, default=5, metavar="N",
              help="Of records: list at most N ids per finding, the first ones.")
@click.option("--quick", is_flag=True,
              help="Of shards: check only the structure, in milliseconds; that misses damage to images and maps.")
@click.option("--full", is_flag=True, help="Of shards: also decode every image and look at every value of a map.")
@click.pass_context
def check(ctx: click.Context, inputs: tuple[str, ...], **options: Any) -> None:
    """Report what is odd about records, or damaged in shards; exit code 3 if anything is, 1 if something is unreadable.

    SHARD is a name that ends in .h5, a folder (all its *.h5), or, in quotes, a pattern or a range of such names. The
    sha256 of the whole file is compared, then the structure, then the checksum of each record. Prints one JSON object
    per shard: {"path", "ok", "checked": [NAME, ...], "records": N, "problems": [{"sentence", "record", "id"}, ...]};
    record (counted from 0) and id are null if a problem does not belong to one record. If images, byte for byte, are in
    an earlier SHARD of another series too, a key "leaks" lists them like problems, and ok is still about the file.

    RECORDS is a file of records, or stdin. Every image, mask and map is decoded, and no record is passed on. Prints one
    JSON object: {"records": N, "findings": [{"name", "count", "ids", "sentence"}, ...]}. Not every finding is an error;
    --ignore what you intended.

    \b
    Example:
      hkmap check train-*.h5
      hkmap check train.h5 | jq -r '.problems[].id'
      hkmap idrid IDRiD --part grading | hkmap check --ignore no-annotation
      hkmap check maps.jsonl --ids 1000 \\
        | jq -r '.findings[] | select(.name == "empty-map").ids[]'
    """
    shards = [name for name in inputs if name.endswith(".h5") or Path(name).is_dir()]
    if len(inputs) > 1 and len(shards) < len(inputs):
        raise click.UsageError("Expected one file of records, or only shards, whose names end in .h5.")
    for option in ctx.command.params:
        given = ctx.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        if given and option.name in (_OF_RECORDS if shards else _OF_SHARDS):
            raise click.UsageError(f"{option.opts[0]} is not for {'shards' if shards else 'records'}; omit it.")
    ctx.exit(_check_shards(shards, **options) if shards else _check_records(ctx, *inputs, **options))


def _check_records(
    ctx: click.Context, name: str = "-", *, ignored: tuple[str, ...], limit: int, **_of_shards: bool
) -> int:
    from hkmap.report.oddities import Findings

    stream = Records("rb").convert(name, None, ctx)
    found = Findings(limit=limit)
    for record in track(read(stream, Rejects()), "checking"):
        found.add(record)
    findings = found.report(ignored)
    if findings:
        show_table(("finding", "what it is", "ids"), map(_row, findings))
    print_result({"records": found.records, "findings": findings})
    return 3 if findings else 0


def _row(finding: dict[str, Any]) -> tuple[str, str, str]:
    more = ["…"] if finding["count"] > len(finding["ids"]) else []
    return finding["name"], finding["sentence"], ", ".join(finding["ids"] + more)


def _check_shards(names: list[str], *, quick: bool, full: bool, **_of_records: Any) -> int:
    from hkmap.shards.duplicates import leaks_between
    from hkmap.shards.verify import Depth, verify_shard

    if quick and full:
        raise click.UsageError("--quick and --full are opposites; give one of them.")
    depth: Depth = "quick" if quick else "full" if full else "records"
    shards = [path for name in names for path in _found(name)]
    leaks = {} if quick else leaks_between(shards)
    code = 0
    for shard in track(shards, "checking", total=len(shards)):
        result = verify_shard(shard, depth=depth)
        if shard in leaks:
            result["leaks"], code = leaks[shard], code or 3
        _say(result)
        print_result(result)
        if not result["ok"]:
            code = 3 if result["checked"] and code != 1 else 1
    return code


def _found(name: str) -> list[Path]:
    """Return the shards of a name; verify_shard reports one that does not exist, and the others are checked."""
    from hkmap.shards.sequence import find_shards

    try:
        return find_shards([name])
    except ShardError:
        return [Path(name)]


def _say(result: dict[str, Any]) -> None:
    """Print one sentence per problem, or that nothing is wrong (unless -q is given)."""
    logger, problems = logging.getLogger("hkmap"), result["problems"] + result.get("leaks", [])
    for problem in problems[:_SENTENCES]:
        logger.error("%s", problem["sentence"])
    if len(problems) > _SENTENCES:
        logger.error("%s: %d more; stdout lists them all", result["path"], len(problems) - _SENTENCES)
    if not problems and not quiet():
        say(f"{result['path']}: {result['records']} records, nothing wrong")

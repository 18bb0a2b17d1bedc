from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from hkmap.choices import TABLES, origin, table
from hkmap.cli._options import Named
from hkmap.cli._stream import emit
from hkmap.cli.main import OURS, load


@click.command("list")
@click.argument("name", type=click.Choice(list(TABLES)), required=False, metavar="[TABLE]")
def list_choices(name: str | None) -> None:
    """List the tables of choices with the options that use them, or the rows of one TABLE.

    On a terminal the list is text. Otherwise one JSON object per row is printed, {"name", "doc"}; the rows of a TABLE
    also have "origin", the package that adds them: hkmap, or another by an entry point.

    \b
    Example:
      hkmap list
      hkmap list metrics | jq -r .name
    """
    rows = list(_tables()) if name is None else [
        {"name": row, "doc": doc, "origin": origin(table(name), row)} for row, doc in table(name).describe().items()
    ]
    if not sys.stdout.isatty():
        emit(rows)
        return
    text = click.HelpFormatter()
    others = {row["name"]: f" (from {row['origin']})" for row in rows if row.get("origin", "hkmap") != "hkmap"}
    text.write_dl([(row["name"], row["doc"] + others.get(row["name"], "")) for row in rows])
    click.echo(text.getvalue(), nl=False)


def _tables() -> Iterator[dict[str, str]]:
    """Yield every table with its options, without importing it."""
    options = [
        (option.type.table, f"{command} {max(option.opts, key=len)}")
        for command in OURS for option in load(command).params if isinstance(option.type, Named)
    ]
    for name in TABLES:
        yield {"name": name, "doc": ", ".join(option for table, option in options if table == name) or "in Python"}

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from hkmap.choices import TABLES, table
from hkmap.cli._options import Named
from hkmap.cli._stream import emit
from hkmap.cli.main import OURS, load


@click.command("list")
@click.argument("name", type=click.Choice(list(TABLES)), required=False, metavar="[TABLE]")
def list_choices(name: str | None) -> None:
    """List the tables of choices with the options that use them, or the rows of one TABLE.

    On a terminal the list is text. Otherwise one JSON object per row is printed, {"name", "doc"}; the rows of a TABLE
    also have "origin", the package that adds them: hkmap, or another by an entry point. Those of architectures have
    what they cost at 1,000 classes and 224 pixels: parameters, map_size [height, width] (null without +abn) and
    multiply_adds of one forward pass. Those of metrics have higher (whether higher is better; null: neither), unit and
    source.

    \b
    Example:
      hkmap list
      hkmap list metrics | jq -r .name
    """
    rows = list(tables()) if name is None else [
        {"name": row, "doc": doc, "origin": table(name).origin(row), **table(name).figures(row)}
        for row, doc in table(name).describe().items()
    ]
    if not sys.stdout.isatty():
        emit(rows)
        return
    text = click.HelpFormatter()
    text.write_dl([(row["name"], "".join(_words(row))) for row in rows])
    click.echo(text.getvalue(), nl=False)


def _words(row: dict[str, Any]) -> Iterator[str]:
    """Yield what a terminal shows of a row: its figures where it has some, else its description."""
    if "parameters" in row:
        yield f"{row['parameters'] / 1e6:6.2f} M parameters {row['multiply_adds'] / 1e9:6.2f} G multiply-adds"
        yield "  map {}x{}".format(*row["map_size"]) if row["map_size"] else ""
    else:
        yield row["doc"]
        yield f" ({row['source']})" if row.get("source") else ""
    if row.get("origin", "hkmap") != "hkmap":
        yield f" (from {row['origin']})"


def tables() -> Iterator[dict[str, str]]:
    """Yield every table with its options, without importing it."""
    options = [
        (option.type.table, f"{command} {max(option.opts, key=len)}")
        for command in OURS for option in load(command).params if isinstance(option.type, Named)
    ]
    for name in TABLES:
        yield {"name": name, "doc": ", ".join(option for table, option in options if table == name) or "in Python"}

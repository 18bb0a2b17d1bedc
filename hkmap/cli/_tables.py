"""The options that tell how annotations are to be read."""

from __future__ import annotations

import functools
from typing import Any

import click

from hkmap.cli._stream import Function

COLUMNS = ("image", "x", "y", "radius", "width", "height", "user", "weight", "label")


def _columns(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, str]:
    """Read NAME=COLUMN,... ."""
    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    for name, equals, column in pairs:
        if name.strip() not in COLUMNS or not equals or not column.strip():
            raise click.BadParameter(f'"{name}{equals}{column}"; say NAME=COLUMN with a NAME of {", ".join(COLUMNS)}')
    return {name.strip(): column.strip() for name, _, column in pairs}


def _frame(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read WIDTHxHEIGHT."""
    if value is None:
        return None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f'"{value}"; say WIDTHxHEIGHT in pixels, such as 224x224')
    return int(width), int(height)


def table_options(function: Function) -> Function:
    """Add --columns, --frame and --origin, as arguments of these names."""
    options: tuple[Any, ...] = (
        click.option("--columns", callback=_columns, metavar="NAME=COLUMN,...",
                     help="How the table calls its columns, where not by the names above: image=img,x=cx."),
        click.option("--frame", callback=_frame, metavar="WxH",
                     help="The picture size that the table's coordinates are for. [default: each image's own pixels]"),
        click.option("--origin", type=click.Choice(["0", "1"]), default="0", show_default=True,
                     help="The table's coordinate of the left and top edge."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def format_options(function: Function) -> Function:
    """Add --format, as the argument ``name``, and the options of a table, which only a table has."""

    @click.option("--format", "name", metavar="NAME",
                  help="The format of PATH: coco, voc, labelme, via, yolo, trimaps, salicon, gaze, table, or one that "
                       "another package brings.  [default: told by the content]")
    @table_options
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = kwargs["columns"] or kwargs["frame"] or kwargs["origin"] != "0"
        if given and kwargs["name"] not in (None, "table"):
            raise click.UsageError("--columns, --frame and --origin tell how to read a table; say --format table.")
        return function(*args, **kwargs)

    return wrapper

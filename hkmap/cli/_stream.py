"""What all commands share: reading and writing records, and talking to people.

stdout is data, stderr is talk. main.py handles how a command ends.
"""

from __future__ import annotations

import functools
import logging
import select
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from hkmap.records import Record, Rejects, dump_record, read_records

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter

Function = Callable[..., Any]
Item = TypeVar("Item")


# records in


def records_argument(function: Function) -> Function:
    """Add the argument RECORDS: a file of records, or - for stdin (the default)."""
    return click.argument("records", type=click.File("rb"), default="-", metavar="[RECORDS]")(function)


def error_options(function: Function) -> Function:
    """Add --on-error and --max-errors, joined into the argument ``rejects``."""

    @click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop",
                  help="What to do with a bad record: stop, or skip it with a warning.")
    @click.option("--max-errors", type=click.IntRange(min=0), default=0,
                  help="With --on-error skip: exit with 1 if more records than this were skipped.")
    @functools.wraps(function)
    def wrapper(*args: Any, on_error: str, max_errors: int, **kwargs: Any) -> Any:
        rejects = Rejects(skip=on_error == "skip", max_errors=max_errors)
        result = function(*args, rejects=rejects, **kwargs)
        if rejects.too_many:      # no error record: the stream is complete as asked for
            click.echo(f"Error: {rejects.count} skipped, --max-errors allows {rejects.max_errors}", err=True)
            click.get_current_context().exit(1)
        if rejects.count:
            logging.getLogger("hkmap").warning("%d skipped", rejects.count)
        return result

    return wrapper


def read(stream: IO[bytes], rejects: Rejects) -> Iterator[Record]:
    """Yield the records of a command's input."""
    return read_records(stream, readable(stream), rejects)


def readable(stream: IO[bytes]) -> str:
    """Return the name of a command's input for messages; refuse a terminal and a shard."""
    if stream.isatty():
        raise click.UsageError("Nothing to read: pipe records in, or name a file of records.")
    name = getattr(stream, "name", "-")
    if str(name).endswith(".h5"):
        raise click.UsageError(f"{name}: a shard, expected a file of records; use `hkmap unpack {name} | hkmap ...`.")
    return "stdin" if name in ("-", "<stdin>", 0) else str(name)


class Lines:
    """The lines of a stream, which can tell whether one is there to be read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._begun = bytearray()       # a line whose end has not come
        try:
            self._descriptor = stream.fileno()
        except OSError:                 # bytes in memory are there
            self._descriptor = -1

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._lines:
            piece = self._stream.read1(1 << 16)      # type: ignore[attr-defined]  # what is there, and no more
            if not piece and not self._begun:
                raise StopIteration
            piece = piece or b"\n"                   # the end of the stream ends its last line
            self._begun += piece
            if b"\n" in piece:
                *lines, self._begun = self._begun.split(b"\n")
                self._lines.extend(map(bytes, lines))
        return self._lines.popleft()

    def ready(self) -> bool:
        """Whether the next line, its beginning, or the end of the stream, is there."""
        return bool(self._lines) or self._descriptor < 0 or bool(select.select([self._descriptor], [], [], 0)[0])


# records out


def emit(records: Iterable[Record]) -> None:
    """Write records to stdout and flush each, so that the next stage can work at the same time."""
    out = sys.stdout.buffer
    for record in records:
        out.write(dump_record(record))
        out.flush()


def emit_when_saved(
    writer: AbstractContextManager[MapWriter], records: Callable[[MapWriter], Iterable[Record]]
) -> None:
    """Write the ``records`` that are made with a map writer, once their map references are valid.

    If the maps are rows of one file, the records wait (on disk) until that file has its final name.
    """
    with tempfile.TemporaryFile() as spool:
        with writer as maps:
            if not maps.deferred:
                emit(records(maps))
                return
            spool.writelines(dump_record(record) for record in records(maps))
        spool.seek(0)
        out = sys.stdout.buffer
        shutil.copyfileobj(spool, out)
        out.flush()


def print_result(result: dict[str, Any]) -> None:
    """Write the one JSON object of a sink or of the engine to stdout."""
    emit([result])


# talk


def quiet() -> bool:
    """Whether to print errors only (-q)."""
    return logging.getLogger("hkmap").getEffectiveLevel() >= logging.ERROR


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, width: int | None = None
) -> None:
    """Write a table for people to stderr, unless -q is given; ``width`` is for an unusually wide one."""
    if quiet():
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    first, *others = columns
    table = Table(Column(first, no_wrap=True), *others, title=title and Text(title), show_header=any(columns))
    for row in rows:
        table.add_row(*map(Text, row))
    Console(stderr=True, width=width).print(table)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar on stderr if that is a terminal (or a count, if ``total`` is unknown)."""
    if not sys.stderr.isatty() or quiet():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, description=description, total=total)

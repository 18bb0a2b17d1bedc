"""What every command shares: the records it reads and writes, and what it says to people.

stdout is data, stderr is talk. How a command ends is the group's business: see main.py.
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
                  help="What a bad record does: stop the command, or be skipped with a warning.")
    @click.option("--max-errors", type=click.IntRange(min=0), default=0,
                  help="With --on-error skip: more skipped records than this end in exit code 1.")
    @functools.wraps(function)
    def wrapper(*args: Any, on_error: str, max_errors: int, **kwargs: Any) -> Any:
        rejects = Rejects(skip=on_error == "skip", max_errors=max_errors)
        result = function(*args, rejects=rejects, **kwargs)
        _settle(rejects)
        return result

    return wrapper


def _settle(rejects: Rejects) -> None:
    # The stream was complete as asked for, so no error record: only the exit code and a sentence tell.
    if rejects.too_many:
        click.echo(f"Error: {rejects.count} skipped, --max-errors allows {rejects.max_errors}", err=True)
        click.get_current_context().exit(1)
    if rejects.count:
        logging.getLogger("hkmap").warning("%d skipped", rejects.count)


def read(stream: IO[bytes], rejects: Rejects) -> Iterator[Record]:
    """Yield the records of a command's input."""
    return read_records(stream, readable(stream), rejects)


def readable(stream: IO[bytes]) -> str:
    """Return what messages call a command's input; a terminal is nobody's stream."""
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
        self._begun: list[bytes] = []       # the pieces of a line whose end has not come
        try:
            self._descriptor = stream.fileno()
        except OSError:                     # bytes in memory are there
            self._descriptor = -1

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._lines:
            piece = self._stream.read1(1 << 16)      # type: ignore[attr-defined]  # what is there, and no more
            if not piece:
                break
            *ends, rest = piece.split(b"\n")
            for end in ends:
                self._lines.append(b"".join((*self._begun, end)))
                self._begun.clear()
            self._begun.append(rest)
        if self._lines:
            return self._lines.popleft()
        last = b"".join(self._begun)
        self._begun.clear()
        if not last:
            raise StopIteration
        return last

    def ready(self) -> bool:
        """Whether the next line, its beginning, or the end of the stream, is there."""
        return bool(self._lines) or self._descriptor < 0 or bool(select.select([self._descriptor], [], [], 0)[0])


# records out


def emit(records: Iterable[Record]) -> None:
    """Write records to stdout, each flushed, so that the next stage works while this one does."""
    out = sys.stdout.buffer
    for record in records:
        out.write(dump_record(record))
        out.flush()


def emit_when_saved(
    writer: AbstractContextManager[MapWriter], records: Callable[[MapWriter], Iterable[Record]]
) -> None:
    """Write the ``records`` that are made with a map writer, once their map references hold.

    Where the maps are rows of one file, the records wait (on disk) until that file has its final name.
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
    """Write a sink's or the engine's one JSON object to stdout."""
    emit([result])


# talk


def quiet() -> bool:
    """Whether only errors are to be said (-q)."""
    return logging.getLogger("hkmap").getEffectiveLevel() >= logging.ERROR


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, width: int | None = None
) -> None:
    """Write a table for people to stderr, but under -q; ``width`` is for one that is wider than usual."""
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
    """Yield the items, with a progress bar on stderr where that is a terminal (a count, where the total is unknown)."""
    if not sys.stderr.isatty() or quiet():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, description=description, total=total)

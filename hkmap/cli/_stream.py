"""What all commands share: reading and writing records, and talking to people.

stdout is data, stderr is talk. main.py handles how a command ends.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import select
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from hkmap.cli._process import signals
from hkmap.errors import RecordError
from hkmap.records import Record, Rejects, dump_record, read_records

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter

# C0 and C1 control characters, and those that change the direction of text
_CODES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LONGEST = 1 << 26      # bytes of a line; a record has a thousand times less

Function = Callable[..., Any]
Item = TypeVar("Item")


# records in


#: What a file is by the end of its name, and the command that makes records of it.
_KINDS = {
    (".h5",): ("a shard", "hkmap unpack {}"),
    (".jsonl", ".ndjson"): ("a file of records", "cat {}"),
    (".csv", ".tsv", ".xml", ".json"): ("a file of annotations", "hkmap annotations {} --images DIR"),
    (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"): ("an image", "hkmap folder DIR"),
    (".tar",): ("a tar", "hkmap webdataset {} --out DIR"),
    (".gz",): ("compressed", "zcat {}"),
    (".pt", ".pth", ".safetensors"): ("a checkpoint", "hkmap predict RECORDS --from {}"),
    (".npy", ".npz"): ("an array", "hkmap folder DIR"),
}


def other_kind(path: str | Path, expected: str, then: str = " | hkmap ...") -> str | None:
    """Return the sentence for a file of another kind than ``expected``, which says what reads it; None if it is none.

    A file that ends in .json may hold records: it counts as one if its first line is one.
    """
    ending = Path(path).suffix.lower()
    what, reader = next((kind for endings, kind in _KINDS.items() if ending in endings), ("", ""))
    if Path(path).is_dir():
        what, reader = "a folder", "hkmap folder {}"
    if not what or what == expected or (ending == ".json" and _is_record(path) and expected == "a file of records"):
        return None
    return f"{path}: {what}, expected {expected}; use `{reader.format(path)}{then}`."


def _is_record(path: str | Path) -> bool:
    from hkmap.files.opening import open_file

    with suppress(ValueError, RecursionError), open_file(path) as file:
        record = json.loads(file.readline(1 << 20))
        return isinstance(record, dict) and bool({"id", "error"} & record.keys())
    return False


class Records(click.File):
    """A regular file of records, or a pipe where the shell gives one: stdin, /dev/stdin, or <(...)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IO[bytes]:
        from hkmap.files.opening import open_file

        if not isinstance(value, str) or value in ("-", "/dev/stdin") or value.startswith(("/dev/fd/", "/proc/self/")):
            stream: IO[bytes] = super().convert(value, param, ctx)
            return stream
        try:
            if sentence := other_kind(value, "a file of records"):
                self.fail(sentence, param, ctx)
            file = open_file(value)
        except OSError as error:
            self.fail(f"'{value}': {error.strerror}.", param, ctx)
        if ctx is not None:
            ctx.call_on_close(file.close)
        return file


def records_argument(function: Function) -> Function:
    """Add the argument RECORDS: a file of records, or - for stdin (the default)."""
    return click.argument("records", type=Records("rb"), default="-", metavar="[RECORDS]")(function)


def error_options(function: Function) -> Function:
    """Add --on-error and --max-errors, joined into the argument ``rejects``."""

    @click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop",
                  help="What to do with a bad record: stop, or skip it with a warning.")
    @click.option("--max-errors", type=click.IntRange(0, 10**9), default=0,
                  help="With --on-error skip: exit with 1 if more records than this were skipped.")
    @functools.wraps(function)
    def wrapper(*args: Any, on_error: str, max_errors: int, **kwargs: Any) -> Any:
        rejects = Rejects(skip=on_error == "skip", max_errors=max_errors)
        result = function(*args, rejects=rejects, **kwargs)
        if rejects.too_many:      # no error record: the stream is complete as asked for
            say(f"Error: {rejects.count} skipped, --max-errors allows {rejects.max_errors}")
            click.get_current_context().exit(1)
        if rejects.count:
            logging.getLogger("hkmap").warning("%d skipped", rejects.count)
        return result

    return wrapper


def read(stream: IO[bytes], rejects: Rejects) -> Iterator[Record]:
    """Yield the records of a command's input."""
    return read_records(Lines(stream), readable(stream), rejects)


def readable(stream: IO[bytes]) -> str:
    """Return the name of a command's input for messages; refuse a terminal."""
    if stream.isatty():
        raise click.UsageError("Nothing to read: pipe records in, or name a file of records.")
    name = getattr(stream, "name", "-")
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
            signals.check()
            if not piece and not self._begun:
                raise StopIteration
            piece = piece or b"\n"                   # the end of the stream ends its last line
            self._begun += piece
            if len(self._begun) > _LONGEST:
                raise RecordError(f"{readable(self._stream)}: a line of over 64 MiB; expected one record per line")
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
    for record in records:
        _write(dump_record(record))


def _write(line: bytes) -> None:
    """Write to stdout at once; on a terminal, without the codes that would move its cursor."""
    out = sys.stdout
    if out.isatty():
        line = _CODES.sub(lambda found: rf"\u{ord(found[0]):04x}", line[:-1].decode()).encode() + b"\n"
    try:
        out.buffer.write(line)
        out.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = "stdout"
        raise


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
        for line in spool:
            _write(line)


def print_result(result: dict[str, Any]) -> None:
    """Write the one JSON object of a sink or of the engine to stdout."""
    emit([result])


def print_text(text: str) -> None:
    """Write lines of text, such as CSV, to stdout."""
    for line in text.splitlines(keepends=True):
        _write(line.encode())


# talk


def plain(text: str) -> str:
    r"""Return a text for people on one line: what would steer a terminal, or turn its letters round, is spelt out.

    >>> plain("clear\33[2J\n")
    'clear\\x1b[2J\\n'
    """
    return _CODES.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(message: str) -> None:
    """Write a line for people to stderr."""
    click.echo(plain(message), err=True)


def quiet() -> bool:
    """Whether to print errors only (-q)."""
    return logging.getLogger("hkmap").getEffectiveLevel() >= logging.ERROR


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, width: int | None = None,
    stdout: bool = False,
) -> None:
    """Write a table for people to stderr, unless -q is given, or to ``stdout``; ``width`` is for an unusually wide one.
    """
    if quiet() and not stdout:
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    first, *others = columns
    heading = title and Text(plain(title))
    table = Table(Column(first, no_wrap=True), *others, title=heading, show_header=any(columns))
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(stderr=not stdout, width=width).print(table)


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


# sizes

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_MOST_BYTES = 10**15


def byte_count(value: str) -> int:
    """Read a number of bytes: 500000, 500MB or 2GiB."""
    found = re.fullmatch(r"([0-9]{1,12}) ?(|k|M|G|T|Ki|Mi|Gi|Ti)B?", value, re.ASCII)
    number = int(found[1]) * _BYTES[found[2]] if found else 0
    if not 0 < number <= _MOST_BYTES:
        raise click.BadParameter(f"{value!r}: expected a number of bytes such as 500000, 500MB or 2GiB, up to 1000TB.")
    return number

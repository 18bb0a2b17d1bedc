"""What every command shares: its options, the records it reads and writes, and how it ends.

stdout is data, stderr is talk. Exit codes: 0 done, 1 the data or the run failed, 2 called wrongly,
3 a checking command found something, 130 interrupted.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from hkmap.errors import HkmapError, UpstreamError
from hkmap.records import Record, Rejects, dump_record, each, read_records

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter

Function = Callable[..., Any]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
ANYTHING = click.Path(exists=True, path_type=Path)
OUTPUT = click.Path(path_type=Path)


class MapSize(click.ParamType):
    """A map's (height, width): N, or HEIGHTxWIDTH."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        height, cross, width = str(value).partition("x")
        sides = (height, width if cross else height)
        if not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides):
            self.fail(f"{value!r}: expected a side N from 1, or HEIGHTxWIDTH, in map pixels.", param, ctx)
        return int(sides[0]), int(sides[1])


MAP_SIZE = MapSize()


class StreamCommand(click.Command):
    """A command with -v and -q."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_louder, help="Say more."),
            click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_quieter, help="Errors only."),
        ]


class StreamGroup(click.Group):
    """The group: turns every end of a command into its sentence and its exit code."""

    command_class = StreamCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a pipeline, in which they were added."""
        return list(self.commands)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; the variable of an option is called after the option: HKMAP_PREDICT_FROM for --from."""
        super().add_command(cmd, name)
        for option in cmd.params:
            if isinstance(option, click.Option):
                own = max(option.opts, key=len).removeprefix("--")
                option.envvar = f"HKMAP_{name or cmd.name}_{own}".replace("-", "_").upper()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UpstreamError as error:
            _fail(ctx, str(error), pass_on=error.args[0])
        except HkmapError as error:
            _fail(ctx, str(error))
        except BrokenPipeError:
            _forget_stdout()      # the reader has seen enough (`| head -1`): no complaint
            ctx.exit(0)
        except OSError as error:
            _fail(ctx, _sentence(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            _pass_on("interrupted")       # Ctrl-C reaches every stage, `kill -INT` only this one
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:      # a bug: it keeps its traceback, and the next stage is told
            _pass_on(f"{type(error).__name__}: {error}")
            raise


def root_argument(function: Function) -> Function:
    """Add a source's argument ROOT, and --absolute."""
    return click.argument("root", type=FOLDER)(absolute_option(function))


def absolute_option(function: Function) -> Function:
    """Add --absolute, which makes every path of the command absolute."""

    @click.option("--absolute", is_flag=True,
                  help="Print absolute paths. By default a path is the folder as given, and what lies below it.")
    @functools.wraps(function)
    def wrapper(*args: Any, absolute: bool, **kwargs: Any) -> Any:
        if absolute:
            kwargs = {name: value.absolute() if isinstance(value, Path) else value for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return wrapper


def split_option(function: Function) -> Function:
    """Add a source's --split."""
    return click.option("--split", type=click.Choice(["train", "test", "all"]), default="all", show_default=True,
                        help="Print only the images of the data set's own training or test part.")(function)


def records_argument(function: Function) -> Function:
    """Add the argument RECORDS: a file of records, or - for stdin (the default)."""
    return click.argument("records", type=click.File("rb"), default="-", metavar="[RECORDS]")(function)


def error_options(function: Function) -> Function:
    """Add --on-error and --max-errors, joined into the argument ``rejects``."""

    @click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
                  help="What a bad record does: stop the command, or be skipped with a warning.")
    @click.option("--max-errors", type=click.IntRange(min=0), default=0, show_default=True,
                  help="With --on-error skip: more skipped records than this end in exit code 1.")
    @functools.wraps(function)
    def wrapper(*args: Any, on_error: str, max_errors: int, **kwargs: Any) -> Any:
        rejects = Rejects(skip=on_error == "skip", max_errors=max_errors)
        result = function(*args, rejects=rejects, **kwargs)
        _settle(rejects)
        return result

    return wrapper


def overwrite_option(function: Function) -> Function:
    """Add --overwrite."""
    return click.option("--overwrite", is_flag=True, help="Replace what exists under the output's name.")(function)


def drawing_options(function: Function) -> Function:
    """Add what every filter has that draws maps: --size and --missing."""
    for option in (
        click.option("--missing", type=click.Choice(["error", "pass"]), default="error", show_default=True,
                     help="A record without the annotation (nobody was asked): an error, or passed on without a map."),
        click.option("--size", type=MAP_SIZE, default="224", show_default=True, metavar="N|HEIGHTxWIDTH",
                     help="Pixels of the map, which always covers the whole image."),
    ):
        function = option(function)
    return function


def missing_map_option(function: Function) -> Function:
    """Add --missing, of a filter that changes maps."""
    return click.option("--missing", type=click.Choice(["error", "pass"]), default="error", show_default=True,
                        help="A record without a map: an error, or passed on unchanged.")(function)


def read(stream: IO[bytes], rejects: Rejects) -> Iterator[Record]:
    """Yield the records of a command's input."""
    return read_records(stream, readable(stream), rejects)


def readable(stream: IO[bytes]) -> str:
    """Return what messages call a command's input; a terminal is nobody's stream."""
    if stream.isatty():
        raise click.UsageError("Nothing to read: pipe records in, or name a file of records.")
    name = getattr(stream, "name", "-")
    if str(name).endswith(".h5"):
        raise click.UsageError(f"{name}: a shard, expected a file of records; say `hkmap unpack {name} | hkmap ...`.")
    return "stdin" if name in ("-", "<stdin>", 0) else str(name)


def emit(records: Iterable[Record]) -> None:
    """Write records to stdout, each flushed, so that the next stage works while this one does."""
    out = sys.stdout.buffer
    for record in records:
        out.write(dump_record(record))
        out.flush()


def emit_with_maps(
    stream: IO[bytes],
    writer: AbstractContextManager[MapWriter],
    function: Callable[[Record, MapWriter], Record],
    rejects: Rejects,
) -> None:
    """Read records, apply ``function``, which saves maps by a writer, to each; write the results."""

    def mapped(maps: MapWriter) -> Iterator[Record]:
        return each(read(stream, rejects), lambda record: function(record, maps), rejects)

    emit_when_saved(writer, mapped)


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


def _map_output(*, required: bool) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        @click.option("--out", type=OUTPUT, required=required, metavar="PATH",
                      help="Where the maps go: a folder (a file a map), or NAME.h5 (a row a map).")
        @click.option("--format", "suffix", type=click.Choice(["npy", "png"]), default="npy", show_default=True,
                      help="In a folder: float32 .npy files, or 16-bit grey .png files (steps of 1/65535; no value "
                           "above 0 becomes 0).")
        @overwrite_option
        @functools.wraps(function)
        def wrapper(*args: Any, out: Path | None, suffix: str, overwrite: bool, **kwargs: Any) -> Any:
            from hkmap.files.maps import open_writer

            writer = None if out is None else open_writer(out, suffix=suffix, overwrite=overwrite)
            return function(*args, writer=writer, **kwargs)

        return wrapper

    return decorate


#: Adds --out, --format and --overwrite, joined into the argument ``writer``; the second gives None without --out.
map_output_options = _map_output(required=True)
optional_map_output_options = _map_output(required=False)


def _settle(rejects: Rejects) -> None:
    # The stream was complete as asked for, so no error record: only the exit code and a sentence tell.
    if rejects.too_many:
        click.echo(f"Error: {rejects.count} skipped, --max-errors allows {rejects.max_errors}", err=True)
        click.get_current_context().exit(1)
    if rejects.count:
        logging.getLogger("hkmap").warning("%d skipped", rejects.count)


def _fail(ctx: click.Context, message: str, pass_on: str | None = None) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    _pass_on(pass_on or message)
    ctx.exit(1)


def _pass_on(message: str) -> None:
    """Tell the next stage, unless a person reads stdout."""
    if sys.stdout.isatty():
        return
    try:
        emit([{"error": message.encode(errors="backslashreplace").decode()}])     # it may name a file in Latin-1
    except OSError:
        _forget_stdout()          # the next stage is gone already, or the disk is full: stderr has the sentence


def _forget_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):      # a test's stdout has none
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _sentence(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def _louder(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
    if count:
        logging.getLogger("hkmap").setLevel(logging.INFO if count == 1 else logging.DEBUG)


def _quieter(ctx: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if quiet:
        logging.getLogger("hkmap").setLevel(logging.ERROR)

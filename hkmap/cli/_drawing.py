"""What the filters share that draw or change maps: the workers they do it by, and the way of a record through them."""

from __future__ import annotations

import functools
import select
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._stream import emit_when_saved, readable
from hkmap.errors import HkmapError
from hkmap.parallel.cluster import Workers, open_pool
from hkmap.parallel.threads import Pool
from hkmap.records import Record, Rejects, accepted, attempt, parsed

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter

Parsed = Iterator[Record | HkmapError]


class Jobs(click.ParamType):
    """A number of processes from 1, or -1 for one a core."""

    name = "jobs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            jobs = int(value)
        except ValueError:
            jobs = 0
        if jobs < 1 and jobs != -1:
            self.fail(f"{value!r}: expected a number of processes from 1, or -1 for all cores.", param, ctx)
        return jobs


def worker_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --jobs, --backend and --scheduler, joined into the argument ``workers``."""

    @click.option("--jobs", type=Jobs(), metavar="N",
                  help="Draw in N processes of one thread each, -1 for one a core; the output is the same. With "
                       "--backend dask, use N threads of the cluster at a time.  [default: 1; of a cluster, all]")
    @click.option("--backend", type=click.Choice(["processes", "dask"]), default="processes", show_default=True,
                  help="Where the processes are: on this machine, or on an existing Dask cluster (pip install "
                       "'hkmap[dask]'), whose workers have this hkmap. If records name files, the workers must find "
                       "them under the same names: they change to this command's current folder.")
    @click.option("--scheduler", metavar="ADDRESS",
                  help="With --backend dask: the address of its scheduler, such as tcp://host:8786.")
    @functools.wraps(function)
    def wrapper(*args: Any, jobs: int | None, backend: str, scheduler: str | None, **kwargs: Any) -> Any:
        if (backend == "dask") != (scheduler is not None):
            raise click.UsageError("--backend dask and --scheduler ADDRESS go together; give both, or neither.")
        alone = 1 if scheduler is None else -1
        return function(*args, workers=Workers(alone if jobs is None else jobs, scheduler), **kwargs)

    return wrapper


def emit_drawn(
    stream: IO[bytes],
    writer: AbstractContextManager[MapWriter],
    function: Callable[[Record], Drawn | Record],
    rejects: Rejects,
    workers: Workers,
    *,
    reads_files: bool,
    watch: Callable[[Parsed], Parsed] = iter,
) -> None:
    """Read records, draw by ``function`` in the ``workers``, save the maps, write the records; all in order.

    ``function`` is one that pickle can name: of a module, or a partial of such a one. ``reads_files`` says whether it
    opens what records name. ``watch`` sees what is read, and may refuse it at its end.
    """
    from hkmap.files.maps import save_drawn

    name = readable(stream)

    def attempts(pool: Pool | None) -> Iterator[Drawn | Record | HkmapError]:
        if pool is None:
            return (attempt(function, record) for record in watch(parsed(stream, name)))
        lines = Lines(stream)
        return pool.attempts(function, watch(parsed(lines, name)), lines.ready)

    with open_pool(workers, reads_files=reads_files) as pool:
        drawn = attempts(pool)
        emit_when_saved(
            writer, lambda maps: accepted((attempt(partial(save_drawn, maps), item) for item in drawn), rejects)
        )


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

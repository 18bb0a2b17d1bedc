"""Who works on a stream: threads of this process, or the workers of an existing Dask cluster."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkmap import __version__
from hkmap.errors import HkmapError, WorkerError
from hkmap.parallel.threads import Done, Pool, Task, cores, threads, work

_PATIENCE = 10      # seconds to wait for the scheduler's answer, and for its first worker


@dataclass(frozen=True)
class Workers:
    """Who does the work: ``jobs`` threads (-1: one per core) here, or the cluster of the Dask ``scheduler``.

    On a cluster ``jobs`` is how many of its threads to use at a time (-1: all).
    """

    jobs: int = 1
    scheduler: str | None = None


@contextmanager
def open_pool(workers: Workers, *, reads_files: bool) -> Iterator[Pool | None]:
    """Start or reach the workers; None for one job here, which needs no thread of its own.

    Each matrix product is computed in one thread: with several, its last digits depend on their number. (On a cluster
    the nannies of the workers do so: they set OMP_NUM_THREADS.)

    ``reads_files``: relative paths in the items must mean the same to a worker of a cluster as here. Raises WorkerError
    where a cluster cannot be reached.
    """
    if workers.scheduler is not None:
        with cluster(workers.scheduler, workers.jobs, Path.cwd() if reads_files else None) as pool:
            yield pool
        return
    from threadpoolctl import threadpool_limits

    jobs = cores() if workers.jobs == -1 else workers.jobs
    with threadpool_limits(1, user_api="blas"), nullcontext() if jobs == 1 else threads(jobs) as pool:
        yield pool


@contextmanager
def cluster(address: str, jobs: int, folder: Path | None) -> Iterator[Pool]:
    """Yield a pool of at most ``jobs`` of the cluster's threads (-1: all); they work in ``folder`` where it is given.

    Raises WorkerError where Dask is missing, or the scheduler cannot be reached or has no worker.
    """
    with closing(_connect(address)) as client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise WorkerError(
                f"--scheduler {address}: has no worker after {_PATIENCE} seconds; start some: `dask worker {address}`"
            ) from error
        most = max(1, sum(client.nthreads().values()))

        def submit(function: Callable[[Any], Any], items: list[Any]) -> Task:
            future = client.submit(_work_there, function, items, folder, __version__, pure=False)
            return _ClusterTask(future, address)

        yield Pool(most if jobs == -1 else min(jobs, most), submit)


def _connect(address: str) -> Any:
    import asyncio  # as slow to load as the rest of a command's start

    try:
        from distributed import Client
    except ImportError as error:
        raise WorkerError("--backend dask: Dask is not installed; run `pip install 'hkmap[dask]'`") from error
    for name in ("distributed", "distributed.client", "tornado"):      # our own sentences report what is lost
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        asyncio.run(_knock(address))      # a Client that fails to connect blocks for 20 seconds when it is deleted
    except Exception as error:            # another program may listen there, and answer anything
        raise WorkerError(
            f"--scheduler {address}: cannot be reached; expected the address of a running scheduler, as "
            "`dask scheduler` prints it, such as tcp://host:8786"
        ) from error
    return Client(address, timeout=_PATIENCE, set_as_default=False)


async def _knock(address: str) -> None:
    from distributed.comm import connect

    comm = await connect(address, timeout=_PATIENCE)
    await comm.close()


@dataclass(frozen=True)
class _ClusterTask:
    future: Any
    address: str

    def done(self) -> bool:
        return bool(self.future.done())

    def result(self) -> Done:
        from distributed import CancelledError

        try:
            return Done(*self.future.result())
        except HkmapError:
            raise
        except (Exception, CancelledError) as error:      # the work itself raises nothing: see work()
            reason = str(error).strip().partition("\n")[0][:200]
            raise WorkerError(
                f"--scheduler {self.address}: the cluster gave up a task ({type(error).__name__}: {reason}); its "
                f"workers need hkmap {__version__}, and memory"
            ) from error


def _work_there(function: Callable[[Any], Any], items: list[Any], folder: Path | None, version: str) -> Done:
    """Like work, in a worker of a cluster, which may do other work too, and in another folder."""
    if version != __version__:
        raise WorkerError(f"a worker of the cluster has hkmap {__version__}, expected {version}; install the same")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    with nullcontext() if folder is None else _FOLDER.entered(folder):
        done = work(function, items)
    if done.failure is not None:        # its traceback is lost on the way back, a note is not
        done.failure.add_note("".join(traceback.format_exception(done.failure)))
    return done


class _Folder:
    """The current folder of this process, which all its threads share."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._entered: list[Path] = []
        self._before = Path()

    @contextmanager
    def entered(self, folder: Path) -> Iterator[None]:
        """Make ``folder`` the current one, also for several threads at once; wait while others use another.

        Raises WorkerError where it is missing.
        """
        with self._free:
            self._free.wait_for(lambda: not self._entered or self._entered[0] == folder)
            if not self._entered:
                self._before = Path.cwd()
                try:
                    os.chdir(folder)
                except OSError as error:
                    raise WorkerError(
                        f"{folder}: {error.strerror} on a worker of the cluster; the files of the records must be "
                        "there under the same names: use a folder that all machines share"
                    ) from error
            self._entered.append(folder)
        try:
            yield
        finally:
            with self._free:
                self._entered.pop()
                if not self._entered:
                    os.chdir(self._before)
                    self._free.notify_all()


_FOLDER = _Folder()

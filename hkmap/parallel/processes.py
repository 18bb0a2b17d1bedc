"""Workers that are processes of this machine: joblib's, which start fresh and can be ended at any moment."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hkmap.errors import WorkerError
from hkmap.parallel.pool import Done, Failure, Pool, Task, work

_ENVIRONMENT = {
    # Each worker computes in one thread, as the others have the other cores.
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
         "OPENCV_FOR_THREADS_NUM"),
        "1",
    ),
    # It keeps the memory of a map for the next one; glibc would give it back, and have each page made anew.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
}

_SHARED_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None      # None: where temporary files go


def cores() -> int:
    """Return how many cores this process may use."""
    from joblib import cpu_count

    return int(cpu_count())


@contextmanager
def processes(jobs: int) -> Iterator[Pool]:
    """Yield a pool of fresh processes; when the context ends, they are ended too, whatever they do."""
    from multiprocessing import resource_tracker

    from joblib.externals.loky.process_executor import ProcessPoolExecutor

    resource_tracker.ensure_running()       # now, as it would let go of the interrupts that submit() holds
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY, prefix="hkmap-") as folder:
        settle_in = {"initializer": _settle_in, "initargs": (os.getpid(), folder), "env": _ENVIRONMENT}
        executor = ProcessPoolExecutor(jobs, **settle_in)

        def submit(function: Callable[[Any], Any], items: list[Any]) -> Task:
            with _interrupts_held():
                return _ProcessTask(executor.submit(_work_there, function, items, folder))

        try:
            yield Pool(jobs, submit)
        finally:
            _end(executor)


def _end(executor: Any) -> None:
    """End the processes, which at a good end have nothing left to do."""
    for worker in list(executor._processes.values()):      # shutdown(kill_workers=True) trips over tasks not yet sent
        worker.terminate()
    executor.shutdown()


class _ProcessTask:
    def __init__(self, future: Any) -> None:
        self._future = future

    def done(self) -> bool:
        return bool(self._future.done())

    def result(self) -> Done:
        try:
            parcel = self._future.result()
        except BrokenExecutor as error:
            raise WorkerError(
                "a worker process died, most often because memory ran out; use fewer --jobs, or give each more memory"
            ) from error
        return Done(_unpacked(parcel), parcel.failure, parcel.seconds)


class _Parcel(NamedTuple):
    """A chunk that is done: each outcome as a pickle and the sizes of its arrays, which lie in a file one by one."""

    outcomes: list[tuple[bytes, list[int]]]
    path: Path | None
    failure: Failure | None
    seconds: float


def _work_there(function: Callable[[Any], Any], items: list[Any], folder: str) -> _Parcel:
    """Like work, in a worker process; arrays go back through shared memory, as a pipe is slow."""
    done = work(function, items)
    pickles, arrays = [], []
    for outcome in done.outcomes:
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(outcome, protocol=5, buffer_callback=buffers.append)
        arrays += [buffer.raw() for buffer in buffers]
        pickles.append((pickled, [buffer.raw().nbytes for buffer in buffers]))
    if not arrays:
        return _Parcel(pickles, None, done.failure, done.seconds)
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        with open(handle, "wb") as file:
            file.writelines(arrays)
    except OSError:         # shared memory is full: a pipe has room for all that is read at the other end
        Path(name).unlink()
        return _Parcel([(pickle.dumps(outcome), []) for outcome in done.outcomes], None, done.failure, done.seconds)
    return _Parcel(pickles, Path(name), done.failure, done.seconds)


def _unpacked(parcel: _Parcel) -> Iterator[Any]:
    """Yield the outcomes, each read when it is asked for, while the processor still has the one before at hand."""
    if parcel.path is None:
        yield from (pickle.loads(pickled) for pickled, _ in parcel.outcomes)
        return
    with parcel.path.open("rb", buffering=0) as file:
        parcel.path.unlink()
        for pickled, sizes in parcel.outcomes:
            yield pickle.loads(pickled, buffers=[file.read(size) for size in sizes])


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes and threads that leave Ctrl-C to this one, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle_in(parent: int, folder: str) -> None:
    """Make a fresh process a worker: it neither reads nor writes the stream, and does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # the parent ends it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()


def _end_with(parent: int, folder: str) -> None:
    never = threading.Event()
    while os.getppid() == parent:      # a killed parent tells nobody
        never.wait(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)

"""Workers that are processes of this machine: joblib's, which start fresh and can be ended at any moment."""

from __future__ import annotations

import itertools
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
        free: list[Path] = []      # boxes that were emptied: to fill one again takes no new pages of memory
        numbers = itertools.count()

        def submit(function: Callable[[Any], Any], items: list[Any]) -> Task:
            box = free.pop() if free else Path(folder, str(next(numbers)))
            with _interrupts_held():
                return _ProcessTask(executor.submit(_work_there, function, items, box), box, free)

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
    def __init__(self, future: Any, box: Path, free: list[Path]) -> None:
        self._future = future
        self._box = box
        self._free = free

    def done(self) -> bool:
        return bool(self._future.done())

    def result(self) -> Done:
        try:
            parcel = self._future.result()
        except BrokenExecutor as error:
            raise WorkerError(
                "a worker process died, most often because memory ran out; use fewer --jobs, or give each more memory"
            ) from error
        return Done(self._outcomes(parcel), parcel.failure, parcel.seconds)

    def _outcomes(self, parcel: _Parcel) -> Iterator[Any]:
        yield from _unpacked(parcel, self._box)
        self._free.append(self._box)


class _Parcel(NamedTuple):
    """A chunk that is done: each outcome as a pickle and the sizes of its arrays, which lie in the box one by one."""

    outcomes: list[tuple[bytes, list[int]]]
    failure: Failure | None
    seconds: float


def _work_there(function: Callable[[Any], Any], items: list[Any], box: Path) -> _Parcel:
    """Like work, in a worker process; arrays go back in a file in shared memory, as a pipe is slow."""
    done = work(function, items)
    pickles, arrays = [], []
    for outcome in done.outcomes:
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(outcome, protocol=5, buffer_callback=buffers.append)
        arrays += [buffer.raw() for buffer in buffers]
        pickles.append((pickled, [buffer.raw().nbytes for buffer in buffers]))
    try:
        if arrays:
            with open(os.open(box, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.writelines(arrays)
    except OSError:         # shared memory is full: a pipe has room for all that is read at the other end
        box.unlink(missing_ok=True)
        return _Parcel([(pickle.dumps(outcome), []) for outcome in done.outcomes], done.failure, done.seconds)
    return _Parcel(pickles, done.failure, done.seconds)


def _unpacked(parcel: _Parcel, box: Path) -> Iterator[Any]:
    """Yield the outcomes, each read when it is asked for, while the processor still has the one before at hand."""
    if not any(sizes for _, sizes in parcel.outcomes):
        yield from (pickle.loads(pickled) for pickled, _ in parcel.outcomes)
        return
    with box.open("rb", buffering=0) as file:
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

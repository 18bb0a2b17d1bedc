"""Work on a stream in several threads; results come back in order.

Threads, not processes: decoding images, OpenCV, NumPy and checksums release Python's lock, and no image is copied
between processes. The stream is sent in chunks of as many items as take about a twentieth of a second, 16 at most, and
of fewer when no item waits and a worker is idle. At most three chunks per worker are under way, so memory does not grow
with the stream, however slow its reader is.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from hkmap.errors import HkmapError, WorkerError
from hkmap.records import attempt

Item = TypeVar("Item")
Result = TypeVar("Result")
Begun = TypeVar("Begun")

_CHUNK_SECONDS = 0.05
_LARGEST_CHUNK = 16
_AHEAD = 3              # chunks per worker: one in work, one waiting, one on its way back
_MOST = 8               # threads that read files; more only wait for Python's lock, and each holds some images
_TO_END = 5.0           # seconds that the system may take to end a thread that Python has ended


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes that this process may have: the machine's memory, or a lower limit of the process."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    with suppress(OSError, ValueError):      # a container's; "max" without one
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)      # RLIM_INFINITY is -1


@contextmanager
def threads(jobs: int | None = None) -> Iterator[Pool]:
    """Start ``jobs`` threads (None: one per core, 8 at most); at the end only what is in work is finished."""
    jobs = jobs or min(cores(), _MOST)
    with thread_pool(jobs) as executor:
        yield Pool(jobs, partial(_submit, executor))


def _submit(executor: ThreadPoolExecutor, function: Callable[[Any], Any], items: list[Any]) -> Task:
    try:
        return executor.submit(work, function, items)
    except RuntimeError as error:      # a limit on memory or on threads
        raise WorkerError(f"no more threads can be started ({error}); ask for fewer --jobs") from error


@contextmanager
def thread_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start at most ``count`` threads; at the end only what is in work is finished, and forking is safe again.

    A thread that has decoded an image takes a lock of OpenCV as it ends, after Python considers it ended. A process
    forked at that moment inherits the lock closed, and hangs at its first image. So this waits for the real end.
    """
    numbers: list[int] = []
    executor = ThreadPoolExecutor(count, "hkmap", initializer=lambda: numbers.append(threading.get_native_id()))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        latest = time.monotonic() + _TO_END     # Python 3.13 waits by itself; before, there is nothing to wait on
        for number in numbers:
            while Path(f"/proc/self/task/{number}").exists() and time.monotonic() < latest:
                os.sched_yield()


def ahead(begun: Iterable[Begun], finish: Callable[[Begun], Result], depth: int) -> Iterator[Result]:
    """Yield each of ``begun`` finished, in order, while the next ``depth`` of them are in work."""
    waiting: deque[Begun] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > depth:
            yield finish(waiting.popleft())
    while waiting:
        yield finish(waiting.popleft())


class Done(NamedTuple):
    """A worked-on chunk: a result or an HkmapError for each item, up to the failure if there was one.

    ``failure`` ended the work and is no HkmapError: an OSError, or a bug. ``seconds`` is the time per item.
    """

    outcomes: list[Any]
    failure: Exception | None
    seconds: float


class Task(Protocol):
    """A chunk that is being worked on."""

    def done(self) -> bool:
        """Whether result() returns at once."""

    def result(self) -> Done:
        """Wait for the chunk and return it; raise WorkerError where the workers gave it up."""


class Pool(NamedTuple):
    """Running workers; ``submit`` gives them a function and the items to apply it to."""

    jobs: int
    submit: Callable[[Callable[[Any], Any], list[Any]], Task]

    def attempts(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item | HkmapError],
        ready: Callable[[], bool] = lambda: True,
    ) -> Iterator[Result | HkmapError]:
        """Yield `records.attempt` of the function and each item, in order; ``ready`` tells whether an item waits.

        For a cluster pickle must be able to name ``function``. Any other exception than the HkmapError of an item is
        raised after everything before it has been yielded.
        """
        chunks = _Chunks(iter(items), ready)
        tasks: deque[Task] = deque()
        size = 1
        while True:
            while len(tasks) < _AHEAD * self.jobs:
                chunk = chunks.take(size, wait=not tasks, idle=sum(not task.done() for task in tasks) < self.jobs)
                if not chunk:
                    break
                tasks.append(self.submit(function, chunk))
            if not tasks:
                break
            done = tasks.popleft().result()
            yield from done.outcomes
            if done.failure is not None:
                raise done.failure
            size = max(1, min(_LARGEST_CHUNK, int(_CHUNK_SECONDS / done.seconds)))
        if chunks.failure is not None:
            raise chunks.failure


def work(function: Callable[[Any], Any], items: list[Any]) -> Done:
    """Apply the function to a chunk; runs in a worker."""
    start = time.perf_counter()
    outcomes, failure = [], None
    for item in items:
        try:
            outcomes.append(attempt(function, item))
        except Exception as error:      # raised later by the caller, after the outcomes before it
            failure = error
            break
    return Done(outcomes, failure, (time.perf_counter() - start + 1e-9) / len(items))


class _Chunks(Generic[Item]):
    """Cuts a stream into chunks; keeps what the stream raises for later."""

    def __init__(self, items: Iterator[Item], ready: Callable[[], bool]) -> None:
        self._items = items
        self._ready = ready
        self._chunk: list[Item] = []
        self._ended = False
        self.failure: Exception | None = None

    def take(self, size: int, *, wait: bool, idle: bool) -> list[Item]:
        """Return the next chunk to send, empty if there is none now.

        ``wait``: nothing else is to be done, so wait for an item. ``idle``: a worker is, so send what there is.
        """
        while not self._ended and len(self._chunk) < size and ((wait and not self._chunk) or self._ready()):
            try:
                self._chunk.append(next(self._items))
            except StopIteration:
                self._ended = True
            except Exception as error:      # raised again after everything before it
                self._ended, self.failure = True, error
        if len(self._chunk) < size and not self._ended and not idle:
            return []
        chunk, self._chunk = self._chunk, []
        return chunk

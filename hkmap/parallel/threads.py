"""Have a stream worked on by several threads; what comes back is in order.

Threads, not processes: decoding images, OpenCV, NumPy and summing bytes leave Python's lock, and an image need not go
from one process to another. The stream is sent in chunks. A chunk holds as many items as take about a twentieth of a
second, 16 at most; it is sent when it is full, or as it is when no further item waits and a worker has nothing to do.
At most three chunks a worker are on their way, so memory does not grow with the stream, however slowly its end is read.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from hkmap.errors import HkmapError
from hkmap.records import attempt

Item = TypeVar("Item")
Result = TypeVar("Result")
Begun = TypeVar("Begun")

_CHUNK_SECONDS = 0.05
_LARGEST_CHUNK = 16
_AHEAD = 3      # chunks a worker: one in work, one that waits for it, one on its way back
_MOST = 8            # threads that read files; more only wait for Python's lock, and each holds some images
_TO_END = 5.0        # seconds that the system may take to end a thread which Python has ended


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(jobs: int | None = None) -> Iterator[Pool]:
    """Start ``jobs`` threads (None: one a core, 8 at most); at the end what is in work is finished and no more."""
    jobs = jobs or min(cores(), _MOST)
    with thread_pool(jobs) as executor:

        def submit(function: Callable[[Any], Any], items: list[Any]) -> Task:
            return executor.submit(work, function, items)

        yield Pool(jobs, submit)


@contextmanager
def thread_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start at most so many threads; at the end what is in work is finished and no more, and a fork is safe.

    A thread that has decoded an image takes a lock of OpenCV as it ends, after Python thinks that it has ended. A
    process forked in that moment gets the lock closed for good, and hangs with its first image. So its end is awaited.
    """
    numbers: list[int] = []
    executor = ThreadPoolExecutor(count, "hkmap", initializer=lambda: numbers.append(threading.get_native_id()))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        _await_end(numbers)


def _await_end(numbers: Iterable[int]) -> None:
    """Let threads that Python has ended, by the system's numbers, run until the system has ended them too.

    Python 3.13's join() does so itself; before it nothing can be waited for, so the processor is given to them.
    """
    latest = time.monotonic() + _TO_END
    for number in numbers:
        while Path(f"/proc/self/task/{number}").exists() and time.monotonic() < latest:
            os.sched_yield()


def ahead(begun: Iterable[Begun], finish: Callable[[Begun], Result], depth: int) -> Iterator[Result]:
    """Yield what is begun, in order and finished, while the next ``depth`` of it are in work."""
    waiting: deque[Begun] = deque()
    for one in begun:
        waiting.append(one)
        if len(waiting) > depth:
            yield finish(waiting.popleft())
    while waiting:
        yield finish(waiting.popleft())


class Failure(NamedTuple):
    """What ended the work, and was no HkmapError: an OSError, or a bug."""

    error: Exception
    traceback: str


class Done(NamedTuple):
    """What became of a chunk: a result or an HkmapError for each item, up to the failure if there was one.

    ``seconds`` is the time that an item took.
    """

    outcomes: Iterable[Any]
    failure: Failure | None
    seconds: float


class Task(Protocol):
    """A chunk that is being worked on."""

    def done(self) -> bool:
        """Whether its result can be had without waiting."""

    def result(self) -> Done:
        """Wait for it and return it; raise WorkerError where no worker will ever bring it."""


class Pool(NamedTuple):
    """Workers that are at hand; ``submit`` hands them a function and the items to apply it to."""

    jobs: int
    submit: Callable[[Callable[[Any], Any], list[Any]], Task]

    def attempts(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item | HkmapError],
        ready: Callable[[], bool] = lambda: True,
    ) -> Iterator[Result | HkmapError]:
        """Yield `records.attempt` of the function and each item, in order; ``ready`` tells whether an item waits.

        ``function`` must be one that pickle can name. What the items or the function raise, and is no HkmapError of
        an item, is raised when everything before it has been yielded.
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
                raise done.failure.error from _WorkerTracebackError(done.failure.traceback)
            size = max(1, min(_LARGEST_CHUNK, int(_CHUNK_SECONDS / done.seconds)))
        if chunks.failure is not None:
            raise chunks.failure


def work(function: Callable[[Any], Any], items: list[Any]) -> Done:
    """Apply the function to a chunk; runs in a worker."""
    start = time.perf_counter()
    outcomes = []
    failure = None
    for item in items:
        try:
            outcomes.append(attempt(function, item))
        except Exception as error:      # goes on in the process that asked, behind the outcomes before it
            failure = Failure(error, traceback.format_exc())
            break
    return Done(outcomes, failure, (time.perf_counter() - start + 1e-9) / len(items))


class _WorkerTracebackError(Exception):
    """The traceback of a failure in a worker, for people."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class _Chunks(Generic[Item]):
    """Takes a stream apart; keeps what the stream raises for later."""

    def __init__(self, items: Iterator[Item], ready: Callable[[], bool]) -> None:
        self._items = items
        self._ready = ready
        self._chunk: list[Item] = []
        self._ended = False
        self.failure: Exception | None = None

    def take(self, size: int, *, wait: bool, idle: bool) -> list[Item]:
        """Return the next chunk to send, empty where there is none now.

        Waits for an item if there is nothing else to do; sends less than ``size`` if a worker is idle.
        """
        while not self._ended and len(self._chunk) < size and ((wait and not self._chunk) or self._ready()):
            self._read()
        if len(self._chunk) < size and not self._ended and not idle:
            return []
        chunk, self._chunk = self._chunk, []
        return chunk

    def _read(self) -> None:
        try:
            self._chunk.append(next(self._items))
        except StopIteration:
            self._ended = True
        except Exception as error:      # raised again when everything before it is done
            self._ended, self.failure = True, error

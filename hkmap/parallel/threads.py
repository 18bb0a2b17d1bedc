"""Threads of this process, for work that leaves Python's lock: decoding images, summing bytes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hkmap.parallel.pool import Pool, Task, work
from hkmap.parallel.processes import cores

Begun = TypeVar("Begun")
Result = TypeVar("Result")

_MOST = 8            # more only wait for Python's lock, and each holds some images
_TO_END = 5.0        # seconds that the system may take to end a thread which Python has ended


@contextmanager
def threads() -> Iterator[Pool]:
    """Start a thread a core, 8 at most; at the end, however it comes, what is in work is finished and no more."""
    jobs = min(cores(), _MOST)
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

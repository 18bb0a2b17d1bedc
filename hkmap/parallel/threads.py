"""Threads of this process, for work that leaves Python's lock: decoding images, summing bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from hkmap.parallel.pool import Pool, Task, work
from hkmap.parallel.processes import cores

_MOST = 8      # more only wait for Python's lock, and each holds some images


@contextmanager
def threads() -> Iterator[Pool]:
    """Start a thread a core, 8 at most; at the end, however it comes, what is in work is finished and no more."""
    jobs = min(cores(), _MOST)
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="hkmap")

    def submit(function: Callable[[Any], Any], items: list[Any]) -> Task:
        return executor.submit(work, function, items)

    try:
        yield Pool(jobs, submit)
    finally:
        executor.shutdown(cancel_futures=True)

"""How the benchmarks take time: functions that are compared take turns, so that a drift of the machine affects all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Seconds(NamedTuple):
    """The times of one function over all its turns; other programs disturb the minimum least."""

    median: float
    minimum: float


def seconds_of(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Call each function once to warm up, then ``repeats`` times in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: Seconds(statistics.median(found), min(found)) for name, found in times.items()}

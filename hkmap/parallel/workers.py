"""Who does the work of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hkmap.parallel.cluster import cluster
from hkmap.parallel.pool import Pool
from hkmap.parallel.processes import cores, processes


@dataclass(frozen=True)
class Workers:
    """Who does the work: ``jobs`` processes (-1: one a core) here, or the cluster of the Dask ``scheduler``.

    1 job here is this process itself. On a cluster ``jobs`` says how many of its threads to use at a time, -1 all.
    """

    jobs: int = 1
    scheduler: str | None = None


@contextmanager
def open_pool(workers: Workers, *, reads_files: bool) -> Iterator[Pool | None]:
    """Start or reach the workers; None for one job in this process. No process outlives the context.

    Everywhere matrix products are computed in one thread: with several, their last digits depend on how many there are.
    (In a worker of a cluster that is its nanny's doing, who sets OMP_NUM_THREADS.)

    ``reads_files`` says that relative paths in the items must mean the same to a worker of a cluster as here.
    Raises WorkerError where a cluster cannot be reached.
    """
    if workers.scheduler is not None:
        with cluster(workers.scheduler, workers.jobs, Path.cwd() if reads_files else None) as pool:
            yield pool
        return
    jobs = cores() if workers.jobs == -1 else workers.jobs
    if jobs == 1:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            yield None
        return
    with processes(jobs) as pool:
        yield pool

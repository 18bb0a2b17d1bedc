"""Batches of the records of shards, as NumPy arrays: shuffled, shared out over ranks, decoded ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.files.images import Pixels
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import WHOLE, view_image, view_map
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.shards.layout import Sample
from hkmap.shards.sequence import ShardSequence

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LoadedBatch:
    """One rank's part of one step; its arrays are its own, and nobody else writes to them.

    ``images`` (B, H, W, 3) uint8, RGB; ``maps`` (B, h, w) float32 in [0, 1], zeros where a record has none;
    ``certainty`` (B, h, w) float32 in [0, 1], how well each cell is known, 0 in all of a missing map; ``labels`` (B,)
    int64; ``indices`` (B,) int64, the records' numbers in the sequence; ``weights`` (B,) float32, 1, or 0 for a record
    that only fills up the batch and has been, or will be, in another one.
    """

    images: Pixels
    maps: Map
    certainty: Map
    labels: Numbers
    indices: Numbers
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shares:
    """Which records a rank reads at which step of an epoch.

    All ranks together take ``ranks * batch_size`` records a step, in an order that depends on ``count``, ``seed`` and
    the epoch alone; without ``shuffle`` it is that of the records. With ``equal_steps``, for training, each rank takes
    as many steps as the others, every batch is full, and what fills up the last ones has the weight 0. Without it, for
    evaluation, every record comes exactly once, and the last batches are as small as they come out, but for one of
    fewer than ``least`` records, which joins the one before: batch norm cannot learn from one.

    With ``split``, for training that is to be the same on any number of ranks, a step is what it is for one rank
    without ``equal_steps``: ``batch_size`` records of all ranks together, of which each takes every ranks-th. A rank
    for which the last step has none gets a record of weight 0. ``equal_steps`` then has no say.

    >>> [Shares(5, batch_size=2, rank=rank, ranks=2, shuffle=False).step(0, 1) for rank in range(2)]
    [(array([4, 1]), array([1., 0.], dtype=float32)), (array([0, 2]), array([0., 0.], dtype=float32))]
    """

    count: int
    batch_size: int
    rank: int = 0
    ranks: int = 1
    seed: int = 0
    shuffle: bool = True
    equal_steps: bool = True
    least: int = 1
    split: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.count < 1:
            raise ShardError(f"{self.count} records in batches of {self.batch_size}; expected at least one of each")
        if not 0 <= self.rank < self.ranks:
            raise ShardError(f"rank {self.rank} of {self.ranks}; expected one rank or more, and one of them, from 0")
        if self.split and self.batch_size < self.ranks:
            raise ShardError(
                f"a batch of {self.batch_size} split over {self.ranks} processes; expected a record or more for each: "
                "a larger batch, or fewer processes"
            )

    @property
    def steps(self) -> int:
        """How many steps an epoch has for this rank."""
        if self.equal_steps and not self.split:
            return -(-self.count // (self.batch_size * self.ranks))
        own = self.count if self.split else len(range(self.rank, self.count, self.ranks))
        joins = own > self.batch_size and 0 < own % self.batch_size < self.least
        return -(-own // self.batch_size) - joins

    def size(self, step: int) -> int:
        """Return how many records a step has, over all the ranks that ``split`` it."""
        return len(range(self.count)[self._rows(step)])

    def order(self, epoch: int) -> Numbers:
        """Return the records' numbers in the order of an epoch."""
        return epoch_order(self.count, self.seed, epoch) if self.shuffle else np.arange(self.count)

    def step(self, epoch: int, step: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
        """Return the records of a step, from 0, and their weights."""
        return self.part(self.order(epoch), step)

    def part(self, order: Numbers, step: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
        """Like step, from the ``order`` of an epoch, which takes time to make."""
        if self.split:
            whole = order[self._rows(step)]
            chosen = whole[self.rank :: self.ranks]
            return (chosen, _ones(chosen)) if len(chosen) else (whole[:1], np.zeros(1, np.float32))
        if not self.equal_steps:
            chosen = order[self.rank :: self.ranks][self._rows(step)]
            return chosen, _ones(chosen)
        together = self.batch_size * self.ranks
        places = np.arange(step * together + self.rank, (step + 1) * together, self.ranks)
        return order[places % self.count], (places < self.count).astype(np.float32)

    def _rows(self, step: int) -> slice:
        return slice(step * self.batch_size, None if step == self.steps - 1 else (step + 1) * self.batch_size)


def _ones(chosen: Numbers) -> npt.NDArray[np.float32]:
    return np.ones(len(chosen), np.float32)


def epoch_order(count: int, seed: int, epoch: int) -> Numbers:
    """Return the order in which an epoch visits ``count`` records; it depends on the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Filler(Protocol):
    """What reads records into the rows of a batch, from any thread: images and maps of one size each.

    ``labels`` (n,) are of all records; sizes are (height, width).
    """

    @property
    def labels(self) -> Numbers: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def map_size(self) -> tuple[int, int]: ...

    def fill(self, index: int, image: Pixels, values: Map, certainty: Map, epoch: int = 0) -> None:
        """Read a record as it is seen in ``epoch`` into an image (H, W, 3), a map and its certainty (h, w)."""


class SizedReader:
    """Reads records of shards, their images and maps at one size each; from any thread, after fork, and picklable.

    ``image_size`` (height, width) squashes every image to it, as the engine does; None takes images as they are, which
    must be of one size. ``map_size`` likewise for maps.
    """

    def __init__(
        self, shards: ShardSequence, *, image_size: tuple[int, int] | None = None,
        map_size: tuple[int, int] | None = None,
    ) -> None:
        self.shards = shards
        self._given_image_size = image_size
        self._given_map_size = map_size

    @property
    def labels(self) -> Numbers:
        """(n,) the labels of all records, -1 where unknown."""
        return self.shards.labels

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        if self._given_image_size is not None:
            return self._given_image_size
        height, width, _ = self.shards.read_bare(0).image(self.shards.place(0)).shape
        return height, width

    @cached_property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the maps; (1, 1) where no record has one."""
        return self._given_map_size or self.shards.map_size or (1, 1)

    def fill(self, index: int, image: Pixels, values: Map, certainty: Map, epoch: int = 0) -> None:
        """Read a record into an ``image`` (H, W, 3), its map into ``values`` and ``certainty`` (h, w), all contiguous.

        What nobody mapped is 0 in both. Raises ShardError, naming the record, where it is damaged or of another size.
        """
        sample = self.shards.read_bare(index, image)
        if sample.pixel_size != self.image_size:     # else it was read to its place
            image[...] = self._sized(sample, index)
        if sample.map is None:
            values[...] = certainty[...] = 0
            return
        seen = Weighted(sample.map, sample.certainty)
        if seen.map.shape != self.map_size:
            seen = view_map(seen, WHOLE, self.map_size)
        values[...] = seen.map
        certainty[...] = 1 if seen.certainty is None else seen.certainty

    def _sized(self, sample: Sample, index: int) -> Pixels:
        image = sample.image(self.shards.place(index))
        if image.shape[:2] == self.image_size:
            return image
        if self._given_image_size is None:
            (height, width), (rows, columns) = self.image_size, image.shape[:2]
            raise ShardError(
                f"{self.shards.place(index)}: an image of {rows}x{columns} pixels (height x width), expected "
                f"{height}x{width} as the first one; give an image_size, to which all are squashed"
            )
        return view_image(image, WHOLE, self.image_size)


class ShardLoader:
    """Yields the batches of a rank, which ``threads`` read, up to ``prefetch`` ahead of the one that is waited for.

    ``shares`` are of the records at ``indices`` (n,), or of all. Usable after fork and spawn, and picklable: threads
    live as long as an epoch. Raises ShardError, naming the record, where one is damaged or of another size.
    """

    def __init__(
        self, reader: Filler, shares: Shares, *, indices: Numbers | None = None, threads: int = 2, prefetch: int = 2
    ) -> None:
        self.indices = np.arange(len(reader.labels)) if indices is None else indices
        if shares.count != len(self.indices):
            raise ShardError(f"{len(self.indices)} records, but shares of {shares.count}; give the number of records")
        self.reader = reader
        self.shares = shares
        self.threads = threads
        self.prefetch = prefetch

    def __len__(self) -> int:
        """How many steps an epoch has."""
        return self.shares.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """Yield the batches of an epoch from step ``start`` (from 0) on; the rest of an epoch is read exactly once.

        Raises ShardError where an epoch has no such step; its end, ``len(self)``, is one from which nothing is left.
        """
        if not 0 <= start <= len(self):
            raise ShardError(f"step {start} of an epoch of {len(self)} steps; was it of other shards or batches?")
        order = self.indices[self.shares.order(epoch)]
        with thread_pool(self.threads) as pool:
            begun = (self._begun(pool, epoch, *self.shares.part(order, step)) for step in range(start, len(self)))
            yield from ahead(begun, _finished, self.prefetch)

    def _begun(
        self, pool: ThreadPoolExecutor, epoch: int, indices: Numbers, weights: npt.NDArray[np.float32]
    ) -> tuple[LoadedBatch, Sequence[Future[None]]]:
        """Have a batch read, each thread some of its records."""
        count, reader = len(indices), self.reader
        batch = LoadedBatch(
            images=np.empty((count, *reader.image_size, 3), np.uint8),
            maps=np.empty((count, *reader.map_size), np.float32),
            certainty=np.empty((count, *reader.map_size), np.float32),
            labels=reader.labels[indices],
            indices=indices,
            weights=weights,
        )

        def read(rows: range) -> None:
            for row in rows:
                reader.fill(int(indices[row]), batch.images[row], batch.maps[row], batch.certainty[row], epoch)

        parts = (range(start, count, self.threads) for start in range(min(self.threads, count)))
        return batch, [pool.submit(read, part) for part in parts]


def _finished(begun: tuple[LoadedBatch, Sequence[Future[None]]]) -> LoadedBatch:
    batch, reading = begun
    for part in reading:
        part.result()
    return batch

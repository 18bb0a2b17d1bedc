"""What feeds a training: the batches of an epoch, on the device, as images or as features that were kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.engine.data import Data, ShardExamples, normalise, tensors
from hkmap.engine.ranks import current, local
from hkmap.parallel.threads import cores
from hkmap.shards.loader import ShardLoader, Shares
from hkmap.training.optimisation import TrainingOptions

Numbers = npt.NDArray[np.int64]


class Fed(NamedTuple):
    """One process's part of a batch; tensors are on the device, ``indices`` of the records on the host."""

    inputs: Tensor          # (B, 3, H, W) normalised images, or what the extractor makes of them
    cached: bool            # whether it is what the extractor makes of them
    maps: Tensor            # (B, 1, h, w)
    certainty: Tensor       # (B, 1, h, w)
    labels: Tensor          # (B,)
    weights: Tensor         # (B,) 1, or 0 for a record that only fills up the batch
    indices: Numbers        # (B,)
    samples: int            # records of the batch over all processes, without those of weight 0


class Feed(Protocol):
    """What feeds a training; ``len`` is how many batches an epoch has, for each process alike."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Fed]:
        """Yield the batches of an epoch (from 1) from number ``start`` (from 0) on; they depend on nothing else."""

    def place(self, index: int) -> str:
        """Return where a record is, for messages."""


class ImageFeed:
    """Images of shards, decoded in threads ahead of the step that needs them."""

    def __init__(
        self, examples: ShardExamples, indices: Numbers, shares: Shares, *, device: torch.device, threads: int
    ) -> None:
        self.examples = examples
        self.device = device
        self.loader = ShardLoader(examples, shares, indices=indices, threads=threads)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Fed]:
        for loaded in self.loader.epoch(epoch, start):
            batch = tensors(loaded).to(self.device)
            images = normalise(batch.images, self.examples.preprocessing)
            weights = torch.from_numpy(loaded.weights).to(self.device, non_blocking=True)
            samples = self.loader.shares.size(start)
            start += 1
            yield Fed(images, False, batch.maps, batch.certainty, batch.labels, weights, loaded.indices, samples)

    def place(self, index: int) -> str:
        return self.examples.shards.place(index)


def image_feed(data: Data, options: TrainingOptions, device: torch.device) -> ImageFeed:
    """Return what feeds a training with the images of its samples."""
    shares = Shares(len(data.indices), options.batch_size, *current(), seed=options.seed, least=2, split=True)
    threads = options.threads or max(2, min(4, cores() // local().ranks))
    return ImageFeed(data.examples, data.indices, shares, device=device, threads=threads)

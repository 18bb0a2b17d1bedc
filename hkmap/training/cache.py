"""What a frozen extractor makes of each view of each sample, computed once and kept for the branches to train on."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hkmap.engine.data import ShardExamples, normalise, tensors
from hkmap.engine.inputs import mirrored
from hkmap.engine.ranks import local
from hkmap.errors import OutputError, RunError
from hkmap.maps.check import Map
from hkmap.maps.geometry import MIRROR, Image, compose
from hkmap.parallel.threads import machine_memory
from hkmap.shards.loader import LoadedBatch, ShardLoader, Shares
from hkmap.training.feeding import Fed, ImageFeed, Numbers
from hkmap.training.steps import Training

Watch = Callable[[Iterator[LoadedBatch], int], Iterator[LoadedBatch]]

logger = logging.getLogger("hkmap")


class _Kept(NamedTuple):
    """A row for each view of each sample, the views of a sample together."""

    features: Tensor            # (n, ...), the dimensions in the order ``layout``, in which the extractor writes them
    layout: tuple[int, ...]
    maps: Tensor                # (n, 1, h, w)
    certainty: Tensor           # (n, 1, h, w)
    labels: Tensor              # (n,)


class CachedFeed:
    """Feeds a training with features in place of images; after the first pass no image is decoded.

    ``images`` is what would feed it without the cache: a sample has the same view in the same epoch. The features are
    on the device if they take at most half of its free memory (of a CPU, of the memory of the machine), else in a file
    without a name in ``folder``, which is gone with the process. Each rank keeps those of all samples, as an epoch may
    bring it any. ``watch`` sees the batches of the first pass and their number.

    Raises RunError where the extractor is trained, or where there are more views than two.
    """

    def __init__(
        self, images: ImageFeed, training: Training, folder: Path, watch: Watch = lambda batches, total: batches
    ) -> None:
        if not training.frozen:
            raise RunError(
                f"--update {training.options.update} changes the feature extractor, so what it gives cannot be cached; "
                "use --update both or attention, or omit --cache-features"
            )
        if others := [name for name in images.examples.augmentations if name != "mirror"]:
            raise RunError(
                f"--augment {others[0]} shows a sample anew in each epoch, so its features cannot be cached; use no "
                "other than --augment mirror, or omit --cache-features"
            )
        self.images = images
        self.training = training
        self.folder = folder
        self.watch = watch
        self.views = 2 if images.examples.augmentations else 1
        self.shares = images.loader.shares

    def __len__(self) -> int:
        return len(self.images)

    def place(self, index: int) -> str:
        return self.images.place(index)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Fed]:
        kept, examples = self._kept, self.images.examples
        order, unwind, device = self.shares.order(epoch), (0, *(np.argsort(kept.layout) + 1)), self.images.device
        for step in range(start, len(self)):
            chosen, weights = self.shares.part(order, step)
            indices = self.images.loader.indices[chosen]
            rows = self.views * chosen
            if self.views > 1:
                rows += [mirrored(examples.chance(index, epoch)) for index in indices.tolist()]
            features, maps, certainty, labels = self._rows(rows)
            counted = self._ones[: len(weights)] if weights.all() else _on(device, torch.from_numpy(weights))
            size = self.shares.size(step)
            yield Fed(features.permute(unwind), True, maps, certainty, labels, counted, indices, size)

    def _rows(self, rows: Numbers) -> Iterator[Tensor]:
        """Return features, maps, certainty and labels of some rows, on the device."""
        kept, device = self._kept, self.images.device
        there = _on(kept.features.device, torch.from_numpy(rows))
        of_rows = (values.index_select(0, there) for values in (kept.features, kept.maps, kept.certainty, kept.labels))
        return (_on(device, values) for values in of_rows)

    @cached_property
    def _ones(self) -> Tensor:
        return torch.ones(2 * self.shares.batch_size, device=self.images.device)

    @cached_property
    def _kept(self) -> _Kept:
        """All rows, from the first pass."""
        images, training = self.images, self.training
        views = _Views(images.examples, images.loader.indices, self.views)
        # a batch of the size of a step's: another may be computed by another kernel, to other last bits
        batch_size = -(-self.shares.batch_size // self.shares.ranks)
        shares = Shares(len(views.labels), batch_size, shuffle=False, equal_steps=False)
        loader = ShardLoader(views, shares, threads=images.loader.threads)
        training.network.extractor.eval()
        kept, filled = None, 0
        for loaded in self.watch(loader.epoch(0), len(loader)):
            batch = tensors(loaded).to(images.device)
            with torch.no_grad(), training.precision(images.device):
                features = training.network.features(normalise(batch.images, images.examples.preprocessing))
            if kept is None:
                kept = self._allocated(len(views.labels), features, batch.maps, batch.certainty)
            stop = filled + len(features)
            written = features.permute(0, *(dimension + 1 for dimension in kept.layout)), batch.maps, batch.certainty
            for rows, values in zip((kept.features, kept.maps, kept.certainty), written, strict=True):
                rows[filled:stop].copy_(values)
            filled = stop
        assert kept is not None         # shares have a record or more
        return kept

    def _allocated(self, count: int, features: Tensor, *maps: Tensor) -> _Kept:
        """Return room for the rows of which the first ones are given."""
        inner = range(features.ndim - 1)
        layout = tuple(sorted(inner, key=lambda dimension: -features.stride(dimension + 1)))
        shapes = [(count, *(features.shape[dimension + 1] for dimension in layout))]
        shapes += [(count, *values.shape[1:]) for values in maps]
        kinds = [features.dtype, *(values.dtype for values in maps)]
        size = sum(math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, kinds, strict=True))
        fits = size <= room(self.images.device)
        logger.info(
            "caching the features of %d samples in %d views, %.1f GiB, %s", count // self.views, self.views,
            size / 2**30, f"on {self.images.device}" if fits else f"in a file in {self.folder}",
        )
        rows = [
            torch.empty(shape, dtype=kind, device=self.images.device) if fits else in_file(self.folder, shape, kind)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        labels = self.images.examples.labels[self.images.loader.indices].repeat(self.views)
        return _Kept(rows[0], layout, rows[1], rows[2], torch.from_numpy(labels).to(rows[0].device))


class _Views:
    """Each view of each sample as a record of its own, to be loaded: the plain one, and of two the mirrored one."""

    def __init__(self, examples: ShardExamples, indices: Numbers, views: int) -> None:
        self.examples = examples
        self.indices = indices
        self.views = views
        self.labels = examples.labels[indices].repeat(views)
        self.image_size = examples.image_size
        self.map_size = examples.map_size

    def fill(self, index: int, image: Image, values: Map, certainty: Map, epoch: int = 0) -> None:
        position, second = divmod(index, self.views)
        image[...], values[...], certainty[...] = self.examples.changed(
            int(self.indices[position]), lambda image, view: (image, compose(view, MIRROR) if second else view)
        )


def room(device: torch.device) -> int:
    """Return the bytes that features may take on the device: half of what is free on CUDA, of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return machine_memory() // 2 // local().ranks


def in_file(folder: Path, shape: Sequence[int], kind: torch.dtype) -> Tensor:
    """Return a tensor whose memory is a file without a name in the folder: it ends with the process, however that ends.

    Raises OutputError where the disk has no room for it.
    """
    size = math.prod(shape) * kind.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):      # else a disk that gets full ends the process
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot hold {size / 2**30:.1f} GiB of cached features ({error.strerror}); choose an --out "
                "with more room, or omit --cache-features"
            ) from error
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=kind).view(*shape)


def _on(device: torch.device, values: Tensor) -> Tensor:
    """Return a tensor on the device, without waiting for it."""
    if device.type != "cuda" or values.is_cuda:
        return values
    return values.pin_memory().to(device, non_blocking=True)

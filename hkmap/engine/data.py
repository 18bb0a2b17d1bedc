"""From shards (or records) to batches: decoding in threads, one view for image and map, normalising on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.engine.inputs import AUGMENTATIONS, Preprocessing, change_intensity, plain_view, random_view
from hkmap.errors import RunError
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import Image, View, view_image, view_map
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.shards.loader import LoadedBatch, ShardLoader, Shares
from hkmap.shards.sequence import ShardSequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class Example(NamedTuple):
    """One sample as the network sees it, on the host."""

    image: Image                # (H, W, 3) RGB
    map: Map                    # (h, w) of the attention's size; zeros where nobody drew one
    certainty: Map              # (h, w) how well each cell of the map is known; zeros without a map


@dataclass(frozen=True)
class Batch:
    """A batch on the host; images stay uint8 until they are on the device."""

    images: Tensor              # (B, H, W, 3) uint8
    maps: Tensor                # (B, 1, h, w) float32 in [0, 1]
    certainty: Tensor           # (B, 1, h, w) float32 in [0, 1]; 0 where nobody knows, as in all of a missing map
    labels: Tensor              # (B,) int64

    def to(self, device: torch.device) -> Batch:
        """Copy to the device, without waiting for it where the host's memory is pinned."""

        def copy(tensor: Tensor) -> Tensor:
            host = tensor.pin_memory() if device.type == "cuda" else tensor
            return host.to(device, non_blocking=True)

        return Batch(copy(self.images), copy(self.maps), copy(self.certainty), copy(self.labels))


class ShardExamples:
    """The samples of shards, seen through a preprocessing and, in training, random views.

    What sample ``index`` looks like in an epoch depends on the seed, the epoch and the index alone, never on
    threads or on where training was resumed. ``map_of`` (n,) names the sample whose map each sample gets.
    """

    def __init__(
        self,
        shards: ShardSequence,
        preprocessing: Preprocessing,
        map_size: tuple[int, int],
        *,
        augmentations: tuple[str, ...] = (),
        seed: int = 0,
        map_of: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if unknown := set(augmentations) - set(AUGMENTATIONS):
            raise RunError(f"augmentation {sorted(unknown)} is unknown; expected any of {', '.join(AUGMENTATIONS)}")
        self.shards = shards
        self.preprocessing = preprocessing
        self.map_size = map_size
        self.augmentations = augmentations
        self.seed = seed
        self.map_of = np.arange(len(shards)) if map_of is None else map_of

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.shards.labels

    @property
    def image_size(self) -> tuple[int, int]:
        return self.preprocessing.size

    def fill(self, index: int, image: Image, values: Map, certainty: Map, epoch: int = 0) -> None:
        """Read sample ``index``, as it is seen in ``epoch``, into an image (H, W, 3), its map and certainty (h, w)."""
        image[...], values[...], certainty[...] = self.example(index, epoch)

    def example(self, index: int, epoch: int = 0) -> Example:
        """Return sample ``index`` as it is seen in ``epoch``; it differs from epoch to epoch by augmentation alone."""
        sample = self.shards.read_bare(index)
        image = sample.image(self.shards.place(index))
        size = (image.shape[0], image.shape[1])
        view = plain_view(self.preprocessing, size)
        if self.augmentations:
            generator = np.random.default_rng([self.seed, epoch, index])
            view = random_view(self.preprocessing, size, self.augmentations, generator)
            if "intensity" in self.augmentations:
                image = change_intensity(image, generator)
        owner = int(self.map_of[index])
        drawn = sample if owner == index else self.shards.read_bare(owner)
        human = None if drawn.map is None else Weighted(drawn.map, drawn.certainty)
        return seen_example(image, human, view, self.preprocessing, map_size=self.map_size)


def seen_example(
    image: Image, human: Weighted | None, view: View, preprocessing: Preprocessing, *, map_size: tuple[int, int]
) -> Example:
    """Return an image (H, W, 3) and its human map as ``view`` shows them; padding has certainty 0 in the map."""
    padding = preprocessing.padding
    seen = view_image(image, view, preprocessing.size, padding)
    if human is None:
        return Example(seen, np.zeros(map_size, np.float32), np.zeros(map_size, np.float32))
    values, certainty = view_map(human, view, map_size, padded=padding is not None)
    return Example(seen, values, np.ones(map_size, np.float32) if certainty is None else certainty)


def exchange_maps(has_map: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.int64]:
    """Return, for every sample, the sample whose map it gets in the sham control: always another one.

    The samples with a map stand in a random circle and each takes its neighbour's; the others keep none.
    """
    circle = np.flatnonzero(has_map)
    if len(circle) < 2:
        raise RunError(f"--control shuffled exchanges maps between samples and needs two with a map, got {len(circle)}")
    circle = np.random.default_rng(seed).permutation(circle)
    owner = np.arange(len(has_map))
    owner[circle] = np.roll(circle, 1)
    return owner


def in_order(examples: ShardExamples, indices: npt.NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    """Yield the samples at ``indices`` once, in order."""
    shares = Shares(len(indices), batch_size, shuffle=False, equal_steps=False)
    yield from map(tensors, ShardLoader(examples, shares, indices=indices).epoch(0))


def tensors(batch: LoadedBatch) -> Batch:
    """Return a loaded batch as tensors, which share its memory."""
    maps, certainty = (torch.from_numpy(values)[:, None] for values in (batch.maps, batch.certainty))
    return Batch(torch.from_numpy(batch.images), maps, certainty, torch.from_numpy(batch.labels))


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples without labels into a batch."""
    images, maps, certainty = (torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True))
    return Batch(images, maps[:, None], certainty[:, None], torch.full((len(examples),), -1))


def normalise(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 (B, H, W, 3) into the network's input (B, 3, H, W), channels last in memory, on its device."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype, device=images.device) * 255
    std = torch.tensor(preprocessing.std, dtype=dtype, device=images.device) * 255
    return ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def map_ahead(
    function: Callable[[Item], Result], chunks: Iterable[list[Item]], *, threads: int
) -> Iterator[list[Result]]:
    """Yield each chunk's results in order, while threads work on the next two chunks."""
    with thread_pool(threads) as pool:
        begun = ([pool.submit(function, item) for item in chunk] for chunk in chunks)
        yield from ahead(begun, lambda chunk: [future.result() for future in chunk], depth=2)

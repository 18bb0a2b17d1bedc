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

from hkmap.engine.views import AUGMENTATIONS, Preprocessing, change_intensity, plain_view, random_view
from hkmap.errors import RunError
from hkmap.maps.check import Map
from hkmap.maps.views import View
from hkmap.maps.warps import Image, view_image, view_map
from hkmap.maps.weights import Weighted
from hkmap.parallel.threads import ahead, thread_pool
from hkmap.storage.sequence import ShardSequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class Example(NamedTuple):
    """One sample as the network wants it, on the host."""

    image: Image                # (H, W, 3) RGB
    map: Map | None             # (h, w) of the attention's size; None where nobody drew one
    weight: Map | None          # (h, w) how well each cell of the map is known; None is 1 everywhere
    label: int


@dataclass(frozen=True)
class Batch:
    """A batch on the host; images stay uint8 until they are on the device."""

    images: Tensor              # (B, H, W, 3) uint8
    maps: Tensor                # (B, 1, h, w) float32 in [0, 1]
    weights: Tensor             # (B, 1, h, w) float32 in [0, 1]; 0 where nobody knows, as in all of a missing map
    labels: Tensor              # (B,) int64

    def to(self, device: torch.device) -> Batch:
        """Copy to the device, without waiting for it where the host's memory is pinned."""

        def copy(tensor: Tensor) -> Tensor:
            host = tensor.pin_memory() if device.type == "cuda" else tensor
            return host.to(device, non_blocking=True)

        return Batch(copy(self.images), copy(self.maps), copy(self.weights), copy(self.labels))


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

    def example(self, index: int, epoch: int | None = None) -> Example:
        """Return sample ``index`` as it is seen in ``epoch``; without an epoch, unaugmented."""
        sample = self.shards.read_bare(index)
        image = sample.image(self.shards.place(index))
        size = (image.shape[0], image.shape[1])
        if epoch is None or not self.augmentations:
            view = plain_view(self.preprocessing, size)
        else:
            generator = np.random.default_rng([self.seed, epoch, index])
            view = random_view(self.preprocessing, size, self.augmentations, generator)
            if "intensity" in self.augmentations:
                image = change_intensity(image, generator)
        owner = int(self.map_of[index])
        drawn = sample if owner == index else self.shards.read_bare(owner)
        human = None if drawn.map is None else Weighted(drawn.map, drawn.weight)
        return seen_example(image, human, view, self.preprocessing, map_size=self.map_size, label=sample.label)


def seen_example(
    image: Image,
    human: Weighted | None,
    view: View,
    preprocessing: Preprocessing,
    *,
    map_size: tuple[int, int],
    label: int,
) -> Example:
    """Return an image (H, W, 3) and its human map as ``view`` shows them; padding has the weight 0 in the map."""
    padding = preprocessing.padding
    seen = None if human is None else view_map(human, view, map_size, padded=padding is not None)
    return Example(
        image=view_image(image, view, preprocessing.size, padding),
        map=None if seen is None else seen.map,
        weight=None if seen is None else seen.weights,
        label=label,
    )


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


def batches(
    indices: Sequence[int] | npt.NDArray[np.int64],
    example: Callable[[int], Example],
    map_size: tuple[int, int],
    batch_size: int,
    *,
    threads: int = 2,
) -> Iterator[Batch]:
    """Yield the examples at ``indices`` in batches, in order, decoded ahead by ``threads``.

    A lone last example joins the batch before: batch norm cannot learn from one.
    """
    for examples in map_ahead(lambda index: example(int(index)), _batched(indices, batch_size), threads=threads):
        yield collate(examples, map_size)


def collate(examples: Sequence[Example], map_size: tuple[int, int]) -> Batch:
    """Stack examples into a batch."""
    zeros, ones = np.zeros(map_size, np.float32), np.ones(map_size, np.float32)
    maps = [zeros if item.map is None else item.map for item in examples]
    weights = [zeros if item.map is None else ones if item.weight is None else item.weight for item in examples]
    return Batch(
        images=torch.from_numpy(np.stack([item.image for item in examples])),
        maps=torch.from_numpy(np.stack(maps))[:, None],
        weights=torch.from_numpy(np.stack(weights))[:, None],
        labels=torch.tensor([item.label for item in examples], dtype=torch.int64),
    )


def normalise(images: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 (B, H, W, 3) into the network's input (B, 3, H, W), channels last in memory, on its device."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype, device=images.device) * 255
    std = torch.tensor(preprocessing.std, dtype=dtype, device=images.device) * 255
    return ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2)


def count_batches(count: int, batch_size: int) -> int:
    """Return how many batches ``batches`` makes of ``count`` samples.

    >>> [count_batches(count, 4) for count in (1, 4, 5, 6, 8, 9)]
    [1, 1, 1, 2, 2, 2]
    """
    alone = count % batch_size == 1 and count > 1
    return -(-count // batch_size) - alone


def _batched(indices: Sequence[int] | npt.NDArray[np.int64], batch_size: int) -> Iterator[list[int]]:
    number = count_batches(len(indices), batch_size)
    for index in range(number):
        stop = len(indices) if index == number - 1 else (index + 1) * batch_size
        yield list(indices[index * batch_size : stop])


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

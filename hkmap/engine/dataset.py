"""Shards as a data set of PyTorch's, for training loops that are not ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hkmap.shards.loader import SizedReader

Item = dict[str, Tensor]


class ShardDataset(Dataset[Item]):
    """The records of shards by number, for a `torch.utils.data.DataLoader` with any sampler and number of workers.

    An item is a dictionary: ``image`` (3, H, W) uint8, RGB; ``map`` (1, h, w) float32 in [0, 1], zeros where nobody
    mapped it; ``certainty`` (1, h, w) float32 in [0, 1], how well each cell is known, 0 in all of a missing map;
    ``label`` int64, -1 where unknown; ``index`` int64, the record's number in the sequence. ``transform`` gets that
    dictionary and returns what is to take its place; what moves the image must move the map with it.

    A record that is damaged, or of another size than the others, raises ShardError, which names it.
    """

    def __init__(self, reader: SizedReader, transform: Callable[[Item], Item] | None = None) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader.shards)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)          # samplers also give tensors of one number
        image = np.empty((*self.reader.image_size, 3), np.uint8)
        values, certainty = (np.empty(self.reader.map_size, np.float32) for _ in range(2))
        self.reader.fill(index, image, values, certainty)
        item = {
            "image": torch.from_numpy(image).permute(2, 0, 1),
            "map": torch.from_numpy(values)[None],
            "certainty": torch.from_numpy(certainty)[None],
            "label": torch.tensor(self.reader.shards.labels[index]),
            "index": torch.tensor(index),
        }
        return item if self.transform is None else self.transform(item)

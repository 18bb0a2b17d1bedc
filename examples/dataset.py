"""Read shards in a training loop of your own, by hkmap's loader, then by PyTorch's; both give image, map and label.

    python examples/dataset.py 'train-{00000..00007}.h5'
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader

from hkmap.engine.data import ShardDataset, normalise
from hkmap.engine.inputs import Preprocessing
from hkmap.shards.loader import ShardLoader, Shares, SizedReader
from hkmap.shards.sequence import ShardSequence, find_shards


def main(names: list[str]) -> None:
    shards = ShardSequence(find_shards(names))
    reader = SizedReader(shards, image_size=(64, 64), map_size=(14, 14))
    print(f"{len(shards)} records in {len(shards.shards)} shards, {len(shards.classes)} classes")

    # One of eight ranks: as many steps as the others, and what fills up the last batch has weight 0.
    preprocessing = Preprocessing(64, 64)
    loader = ShardLoader(reader, Shares(len(shards), batch_size=4, rank=3, ranks=8, seed=0))
    for step, batch in enumerate(loader.epoch(1)):
        images = normalise(torch.from_numpy(batch.images), preprocessing)       # (4, 3, 64, 64)
        records = dict(zip(batch.indices.tolist(), batch.weights.tolist(), strict=True))
        print(f"step {step}: records and their weights {records}, images' mean {images.mean():.3f}")

    # PyTorch's loader: any sampler, any number of worker processes.
    dataset = ShardDataset(reader)
    for items in DataLoader(dataset, batch_size=16, num_workers=2):
        images = normalise(items["image"], preprocessing)       # from (16, 64, 64, 3) uint8
        look = (items["map"] * items["certainty"]).sum() / items["certainty"].sum().clamp(min=1)
        print(f"{tuple(images.shape)}, labels {items['label'].tolist()[:4]} ..., maps' mean {look:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])

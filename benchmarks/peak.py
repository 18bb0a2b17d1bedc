"""Run one task in this process and print its peak memory in MB as the last line of stderr.

    python benchmarks/peak.py hkmap pack train.h5 records.jsonl
    python benchmarks/peak.py epoch train.h5        # of the loader
    python benchmarks/peak.py views train.h5        # the same, of random views as the recipe imagenet has them
"""

from __future__ import annotations

import sys

from peers import peak_megabytes


def run_hkmap(arguments: list[str]) -> None:
    from hkmap.cli.main import hkmap

    try:
        hkmap(arguments)
    except SystemExit as end:
        if end.code:
            raise


def read_epoch(arguments: list[str]) -> None:
    from hkmap.shards.loader import ShardLoader, Shares, SizedReader
    from hkmap.shards.sequence import open_shards

    shards = open_shards(*arguments)
    for _ in ShardLoader(SizedReader(shards), Shares(len(shards), 64)).epoch(0):
        pass


def read_views(arguments: list[str]) -> None:
    from hkmap.engine.data import ShardExamples
    from hkmap.engine.inputs import Preprocessing
    from hkmap.shards.loader import ShardLoader, Shares
    from hkmap.shards.sequence import open_shards

    shards = open_shards(*arguments)
    examples = ShardExamples(shards, Preprocessing(), (14, 14), augmentations=("resized-crop", "mirror"))
    for _ in ShardLoader(examples, Shares(len(shards), 64)).epoch(0):
        pass


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    {"hkmap": run_hkmap, "epoch": read_epoch, "views": read_views}[task](arguments)
    print(peak_megabytes(), file=sys.stderr)

"""Time the engine's steps against each other and against bare loops, in one run; print JSON with ratios.

Steps take turns, see timing.py. ResNet18+ABN at 224 x 224, batches of 16, decoded from JPEG where data are read.

    python benchmarks/engine.py
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from hkmap.training.cache import CachedFeed
from timing import seconds_of

from hkmap.engine.data import Data, ShardExamples, make_data
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.losses import losses
from hkmap.engine.runs import TrainedModel, new_model
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import place
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter
from hkmap.training.feeding import Fed, image_feed
from hkmap.training.optimisation import TrainingOptions, has_bfloat16
from hkmap.training.steps import Training

SIDE, BATCH, IMAGES, TURNS = 224, 16, 64, 5
CPU = torch.device("cpu")
#: What the drawing asks for.
TARGETS = {
    "whole_over_frozen": 1.4, "frozen_over_cached": 1.15, "float32_over_bfloat16": 2.0,
    "share_of_a_step_that_waits_for_data": 0.03, "ours_over_bare_loop": 1.05,
}


def write_shard(path: Path) -> None:
    """Write JPEG images of noise, with maps of 14 x 14."""
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(IMAGES):
            image = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (0, 0), 2)
            record = {"id": str(number), "image": f"{number}.jpg", "label": number % 4, "class": str(number % 4)}
            values = rng.random((14, 14), dtype=np.float32)
            writer.add(record, cv2.imencode(".jpg", image)[1].tobytes(), values, None)


def untrained() -> TrainedModel:
    return new_model(Architecture("resnet18+abn", 4), Preprocessing(SIDE, SIDE), ("0", "1", "2", "3"), 0)


def training(update: str, precision: str = "float32") -> Training:
    options = TrainingOptions(1, batch_size=BATCH, gamma=1.0, update=update, precision=precision)
    return Training(untrained().network, options, CPU)


def one_step(trained: Training, fed: Fed) -> Callable[[], object]:
    trained.network.eval()
    for module in trained.modules:
        module.train()
    return lambda: trained.take([fed])


def bare_step(fed: Fed) -> Callable[[], object]:
    """Return one step of the same modules in the shortest loop that anybody would write."""
    network = place(untrained().network, CPU).eval()
    branches = [network.attention.train(), network.perception.train()]
    network.extractor.requires_grad_(False)
    parameters = [parameter for branch in branches for parameter in branch.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        output = network(fed.inputs)
        loss = losses(output, fed.labels, fed.maps, fed.certainty).total(1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def waiting(data: Data) -> float:
    """Return the share of an epoch's time in which the step waits for the next batch."""
    trained = training("all")
    trained.network.train()
    feed = image_feed(data, trained.options, CPU)
    waited = spent = 0.0
    for epoch in (1, 2):
        batches = iter(feed.epoch(epoch))
        next_one, began = next(batches), time.perf_counter()      # the first batch is decoded while nothing is computed
        while next_one is not None:
            trained.take([next_one])
            asked = time.perf_counter()
            next_one = next(batches, None)
            waited += time.perf_counter() - asked
        spent += time.perf_counter() - began
    return waited / spent


def decoded(data: Data) -> int:
    """Return how many images a cached training decodes after its first epoch."""
    counted = 0
    whole = ShardExamples.example

    def counting(self: ShardExamples, index: int, epoch: int = 0) -> object:
        nonlocal counted
        counted += 1
        return whole(self, index, epoch)

    trained = training("both")
    with tempfile.TemporaryDirectory() as folder:
        feed = CachedFeed.of(trained, data, Path(folder))
        for fed in feed.epoch(1):
            trained.take([fed])
        ShardExamples.example = counting      # type: ignore[method-assign]
        for fed in feed.epoch(2):
            trained.take([fed])
    ShardExamples.example = whole      # type: ignore[method-assign]
    return counted


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        write_shard(Path(name) / "train.h5")
        data = make_data(untrained(), ShardSequence([Path(name) / "train.h5"]), None)
        fed = next(iter(image_feed(data, training("all").options, CPU).epoch(1)))
        with torch.no_grad():
            features = untrained().network.eval().features(fed.inputs)
        kept = fed._replace(inputs=features, cached=True)
        steps = {
            "whole": one_step(training("all"), fed), "frozen": one_step(training("both"), fed),
            "cached": one_step(training("both"), kept), "bare": bare_step(fed),
        }
        if has_bfloat16():
            steps["bfloat16"] = one_step(training("both", "bfloat16"), fed)
        found = {key: seconds.median for key, seconds in seconds_of(steps, TURNS).items()}
        ratios = {
            "whole_over_frozen": found["whole"] / found["frozen"],
            "frozen_over_cached": found["frozen"] / found["cached"],
            "ours_over_bare_loop": found["frozen"] / found["bare"],
            "share_of_a_step_that_waits_for_data": waiting(data),
        }
        if "bfloat16" in found:
            ratios["float32_over_bfloat16"] = found["frozen"] / found["bfloat16"]
        print(json.dumps({
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "bfloat16_units": has_bfloat16(),
            "seconds_per_step": {key: round(value, 4) for key, value in found.items()},
            "ratios": {key: round(value, 3) for key, value in ratios.items()},
            "targets": TARGETS,
            "images_decoded_in_the_second_cached_epoch": decoded(data),
        }, indent=2))


if __name__ == "__main__":
    main()

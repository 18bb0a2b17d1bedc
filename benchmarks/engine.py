"""Time the engine's steps against each other and against bare loops, in one run; print JSON with ratios.

Steps take turns, see timing.py. ResNet18+ABN at 224 x 224, batches of 16, decoded from JPEG where data are read.

    python benchmarks/engine.py [--quick]
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from timing import seconds_of

from hkmap.engine.data import Data, ShardExamples, make_data
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.losses import losses
from hkmap.engine.processor import BFLOAT16_UNITS, processor_features
from hkmap.engine.runs import TrainedModel, new_model
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import place
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter
from hkmap.training.cache import CachedFeed
from hkmap.training.feeding import Fed, image_feed
from hkmap.training.optimisation import TrainingOptions
from hkmap.training.steps import Training

SIDE, BATCH, IMAGES, TURNS = 224, 16, 64, 7
QUICK = 32, 4, 8, 1
CPU = torch.device("cpu")


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
    counted, whole = [0], ShardExamples.changed

    def counting(self: ShardExamples, *given: object) -> object:
        counted[0] += 1
        return whole(self, *given)      # type: ignore[arg-type]

    trained = training("both")
    with tempfile.TemporaryDirectory() as folder:
        feed = CachedFeed(image_feed(data, trained.options, CPU), trained, Path(folder))
        for _ in feed.epoch(1):
            pass
        ShardExamples.changed = counting      # type: ignore[method-assign]
        for _ in feed.epoch(2):
            pass
        ShardExamples.changed = whole      # type: ignore[method-assign]
    return counted[0]


def judged(value: float, target: float, *, at_most: bool) -> dict[str, object]:
    met = value <= target if at_most else value >= target
    return {"value": round(value, 3), "target": f"{'at most' if at_most else 'at least'} {target:g}", "met": bool(met)}


def main(*, quick: bool) -> None:
    if quick:
        globals().update(zip(("SIDE", "BATCH", "IMAGES", "TURNS"), QUICK, strict=True))
    with tempfile.TemporaryDirectory() as name:
        write_shard(Path(name) / "train.h5")
        data = make_data(untrained(), ShardSequence([Path(name) / "train.h5"]), None)
        fed = next(iter(image_feed(data, training("all").options, CPU).epoch(1)))
        with torch.no_grad():
            features = untrained().network.eval().features(fed.inputs)
        steps = {
            "whole": one_step(training("all"), fed), "frozen": one_step(training("both"), fed),
            "cached": one_step(training("both"), fed._replace(inputs=features, cached=True)), "bare": bare_step(fed),
        }
        has_units = bool(processor_features() & BFLOAT16_UNITS)
        if has_units:
            steps["bfloat16"] = one_step(training("both", "bfloat16"), fed)
        found = seconds_of(steps, TURNS)
        # pairs that took turns; the minimum is what other programs disturb least
        least = {key: seconds.minimum for key, seconds in found.items()}
        ratios = {
            "whole_over_frozen": judged(least["whole"] / least["frozen"], 1.4, at_most=False),
            "frozen_over_cached": judged(least["frozen"] / least["cached"], 1.15, at_most=False),
            "ours_over_bare_loop": judged(least["frozen"] / least["bare"], 1.05, at_most=True),
            "share_of_a_step_that_waits_for_data": judged(waiting(data), 0.03, at_most=True),
        }
        if has_units:
            ratios["float32_over_bfloat16"] = judged(least["frozen"] / least["bfloat16"], 2.0, at_most=False)
        print(json.dumps({
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "sizes": "quick: the figures mean nothing" if quick else "full",
            "bfloat16_units": has_units,
            "seconds_per_step": {
                key: {"median": round(seconds.median, 4), "least": round(seconds.minimum, 4)}
                for key, seconds in found.items()
            },
            "ratios": ratios,
            "images_decoded_in_the_second_cached_epoch": judged(decoded(data), 0, at_most=True),
        }, indent=2))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)

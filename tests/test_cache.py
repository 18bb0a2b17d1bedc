"""The feature cache: the same training as without it, and nothing decoded after the first pass."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from hkmap.engine.data import Data, ShardExamples
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import TrainedModel, new_model
from hkmap.errors import OutputError, RunError
from hkmap.networks.backbone import Architecture
from hkmap.shards.loader import Shares
from hkmap.shards.sequence import ShardSequence
from hkmap.training import cache
from hkmap.training.cache import CachedFeed
from hkmap.training.feeding import ImageFeed
from hkmap.training.optimisation import TrainingOptions
from hkmap.training.steps import Training, prepare

OPTIONS = TrainingOptions(epochs=2, batch_size=4, gamma=0.5, update="both", seed=3)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> TrainedModel:
    preprocessing = Preprocessing(16, 16)
    model = new_model(Architecture("resnet8+abn", 2, stem="small", width=4), preprocessing, ["class 0", "class 1"], 0)
    with torch.no_grad():       # as trained networks have them
        for name, values in model.network.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(0, 0.1)
    return model


@pytest.fixture
def data(make_shard, model) -> Data:
    shards = ShardSequence([make_shard("train.h5", 14, maps=9)])
    examples = ShardExamples(shards, model.preprocessing, model.map_size, augmentations=("mirror",), seed=3)
    return Data(examples, np.delete(np.arange(14), [2, 5]))     # 12: three steps of four


def feed_of(data: Data, options: TrainingOptions = OPTIONS, rank: int = 0, ranks: int = 1, device=CPU) -> ImageFeed:
    shares = Shares(len(data.indices), options.batch_size, rank, ranks, seed=options.seed, least=2, split=True)
    return ImageFeed(data.examples, data.indices, shares, device=device, threads=2)


def trained(model: TrainedModel, data: Data, options: TrainingOptions, folder=None, device=CPU) -> tuple[list, dict]:
    """The losses of each step, and the weights after the last one; with the cache where there is a folder."""
    before = {name: values.clone() for name, values in model.network.state_dict().items()}
    training = prepare(model, data, options, device)
    feed = feed_of(data, options, device=device)
    source = feed if folder is None else CachedFeed(feed, training, folder)
    losses = [step.loss for _ in range(options.epochs) for step in training.run_epoch(source)]
    after = {name: values.clone() for name, values in model.network.state_dict().items()}
    model.network.load_state_dict(before)
    return losses, after


@pytest.mark.parametrize("changes", [
    {}, {"update": "attention"}, {"precision": "bfloat16"}, {"mining": 0.1, "gamma": 0.0}, {"accumulate": 2},
], ids=str)
@pytest.mark.parametrize("place", ["device", "file"])
def test_training_from_the_cache_is_bit_equal(model, data, tmp_path, monkeypatch, changes, place):
    if place == "file":
        monkeypatch.setattr(cache, "room", lambda device: 0)
    options = replace(OPTIONS, **changes)
    losses, weights = trained(model, data, options)
    from_cache, same = trained(model, data, options, tmp_path)
    assert from_cache == losses
    assert len(set(losses)) == len(losses) > 2
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert [name for name, values in model.network.state_dict().items() if not torch.equal(values, weights[name])]
    assert [*tmp_path.iterdir()] == [tmp_path / "train.h5"]


def test_with_a_smaller_last_batch_it_is_equal_but_for_the_kernels_that_its_size_chooses(model, data, tmp_path):
    uneven = replace(data, indices=data.indices[:-1])
    losses, weights = trained(model, uneven, OPTIONS)
    from_cache, same = trained(model, uneven, OPTIONS, tmp_path)
    assert from_cache == pytest.approx(losses, abs=1e-6)
    for name in weights:
        torch.testing.assert_close(same[name], weights[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("augmentations", [(), ("mirror",)])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_a_sample_has_the_same_view_map_and_label_in_the_same_epoch(model, data, tmp_path, augmentations, rank, ranks):
    data.examples.augmentations = augmentations
    feed = feed_of(data, rank=rank, ranks=ranks)
    cached = CachedFeed(feed, prepare(model, data, OPTIONS, CPU), tmp_path)
    assert len(cached) == len(feed) == 3
    for epoch in (1, 2, 5):
        pairs = [*zip(feed.epoch(epoch, 1), cached.epoch(epoch, 1), strict=True)]
        assert len(pairs) == 2
        for images, kept in pairs:
            features = model.network.features(images.inputs)
            assert (images.cached, kept.cached) == (False, True)
            torch.testing.assert_close(kept.inputs, features, rtol=0, atol=1e-6)
            assert kept.inputs.stride() == features.stride()        # for branches choose kernels by the layout
            for name in ("maps", "certainty", "labels", "weights"):
                assert torch.equal(getattr(images, name), getattr(kept, name))
            assert (images.indices.tolist(), images.samples) == (kept.indices.tolist(), kept.samples)
    assert cached.place(3) == feed.place(3)


def test_it_feeds_samples_in_order_as_validation_asks_for_them(model, data, tmp_path):
    data.examples.augmentations = ()
    shares = Shares(len(data.indices), 5, shuffle=False, equal_steps=False)
    feed = ImageFeed(data.examples, data.indices, shares, device=CPU, threads=1)
    batches = [*CachedFeed(feed, prepare(model, data, OPTIONS, CPU), tmp_path).epoch(0)]
    assert [fed.indices.tolist() for fed in batches] == [[0, 1, 3, 4, 6], [7, 8, 9, 10, 11], [12, 13]]
    assert [fed.samples for fed in batches] == [5, 5, 2]


def test_each_view_is_decoded_once(model, data, tmp_path, monkeypatch):
    read, seen = [], []
    original = ShardSequence.read_bare
    monkeypatch.setattr(
        ShardSequence, "read_bare", lambda self, index, into=None: read.append(index) or original(self, index, into)
    )
    training = prepare(model, data, OPTIONS, CPU)
    cached = CachedFeed(feed_of(data), training, tmp_path, lambda batches, total: seen.append(total) or batches)
    assert read == []
    for _ in range(3):
        assert len([*training.run_epoch(cached)]) == 3
        assert sorted(read) == sorted([*data.indices.tolist()] * 2)
    assert seen == [6]


@pytest.mark.parametrize(("update", "augmentations", "sentence"), [
    ("all", (), "--update all changes the feature extractor, so what it gives cannot be cached"),
    ("both", ("mirror", "crop"), "--augment crop shows a sample anew in each epoch, so its features cannot be cached"),
])
def test_what_cannot_be_cached_is_refused(model, data, tmp_path, update, augmentations, sentence):
    data.examples.augmentations = augmentations
    training = prepare(model, data, replace(OPTIONS, update=update), CPU)
    with pytest.raises(RunError, match=sentence):
        CachedFeed(feed_of(data), training, tmp_path)


def test_a_disk_without_room_is_a_sentence(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "room", lambda device: 0)

    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    training: Training = prepare(model, data, OPTIONS, CPU)
    with pytest.raises(OutputError, match=r"cannot hold 0.0 GiB of cached features \(No space left on device\)"):
        next(CachedFeed(feed_of(data), training, tmp_path).epoch(1))


def test_a_file_without_a_name_holds_every_type(tmp_path):
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        values = torch.arange(24).view(2, 3, 4).to(kind)
        rows = cache.in_file(tmp_path, (2, 3, 4), kind)
        rows.copy_(values)
        assert torch.equal(rows, values)
        assert not [*tmp_path.iterdir()]


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    whole = cache.room(CPU)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cache.room(CPU) == whole // 4 > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("place", ["device", "file"])
def test_on_cuda_training_from_the_cache_agrees_and_feeding_does_not_wait(model, data, tmp_path, monkeypatch, place):
    device = torch.device("cuda")
    if place == "file":
        monkeypatch.setattr(cache, "room", lambda device: 0)
    losses, _ = trained(model, data, OPTIONS, device=device)
    assert trained(model, data, OPTIONS, tmp_path, device)[0] == pytest.approx(losses, rel=2e-3)
    cached = CachedFeed(feed_of(data, device=device), prepare(model, data, OPTIONS, device), tmp_path)
    next(cached.epoch(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert {fed.inputs.device.type for fed in cached.epoch(2)} == {"cuda"}
    finally:
        torch.cuda.set_sync_debug_mode("default")

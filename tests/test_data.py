"""Batches: what a sample looks like depends on the seed, the epoch and its index alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hkmap.engine.data import ShardExamples, in_order, normalise, tensors
from hkmap.engine.inputs import Preprocessing
from hkmap.errors import ChoiceError
from hkmap.shards.loader import ShardLoader, Shares
from hkmap.shards.sequence import ShardSequence


@pytest.fixture
def examples(make_shard):
    shard = ShardSequence([make_shard("a.h5", 10, maps=6)])
    return ShardExamples(shard, Preprocessing(16, 16), (4, 4), augmentations=("mirror", "crop", "intensity"), seed=5)


def test_batches_hold_every_sample_in_order(examples):
    numbers, found = zip(*in_order(examples, np.arange(10), 4), strict=True)
    assert [list(part) for part in numbers] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(batch.labels) for batch in found] == [4, 4, 2]
    assert torch.cat([batch.labels for batch in found]).tolist() == [0, 1] * 5
    first = found[0]
    assert first.images.shape == (4, 16, 16, 3)
    assert first.images.dtype == torch.uint8
    assert first.maps.shape == first.certainty.shape == (4, 1, 4, 4)
    known = torch.cat([batch.certainty for batch in found]).flatten(1).sum(1) > 0
    assert known.tolist() == [True] * 6 + [False] * 4          # "no map" is not "an empty map"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_samples_look_depends_on_seed_epoch_and_index_alone(examples, threads):
    def images(indices, epoch):
        shares = Shares(len(indices), 3, shuffle=False, equal_steps=False)
        loader = ShardLoader(examples, shares, indices=np.array(indices), threads=threads)
        return torch.cat([tensors(batch).images for batch in loader.epoch(epoch)])

    once = images(range(10), 1)
    assert torch.equal(once, images(range(10), 1))
    assert torch.equal(once[[7, 2]], images([7, 2], 1))
    assert not torch.equal(once, images(range(10), 2))


def test_without_augmentations_every_epoch_sees_the_image_as_it_is(examples):
    plain = ShardExamples(examples.shards, Preprocessing(16, 16), (4, 4))
    for epoch in (0, 1, 7):
        assert np.array_equal(plain.example(3, epoch).image, examples.shards.shards[0].image(3))


def test_exchanged_maps_arrive_at_the_other_image(make_shard):
    shard = ShardSequence([make_shard("b.h5", 4)])
    swapped = ShardExamples(shard, Preprocessing(16, 16), (8, 8), map_of=np.array([1, 0, 3, 2]))
    assert np.array_equal(swapped.example(0).map, shard.read(1).map)
    assert np.array_equal(swapped.example(0).image, shard.shards[0].image(0))
    assert next(in_order(swapped, np.arange(1), 1))[1].labels.tolist() == [0]


def test_normalise_is_the_textbook_formula_channels_last():
    preprocessing = Preprocessing()
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    found = normalise(images, preprocessing)
    wanted = (images.double() / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    assert found.shape == (2, 3, 5, 4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.permute(0, 2, 3, 1).double(), wanted, atol=1e-5)


def test_an_unknown_augmentation_is_refused(examples):
    with pytest.raises(ChoiceError, match="augmentation 'blur' is unknown; expected one of crop, resized-crop, scale"):
        ShardExamples(examples.shards, Preprocessing(16, 16), (4, 4), augmentations=("blur",))


def test_several_shards_are_one_sequence(make_shard):
    paths = [make_shard("a.h5", 3), make_shard("b.h5", 5, classes=3, maps=2)]
    both = ShardSequence(paths)
    apart = [ShardSequence([path]) for path in paths]
    assert len(both) == 8
    assert both.labels.tolist() == [*apart[0].labels, *apart[1].labels]
    assert both.has_map.tolist() == [True] * 5 + [False] * 3
    assert both.classes == ["class 0", "class 1", "class 2"]
    for index, (shard, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]):
        assert both.read(index).record == apart[shard].read(row).record
        assert both.place(index) == f"{paths[shard]}#{row}"


def test_validation_shards_without_labels_are_refused_before_the_training(hk, make_shard, tmp_path):
    hk("unpack", make_shard("a.h5", 6), "--out", tmp_path / "files")
    bare = [{"id": f"{number}", "image": str(path)} for number, path in enumerate((tmp_path / "files").rglob("*.png"))]
    assert bare
    assert hk("pack", tmp_path / "bare.h5", stdin=bare).exit_code == 0
    small = ["--stem", "small", "--width", 4, "--image-size", 16, "--epochs", 1, "--arch", "resnet8"]
    result = hk("train", tmp_path / "a.h5", "--val", tmp_path / "bare.h5", *small, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "bare.h5: no record has a label, and validation needs them" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_map_of_one_cell_is_told(hk, make_shard, tmp_path):
    options = ["--arch", "resnet8+abn", "--width", 4, "--image-size", 8, "--epochs", 1, "--out", tmp_path / "run"]
    trained = hk("train", make_shard("a.h5", 6), *options)
    assert (trained.exit_code, trained.stderr.count("a single cell, so it shows no place")) == (0, 1)
    evaluated = hk("eval", tmp_path / "a.h5", "--from", tmp_path / "run", "--metric", "top1")
    assert "of resnet8+abn at 8x8 pixels is a single cell" in evaluated.stderr

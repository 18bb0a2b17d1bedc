"""Shards as one sequence, shared out over ranks, in batches: every record once, in an order that the seed decides."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from hkmap.errors import ShardError
from hkmap.maps.geometry import WHOLE, view_image
from hkmap.maps.resize import resize_map
from hkmap.shards.loader import ShardLoader, Shares, SizedReader
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence, find_shards
from hkmap.shards.writer import ShardWriter, WriterOptions

UNEQUAL = (13, 1, 40, 7, 22)
TOTAL = sum(UNEQUAL)


@pytest.fixture
def unequal(make_shard):
    """Five shards of 83 records in all, twelve of 13 in the first with a map, and all in the others."""
    return ShardSequence([make_shard(f"{number}.h5", count, maps=12) for number, count in enumerate(UNEQUAL)])


def loaders(sequence, ranks, **options):
    return [
        ShardLoader(SizedReader(sequence), Shares(len(sequence), 4, rank, ranks, **options)) for rank in range(ranks)
    ]


# What a name stands for


def test_a_folder_a_pattern_a_range_and_a_file(tmp_path):
    for name in ("b-00001.h5", "b-00000.h5", "a.h5", "notes.txt", "b-00002.h5"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/c[1].h5").touch()

    def found(*names):
        return [path.relative_to(tmp_path).as_posix() for path in find_shards([f"{tmp_path}/{name}" for name in names])]

    assert found("") == ["a.h5", "b-00000.h5", "b-00001.h5", "b-00002.h5"]
    assert found("b-*.h5", "a.h5") == ["b-00000.h5", "b-00001.h5", "b-00002.h5", "a.h5"]
    assert found("b-{00001..00002}.h5") == ["b-00001.h5", "b-00002.h5"]
    assert found("**/*.h5")[-1] == "deep/c[1].h5"
    assert found("deep/c[1].h5") == ["deep/c[1].h5"]         # a file's own name comes before what it would mean


@pytest.mark.parametrize(("name", "sentence"), [
    ("none.h5", "none.h5: no such file; expected a shard, a folder of shards, a range or a pattern"),
    ("none-*.h5", "no file has a name of this pattern; expected shards"),
    ("", "a folder without any *.h5; expected shards"),
    ("a-{00000..00001}.h5", "a-00001.h5: no such file"),
    ("a-{3..1}.h5", "expected ranges from low to high"),
    ("a-{0..999999999}.h5", "of at most 100,000 files"),
])
def test_names_that_stand_for_nothing(tmp_path, name, sentence):
    (tmp_path / "a-00000.h5").mkdir(parents=True) if name == "" else (tmp_path / "a-00000.h5").touch()
    folder = tmp_path / "a-00000.h5" if name == "" else tmp_path
    with pytest.raises(ShardError) as error:
        find_shards([f"{folder}/{name}"])
    assert sentence in str(error.value)


# Who reads what


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 50])
def test_in_evaluation_every_record_comes_exactly_once(unequal, ranks):
    seen = [
        index for loader in loaders(unequal, ranks, shuffle=False, equal_steps=False)
        for batch in loader.epoch(0) for index in batch.indices.tolist()
    ]
    assert sorted(seen) == list(range(TOTAL))
    for loader in loaders(unequal, ranks, equal_steps=False):
        batches = list(loader.epoch(3))
        assert len(batches) == len(loader)
        assert all(batch.weights.all() and len(batch.indices) for batch in batches)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 50])
def test_in_training_ranks_take_equal_steps_and_padding_weighs_nothing(unequal, ranks):
    epochs = [list(loader.epoch(1)) for loader in loaders(unequal, ranks)]
    assert {len(batches) for batches in epochs} == {-(-TOTAL // (4 * ranks))}
    assert {len(batch.indices) for batches in epochs for batch in batches} == {4}
    indices, weights = (
        np.concatenate([getattr(batch, name) for batches in epochs for batch in batches])
        for name in ("indices", "weights")
    )
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert sorted(indices[weights == 1].tolist()) == list(range(TOTAL))


@pytest.mark.parametrize("equal_steps", [True, False])
def test_resumed_in_the_middle_of_an_epoch_the_rest_comes_exactly_once(unequal, equal_steps):
    for loader in loaders(unequal, 3, seed=7, equal_steps=equal_steps):
        whole = [batch.indices.tolist() for batch in loader.epoch(2)]
        for start in range(len(whole) + 1):
            assert [batch.indices.tolist() for batch in loader.epoch(2, start)] == whole[start:]


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    def order(epoch, seed=0, batch_size=4, ranks=1):
        shares = [Shares(TOTAL, batch_size, rank, ranks, seed, equal_steps=False) for rank in range(ranks)]
        steps = [[share.step(epoch, step)[0] for step in range(share.steps)] for share in shares]
        together = -(-TOTAL // (batch_size * ranks))
        by_step = [np.concatenate([own[step] for own in steps if step < len(own)]) for step in range(together)]
        return [sorted(step.tolist()) for step in by_step]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)
    assert order(1, batch_size=12) == order(1, batch_size=4, ranks=3) == order(1, batch_size=2, ranks=6)


@pytest.mark.parametrize(("count", "batch_size", "least", "sizes"), [
    (16, 8, 2, [8, 8]),
    (19, 8, 2, [8, 8, 3]),
    (17, 8, 2, [8, 9]),         # one record would be too few, and joins the step before
    (17, 8, 1, [8, 8, 1]),
    (5, 8, 2, [5]),
    (1, 8, 2, [1]),
])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_a_step_that_ranks_split_is_that_of_one_process(count, batch_size, least, sizes, ranks):
    one = Shares(count, batch_size, seed=3, least=least, equal_steps=False)
    split = [Shares(count, batch_size, rank, ranks, seed=3, least=least, split=True) for rank in range(ranks)]
    assert {shares.steps for shares in split} == {one.steps} == {len(sizes)}
    assert [split[-1].size(step) for step in range(one.steps)] == sizes
    for step in range(one.steps):
        whole = one.step(2, step)[0].tolist()
        parts = [shares.step(2, step) for shares in split]
        own = [indices[weights == 1].tolist() for indices, weights in parts]
        assert own == [whole[rank::ranks] for rank in range(ranks)]
        assert all(len(indices) == max(1, len(part)) for (indices, _), part in zip(parts, own, strict=True))
        assert {index for indices, _ in parts for index in indices.tolist()} == set(whole)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"batch_size": 3, "ranks": 4, "split": True}, "a batch of 3 split over 4 processes"),
    ({"batch_size": 0}, "8 records in batches of 0"),
    ({"batch_size": 2, "rank": 2, "ranks": 2}, "rank 2 of 2; expected one rank or more, and one of them"),
    ({"batch_size": 2, "rank": -1}, "rank -1 of 1"),
])
def test_shares_that_cannot_be(options, sentence):
    with pytest.raises(ShardError, match=sentence):
        Shares(8, **options)


def test_shares_of_other_shards(unequal):
    with pytest.raises(ShardError, match="83 records, but shares of 82"):
        ShardLoader(SizedReader(unequal), Shares(82, 4))


# What is in a batch


def test_a_batch_holds_what_the_records_hold(unequal):
    (loader,) = loaders(unequal, 1)
    for batch in loader.epoch(0):
        assert (batch.images.dtype, batch.images.shape[1:]) == (np.uint8, (16, 16, 3))
        for row, index in enumerate(batch.indices.tolist()):
            sample = unequal.read(index)
            assert np.array_equal(batch.images[row], sample.image(""))
            assert batch.labels[row] == sample.label
            expected = np.zeros((8, 8), np.float32) if sample.map is None else sample.map
            assert np.array_equal(batch.maps[row], expected)
            assert (batch.certainty[row] == (sample.map is not None)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_images_and_maps_at_another_size(unequal, threads):
    reader = SizedReader(unequal, image_size=(10, 12), map_size=(3, 4))
    for batch in ShardLoader(reader, Shares(TOTAL, 16), threads=threads, prefetch=0).epoch(0):
        assert (batch.images.shape, batch.maps.shape) == ((16, 10, 12, 3), (16, 3, 4))
        sample = unequal.read(int(batch.indices[5]))
        assert np.array_equal(batch.images[5], view_image(sample.image(""), WHOLE, (10, 12)))
        if sample.map is not None:
            assert np.array_equal(batch.maps[5], resize_map(sample.map, (3, 4)))


def test_pixels_are_read_to_their_place(unequal, tmp_path):
    with ShardWriter(tmp_path / "pixels.h5", options=WriterOptions(pixel_size=(10, 12))) as writer:
        for index in range(TOTAL):
            writer.add_sample(unequal.read(index))
    pixels = ShardSequence([tmp_path / "pixels.h5"])
    image = np.zeros((10, 12, 3), np.uint8)
    sample = pixels.read_bare(3, image)
    assert sample.record == {}
    assert np.array_equal(image, unequal_image(unequal, 3))
    assert np.array_equal(sample.image(""), image)
    for batch in ShardLoader(SizedReader(pixels), Shares(TOTAL, 8)).epoch(0):
        for row, index in enumerate(batch.indices.tolist()):
            assert np.array_equal(batch.images[row], unequal_image(unequal, index))


def unequal_image(sequence, index):
    return view_image(sequence.read(index).image(""), WHOLE, (10, 12))


def test_images_of_two_sizes_need_a_size(make_shard):
    sequence = ShardSequence([make_shard("a.h5", 3), make_shard("b.h5", 3, side=20)])
    (loader,) = loaders(sequence, 1, shuffle=False)
    with pytest.raises(ShardError, match=r"b.h5#0: an image of 20x20 pixels \(height x width\), expected 16x16"):
        list(loader.epoch(0))


def test_shards_without_maps(make_shard):
    sequence = ShardSequence([make_shard("a.h5", 5, maps=0)])
    (batch,) = ShardLoader(SizedReader(sequence), Shares(5, 5)).epoch(0)
    assert batch.maps.shape == (5, 1, 1)
    assert not batch.certainty.any()


def test_a_damaged_record_is_named(unequal):
    path = unequal.shards[2].path
    content = bytearray(path.read_bytes())
    place = content.index(b'"2.h5-30"')
    content[place + 3] ^= 4
    path.write_bytes(content)
    (loader,) = loaders(ShardSequence([shard.path for shard in unequal.shards]), 1)
    with pytest.raises(ShardError, match=r'2.h5#30 \(record "2.h5-30"\): its checksum does not fit'):
        list(loader.epoch(0))


# Processes, files


def epoch_digest(loader):
    return [(batch.indices.tolist(), int(batch.images.sum())) for batch in loader.epoch(0)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_goes_to_another_process(unequal, method):
    (loader,) = loaders(unequal, 1)
    expected = epoch_digest(loader)
    assert epoch_digest(pickle.loads(pickle.dumps(loader))) == expected
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(epoch_digest, [loader, loader]) == [expected, expected]


def test_more_shards_than_open_files(make_shard):
    paths = [make_shard(f"{number}.h5", 1) for number in range(70)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = len(list(Path("/dev/fd").iterdir()))      # what earlier tests of the process left open
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 50, hard))
    try:
        sequence = ShardSequence(paths)
        assert len([sequence.read(index) for index in range(70)]) == 70
        (batch,) = ShardLoader(SizedReader(sequence), Shares(70, 70), threads=3).epoch(0)
        assert len(batch.indices) == 70
        paths[0].with_name("new.h5").write_bytes(paths[1].read_bytes())
        paths[0].with_name("new.h5").replace(paths[0])
        for index in range(1, 70):
            sequence.read(index)      # so that the first is open no more
        with pytest.raises(ShardError, match=r"/0\.h5: another file than when it was opened"):
            sequence.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# PyTorch's


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_pytorchs(unequal, workers):
    from torch.utils.data import DataLoader

    from hkmap.engine.data import ShardDataset

    dataset = ShardDataset(SizedReader(unequal, map_size=(4, 4)))
    batches = list(DataLoader(dataset, batch_size=10, num_workers=workers))
    assert [len(batch["label"]) for batch in batches] == [10] * 8 + [3]
    assert batches[0]["image"].shape == (10, 16, 16, 3)
    assert batches[0]["map"].shape == batches[0]["certainty"].shape == (10, 1, 4, 4)
    for index in (0, 12, 82):
        batch, row = batches[index // 10], index % 10
        sample = unequal.read(index)
        assert (batch["index"][row], batch["label"][row]) == (index, sample.label)
        assert np.array_equal(batch["image"][row].numpy(), sample.image(""))
        assert bool(batch["certainty"][row].all()) == (sample.map is not None)


def test_a_data_sets_ends_and_its_transform(unequal):
    from hkmap.engine.data import ShardDataset

    dataset = ShardDataset(SizedReader(unequal), transform=lambda item: {"brightest": item["image"].max()})
    assert dataset[-1]["brightest"] == cv2.minMaxLoc(unequal.read(TOTAL - 1).image("").max(axis=2))[1]
    for index in (TOTAL, -TOTAL - 1):
        with pytest.raises(IndexError, match=f"record {index} of {TOTAL}"):
            dataset[index]


@pytest.mark.parametrize("index", [-1, TOTAL])
def test_a_record_that_no_sequence_has(unequal, index):
    for look in (unequal.read, unequal.read_bare, unequal.place):
        with pytest.raises(IndexError, match=f"record {index} of {TOTAL}"):
            look(index)


def test_a_sequence_of_no_shard():
    with pytest.raises(ShardError, match="no shard was named"):
        ShardSequence([])


def test_a_step_that_no_epoch_has(unequal):
    (loader,) = loaders(unequal, 1)
    assert list(loader.epoch(0, len(loader))) == []
    for start in (-1, len(loader) + 1):
        with pytest.raises(ShardError, match=f"step {start} of an epoch of {len(loader)} steps; was it of"):
            next(loader.epoch(0, start))


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", tmp_path, Path("/dev/zero")):
        with pytest.raises(ShardError, match=f"{path}: not a plain file; expected an HDF5 file"):
            ShardReader(path)


# The command line


def test_commands_take_a_folder_a_pattern_and_a_range(hk, make_shard, tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(3):
        make_shard(f"x/a-0000{number}.h5", 2)
    for name in ("", "/a-*.h5", "/a-{00000..00002}.h5"):
        assert len(hk("unpack", f"{tmp_path}/x{name}").records) == 6
    assert len(hk("check", f"{tmp_path}/x").records) == 3

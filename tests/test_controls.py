"""Shams: whose maps a network trains on, what they become, and that it is said ever after."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hkmap.engine.controls import CONTROLS, combined, is_control, told
from hkmap.engine.data import make_data, samples_with_maps
from hkmap.engine.folders import read_config
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import hold_out, load_model, new_model
from hkmap.errors import RunError
from hkmap.maps.certainty import Weighted
from hkmap.networks.backbone import Architecture
from hkmap.shards.folds import Folding
from hkmap.shards.sequence import ShardSequence

SHAMS = tuple(name for name in CONTROLS if name != "none")


def network(classes=2):
    names = tuple(f"class {number}" for number in range(classes))
    return new_model(Architecture("resnet8+abn", classes, "small", 4), Preprocessing(16, 16), names, 0)


def changed(name, values, certainty=None, seed=0):
    return CONTROLS[name].change(Weighted(values, certainty), np.random.default_rng(seed))


# whose map


SAMPLES = np.array([0, 2, 3, 4, 6, 9, 11])
CLASSES = np.array(["a", "b", "a", "b", "b", "a", "b"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["shuffled", "same-class"])
def test_each_map_is_used_once_and_never_by_its_own_image(name, seed):
    owners = CONTROLS[name].owners(SAMPLES, CLASSES, seed)
    assert sorted(owners) == list(SAMPLES)
    assert (owners != SAMPLES).all()
    if name == "same-class":
        assert (CLASSES[np.searchsorted(SAMPLES, owners)] == CLASSES).all()


@pytest.mark.parametrize("name", ["none", "uniform", "center", "random"])
def test_the_others_change_an_images_own_map(name):
    assert CONTROLS[name].owners(SAMPLES, CLASSES, 0).tolist() == SAMPLES.tolist()


@pytest.mark.parametrize(("name", "classes", "sentence"), [
    ("shuffled", ["a"], "--control shuffled exchanges maps between samples and needs two with a map, got 1"),
    ("same-class", ["a", "b", "a"], '--control same-class exchanges maps within a class, and "b" has one'),
])
def test_too_few_maps_are_refused(name, classes, sentence):
    with pytest.raises(RunError, match=sentence):
        CONTROLS[name].owners(np.arange(len(classes)), np.array(classes), 0)


def test_no_map_leaves_validation_or_the_fold(make_shard):
    shards = ShardSequence([make_shard("a.h5", 40, maps=32)])
    held_out = hold_out(shards, 1, Folding(4))
    for control in CONTROLS:
        data = make_data(network(), shards, None, val_share=0.25, held_out=held_out, control=control, seed=1)
        others = {*data.validation.indices.tolist(), *np.flatnonzero(held_out.inside).tolist()}
        assert len(data.indices) + len(others) == 40
        annotated = data.indices[shards.has_map[data.indices]]
        owners = data.examples.map_of[annotated]
        assert sorted(owners) == sorted(annotated)
        assert not others & {*owners.tolist()}
        assert (data.examples.map_of[sorted(others)] == -1).all()
        for index in data.validation.indices[:3]:       # validation has the human maps, whatever the control
            human = data.validation.examples.example(index)
            assert human.certainty.any() == shards.has_map[index]


# what a map becomes


HUMAN = np.zeros((8, 8), np.float32)
HUMAN[1:3, 4:7] = 0.8
HUMAN[1, 4] = 0.5


def test_uniform_keeps_the_mean():
    found = changed("uniform", HUMAN)
    assert found.certainty is None
    assert np.ptp(found.map) == 0
    assert found.map[0, 0] == pytest.approx(HUMAN.mean())


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (14, 14), (9, 12), (56, 56)])
@pytest.mark.parametrize("name", ["center", "random"])
def test_a_blob_has_the_maps_peak_and_mean(name, shape):
    human = np.zeros(shape, np.float32)
    human[: shape[0] // 2, : shape[1] // 3] = 0.8
    for seed in range(5):
        found = changed(name, human, seed=seed).map
        assert found.shape == shape
        assert found.dtype == np.float32
        assert found.max() == pytest.approx(0.8, abs=1e-6)
        assert found.mean() == pytest.approx(human.mean(), abs=1e-6)


def test_the_blob_of_center_is_a_gaussian_in_the_middle():
    found = changed("center", HUMAN).map
    assert np.allclose(found, found[::-1])
    assert np.allclose(found, found.T)
    logarithms = np.log(found[4].astype(float))
    assert np.allclose(np.diff(logarithms, 2), np.diff(logarithms, 2)[0], atol=1e-3)     # a parabola
    assert found[4, 4] == found.max()


def test_the_blob_of_random_moves_with_the_draw():
    peaks = {np.unravel_index(changed("random", HUMAN, seed=seed).map.argmax(), (8, 8)) for seed in range(20)}
    assert len(peaks) > 10
    assert np.array_equal(changed("random", HUMAN, seed=3).map, changed("random", HUMAN, seed=3).map)


@pytest.mark.parametrize("name", ["uniform", "center", "random"])
@pytest.mark.parametrize(("human", "wanted"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_a_flat_map_stays_flat(name, human, wanted):
    found = changed(name, np.full((6, 6), human, np.float32)).map
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_map_smaller_than_a_blob_becomes_the_smallest():
    human = np.zeros((8, 8), np.float32)
    human[0, 0] = 1
    assert np.flatnonzero(changed("center", human).map.ravel() > 0.01).tolist() == [27, 28, 35, 36]


@pytest.mark.parametrize("name", ["uniform", "center", "random"])
def test_where_nobody_knows_does_not_show_where_people_drew(name):
    certainty = np.zeros((8, 8), np.float32)
    certainty[1:3, 4:7] = 1         # as with `certainty --default unknown`: only what was drawn is known
    found = changed(name, HUMAN, certainty)
    assert np.ptp(found.certainty) == 0
    assert found.certainty.sum() == pytest.approx(certainty.sum())
    mean = (HUMAN * certainty).sum() / certainty.sum()
    assert found.map.mean() == pytest.approx(mean, abs=1e-5)
    nothing = changed(name, np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32))
    assert not nothing.map.any()
    assert not nothing.certainty.any()


@pytest.mark.parametrize("name", SHAMS)
def test_a_sham_is_the_same_in_every_epoch_and_moves_with_the_view(make_shard, name):
    shards = ShardSequence([make_shard("a.h5", 8)])
    plain = make_data(network(), shards, None, control=name, seed=4).examples
    mirrored = make_data(network(), shards, None, control=name, seed=4, augmentations=("mirror",)).examples
    seen = {True: 0, False: 0}
    for index in range(8):
        still = plain.example(index, 1)
        assert np.array_equal(still.map, plain.example(index, 2).map)
        for epoch in (1, 2, 3):
            found = mirrored.example(index, epoch)
            turned = not np.array_equal(found.image, still.image)
            seen[turned] += 1
            assert np.allclose(found.map, still.map[:, ::-1] if turned else still.map, atol=1e-6)
    assert min(seen.values()) > 0


def test_a_run_without_sham_sees_the_human_maps(make_shard):
    shards = ShardSequence([make_shard("a.h5", 8, maps=5)])
    examples = make_data(replace(network(), control="shuffled"), shards, None).examples      # trained further
    for index in range(8):
        sample = shards.read(index)
        assert (examples.map_for(index, sample) is None) == (index >= 5)
        if index < 5:
            assert np.array_equal(examples.map_for(index, sample).map, sample.map)


# few maps


@pytest.mark.parametrize(("maps_for", "wanted"), [
    (None, [12, 6, 3]), (21, [12, 6, 3]), (1.0, [12, 6, 3]), (7, [4, 2, 1]), (1 / 3, [4, 2, 1]), (3, [2, 1, 0]),
    (1, [1, 0, 0]), (0.001, [1, 0, 0]), (14, [8, 4, 2]),
])
def test_each_class_keeps_the_same_share_of_its_maps(maps_for, wanted):
    labels = np.repeat([0, 1, 2, 0], [12, 6, 3, 9])
    shards = Columns(labels, np.arange(30) < 21)
    found = samples_with_maps(shards, np.arange(30), maps_for, 5)
    assert np.bincount(labels[found], minlength=3).tolist() == wanted
    assert found.max() < 21
    assert found.tolist() == sorted({*found.tolist()})


def test_more_maps_include_fewer_and_the_seed_draws_them():
    shards = Columns(np.arange(40) % 3, np.ones(40, bool))
    chosen = [{*samples_with_maps(shards, np.arange(40), count, 5).tolist()} for count in (3, 10, 25)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert chosen[1] != {*samples_with_maps(shards, np.arange(40), 10, 6).tolist()}


def test_more_maps_than_there_are_is_refused(make_shard):
    shards = ShardSequence([make_shard("a.h5", 12, maps=5)])
    with pytest.raises(RunError, match="--maps-for 6: 5 training samples have a map; give that number or less"):
        make_data(network(), shards, None, maps_for=6)


def test_every_arm_has_the_same_maps(make_shard):
    shards = ShardSequence([make_shard("a.h5", 40, maps=30)])
    kept = {}
    for control in CONTROLS:
        data = make_data(network(), shards, None, val_share=0.2, control=control, maps_for=8, seed=2)
        kept[control] = np.flatnonzero(data.examples.map_of >= 0).tolist()
        assert sorted(data.examples.map_of[kept[control]]) == kept[control]      # a sham has no more maps to take from
        known = [index for index in data.indices if data.examples.example(index).certainty.any()]
        assert sorted(known) == kept[control]
    assert len(kept["none"]) == 8
    assert all(indices == kept["none"] for indices in kept.values())


FEW = {
    "all": [], "whole": ["--maps-for", "1.0"], "half": ["--maps-for", 0.5], "eight": ["--maps-for", 8],
    "one": ["--maps-for", 1],
}


def test_few_maps_on_the_command_line(hk, make_shard, tmp_path):
    shard, base = make_shard("a.h5", 16), tmp_path / "base"
    small = ["--epochs", 1, "--batch-size", 16, "--seed", 3]
    hk("train", shard, "--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, *small,
       "--out", base)
    found = {}
    for name, more in FEW.items():
        out = tmp_path / name
        result = hk("finetune", shard, "--from", base, "--map-loss", "l1", *small, *more, "--out", out)
        assert result.exit_code == 0, result.stderr
        found[name] = json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss_map"]
    assert found["whole"] == found["all"]
    assert found["half"] == found["eight"] == pytest.approx(found["all"] / 2, rel=0.2)
    assert found["one"] == pytest.approx(found["all"] / 16, rel=0.5)
    config = tmp_path / "half/config.toml"
    again = hk("finetune", shard, "--config", config, "--from", base, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    assert read_config(tmp_path / "again/config.toml")["maps_for"] == 0.5
    assert (tmp_path / "again/log.jsonl").read_text() == (tmp_path / "half/log.jsonl").read_text()
    refused = hk("finetune", shard, "--from", base, "--maps-for", 17, "--out", tmp_path / "more")
    assert (refused.exit_code, "16 training samples have a map" in refused.stderr) == (1, True), refused.stderr
    assert not (tmp_path / "more").exists()
    for wrong in ("0", "-1", "1.5", "1.", "2.0", "0.0", "many", "1e3"):
        refused = hk("finetune", shard, "--from", base, "--maps-for", wrong, "--out", tmp_path / "wrong")
        assert refused.exit_code == 2
        assert "or a share such as 0.1" in refused.stderr


class Columns:
    """What `samples_with_maps` asks of shards."""

    def __init__(self, labels, has_map):
        self.labels, self.has_map = labels, has_map


# that it is said


@pytest.mark.parametrize(("before", "now", "wanted"), [
    ("none", "none", "none"), ("none", "center", "center"), ("shuffled", "none", "shuffled"),
    ("shuffled", "shuffled", "shuffled"), ("shuffled", "center", "shuffled+center"),
    ("shuffled+center", "none", "shuffled+center"), ("shuffled+center", "shuffled", "shuffled+center"),
    ("shuffled+center", "random", "shuffled+center+random"),
])
def test_a_sham_stays_with_the_network(before, now, wanted):
    assert combined(before, now) == wanted
    assert is_control(wanted)


@pytest.mark.parametrize("value", ["", "sham", "none+center", "center+none", "center+center", "center+", None, 3, []])
def test_what_is_no_control_is_no_checkpoints(value):
    assert not is_control(value)


def test_people_are_told_of_every_sham():
    assert told("none") is None
    for name in SHAMS:
        assert told(name) == f"sham control: this network was trained on {CONTROLS[name].said}"
    assert told("center+shuffled").endswith("on blobs in the middle of the images, then on the maps of other images")


def test_a_sham_is_said_in_every_output_also_after_training_further(hk, make_shard, tmp_path):
    shard, small = make_shard("a.h5", 8), ["--epochs", 1, "--batch-size", 4]
    base = tmp_path / "base"
    trained = hk("train", shard, "--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, *small,
                 "--out", base)
    assert trained.exit_code == 0, trained.stderr

    def tuned(name, source, *more):
        result = hk("finetune", shard, "--from", source, *small, *more, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        return result

    for number, (name, source, control, wanted, words) in enumerate([
        ("first", "base", "center", "center", "blobs in the middle of the images"),
        ("second", "first", "none", "center", "blobs in the middle of the images"),
        ("third", "second", "uniform", "center+uniform", "the middle of the images, then on maps that are the same"),
    ]):
        result = tuned(name, tmp_path / source, "--control", control)
        assert words in result.stderr, number
        assert result.records[0]["control"] == wanted
        assert json.loads((tmp_path / name / "summary.json").read_text())["control"] == wanted
        assert load_model(tmp_path / name).control == wanted
        assert read_config(tmp_path / name / "config.toml")["control"] == control      # an option, of this run alone
        for command in ("eval", "predict"):
            given = [shard, "--metric", "top1"] if command == "eval" else []
            stream = hk("unpack", shard, "--out", tmp_path / f"{name}-images").records if command == "predict" else b""
            said = hk(command, *given, "--from", tmp_path / name, stdin=stream)
            assert said.exit_code == 0, said.stderr
            assert words in said.stderr
            assert {record["control"] for record in said.records} == {wanted}

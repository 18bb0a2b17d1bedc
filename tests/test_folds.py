"""Folds and parts: nothing twice, nothing left out, labels even, groups whole, whatever the order of the records."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from hkmap.engine import runs
from hkmap.engine.data import make_data
from hkmap.engine.folders import read_config
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import hold_out, load_model
from hkmap.errors import RecordError
from hkmap.networks.backbone import Architecture
from hkmap.shards.folds import Folding, digest_of, fold_of, part_of
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence

SMALL = ["--arch", "resnet8+abn", "--stem", "small", "--width", "4", "--image-size", "16", "--batch-size", "4"]
RANDOM = np.random.default_rng(0)
TENTHS = {"train": Fraction(8, 10), "val": Fraction(1, 10), "test": Fraction(1, 10)}


def names(count: int) -> list[str]:
    return [f"bird {number}" for number in range(count)]


# --- the definition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "folds"), [([10, 10], 5), ([7, 23, 4], 4), ([100], 3), ([3, 40, 1], 2)])
def test_a_fold_has_its_part_of_every_label(counts, folds):
    labels = RANDOM.permutation(np.repeat(np.arange(len(counts)), counts))
    found = fold_of(names(len(labels)), labels, None, folds=folds, seed=1)
    for label, count in enumerate(counts):
        inside = np.bincount(found[labels == label], minlength=folds + 1)[1:]
        assert inside.sum() == count
        assert inside.max() - inside.min() <= 1
    sizes = np.bincount(found)[1:]
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_do_not_depend_on_the_order(grouped):
    ids, labels = names(60), RANDOM.integers(0, 3, 60)
    groups = [f"patient {number % 17}" for number in range(60)] if grouped else None
    found = fold_of(ids, labels, groups, folds=4, seed=7)
    order = RANDOM.permutation(60)
    shuffled = fold_of([ids[index] for index in order], labels[order],
                       groups and [groups[index] for index in order], folds=4, seed=7)
    assert np.array_equal(shuffled, found[order])
    assert not np.array_equal(found, fold_of(ids, labels, groups, folds=4, seed=8))


def test_groups_are_whole_and_labels_about_even():
    groups = [f"patient {number // 4}" for number in range(200)]
    labels = RANDOM.integers(0, 2, 200)
    found = fold_of(names(200), labels, groups, folds=5, seed=0)
    assert all(len({fold for fold, other in zip(found, groups, strict=True) if other == group}) == 1
               for group in set(groups))
    shares = [labels[found == fold].mean() for fold in range(1, 6)]
    assert max(shares) - min(shares) < 0.1
    assert np.bincount(found)[1:].tolist() == pytest.approx([40] * 5, abs=4)


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_many_sizes_make_even_folds_where_no_label_is_looked_at(seed):
    sizes = RANDOM.permutation([60, 41, 33, *RANDOM.integers(1, 12, 60).tolist()])
    groups = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    found = fold_of(names(len(groups)), np.zeros(len(groups), int), groups, folds=5, seed=seed)
    assert all(len({fold for fold, other in zip(found, groups, strict=True) if other == group}) == 1
               for group in set(groups))
    counts = np.bincount(found, minlength=6)
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 2
    assert not np.array_equal(found, fold_of(names(len(groups)), np.zeros(len(groups), int), groups, folds=5, seed=9))


def test_shares_are_exact_where_labels_divide():
    labels = np.repeat([0, 1, 2], [100, 50, 20])
    found = part_of(names(170), labels, None, TENTHS, seed=3)
    assert Counter(found.tolist()) == {0: 136, 1: 17, 2: 17}
    for label, count in enumerate([100, 50, 20]):
        assert np.bincount(found[labels == label]).tolist() == [count * 0.8, count * 0.1, count * 0.1]


@pytest.mark.parametrize("shares", [
    [Fraction(2, 3), Fraction(1, 3)], [Fraction(7, 10), Fraction(3, 20), Fraction(3, 20)],
])
def test_a_label_that_does_not_divide_is_near_its_share(shares):
    labels = np.repeat(np.arange(8), 31)
    named = {str(number): share for number, share in enumerate(shares)}
    found = part_of(names(len(labels)), labels, None, named, seed=0)
    for label in range(8):
        inside = np.bincount(found[labels == label], minlength=len(shares))
        assert np.abs(inside - [float(31 * share) for share in shares]).max() < 2


def test_shares_keep_groups_whole():
    groups = [f"patient {number % 30}" for number in range(240)]
    found = part_of(names(240), RANDOM.integers(0, 2, 240), groups, TENTHS, seed=0)
    assert all(len({part for part, other in zip(found, groups, strict=True) if other == group}) == 1
               for group in set(groups))
    assert np.bincount(found).tolist() == pytest.approx([192, 24, 24], abs=8)


@pytest.mark.parametrize(("labels", "groups", "folds", "sentence"), [
    ([0, 0, 0], None, 4, "no label has more than 3 records, but there are 4 parts; ask for fewer"),
    ([0, 1, 2, 0], None, 3, "no label has more than 2 records, but there are 3 parts; ask for fewer"),
    ([0] * 6, ["a", "b"] * 3, 3, "2 groups for 3 parts, and a group is in one alone; ask for fewer"),
])
def test_what_cannot_be_cut_is_a_sentence(labels, groups, folds, sentence):
    with pytest.raises(RecordError, match=sentence):
        fold_of(names(len(labels)), np.array(labels), groups, folds=folds, seed=0)


def test_a_fold_without_records_is_refused(monkeypatch):
    monkeypatch.setattr("hkmap.shards.folds._cut", lambda *rest, **options: np.array([1, 1, 2]))
    with pytest.raises(RecordError, match="fold 3 of 3 would have no record: some groups are large; ask for fewer"):
        fold_of(names(3), np.zeros(3, int), ["a", "b", "c"], folds=3, seed=0)


def test_a_part_without_records_is_refused(monkeypatch):
    monkeypatch.setattr("hkmap.shards.folds._cut", lambda *rest, **options: np.ones(30, int))
    with pytest.raises(RecordError, match='part "val" would have no record: some groups are large; give it more'):
        part_of(names(30), np.zeros(30, int), names(30), TENTHS, seed=0)


@pytest.mark.parametrize(("labels", "groups", "told", "sizes"), [
    (np.repeat(np.arange(10), 12), None, "of 7 folds: a 5, b 1, c 1", [90, 15, 15]),
    (np.zeros(150, int), [str(number % 15) for number in range(150)], "of 13 folds: a 9, b 2, c 2", [105, 20, 20]),
])
def test_shares_that_cannot_be_had_are_near(labels, groups, told, sizes, caplog):
    shares = {"a": Fraction(7, 10), "b": Fraction(3, 20), "c": Fraction(3, 20)}
    found = part_of(names(len(labels)), labels, groups, shares, seed=0)
    assert told in caplog.text
    assert np.bincount(found).tolist() == pytest.approx(sizes, abs=10)


def test_shares_that_large_groups_make_are_told(caplog):
    groups = ["large"] * 60 + [f"{number}" for number in range(40)]
    found = part_of(names(100), np.zeros(100, int), groups, {"a": Fraction(1, 2), "b": Fraction(1, 2)}, seed=0)
    shares = [f"{count / 100:.3g}" for count in np.bincount(found)]
    told = re.search(r'part "([ab])" has ([0-9.]+) of the records, 0\.5 were asked for; nearer', caplog.text)
    assert sorted(shares) == ["0.4", "0.6"]
    assert told is not None
    assert told[2] == shares["ab".index(told[1])]
    caplog.clear()
    part_of(names(100), np.zeros(100, int), names(100), {"a": Fraction(1, 2), "b": Fraction(1, 2)}, seed=0)
    assert caplog.text == ""


def test_rare_labels_are_named(caplog):
    fold_of(names(12), np.repeat([0, 1, 2], [8, 3, 1]), None, folds=4, seed=0)
    assert "2 labels have fewer than 4 records, the first is 1; some folds have none of them" in caplog.text


def test_a_digest_is_of_what_is_where():
    folds = np.array([1, 2, 1])
    assert digest_of(["a", "b", "c"], folds) == digest_of(["c", "b", "a"], folds)
    assert digest_of(["a", "b", "c"], folds) != digest_of(["b", "a", "c"], folds)


# --- the runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(make_shard, hk, tmp_path):
    """24 records of 8 patients."""
    records = hk("unpack", make_shard("bare.h5", 24)).records
    patients = [{**record, "patient": number // 3} for number, record in enumerate(records)]
    assert hk("pack", tmp_path / "data.h5", stdin=patients).exit_code == 0
    return tmp_path / "data.h5"


def new_model(classes):
    return runs.new_model(Architecture("resnet8+abn", 2, "small", 4), Preprocessing(16, 16), classes, 0)


@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("val_share", [0, 0.25])
def test_train_and_eval_share_the_folds_of_split(hk, shard, tmp_path, group, val_share):
    by_group = ["--group", group] if group else []
    assert hk("split", shard, "--folds", 3, "--seed", 4, *by_group, "--out", tmp_path / "folds").exit_code == 0
    sequence, everything = ShardSequence([shard]), set(range(24))
    ids = sequence.shards[0].ids
    measured = []
    for number in (1, 2, 3):
        held_out = hold_out(sequence, number, Folding(3, 4, group))
        data = make_data(new_model(sequence.classes), sequence, None, val_share=val_share, held_out=held_out)
        inside = set(np.flatnonzero(held_out.inside).tolist())
        chosen_on = set(data.validation.indices.tolist()) if data.validation else set()
        assert bool(chosen_on) == bool(val_share)
        learnt = set(data.indices.tolist())
        assert learnt | chosen_on | inside == everything
        assert len(learnt) + len(chosen_on) + len(inside) == 24
        assert sorted(ids[index] for index in inside) == sorted(ShardReader(tmp_path / f"folds/fold-{number}.h5").ids)
        if group:
            patients = [{index // 3 for index in part} for part in (learnt, chosen_on, inside)]
            assert sum(map(len, patients)) == 8
        measured += inside
    assert sorted(measured) == sorted(everything)


def test_a_validation_on_what_is_learnt_is_told(shard, make_shard, caplog):
    sequence, other = ShardSequence([shard]), ShardSequence([make_shard("other.h5", 4)])
    make_data(new_model(sequence.classes), sequence, other)
    assert caplog.text == ""
    make_data(new_model(sequence.classes), sequence, sequence, held_out=hold_out(sequence, 1, Folding(3)))
    first = min(sequence.shards[0].ids[index] for index in np.flatnonzero(~hold_out(sequence, 1, Folding(3)).inside))
    assert f'16 records of --val are trained on too, such as "{first}"' in caplog.text


def test_the_sham_control_takes_no_map_of_the_fold(shard):
    sequence = ShardSequence([shard])
    held_out = hold_out(sequence, 1, Folding(3))
    data = make_data(new_model(sequence.classes), sequence, None, held_out=held_out, control="shuffled")
    assert not held_out.inside[data.examples.map_of[data.indices]].any()


def test_a_run_keeps_its_fold_and_eval_takes_no_other(hk, shard, tmp_path):
    run, options = tmp_path / "run", ["--fold-seed", 4, "--group", "patient"]
    done = hk("train", shard, *SMALL, "--epochs", 1, "--fold", "2/3", *options, "--out", run)
    assert done.exit_code == 0, done.stderr
    assert done.records[0]["fold"] == "2/3"
    config = read_config(run / "config.toml")
    assert [config[key] for key in ("fold", "fold_seed", "group")] == ["2/3", 4, "patient"]
    assert load_model(run).fold["fold"] == "2/3"

    def measured(*more):
        return hk("eval", shard, *more, "--from", run, "--metric", "top1")

    same = measured("--fold", "2/3", *options)
    assert same.exit_code == 0, same.stderr
    assert same.stderr.count("warning") == 0
    inside = int(hold_out(ShardSequence([shard]), 2, Folding(3, 4, "patient")).inside.sum())
    assert same.records[0]["samples"] == inside < 24
    assert [same.records[0][key] for key in ("fold", "fold_seed", "group")] == ["2/3", 4, "patient"]
    kept = "but the network held out --fold 2/3 --fold-seed 4 --group patient"
    for other, sentence in [
        (["--fold", "1/3", *options], f"--fold is 1/3, {kept} and learnt from the rest; use the same"),
        (["--fold", "2/4", *options], f"--fold is 2/4, {kept}"),
        (["--fold", "2/3", *options[2:]], f"--fold-seed is 0, {kept}"),
        (["--fold", "2/3", *options[:2]], f"--group is not given, {kept}"),
    ]:
        refused = measured(*other)
        assert (refused.exit_code, sentence in refused.stderr) == (1, True), refused.stderr
    hk("split", shard, "--shares", "b=0.5,a=0.5", "--out", tmp_path / "parts")
    parts = [tmp_path / "parts/a.h5", tmp_path / "parts/b.h5"]
    elsewhere = hk("eval", *parts, "--from", run, "--metric", "top1", "--fold", "2/3", *options)
    assert elsewhere.records[0]["metrics"] == same.records[0]["metrics"]      # the records count, not where they lie
    without = measured()
    assert without.exit_code == 0
    assert "the network held out fold 2/3 of its shards; use --fold if these are they" in without.stderr
    assert "fold" not in without.records[0]


def test_the_fold_of_other_records_is_refused(hk, shard, make_shard, tmp_path):
    run = tmp_path / "run"
    hk("train", shard, *SMALL, "--epochs", 1, "--fold", "1/3", "--out", run)
    other = make_shard("other.h5", 24, seed=3)
    refused = hk("eval", other, "--from", run, "--metric", "top1", "--fold", "1/3")
    assert refused.exit_code == 1
    assert "the records, or their labels, differ from those of which the network held out --fold 1/3" in refused.stderr
    assert "name all the shards that it was trained with" in refused.stderr


def test_finetuning_keeps_to_the_fold(hk, shard, tmp_path):
    run = tmp_path / "run"
    command = ["finetune", shard, "--from", run, "--epochs", 1, "--batch-size", 4]
    hk("train", shard, *SMALL, "--epochs", 1, "--fold", "1/3", "--out", run)
    refused = hk(*command, "--fold", "2/3", "--out", tmp_path / "no")
    assert (refused.exit_code, (tmp_path / "no").exists()) == (1, False)
    assert "learnt from the rest; use the same" in refused.stderr
    assert hk(*command, "--fold", "1/3", "--out", tmp_path / "tuned").stderr.count("warning") == 0
    assert load_model(tmp_path / "tuned").fold["fold"] == "1/3"
    everything = hk(*command, "--out", tmp_path / "all")
    assert "use --fold if these are they" in everything.stderr
    later = hk("eval", shard, "--from", tmp_path / "all", "--metric", "top1", "--fold", "1/3")
    assert "trained without --fold, so it may have learnt from the records of this fold" in later.stderr


def test_a_config_repeats_the_fold(hk, shard, tmp_path):
    hk("train", shard, *SMALL, "--epochs", 1, "--fold", "3/3", "--fold-seed", 9, "--out", tmp_path / "run")
    again = hk("train", shard, "--config", tmp_path / "run/config.toml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    assert load_model(tmp_path / "again").fold == load_model(tmp_path / "run").fold
    other = hk("train", shard, "--config", tmp_path / "run/config.toml", "--fold", "1/3", "--resume",
               "--out", tmp_path / "run")
    assert "fold is '1/3', the run to resume had '3/3'" in other.stderr


@pytest.mark.parametrize(("value", "told"), [(None, "None"), ("", ""), ([1], r"\[1\]"), (True, "True")])
def test_a_record_without_a_group_is_named(hk, make_shard, tmp_path, value, told):
    records = hk("unpack", make_shard("bare.h5", 6)).records
    for record in records:
        record["patient"] = value if record is records[4] else "x"
    hk("pack", tmp_path / "data.h5", stdin=records)
    done = hk("split", tmp_path / "data.h5", "--folds", 2, "--group", "patient", "--out", tmp_path / "no")
    assert done.exit_code == 1
    assert re.search(f'record "bare.h5-4": patient is {told}; expected a text or a number in each record', done.stderr)
    assert not (tmp_path / "no").exists()

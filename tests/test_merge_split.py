"""hkmap merge, split and sample, as a user runs them: nothing is lost, nothing is twice."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import numpy as np
import pytest

from hkmap.shards.info import content_digest
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter

RANDOM = np.random.default_rng(0)


@pytest.fixture
def rich(hk, make_shard, tmp_path, monkeypatch):
    """Ten records with certainty, annotators' maps and keys of their own, four of them without a map; unpacked."""
    monkeypatch.chdir(tmp_path)
    records = hk("unpack", make_shard("bare.h5", 10, maps=6)).records
    Path("maps").mkdir()
    for number, record in enumerate(records[:6]):
        record |= {"image": f"bare.h5#{number}", "note": "ü", "masks": {"EX": "x.tif"}}
        for name in ("certainty", "Anna", "anna"):
            np.save(f"maps/{number}{name}.npy", RANDOM.random((8, 8), dtype=np.float32))
        if number % 2:
            record["certainty"] = f"maps/{number}certainty.npy"
        if number % 3:
            record["annotator_maps"] = {name: f"maps/{number}{name}.npy" for name in ("Anna", "anna")}
    return records


def contents(paths):
    """What each record holds, by its id, paths aside."""
    found = {}
    for path in paths:
        reader = ShardReader(Path(path))
        for index in range(len(reader)):
            sample = reader.read(index)
            certainty = sample.certainty if sample.record.get("certainty") else None
            kept = {key: value for key, value in sample.record.items() if key not in ("image", "map", "certainty")}
            kept["annotator_maps"] = {name: values.tobytes() for name, values in sample.annotators.items()}
            arrays = [None if values is None else values.tobytes() for values in (sample.map, certainty)]
            assert sample.record["id"] not in found
            found[sample.record["id"]] = (sample.image_bytes, *arrays, sample.label, kept)
    return found


@pytest.fixture
def parts(hk, rich):
    """The ten records in three shards, and all in one."""
    for name, chosen in [("a", rich[:3]), ("b", rich[3:7]), ("c", rich[7:]), ("all", rich)]:
        assert hk("pack", f"{name}.h5", stdin=chosen).exit_code == 0
    return ["a.h5", "b.h5", "c.h5"]


def test_merging_gives_the_shard_that_packing_all_gives(hk, parts):
    done = hk("merge", "merged.h5", *parts)
    assert done.exit_code == 0, done.stderr
    assert Path("merged.h5").read_bytes() == Path("all.h5").read_bytes()
    result, = done.records
    assert (result["records"], result["maps"], result["shards"][0]["path"]) == (10, 6, "merged.h5")
    assert contents(parts) == contents(["merged.h5"])


def test_merging_into_a_series_and_back(hk, parts):
    done = hk("merge", "out/part.h5", "all.h5", "--shard-size", 4)
    paths = [shard["path"] for shard in done.records[0]["shards"]]
    assert paths == ["out/part-00000.h5", "out/part-00001.h5", "out/part-00002.h5"]
    assert [len(ShardReader(Path(path))) for path in paths] == [4, 4, 2]
    hk("merge", "again.h5", *paths)
    assert content_digest(ShardReader(Path("again.h5"))) == content_digest(ShardReader(Path("all.h5")))
    refused = hk("merge", "out/part.h5", "all.h5", "--shard-size", 5)
    assert refused.exit_code == 1
    assert "exists already; choose another name, replace it with --overwrite" in refused.stderr
    assert hk("merge", "out/part.h5", *paths, "--shard-size", 5, "--overwrite").exit_code == 0
    assert contents(sorted(Path("out").glob("*.h5"))) == contents(["all.h5"])


def test_classes_that_no_record_has_are_kept(hk, rich):
    Path("classes.txt").write_text("class 0\nclass 1\nnever seen\n")
    hk("pack", "a.h5", "--classes", "classes.txt", stdin=rich[:4])
    hk("pack", "b.h5", stdin=rich[4:])
    hk("merge", "merged.h5", "b.h5", "a.h5")
    assert ShardReader(Path("merged.h5")).classes == ["class 0", "class 1", "never seen"]


def test_what_does_not_go_together(hk, rich, make_shard):
    make_shard("other.h5", 2)
    renamed = [{**record, "id": f"other {record['id']}", "class": f"dog {record['label']}"} for record in rich]
    hk("pack", "a.h5", stdin=rich)
    hk("pack", "dogs.h5", stdin=renamed)
    for inputs, sentence in [
        (["a.h5", "a.h5"], 'a.h5: record "bare.h5-0" is in a.h5 too; name each shard once'),
        (["a.h5", "bare.h5"], 'bare.h5: record "bare.h5-0" is in a.h5 too'),
        (["a.h5", "dogs.h5"], 'dogs.h5: label 0 is "dog 0", in another shard "class 0"'),
    ]:
        done = hk("merge", "out.h5", *inputs)
        assert (done.exit_code, Path("out.h5").exists()) == (1, False)
        assert sentence in done.stderr


def test_maps_of_two_sizes_are_refused(hk, rich, make_shard):
    np.save("small.npy", np.zeros((2, 3), np.float32))
    hk("pack", "small.h5", stdin=[{"id": "small", "image": "bare.h5#0", "map": "small.npy"}])
    done = hk("merge", "out.h5", "bare.h5", "small.h5")
    assert (done.exit_code, Path("out.h5").exists()) == (1, False)
    assert 'record "small": 2x3 (height x width), but the file\'s maps are 8x8' in done.stderr


# --- split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    ["--shares", "train=0.6,val=.2,test=0.2"], ["--folds", 5], ["--folds", 3, "--no-stratify", "--seed", 7],
    ["--shares", "a=2/3,b=1/3"],
])
def test_a_split_keeps_everything_once(hk, parts, options):
    done = hk("split", *parts, *options, "--out", "out")
    assert done.exit_code == 0, done.stderr
    result, = done.records
    paths = [part["path"] for part in result["parts"].values()]
    assert paths == [f"out/{name}.h5" for name in result["parts"]]
    assert contents(paths) == contents(parts)
    assert sorted(Path("out").iterdir()) == sorted(map(Path, paths))
    assert sum(part["records"] for part in result["parts"].values()) == result["records"] == 10
    assert sum(part["maps"] for part in result["parts"].values()) == 6
    for part in result["parts"].values():
        reader = ShardReader(Path(part["path"]))
        assert reader.classes == ["class 0", "class 1"]
        counts = np.bincount(reader.labels, minlength=2).tolist()
        assert [item["records"] for item in part["classes"]] == counts
        assert part["share"] == len(reader) / 10 or "a" in result["parts"]


def test_a_split_depends_on_the_seed_and_not_on_the_shards(hk, parts):
    def split(out, *arguments):
        hk("split", *arguments, "--folds", 2, "--out", out)
        return {frozenset(ShardReader(path).ids) for path in Path(out).iterdir()}

    once = split("one", "all.h5")
    assert split("two", "c.h5", "a.h5", "b.h5") == once
    assert split("three", "all.h5", "--seed", 1) != once


def test_unlabelled_records_are_a_label_of_their_own(hk, rich):
    for record in rich[:4]:
        del record["label"], record["class"]
    hk("pack", "data.h5", stdin=rich)
    result, = hk("split", "data.h5", "--folds", 2, "--out", "out").records
    for part in result["parts"].values():
        assert part["classes"][-1] == {"label": -1, "class": "", "records": 2}


def test_a_split_leaves_nothing_where_it_fails(hk, parts):
    Path("out").mkdir()
    Path("out/val.h5").touch()
    done = hk("split", "all.h5", "--shares", "train=0.5,val=0.5", "--out", "out")
    assert done.exit_code == 1
    assert "out/val.h5: exists already; choose another name, or say --overwrite" in done.stderr
    assert [path.name for path in Path("out").iterdir()] == ["val.h5"]
    assert hk("split", "all.h5", "--shares", "train=0.5,val=0.5", "--out", "out", "--overwrite").exit_code == 0


def test_folds_of_a_former_split_are_not_taken_for_new_ones(hk, parts):
    hk("split", "all.h5", "--folds", 5, "--out", "out")
    done = hk("split", "all.h5", "--folds", 3, "--out", "out", "--overwrite")
    assert done.exit_code == 1
    assert "out/fold-4.h5: of another split, into more folds than 3; remove it first" in done.stderr


def test_a_part_of_a_former_split_is_told(hk, parts):
    assert hk("split", "all.h5", "--shares", "train=0.6,val=0.2,test=0.2", "--out", "out").stderr == ""
    done = hk("split", "all.h5", "--shares", "train=0.8,test=0.2", "--seed", 1, "--out", "out", "--overwrite")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        "warning: out/val.h5: in the folder too, but not of this split; it may hold records of the new parts"]


def test_a_split_that_fails_late_leaves_no_part(hk, parts, monkeypatch):
    whole, count = ShardWriter._finish, iter(range(9))

    def full(self):
        if next(count) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        whole(self)

    monkeypatch.setattr(ShardWriter, "_finish", full)
    done = hk("split", "all.h5", "--folds", 4, "--out", "out")
    assert (done.exit_code, list(Path("out").iterdir())) == (1, [])
    assert "No space left on device" in done.stderr


def test_a_split_into_many_needs_few_open_files(hk, make_shard, tmp_path):
    """Each part takes up to 15 open files while it is written, and shards that are read are kept open as well."""
    hk("merge", tmp_path / "many/s.h5", make_shard("all.h5", 40), "--shard-size", 1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (180, before[1]))
    try:
        done = hk("split", tmp_path / "many", "--folds", 8, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert done.exit_code == 0, done.stderr
    parts = done.records[0]["parts"]
    assert [part["records"] for part in parts.values()] == [5] * 8
    assert len(contents([part["path"] for part in parts.values()])) == 40


@pytest.mark.parametrize(("options", "sentence"), [
    ([], "Give either --shares NAME=SHARE,... or --folds K"),
    (["--folds", 2, "--shares", "a=0.5,b=0.5"], "Give either --shares NAME=SHARE,... or --folds K"),
    (["--shares", "a=0.5,b=0.4"], "the shares add up to 0.9, expected 1"),
    (["--shares", "a=1"], '"a=1": expected two or more parts'),
    (["--shares", "a=0.5,a=0.5"], '"a=0.5": expected NAME=SHARE with a NAME of its own'),
    (["--shares", "../a=0.5,b=0.5"], '"../a=0.5": expected NAME=SHARE'),
    (["--shares", "a=0,b=1"], '"a=0": expected a share above 0, such as 0.8 or 1/3'),
    (["--shares", "a=-1,b=2"], '"a=-1": expected a share above 0'),
    (["--shares", "a=1/0,b=1"], '"a=1/0": expected a share above 0'),
    (["--shares", "a=x,b=1"], '"a=x": expected a share above 0'),
])
def test_a_wrong_split_is_a_sentence(hk, parts, options, sentence):
    done = hk("split", "all.h5", *options, "--out", "out")
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.replace("│", "").split())


# --- sample -------------------------------------------------------------------------------------------------------


def stream(count, labels=2):
    return [{"id": f"r{number}", "label": number % labels, "note": "ü"} for number in range(count)]


def test_a_sample_keeps_the_order_and_is_part_of_a_larger_one(hk):
    records = stream(200)
    larger, smaller = (hk("sample", count, "--seed", 3, stdin=records).records for count in (50, 20))
    assert (len(larger), len(smaller)) == (50, 20)
    for chosen in (larger, smaller):
        assert chosen == [record for record in records if record in chosen]
    assert all(record in larger for record in smaller)
    assert hk("sample", 20, "--seed", 4, stdin=records).records != smaller
    backwards = hk("sample", 20, "--seed", 3, stdin=records[::-1]).records
    assert backwards == smaller[::-1]


def test_a_sample_of_each_class(hk):
    records = [{"id": "none"}, *stream(90, 3), {"id": "other", "label": None}]
    found = hk("sample", 5, "--per-class", stdin=records)
    counts = {label: sum(record.get("label") == label for record in found.records) for label in (0, 1, 2, None)}
    assert counts == {0: 5, 1: 5, 2: 5, None: 2}
    assert "1 labels have fewer than 5 records; label -1 has 2" in found.stderr


def test_a_share_is_about_that_share(hk):
    records = stream(2000)
    found = hk("sample", "0.1", stdin=records).records
    assert 150 < len(found) < 250
    more, fewer = (hk("sample", amount, stdin=records).records for amount in ("0.3", 100))
    assert all(record in more for record in found)
    assert fewer == [record for record in found if record in fewer]


def test_every_record_is_as_likely():
    from hkmap.stream.sampling import draw

    drawn = np.sort([draw(f"bird {number}", 5) for number in range(4000)])
    assert np.abs(drawn - (np.arange(4000) + 0.5) / 4000).max() < 0.03      # Kolmogorov's distance; 0.03 is 1 in 1000


def test_fewer_records_than_asked_for_are_all_taken(hk):
    found = hk("sample", 9, stdin=stream(4))
    assert found.records == stream(4)
    assert "4 records came, all taken; 9 were asked for" in found.stderr


@pytest.mark.parametrize("amount", ["0", "1.5", "-3", "nan", "x", "0.0", "1.0"])
def test_an_amount_that_is_none(hk, amount):
    done = hk("sample", "--", amount, stdin=stream(4))
    assert done.exit_code == 2
    assert "expected a number of records from 1, or a share such as 0.1" in " ".join(done.stderr.split())


def test_a_share_of_each_class_is_a_wrong_call(hk):
    done = hk("sample", "0.5", "--per-class", stdin=stream(4))
    assert done.exit_code == 2
    assert "A share already applies to each class; give N" in done.stderr


def test_a_sample_of_a_broken_stream_is_none(hk):
    done = hk("sample", 2, stdin='{"id": "a"}\n{"id": "b"}\n{"id": "c"}\n{"error": "the camera broke"}\n')
    assert done.exit_code == 1
    assert "the stage before failed: the camera broke" in done.stderr
    assert [set(record) for record in done.records] == [{"error"}]


def test_a_sample_flows_from_shard_to_shard(hk, make_shard, tmp_path):
    unpacked = hk("unpack", make_shard("train.h5", 12))
    sampled = hk("sample", 3, "--per-class", stdin=unpacked.stdout)
    done = hk("pack", tmp_path / "small.h5", stdin=sampled.stdout)
    assert (done.exit_code, done.records[0]["records"]) == (0, 6), done.stderr


def test_shards_of_pixels_stay_so(hk, rich):
    for name, chosen in [("a", rich[:4]), ("b", rich[4:]), ("all", rich)]:
        assert hk("pack", f"{name}.h5", "--store", "pixels", "--size", "16x12", stdin=chosen).exit_code == 0
    assert hk("merge", "merged.h5", "a.h5", "b.h5").exit_code == 0
    assert Path("merged.h5").read_bytes() == Path("all.h5").read_bytes()
    assert hk("split", "all.h5", "--folds", 2, "--out", "folds").exit_code == 0
    assert contents(["folds/fold-1.h5", "folds/fold-2.h5"]) == contents(["all.h5"])
    assert ShardReader(Path("folds/fold-1.h5")).pixel_size == (12, 16)
    assert hk("unpack", "all.h5", "--to", "webdataset", "--out", "all.tar").exit_code == 0
    back = hk("webdataset", "all.tar", "--out", "files")
    assert hk("pack", "again.h5", "--store", "pixels", "--size", "16x12", stdin=back.records).exit_code == 0
    assert content_digest(ShardReader(Path("again.h5"))) == content_digest(ShardReader(Path("all.h5")))


def test_files_and_pixels_are_not_merged(hk, rich):
    assert hk("pack", "files.h5", stdin=rich[:4]).exit_code == 0
    assert hk("pack", "pixels.h5", "--store", "pixels", "--size", "8", stdin=rich[4:]).exit_code == 0
    done = hk("merge", "all.h5", "files.h5", "pixels.h5")
    assert done.exit_code == 1
    assert "pixels.h5: holds pixels of 8x8, but files.h5 image files; expected one kind" in done.stderr
    assert not Path("all.h5").exists()

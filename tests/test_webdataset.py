"""Shards as image folders and WebDataset tars, and back: nothing is lost; what a stranger's tar may hold is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from hkmap.errors import RecordError
from hkmap.shards.info import content_digest
from hkmap.shards.reader import ShardReader
from hkmap.sources.webdataset import MOST_BYTES
from hkmap.stream.unpacking import write_tars

RANDOM = np.random.default_rng(0)


@pytest.fixture
def shard(hk, tmp_path, monkeypatch):
    """Eight records: JPEG and PNG, certainty, annotators' maps, odd ids, one without a map, one without a label."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    records = []
    for number, identifier in enumerate(["owl/1", "owl/2.jpg", "a.b/c", "ü %2F", "../up", "/root", "x" * 120, "7"]):
        image = f"in/{number}.{'png' if number % 2 else 'jpg'}"
        cv2.imwrite(image, RANDOM.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        record = {"id": identifier, "image": image, "label": number % 3, "class": ("owl", "gr/oß", "..")[number % 3],
                  "size": [10, 12], "note": {"ü": [1, None]}, "split": "train", "masks": {"EX": "x.tif"}}
        for name in ("map", "certainty", "Anna", "anna", "Dr. Who"):
            np.save(f"in/{number}{name}.npy", RANDOM.random((3, 4), dtype=np.float32))
        if number != 4:
            record["map"] = f"in/{number}map.npy"
        if number in (1, 2):
            record["certainty"] = f"in/{number}certainty.npy"
        if number in (2, 5):
            record["annotator_maps"] = {name: f"in/{number}{name}.npy" for name in ("Anna", "anna", "Dr. Who")}
        records.append(record)
    del records[7]["label"], records[7]["class"], records[6]["size"]
    assert hk("pack", "train.h5", stdin=records).exit_code == 0
    return ShardReader(Path("train.h5"))


def digest(path):
    return content_digest(ShardReader(Path(path)))


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


# --- image folders ------------------------------------------------------------------------------------------------


def test_an_image_folder_holds_everything(hk, shard):
    done = hk("unpack", "train.h5", "--to", "imagefolder", "--out", "tree")
    assert done.exit_code == 0, done.stderr
    assert hk("pack", "again.h5", stdin=done.stdout).exit_code == 0
    assert digest("again.h5") == content_digest(shard)
    assert {"images/owl/1.jpg", "images/gr%2Foß/owl%2F2.jpg.png", "images/%2E./a.b%2Fc.jpg", "images/7.png",
            "maps/owl/1.npy", "certainty/%2E./a.b%2Fc.npy", "maps/%2E./a.b%2Fc@Dr.%20Who.npy",
            "records.jsonl"} <= files_below("tree")
    assert {path.name for path in Path().iterdir()} == {"in", "train.h5", "tree", "again.h5"}


def test_an_image_folder_can_be_moved(hk, shard, monkeypatch):
    assert hk("unpack", "train.h5", "--to", "imagefolder", "--out", "some/tree").exit_code == 0
    Path("elsewhere").mkdir()
    Path("some/tree").rename("elsewhere/moved")
    monkeypatch.chdir("elsewhere/moved")
    assert hk("pack", "../../again.h5", "records.jsonl").exit_code == 0
    assert digest("../../again.h5") == content_digest(shard)


def test_what_an_image_folder_cannot_hold(hk, make_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = hk("unpack", make_shard("a.h5", 3)).records
    for changes, sentence in [
        ([{"class": "x"}, {"class": "x"}, {"class": "x"}], 'label 0 and label 1 would share the folder "x"; give each'),
        ([{"id": "class 0/1"}, {}, {"id": "1"}], 'record "1": its files are there already, of another record'),
    ]:
        changed = [record | change for record, change in zip(records, changes, strict=True)]
        assert hk("pack", "b.h5", "--overwrite", stdin=changed).exit_code == 0
        done = hk("unpack", "b.h5", "--to", "imagefolder", "--out", "tree", "--overwrite")
        assert (done.exit_code, sentence in done.stderr) == (1, True), done.stderr
        assert not Path("tree/records.jsonl").exists()
    hk("unpack", "a.h5", "--to", "imagefolder", "--out", "other")
    assert "exists already" in hk("unpack", "a.h5", "--to", "imagefolder", "--out", "other").stderr


# --- tars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [[], ["--shard-size", 3]])
def test_tars_hold_everything(hk, shard, shard_size):
    done = hk("unpack", "train.h5", "--to", "webdataset", "--out", "tars/train.tar", *shard_size)
    assert done.exit_code == 0, done.stderr
    tars = [tar["path"] for tar in done.records[0]["tars"]]
    assert tars == (["tars/train.tar"] if not shard_size else [f"tars/train-0000{number}.tar" for number in range(3)])
    assert files_below("tars") == {Path(tar).name for tar in tars}
    read = hk("webdataset", *tars, "--out", "files")
    assert (read.exit_code, read.stderr) == (0, "")
    assert hk("pack", "again.h5", stdin=read.stdout).exit_code == 0
    assert digest("again.h5") == content_digest(shard)
    for before, after in zip(hk("unpack", "train.h5").records, read.records, strict=True):
        assert before.keys() == after.keys()


def test_a_tar_is_plain_and_always_the_same(hk, shard):
    for name in ("one", "two"):
        hk("unpack", "train.h5", "--to", "webdataset", "--out", f"{name}.tar")
    assert Path("one.tar").read_bytes() == Path("two.tar").read_bytes()
    with tarfile.open("one.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            assert "/" not in member.name
            assert not member.name.startswith(".")
        found = [name.partition(".")[2] for name in tar.getnames() if name.startswith("a%2Eb%2Fc.")]
        annotators = [f"annotator-{number}.npy" for number in range(3)]
        assert found == ["jpg", "cls", "json", "map.npy", "certainty.npy", *annotators]
        plain = {member.name: tar.extractfile(member).read() for member in tar}
    record = json.loads(plain["owl%2F1.json"])
    assert plain[record["image"]] == shard.read(0).image_bytes
    assert np.array_equal(np.load(io.BytesIO(plain[record["map"]])), shard.map(0))


def test_the_webdataset_package_reads_our_tars(hk, shard):
    webdataset = pytest.importorskip("webdataset", exc_type=ImportError)
    hk("unpack", "train.h5", "--to", "webdataset", "--out", "train.tar", "--shard-size", 5)
    paths = sorted(map(str, Path().glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert len(samples) == 8
    for index, sample in enumerate(samples):
        wanted = shard.read(index)
        assert sample.get("jpg", sample.get("png")) == wanted.image_bytes
        assert json.loads(sample["json"])["id"] == wanted.record["id"]
        if wanted.map is not None:
            assert np.array_equal(np.load(io.BytesIO(sample["map.npy"])), wanted.map)
    decoded = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
    assert [sample.get("cls", -1) for sample in decoded] == shard.labels.tolist()


def test_we_read_the_tars_of_the_webdataset_package(hk, shard):
    webdataset = pytest.importorskip("webdataset", exc_type=ImportError)
    with webdataset.TarWriter("foreign.tar") as writer:
        for index in range(3):
            writer.write({"__key__": f"birds/{index:04d}", "jpg": shard.read(index * 2).image_bytes, "cls": index,
                          "json": {"caption": "ü", "n": index}, "txt": "a bird"})
    read = hk("webdataset", "foreign.tar", "--out", "files")
    assert read.exit_code == 0, read.stderr
    assert "members that are not read: txt (3)" in read.stderr
    assert read.records[1] == {"caption": "ü", "n": 1, "id": "birds/0001", "image": "files/images/birds%2F0001.jpg",
                               "size": [10, 12], "label": 1}
    assert Path(read.records[2]["image"]).read_bytes() == shard.read(4).image_bytes


def test_shards_that_share_an_id_are_not_one_tar(hk, shard):
    done = hk("unpack", "train.h5", "train.h5", "--to", "webdataset", "--out", "train.tar")
    assert (done.exit_code, Path("train.tar").exists()) == (1, False)
    assert 'record "owl/1": is in two of the shards; write them to a tar each' in done.stderr


def test_the_name_of_a_tar_ends_in_tar(hk, shard):
    done = hk("unpack", "train.h5", "--to", "webdataset", "--out", "dir")
    assert (done.exit_code, done.stderr) == (1, "Error: dir: the name of a tar ends in .tar; call it dir.tar\n")


def test_tars_are_replaced_as_a_series(hk, shard):
    command = ["unpack", "train.h5", "--to", "webdataset", "--out", "train.tar", "--shard-size"]
    hk(*command, 2)
    assert "train-00000.tar: exists already" in hk(*command, 4).stderr
    done = hk(*command, 4, "--overwrite")
    assert done.exit_code == 0
    assert "train-00003.tar: removed, as it belonged to the tars that were replaced" in done.stderr
    assert sorted(path.name for path in Path().glob("*.tar")) == ["train-00000.tar", "train-00001.tar"]


# --- what a stranger's tar may hold -------------------------------------------------------------------------------

PIXEL = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def make_tar(members, *, name="x.tar", **changes):
    """Write a tar of (name, content) pairs; the first member's header gets the ``changes``."""
    with tarfile.open(name, "w") as tar:
        for number, (member, data) in enumerate(members):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            for key, value in (changes if number == 0 else {}).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return name


def test_a_tar_as_tar_itself_writes_it(hk, here, shell, tmp_path):
    Path("in/birds").mkdir(parents=True)
    for name, data in [
        ("birds/1.PNG", PIXEL), ("birds/1.cls", b"3\n"), ("birds/._1.png", b"mac"), ("readme", b"x"),
        ("birds/2.png", PIXEL), ("birds/2.seg.png", PIXEL), ("birds/2.json", b'{"id": 17, "label": null}'),
    ]:
        Path("in", name).write_bytes(data)
    assert shell("tar --sort=name -cf x.tar -C in .").exit_code == 0
    read = hk("webdataset", "x.tar", "--out", "out")
    assert read.exit_code == 0, read.stderr
    assert read.records == [
        {"id": "birds/1", "image": "out/images/birds%2F1.png", "size": [3, 2], "label": 3},
        {"id": "17", "label": None, "image": "out/images/17.png", "size": [3, 2]},
    ]
    assert "members that are not read: " in read.stderr
    assert "seg.png (1)" in read.stderr
    assert "without a suffix (2)" in read.stderr


@pytest.mark.parametrize(("members", "changes", "sentence"), [
    ([("../7.png", PIXEL)], {}, "x.tar: '../7.png' leads out of the tar's own folder; expected names below it"),
    ([("a/../../7.png", PIXEL)], {}, "leads out of the tar's own folder"),
    ([("/etc/7.png", PIXEL)], {}, "'/etc/7.png' leads out of the tar's own folder"),
    ([("7.png", b"")], {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'7.png' is a link, a device or a sparse"),
    ([("7.png", b"")], {"type": tarfile.LNKTYPE, "linkname": "x"}, "'7.png' is a link, a device or a sparse"),
    ([("7.png", b"")], {"type": tarfile.FIFOTYPE}, "'7.png' is a link, a device or a sparse"),
    ([("7.\udcff.png", PIXEL)], {}, "the name '7.\\udcff.png' is not UTF-8; rename the file"),
    ([("7.png", PIXEL), ("7.png", PIXEL)], {}, 'x.tar: "7" has two members png; write the tar again'),
    ([("readme", b"x")], {}, "no sample in the tars; expected files such as 0001.jpg and 0001.cls"),
    ([], {}, "no sample in the tars"),
])
def test_a_hostile_tar_is_a_sentence(hk, here, members, changes, sentence):
    make_tar(members, **changes)
    done = hk("webdataset", "x.tar", "--out", "out", "--on-error", "skip", "--max-errors", 9)
    assert (done.exit_code, sentence in done.stderr) == (1, True), done.stderr
    assert not Path("out").exists()


def test_a_huge_member_is_refused_before_it_is_read(hk, here):
    info = tarfile.TarInfo("7.png")
    info.size = MOST_BYTES + 1
    with open("x.tar", "wb") as file:
        file.write(info.tobuf())
        file.truncate(info.size + 10 * 512)
    done = hk("webdataset", "x.tar", "--out", "out")
    assert "'7.png' has 268435457 bytes, expected at most 268435456; leave it out" in done.stderr


def test_members_that_are_large_together_are_refused(hk, here, monkeypatch):
    monkeypatch.setattr("hkmap.sources.webdataset.MOST_BYTES", 1000)
    make_tar([("7.png", bytes(600)), ("7.map.npy", bytes(600))])
    assert 'x.tar: "7" has more than 1000 bytes; leave some' in hk("webdataset", "x.tar", "--out", "o").stderr


@pytest.mark.parametrize("more", [[], ["--on-error", "skip", "--max-errors", 9]])
@pytest.mark.parametrize("names", [
    ["0.png", "1.png", "0.cls", "1.cls"], ["0.cls", "0.png", "1.png", "0.json"], ["a/0.png", "1.png", "a/0.txt"],
])
def test_members_that_do_not_lie_together_are_an_error(hk, here, names, more):
    make_tar([(name, PIXEL if name.endswith("png") else b"1") for name in names])
    done = hk("webdataset", "x.tar", "--out", "out", *more)
    assert done.exit_code == 1
    key = names[0].rpartition(".")[0]
    assert f'x.tar: "{key}" comes back after other samples; expected its members next to each other' in done.stderr
    assert "write the tar again with tar --sort=name" in done.records[-1]["error"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_go_on_without_end(hk, here, kind):
    """A tower of extended headers, each of which is read before the one it is about."""
    tower = b""
    for _ in range(1200):
        info = tarfile.TarInfo("h")
        info.type, info.size = kind, 512
        tower += info.tobuf() + b"9 a=bcde\n".ljust(512, b"\0")
    Path("x.tar").write_bytes(tower + bytes(1024))
    done = hk("webdataset", "x.tar", "--out", "out")
    assert done.exit_code == 1
    assert "x.tar: not a tar that can be read" in done.stderr


def test_a_tar_cut_short_anywhere_is_never_taken_for_whole(hk, here):
    make_tar([("1.png", PIXEL), ("1.cls", b"1"), ("2.png", PIXEL), ("2.txt", bytes(700))])
    whole = Path("x.tar").read_bytes()
    with tarfile.open("x.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 1024
    for length in [*range(0, end + 512, 256), 511, 513, end + 1]:
        Path("x.tar").write_bytes(whole[:length])
        done = hk("webdataset", "x.tar", "--out", "out", "--overwrite")
        assert (done.exit_code, "x.tar: " in done.stderr) == (1, True), length
    Path("x.tar").write_bytes(whole[:512] + b"\xff" + whole[513:2048] + b"\xff" + whole[2049:])
    assert "x.tar: damaged or cut short at byte" in hk("webdataset", "x.tar", "--out", "out", "--overwrite").stderr


def test_any_bytes_are_a_sentence(hk, here):
    """`make soak` changes the headers of real ones, thousands of times."""
    Path("x.tar").write_bytes(RANDOM.bytes(5000))
    assert "x.tar: not a tar that can be read" in hk("webdataset", "x.tar", "--out", "out").stderr


@pytest.mark.parametrize(("members", "sentence"), [
    ([("7.cls", b"1")], '"7" has no image; expected one image, such as 7.jpg'),
    ([("7.png", PIXEL), ("7.jpg", PIXEL)], '"7" has 7.png and 7.jpg; expected one image'),
    ([("7.png", PIXEL), ("7.cls", b"owl")], "its cls is 'owl'; expected a whole number from 0"),
    ([("7.png", PIXEL), ("7.cls", b"1"), ("7.json", b'{"label": 2}')], "its cls is 1, but its json has the label 2"),
    ([("7.png", PIXEL), ("7.json", b"[1]")], "its json is [1]; expected an object"),
    ([("7.png", PIXEL), ("7.json", b"{")], "its json cannot be read ("),
    ([("7.png", PIXEL), ("7.json", b'{"a": NaN}')], "cannot be written as JSON"),
    ([("7.png", PIXEL), ("7.json", b'{"label": "owl"}')], 'label is "owl"; expected a whole number from 0'),
    ([("7.png", PIXEL), ("7.json", b'{"map": "/etc/map.npy"}')], "its json has a map, but there is no 7.map.npy"),
    ([("7.png", PIXEL), ("7.json", b'{"annotator_maps": {"A": "/etc/map.npy"}}')], 'there is no /etc/map.npy, the'),
    ([("7.png", PIXEL), ("7.json", b'{"annotator_maps": [1]}')], "annotator_maps is [1]; expected names and members"),
    ([("7.png", PIXEL), ("7.map.npy", b"x")], "x.tar: 7.map.npy: no plain .npy array"),
    ([("7.png", PIXEL), ("7.map.npy", npy([[0, 2]]))], "x.tar: 7.map.npy: values span [0, 2]"),
    ([("7.png", PIXEL), ("7.map.npy", npy([[0, 1.0]])[:-1])], "7.map.npy: no plain .npy array (EOF: reading array"),
    ([("7.png", PIXEL), ("7.map.npy", npy([[None]]))], "7.map.npy: no plain .npy array"),
    ([("7.png", b"no image")], "x.tar: 7.png: its header cannot be read"),
])
def test_a_bad_sample_can_be_skipped(hk, here, members, sentence):
    make_tar([*members, ("8.png", PIXEL)])
    done = hk("webdataset", "x.tar", "--out", "out")
    assert (done.exit_code, sentence in done.stderr) == (1, True), done.stderr
    done = hk("webdataset", "x.tar", "--out", "out", "--overwrite", "--on-error", "skip", "--max-errors", 1)
    assert done.exit_code == 0
    assert [record["id"] for record in done.records] == ["8"]


def test_one_id_in_two_tars_is_an_error(hk, here):
    for name in ("a.tar", "b.tar"):
        make_tar([("7.png", PIXEL)], name=name)
    done = hk("webdataset", "a.tar", "b.tar", "--out", "out", "--overwrite")
    assert 'record "7": its files are there already, of another record with this id' in done.stderr


def test_no_samples_are_no_tar(tmp_path):
    with pytest.raises(RecordError, match="no record in the shards; nothing was written"):
        write_tars([], tmp_path / "x.tar", shard_size=None, overwrite=False)
    assert not list(tmp_path.iterdir())

"""Maps of single annotators, from the bubbles through resize, pack and unpack, and every damage with its sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from conftest import Result, replace, rewrite

from hkmap.errors import MapError, OutputError, RecordError, ShardError
from hkmap.files.hdf5 import Columns
from hkmap.files.maps import open_writer
from hkmap.maps.annotators import by_user
from hkmap.maps.check import Map
from hkmap.maps.kde import kde_map
from hkmap.maps.resize import resize_map
from hkmap.records import annotator_maps_of
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter
from hkmap.stream.references import load_annotators, load_certainty, load_map

pytestmark = pytest.mark.usefixtures("here")
Hk = Callable[..., Result]
Record = dict[str, Any]

RANDOM = np.random.default_rng(5)
MAPS = RANDOM.random((9, 3, 4), dtype=np.float32)
PNG = bytes(cv2.imencode(".png", RANDOM.integers(0, 256, (12, 10, 3), dtype=np.uint8))[1])
PEOPLE: list[dict[str, Map]] = [{}, {"Dr. Who": MAPS[0], "b@#/ü": MAPS[1]}, {}, {"b@#/ü": MAPS[2]}]


def record(name: str, **keys: Any) -> Record:
    return {"id": name, "image": "photo.png", "size": [10, 12], **keys}


def marked(name: str, *users: str) -> Record:
    places = RANDOM.uniform(2, 8, (len(users), 2)).round(2).tolist()
    return record(name, bubbles=[{"x": x, "y": y, "radius": 2, "user": user}
                                 for (x, y), user in zip(places, users, strict=True)])


def write(name: str, people: list[dict[str, Map]], **options: Any) -> Path:
    with ShardWriter(Path(name), **options) as writer:
        for index, annotators in enumerate(people):
            writer.add(record(f"bird/{index}"), PNG, MAPS[8 - index], annotators=annotators)
    return Path(name)


def same(found: Any, expected: dict[str, Map]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


# bubbles2map --per-annotator


@pytest.mark.parametrize("bandwidth", ["fixed", "radius", "2.5"])
def test_a_map_an_annotator_is_drawn_from_their_own_bubbles(bandwidth: str, hk: Hk) -> None:
    given = marked("7", "ann", "bob", "ann")
    result = hk("bubbles2map", "--per-annotator", "--bandwidth", bandwidth, "--size", 5, "--out", "maps", stdin=[given])
    assert result.exit_code == 0, result.stderr
    (found,) = result.records
    assert found["map"] == "maps/7.npy"
    assert found["annotator_maps"] == {"ann": "maps/7@ann.npy", "bob": "maps/7@bob.npy"}
    alone = hk("bubbles2map", "--bandwidth", bandwidth, "--size", 5, "--out", "joint", stdin=[given]).records[0]
    assert np.array_equal(load_map(found["map"]), load_map(alone["map"]))
    assert "annotator_maps" not in alone
    width = {"fixed": "fixed", "radius": "radius", "2.5": 2.5}[bandwidth]
    for user, values in load_annotators(found).items():
        own = [bubble for bubble in given["bubbles"] if bubble["user"] == user]
        centres = np.array([[bubble["x"], bubble["y"]] for bubble in own])
        radii = np.array([bubble["radius"] for bubble in own], float)
        expected = kde_map(centres, (10, 12), (5, 5), bandwidth=width, radii=radii)
        assert values == pytest.approx(expected, abs=1e-6)


def test_names_are_quoted_so_that_no_two_files_are_one(hk: Hk) -> None:
    records = [marked("a@b", "c"), marked("a", "b@c", "../x", "b")]
    result = hk("bubbles2map", "--per-annotator", "--bandwidth", "fixed", "--size", 5, "--out", "maps", stdin=records)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("maps").iterdir()) == [
        "a%40b.npy", "a%40b@c.npy", "a.npy", "a@..%2Fx.npy", "a@b%40c.npy", "a@b.npy"]


def test_nobody_marked_anything(hk: Hk) -> None:
    result = hk("bubbles2map", "--per-annotator", "--empty", "zeros", "--size", 5, "--out", "maps",
                stdin=[record("7", bubbles=[])])
    assert "annotator_maps" not in result.records[0]
    assert not load_map(result.records[0]["map"]).any()


@pytest.mark.parametrize("nobody", [{}, {"user": None}, {"user": ""}])
def test_a_bubble_without_a_user_is_an_error(nobody: Record, hk: Hk) -> None:
    given = marked("7", "ann", "bob")
    del given["bubbles"][1]["user"]
    given["bubbles"][1].update(nobody)
    result = hk("bubbles2map", "--per-annotator", "--out", "maps", stdin=[given])
    assert result.exit_code == 1
    assert 'record "7": bubbles[1] has no user, expected one for each; name the users, or' in result.stderr
    assert not Path("maps").exists()


def test_an_annotator_who_marked_nothing_on_the_image_is_named(hk: Hk) -> None:
    given = marked("7", "ann", "bob")
    given["bubbles"][1].update(x=9000, y=9000)
    result = hk("bubbles2map", "--per-annotator", "--bandwidth", "fixed", "--out", "maps", stdin=[given])
    assert result.exit_code == 1
    assert 'annotator "bob", record "7": all 1 bubbles lie far off the image' in result.stderr
    assert not Path("maps").exists()        # nor is the joint map left behind


def test_users_stand_in_the_order_in_which_they_come() -> None:
    points = [{"x": index, "y": 0, "user": user} for index, user in enumerate("bab")]
    found = by_user({"id": "7", "points": points, "boxes": []}, ["points", "boxes", "polygons"])
    assert {user: [point["x"] for point in own["points"]] for user, own in found.items()} == {"b": [0, 2], "a": [1]}
    assert list(found) == ["b", "a"]


# records and references


@pytest.mark.parametrize("value", [3, [], ["a.npy"], {"a": 3}, {"": "a.npy"}, {"a": ""}, {"a": "x\0.npy"}])
def test_annotator_maps_are_names_and_references(value: object) -> None:
    with pytest.raises(RecordError, match=r'record "7": annotator_maps is .*; expected names and map references'):
        annotator_maps_of({"id": "7", "annotator_maps": value})


@pytest.mark.parametrize("value", [None, {}])
def test_no_annotator_maps_are_none(value: object) -> None:
    assert annotator_maps_of({"id": "7"}) == annotator_maps_of({"id": "7", "annotator_maps": value}) == {}


def test_a_reference_into_a_shard_reads_an_annotators_map() -> None:
    write("train.h5", PEOPLE)
    assert np.array_equal(load_map("train.h5#1@Dr.%20Who"), MAPS[0])
    assert np.array_equal(load_map("train.h5#3@b%40%23%2F%C3%BC"), MAPS[2])
    assert np.array_equal(load_map("train.h5#1"), MAPS[7])


@pytest.mark.parametrize(("reference", "sentence"), [
    ("train.h5#1@bob", 'train.h5#1@bob: record 1 has no map of "bob"; its annotators: Dr. Who, b@#/ü'),
    ("train.h5#0@bob", 'record 0 has no map of "bob"; its annotators: none'),
    ("train.h5#4@bob", "train.h5#4@bob: the shard has 4 records, counted from 0"),
    ("absent.h5#4@bob", "absent.h5: No such file or directory"),
    ("train.h5@bob", "expected a map in a .npy or .png file, or a row of an .h5 file"),
])
def test_references_to_no_annotators_map(reference: str, sentence: str) -> None:
    write("train.h5", PEOPLE)
    with pytest.raises(MapError) as caught:
        load_map(reference)
    assert sentence in str(caught.value)


def test_maps_that_are_no_shard_have_no_annotators() -> None:
    with open_writer(Path("maps.h5")) as writer:
        writer.save("7", MAPS[0])
    with pytest.raises(MapError, match=r"maps\.h5: HDF5, but no shard"):
        load_map("maps.h5#0@ann")
    with pytest.raises(MapError, match=r"expected a map in a \.npy"):
        load_certainty("maps.h5#0@ann")


@pytest.mark.parametrize("out", ["maps", "maps.h5"])
def test_one_annotator_has_one_map_of_a_record(out: str) -> None:
    with open_writer(Path(out)) as writer:
        for annotator in (None, "ann", "bob"):
            writer.save("7", MAPS[0], annotator)
        with pytest.raises(OutputError, match='record "7": comes twice'):
            writer.save("7", MAPS[1], "ann")


# resize

def test_the_certainty_of_the_map_counts_for_its_annotators_too(hk: Hk) -> None:
    whole, own = np.array([[0.8, 0.2], [0.4, 0]], np.float32), np.array([[1, 0.4], [0.6, 0.9]], np.float32)
    certainty = np.array([[1, 1], [1, 0]], np.float32)
    for name, values in {"map": whole, "own": own, "small": own[:1], "certainty": certainty}.items():
        np.save(f"{name}.npy", values)
    item = record("7", map="map.npy", certainty="certainty.npy", annotator_maps={"a": "own.npy", "b": "small.npy"})
    [found] = hk("resize", "--size", 1, "--out", "one", stdin=[item]).records
    people = load_annotators(found)
    assert people["a"][0, 0] == pytest.approx((1 + 0.4 + 0.6) / 3)      # nobody knows the fourth cell
    assert people["b"][0, 0] == pytest.approx((1 + 0.4) / 2)            # of another size: all known


@pytest.mark.parametrize("out", ["small", "small.h5"])
def test_resize_takes_the_annotators_along(out: str, hk: Hk) -> None:
    made = hk("bubbles2map", "--per-annotator", "--bandwidth", "fixed", "--size", 12, "--out", "maps",
              stdin=[marked("a", "x", "y"), marked("b", "y")])
    result = hk("resize", "--size", 3, "--normalise", "max", "--out", out, stdin=made.stdout)
    assert result.exit_code == 0, result.stderr
    for before, after in zip(made.records, result.records, strict=True):
        expected = {name: resize_map(values, (3, 3)) for name, values in load_annotators(before).items()}
        assert same(load_annotators(after), {name: values / values.max() for name, values in expected.items()})


# shards


@pytest.mark.parametrize("people", [PEOPLE, PEOPLE[1:], [*PEOPLE, {}]])
def test_what_went_in_comes_out(people: list[dict[str, Map]]) -> None:
    reader = ShardReader(write("train.h5", people))
    assert reader.annotator_map_count == 3
    for index, expected in enumerate(people):
        sample = reader.read(index)
        assert same(sample.annotators, expected)
        assert np.array_equal(reader.maps[index], MAPS[8 - index])


def test_a_shard_without_annotators_is_what_it_always_was() -> None:
    write("with.h5", [{}, {}])
    with ShardWriter(Path("without.h5")) as writer:
        for index in range(2):
            writer.add(record(f"bird/{index}"), PNG, MAPS[8 - index])
    assert Path("with.h5").read_bytes() == Path("without.h5").read_bytes()
    assert not any(name.startswith("annotator") for name in Columns(Path("with.h5")).by_name)


def test_shards_that_roll_over_keep_their_own() -> None:
    write("train.h5", PEOPLE, shard_size=2)
    first, second = (ShardReader(Path(f"train-0000{number}.h5")) for number in range(2))
    assert [first.annotator_map_count, second.annotator_map_count] == [2, 1]
    assert same(second.read(1).annotators, PEOPLE[3])


@pytest.mark.parametrize(("values", "annotators", "kind", "sentence"), [
    (None, {"a": MAPS[0]}, RecordError, 'record "7": has maps of single annotators but no map; add the map of all'),
    (MAPS[0], {"a": MAPS[0][:2]}, OutputError, 'record "7": map of annotator "a": 2x4 (height x width), but'),
    (MAPS[0], {"a": MAPS[0] * 3}, MapError, 'record "7": map of annotator "a": values span'),
])
def test_bad_annotator_maps_are_refused(values, annotators, kind, sentence) -> None:
    with ShardWriter(Path("train.h5")) as writer:
        writer.add(record("1"), PNG, MAPS[0])
        with pytest.raises(kind) as caught:
            writer.add(record("7"), PNG, values, annotators=annotators)
    assert sentence in str(caught.value)
    assert len(ShardReader(Path("train.h5"))) == 1


def rewritten(change: Callable[[h5py.File], object]) -> Path:
    rewrite(write("train.h5", PEOPLE), change)
    return Path("train.h5")


OFFSETS, NAMES = "annotator_maps/offsets", "annotator_maps/names/offsets"


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda file: file.pop("annotator_maps/names/bytes"), "has no dataset annotator_maps/names/bytes"),
    (lambda file: file.pop("annotator_maps/offsets"), "has no dataset annotator_maps/offsets"),
    (replace(OFFSETS, np.array([0, 0, 2, 1, 3], "<u8")), '"bird/2"): annotator_maps/offsets do not rise'),
    (replace(OFFSETS, np.array([0, 0, 2, 2, 9], "<u8")), '"bird/3"): annotator_maps/offsets do not rise'),
    (replace(OFFSETS, np.array([0, 3], "<u8")), "expected uint64 with 1 dimensions and 5 rows"),
    (replace("annotator_maps/maps", MAPS[:3, :2]), "annotator_maps/maps and maps differ in size"),
    (replace("annotator_maps/maps", MAPS[:3].astype("f8")), "annotator_maps/maps is float64"),
    (replace(NAMES, np.array([0, 7, 6, 19], "<u8")), '"bird/1"): annotator_maps/offsets do not'),
    (replace(NAMES, np.array([0, 7, 13, 18], "<u8")), '"bird/3"): annotator_maps/offsets do not'),
    (replace(NAMES, np.array([0, 19], "<u8")), "names and annotator_maps/maps differ in number"),
    (replace(NAMES, np.zeros(0, "<u8")), "names and annotator_maps/maps differ in number"),
])
def test_what_does_not_fit_the_layout_is_refused(change: Callable[[h5py.File], object], sentence: str) -> None:
    with pytest.raises(ShardError) as caught:
        ShardReader(rewritten(change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda file: file["annotator_maps/maps"].__setitem__((0, 0, 0), 0.5), "its checksum does not fit"),
    (lambda file: file["annotator_maps/names/bytes"].__setitem__(0, ord("X")), "its checksum does not fit"),
    (lambda file: file["annotator_maps/names/bytes"].__setitem__(0, 0xFF), "an annotator's name is no UTF-8 text"),
    (replace("annotator_maps/offsets", np.array([0, 0, 1, 2, 3], "<u8")), "its checksum does not fit"),
])
def test_damage_in_an_annotators_map_is_found(change: Callable[[h5py.File], object], sentence: str) -> None:
    reader = ShardReader(rewritten(change))
    assert reader.read(0).record["id"] == "bird/0"
    with pytest.raises(ShardError, match=sentence):
        reader.read(1)

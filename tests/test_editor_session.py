"""Sessions of editing: nothing is lost, nothing changes unasked, and what comes out packs, trains and is rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_shard
from editor_client import network

from hkmap.editor import session as sessions
from hkmap.editor.session import MOST_EARLIER, EditSession
from hkmap.editor.work import MOST_STROKES, Work
from hkmap.errors import HkmapError, MapError, OutputError, RecordError
from hkmap.files.images import encode_png
from hkmap.maps.strokes import Stroke
from hkmap.stream.references import load_certainty, load_map

ADD = Stroke("add", ((60.0, 50.0), (90.0, 70.0)), radius=20.0)
REMOVE = Stroke("remove", ((40.0, 60.0),), radius=15.0, strength=0.7)
UNKNOWN = Stroke("unknown", ((0.0, 0.0), (30.0, 0.0), (30.0, 96.0), (0.0, 96.0)), outline=True)
SIZES = [(14, 14), (23, 23), (56, 40), (224, 224), (1, 1)]


def a_map(size=(14, 14), seed=0):
    return np.random.default_rng(seed).random(size, np.float32)


def record_of(folder: Path, identifier: str = "0", size=(14, 14), frame=(128, 96), **maps):
    """A record with an image of ``frame`` (width, height) and, unless None, a map."""
    pixels = np.random.default_rng(1).integers(0, 256, (frame[1], frame[0], 3), dtype=np.uint8)
    (folder / f"{identifier}.png").write_bytes(encode_png(pixels))
    record = {"id": identifier, "image": str(folder / f"{identifier}.png"), "label": 1, "class": "b"}
    for key, values in {"map": a_map(size), **maps}.items():
        if values is not None:
            np.save(folder / f"{identifier}-{key}.npy", values)
            record[key] = str(folder / f"{identifier}-{key}.npy")
    return record


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def session(tmp_path, folder):
    """Return new sessions on the same folder, of a record with a map, or of those given."""

    def begin(*records, **options):
        return EditSession(records or (record_of(folder),), tmp_path / "out", **options)

    return begin


def same(one, other):
    """Whether two maps, and what is known of them, are equal to the bit."""
    if (one.certainty is None) != (other.certainty is None):
        return False
    return np.array_equal(one.map, other.map) and (
        one.certainty is None or np.array_equal(one.certainty, other.certainty)
    )


# lossless


@pytest.mark.parametrize("size", SIZES)
def test_a_map_that_nobody_edits_keeps_its_bits(session, folder, size):
    known = (a_map(size, 1) > 0.3) * a_map(size, 2)
    record = record_of(folder, size=size, map=a_map(size) * (known > 0), certainty=known)
    for number in range(100):
        if number % 10 == 0:
            reader = session(record)
        opened = reader.open(0, "ana")
        assert np.array_equal(opened.edited.map, np.load(record["map"]))
        assert np.array_equal(opened.edited.certainty, known)
        reader._open.clear()
    reader.mark(0, "ana", "confirmed")
    saved, = reader.records_out()
    assert np.array_equal(load_map(saved["map"]), np.load(record["map"]))
    assert np.array_equal(load_certainty(saved["certainty"]), known)


def test_undo_and_redo_restore_every_bit_however_far_they_go(session):
    dice = np.random.default_rng(0)
    editing = session()
    found = [editing.open(0, "ana").edited]
    for number in range(MOST_EARLIER + 10):
        tool = ("add", "remove", "invert", "unknown", "known")[number % 5]
        points = tuple((float(x), float(y)) for x, y in dice.random((3, 2)) * (128, 96))
        found.append(editing.paint(0, "ana", Stroke(tool, points, radius=9.0, strength=0.6)).edited)
    for number in reversed(range(len(found) - 1)):
        editing = session() if number % 8 == 0 else editing     # as if the server had been killed
        assert same(editing.undo(0, "ana").edited, found[number])
    assert same(editing.undo(0, "ana").edited, found[0])      # nothing is left to undo
    for number in range(1, len(found)):
        editing = session() if number % 8 == 0 else editing
        assert same(editing.redo(0, "ana").edited, found[number])
    assert same(session().open(0, "ana").edited, found[-1])


# states and revisions


def test_each_change_raises_the_revision_by_one_and_says_how_far_the_work_is(session):
    editing = session()
    changes = [
        (lambda: editing.paint(0, "ana", ADD), "edited"), (lambda: editing.mark(0, "ana", "confirmed"), "confirmed"),
        (lambda: editing.redo(0, "ana"), "confirmed"),      # of nothing, and a page waits for the next revision
        (lambda: editing.paint(0, "ana", REMOVE), "edited"), (lambda: editing.mark(0, "ana", "skipped"), "skipped"),
        (lambda: editing.mark(0, "ana", "edited"), "edited"), (lambda: editing.undo(0, "ana"), "edited"),
        (lambda: editing.undo(0, "ana"), "untouched"), (lambda: editing.redo(0, "ana"), "edited"),
        (lambda: editing.start(0, "ana", "empty"), "edited"), (lambda: editing.reset(0, "ana"), "edited"),
        (lambda: editing.start(0, "ana", "map"), "untouched"),
        (lambda: editing.mark(0, "ana", "confirmed"), "confirmed"), (lambda: editing.undo(0, "ana"), "confirmed"),
        (lambda: editing.start(0, "ana", "map"), "confirmed"),
    ]
    assert editing.work(0, "ana") == Work("map")
    for revision, (change, state) in enumerate(changes, start=1):
        work = change().work
        assert (work.revision, work.state) == (revision, state)
        assert session().open(0, "ana").work == work == session().work(0, "ana")
        assert session().states("ana") == editing.states("ana") == [state]
    assert editing.states("ben") == ["untouched"]


def test_a_reset_is_taken_back_stroke_by_stroke(session):
    editing = session()
    found = [editing.open(0, "ana").edited, *(editing.paint(0, "ana", stroke).edited for stroke in (ADD, REMOVE))]
    assert same(editing.reset(0, "ana").edited, found[0])
    assert same(editing.redo(0, "ana").edited, found[1])
    assert same(editing.redo(0, "ana").edited, found[2])
    assert editing.undo(0, "ana").work.undone == (REMOVE,)
    assert editing.paint(0, "ana", ADD).work.undone == ()


def test_strokes_start_from_another_map(session, folder):
    record = record_of(folder, attention=a_map((7, 9), 5), certainty=np.ones((14, 14), np.float32))
    editing = session(record, size=(5, 6))
    assert editing.starts(0) == ["map", "attention", "empty"]
    first = editing.paint(0, "ana", ADD).edited
    assert np.array_equal(editing.base(0, "attention").map, np.load(record["attention"]))
    opened = editing.start(0, "ana", "attention")
    assert opened.work.strokes == (ADD,)
    assert opened.edited.map.shape == (7, 9)
    assert opened.edited.certainty is None
    assert editing.start(0, "ana", "empty").edited.map.shape == (5, 6)
    assert same(editing.start(0, "ana", "map").edited, first)


def test_a_map_of_zeros_is_as_large_as_the_records_own(session, folder):
    own, bare = record_of(folder, size=(9, 4)), record_of(folder, "1", map=None)
    for options, sizes in (({}, [(9, 4), (14, 14)]), ({"network": network()}, [(9, 4), (8, 8)])):
        editing = session(own, bare, **options)
        assert [editing.base(number, "empty").map.shape for number in (0, 1)] == sizes


@pytest.mark.parametrize(("begin", "remedy"), [("map", "omit it"), ("attention", "give --from RUN, or omit it")])
def test_a_start_that_no_record_has_is_refused(session, folder, begin, remedy):
    with pytest.raises(RecordError, match=f'--start {begin}: no record has a map under "{begin}"; {remedy}'):
        session(record_of(folder, map=None), begin=begin)
    editing = session(record_of(folder, map=None), record_of(folder, "1"), begin="map")
    assert editing.open(0, "ana").work.start == "empty"


def test_the_networks_map_is_kept_where_strokes_start_from_it(session, folder):
    editing = session(record_of(folder, map=None), network=network())
    assert editing.starts(0) == ["attention", "empty"]
    drawn = editing.seen(0).attention
    assert np.array_equal(editing.paint(0, "ana", ADD).base.map, drawn)
    found = editing.open(0, "ana").edited
    with torch.no_grad():       # a network that was trained on
        other = network()
        next(other.model.network.attention.parameters()).mul_(-1)
    for later in (session(record_of(folder, map=None), network=other), session(record_of(folder, map=None))):
        assert same(later.open(0, "ana").edited, found)
        assert later.open(0, "ben").work.start == "attention"
    saved, = editing.records_out()
    assert np.array_equal(load_map(saved["attention"]), drawn)
    assert saved["edited_from"] == saved["attention"]


def test_records_without_a_map_an_image_or_a_size(session, folder):
    bare, blind = record_of(folder, map=None), {"id": "1", "size": [128, 96]}
    editing = session(bare, blind, {"id": "2"}, {"id": "3", "image": str(folder / "none.png")})
    assert editing.starts(0) == ["empty"]
    for number in (0, 1):
        assert editing.paint(number, "ana", ADD).edited.map.shape == (14, 14)
    assert editing.image(0).shape == (96, 128, 3)
    wrong = {1: 'record "1": no key "image"', 2: 'record "2": has neither size nor image', 3: "none.png"}
    for number, told in wrong.items():
        with pytest.raises(HkmapError, match=told):
            editing.image(number) if number == 1 else editing.paint(number, "ana", ADD)
    assert editing.states("ana") == ["edited", "edited", "untouched", "untouched"]


# frames


def test_strokes_are_in_the_frame_of_the_record(session, folder):
    whole = record_of(folder, map=None, frame=(128, 96))
    halved = {**whole, "id": "1", "size": [64, 48]}
    editing = session(whole, halved)
    assert [editing.frame(number) for number in (0, 1)] == [(128, 96), (64, 48)]
    half = Stroke("add", tuple((x / 2, y / 2) for x, y in ADD.points), radius=ADD.radius / 2)
    first, second = editing.paint(0, "ana", ADD).edited, editing.paint(1, "ana", half).edited
    assert np.allclose(first.map, second.map, atol=1e-6)
    assert first.map[50 * 14 // 96, 60 * 14 // 128] > 0.9
    assert first.map[13, 0] == 0


@pytest.mark.parametrize("store", ["encoded", "pixels"])
def test_records_of_a_shard(hk, session, folder, tmp_path, store):
    """Pixels are scaled to 16 x 16, and the record's coordinates stay in the image's."""
    lines = [{**record_of(folder, str(number)), "size": [128, 96]} for number in range(2)]
    options = ["--store", "pixels", "--size", 16] if store == "pixels" else []
    assert hk("pack", tmp_path / "x.h5", *options, stdin=lines).exit_code == 0
    rows = [f"{tmp_path}/x.h5#{number}" for number in (0, 1)]
    shards = [{**line, "image": row, "map": row} for line, row in zip(lines, rows, strict=True)]
    editing, plain = session(*shards, network=network()), EditSession(lines, tmp_path / "plain")
    assert editing.image(1).shape == ((16, 16, 3) if store == "pixels" else (96, 128, 3))
    assert editing.frame(1) == (128, 96)
    assert same(editing.paint(1, "ana", ADD).edited, plain.paint(1, "ana", ADD).edited)
    assert len(editing.guesses(1, editing.open(1, "ana").edited)) == 3


def test_few_paintings_are_kept_and_fewer_of_large_maps(session, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_NUMBERS", 50 * 224 * 224)
    editing = session(*({"id": str(number), "size": [64, 64]} for number in range(20)))
    for number in range(20):
        editing.open(number, "ana")
        editing.open(0, "ana")
    assert list(editing._open) == [*((number, "ana") for number in range(9, 20)), (0, "ana")]     # of 4 layers each
    for _ in range(9):
        editing.paint(0, "ana", ADD)
    assert len(editing.open(0, "ana").earlier) == 6
    assert sum(one.numbers for one in editing._open.values()) <= 50 * 224 * 224
    blank = editing.open(19, "ana").edited
    for _ in range(9):
        found = editing.undo(0, "ana").edited
    assert same(found, blank)


# what comes out


def test_one_person(session, folder):
    lines = [record_of(folder, str(number)) for number in range(4)]
    editing = session(*lines, network=network())
    painted = editing.paint(1, "ana", ADD)
    editing.paint(2, "ana", REMOVE)
    editing.mark(2, "ana", "skipped")
    editing.mark(3, "ana", "confirmed")
    first, second, third, fourth = editing.records_out()
    assert (first, third) == (lines[0], lines[2])
    assert np.array_equal(load_map(second["map"]), painted.edited.map)
    assert np.array_equal(load_map(fourth["map"]), np.load(lines[3]["map"]))
    assert second["edited_by"] == "ana"
    assert (second["edited_at"], second["edited_from"]) == (painted.work.at, lines[1]["map"])
    path, _, row = second["strokes"].rpartition("#")
    kept = json.loads(Path(path).read_text().splitlines()[int(row)])
    assert (kept["id"], len(kept["strokes"])) == ("1", 1)
    seen, answer = editing.seen(1), editing.answer(1, painted.edited)
    assert (second["prediction"], second["edited_prediction"]) == (seen.before.argmax(), answer.argmax())
    assert second["confidence"] == pytest.approx(float(seen.before.max()), abs=1e-6)
    assert second["edited_confidence"] == pytest.approx(float(answer.max()), abs=1e-6)
    assert second["edited_predicted_class"] == "abc"[second["edited_prediction"]]


def test_several_people(hk, session, folder, tmp_path):
    lines = [record_of(folder, str(number), attention=a_map((7, 7), 3)) for number in range(3)]
    editing = session(*lines)
    ana = [editing.paint(number, "ana", ADD).edited for number in range(3)]
    ben = [editing.paint(number, "ben", stroke).edited for number, stroke in enumerate((REMOVE, UNKNOWN))]
    editing.start(2, "cleo", "attention")
    made = list(editing.records_out())
    assert [one["edited_by"] for one in made] == [["ana", "ben"], ["ana", "ben"], ["ana", "cleo"]]
    assert np.allclose(load_map(made[0]["map"]), (ana[0].map + ben[0].map) / 2, atol=1e-6)
    known = ben[1].certainty
    mean = np.where(known > 0, (ana[1].map + known * ben[1].map) / (1 + known), ana[1].map)
    assert np.allclose(load_map(made[1]["map"]), mean, atol=1e-6)
    assert np.allclose(load_certainty(made[1]["certainty"]), (1 + known) / 2)
    assert np.array_equal(load_map(made[0]["annotator_maps"]["ben"]), ben[0].map)
    small = ana[2].map.reshape(7, 2, 7, 2).mean((1, 3))
    assert np.allclose(load_map(made[2]["map"]), (small + a_map((7, 7), 3)) / 2, atol=1e-6)
    assert made[2]["edited_from"] == {"ana": lines[2]["map"], "cleo": lines[2]["attention"]}
    assert [row[:5] for row in editing.table()] == [("ana", 0, 3, 0, 3), ("ben", 0, 2, 0, 2), ("cleo", 0, 1, 0, 0)]
    assert session(*lines).table() == editing.table()
    assert editing.table()[1].changed == editing.work(1, "ben").at
    told = hk("agreement", "--resamples", 100, stdin=made[:2])
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["images"] == 2
    packed = hk("pack", tmp_path / "x.h5", stdin=made[:2])
    assert packed.exit_code == 0, packed.stderr


def test_what_nobody_knows_packs_and_fine_tunes(hk, session, tmp_path):
    write_shard(tmp_path / "train.h5", 6)
    small = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--batch-size", 3]
    assert hk("train", tmp_path / "train.h5", *small, "--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    records = hk("unpack", tmp_path / "train.h5", "--out", tmp_path / "unpacked").records
    editing = session(*records)
    editing.paint(2, "ana", Stroke("unknown", ((4.0, 4.0),), radius=3.0))
    made = list(editing.records_out())
    assert hk("pack", tmp_path / "edited.h5", stdin=made).exit_code == 0
    assert (load_certainty(f"{tmp_path}/edited.h5#2") < 1).any()
    tuned = hk("finetune", tmp_path / "edited.h5", "--from", tmp_path / "run", "--epochs", 1, "--batch-size", 3,
               "--out", tmp_path / "tuned")
    assert tuned.exit_code == 0, tuned.stderr


def test_a_script_of_the_editors_lines_gives_the_same_maps(hk, session, folder, tmp_path):
    known = (a_map(seed=4) > 0.2).astype(np.float32)
    lines = [
        record_of(folder, str(number), attention=a_map((7, 7), 9), map=a_map() * known, certainty=known)
        for number in range(5)
    ]
    editing = session(*lines)
    for number in range(5):
        editing.paint(number, "ana", ADD)
        editing.paint(number, "ana", UNKNOWN)
        editing.paint(number, "ana", REMOVE)
    editing.start(1, "ana", "attention")
    editing.mark(2, "ana", "skipped")
    editing.reset(3, "ana")
    made = list(editing.records_out())
    script = tmp_path / "s.jsonl"
    script.write_bytes(b"".join(path.read_bytes() for path in sorted((tmp_path / "out/strokes/ana").iterdir())))
    again = hk("edit", "--script", script, "--out", tmp_path / "again", stdin=lines)
    assert again.exit_code == 0, again.stderr
    for ours, theirs in zip(made, again.records, strict=True):
        for key in ("map", "certainty"):
            assert np.array_equal(load_map(ours[key]), load_map(theirs[key])), (ours["id"], key)
        assert ours.get("edited_at") == theirs.get("edited_at")
    assert again.records[2:4] == lines[2:4]


def test_strokes_are_rendered_at_another_size(hk, session, folder, tmp_path):
    """The map is resized first; the strokes then change the cells of the new size by their area."""
    record = record_of(folder, map=np.full((14, 14), 0.5, np.float32))
    editing = session(record)
    editing.paint(0, "ana", ADD)
    painted = editing.paint(0, "ana", REMOVE).edited.map
    larger = hk("resize", "--size", 28, "--out", tmp_path / "large", stdin=[record]).records
    made = hk("edit", "--script", tmp_path / "out/strokes/ana/0.jsonl", "--out", tmp_path / "again", stdin=larger)
    found = load_map(made.records[0]["map"])
    assert np.allclose(found.reshape(14, 2, 14, 2).mean((1, 3)), painted, atol=1e-6)
    assert np.ptp(found.reshape(14, 2, 14, 2), (1, 3)).max() > 0.1      # it is finer, not a map enlarged


# what is refused


def test_maps_are_not_written_over_those_that_they_start_from(session, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for key in ("map", "attention"):
        with pytest.raises(OutputError, match=f'record "0": its {key} .*0.npy lies in .*out, where finished maps go'):
            session({**record_of(folder), key: str(tmp_path / "in/../out/0.npy")})
    editing = session()
    editing.paint(0, "ana", ADD)
    with pytest.raises(OutputError, match="give the records as they were before they were edited"):
        session(*editing.records_out())


@pytest.mark.parametrize("user", ["", ".", "..", "x" * 121, "鳥" * 14, "\udcff", "a" * 60 + "/" * 30])
def test_a_person_whose_name_no_folder_can_have(session, user):
    with pytest.raises(OutputError, match=r"the person .*: no folder can have this name"):
        session().paint(0, user, ADD)


@pytest.mark.parametrize("user", ["ana", "Ana María", "../../etc", "a/b", "鳥"])
def test_the_names_of_people_and_records_stay_within_the_folder(tmp_path, user):
    lines = [{"id": identifier, "size": [9, 9]} for identifier in ("../x", "a/b", "..")]
    editing = EditSession(lines, tmp_path / "out")
    for number in range(3):
        editing.paint(number, user, ADD)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out/strokes").glob("*/*.jsonl"))) == 3
    assert [row.user for row in editing.table()] == [user]


@pytest.mark.parametrize(("damage", "told"), [
    (lambda path: path.write_text(path.read_text()[:-9]), "0.jsonl: not a JSON object"),
    (lambda path: path.write_text(""), "0.jsonl: not a JSON object"),
    (lambda path: path.write_text('{"id": "7"}'), '0.jsonl: is of record "7", expected "0"; give the file its name'),
    (lambda path: path.write_text('{"id": "0"}'), "0.jsonl: start is None; expected the key of a map, or empty"),
    (lambda path: path.write_text(path.read_text().replace('"edited"', '"done"')),
     '0.jsonl: state is "done"; expected one of untouched, skipped, edited, confirmed'),
    (lambda path: path.write_text(path.read_text().replace('"revision": 1', '"revision": -1')),
     "0.jsonl: revision is -1; expected a number of changes"),
    (lambda path: (path.unlink(), path.mkdir()), "0.jsonl: a folder, expected a regular file"),
])
def test_a_damaged_file_of_work_is_named_at_once(session, tmp_path, damage, told):
    session().paint(0, "ana", ADD)
    damage(tmp_path / "out/strokes/ana/0.jsonl")
    with pytest.raises(RecordError) as raised:
        session()
    assert told in str(raised.value)


@pytest.mark.parametrize(("was", "now", "told"), [
    ('"add"', '"ad"', "0.jsonl, strokes 1: tool 'ad' is unknown; did you mean 'add'?"),
    ('"radius": 20.0', '"radius": 0', "0.jsonl, strokes 1: a brush without a radius"),
    ('"start": "map"', '"start": "image"', 'record "0": has no map under "image"'),
])
def test_a_damaged_stroke_is_named_when_its_record_is_opened(session, tmp_path, was, now, told):
    session().paint(0, "ana", ADD)
    path = tmp_path / "out/strokes/ana/0.jsonl"
    path.write_text(path.read_text().replace(was, now))
    with pytest.raises(HkmapError) as raised:
        session().open(0, "ana")
    assert told in str(raised.value)


def test_what_is_no_change_is_refused_and_nothing_is_kept(session, folder, tmp_path, monkeypatch):
    editing = session()
    before = editing.paint(0, "ana", ADD)
    tangle = Stroke("add", tuple((float(x % 128), float(x * 7 % 96)) for x in range(40_000)), outline=True)
    with pytest.raises(RecordError, match='state is untouched; expected edited, confirmed or skipped'):
        editing.mark(0, "ana", "untouched")
    with pytest.raises(RecordError, match='has no map under "attention", from which its strokes start'):
        editing.start(0, "ana", "attention")
    with pytest.raises(MapError):
        editing.paint(0, "ana", tangle)
    monkeypatch.setattr("hkmap.editor.work.MOST_STROKES", 1)
    with pytest.raises(RecordError, match="over 1 strokes on one map; confirm it, or reset it and paint again"):
        editing.paint(0, "ana", ADD)
    assert MOST_STROKES > 1000
    for found in (editing, session()):
        assert found.open(0, "ana").work == before.work
    with pytest.raises(RecordError, match='record "0": comes twice, and there is one map of each; make the ids unique'):
        session(record_of(folder), record_of(folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: a file; expected a folder for maps and strokes"):
        EditSession([record_of(folder)], tmp_path / "file")


@pytest.mark.parametrize("change", ["paint", "mark"])
def test_a_change_that_cannot_be_written_did_not_happen(session, monkeypatch, change):
    editing = session()
    before = editing.paint(0, "ana", ADD)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            editing.paint(0, "ana", REMOVE) if change == "paint" else editing.mark(0, "ana", "confirmed")
    assert editing.open(0, "ana").work == before.work == session().work(0, "ana")
    assert editing.paint(0, "ana", REMOVE).work.revision == 2       # tried again
    assert editing.mark(0, "ana", "confirmed").work.state == session().states("ana")[0] == "confirmed"

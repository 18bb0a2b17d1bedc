"""The editor's server: what a page is told, that what it says is kept, and answers that are the network's own."""

from __future__ import annotations

import base64
import errno
import json
import threading

import cv2
import numpy as np
import pytest
import torch
from editor_client import DAB, images, network, site
from PIL import Image

from hkmap.editor.folder import WorkFolder
from hkmap.editor.session import EditSession
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, paint
from hkmap.stream.references import load_map


@pytest.fixture(autouse=True)
def no_foresight(monkeypatch):
    """What nobody asks for is not computed, however slow a test is."""
    monkeypatch.setattr("hkmap.editor.server.QUIET", 1000)


@pytest.fixture
def session(tmp_path):
    return EditSession(images(tmp_path), tmp_path / "out", network=network())


@pytest.fixture
def served(session):
    with site(session, ("ana", "ben")) as found:
        yield found


def base_of(opened):
    return np.frombuffer(base64.b64decode(opened["map"]), "<f4").reshape(opened["size"]).copy()


# the list of records


def test_the_list_says_what_there_is_and_how_far_each_person_is(served, session):
    with served.page() as page:
        page.ask("open", "opened", n=1)
        page.ask("mark", "saved", n=1, revision=0, state="confirmed")
    status, headers, body = served.get("/records.json")
    listed = json.loads(body)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert {key: listed[key] for key in ("user", "title", "classes", "network", "order", "orders", "at")} == {
        "user": "ana", "title": "out", "classes": ["a", "b", "c"], "network": "resnet8+abn", "order": "given",
        "orders": {"given": [0, 1, 2]}, "at": 1,
    }
    assert [record["state"] for record in listed["records"]] == ["untouched", "confirmed", "untouched"]
    assert listed["records"][0] == {
        "id": "r0", "label": 0, "class": None, "prediction": None, "confidence": None, "now": None,
        "state": "untouched",
    }
    other = json.loads(served.get("/records.json", user="ben")[2])
    assert {record["state"] for record in other["records"]} == {"untouched"}


def test_a_quiet_page_is_told_what_the_network_answers_to_all_records(served, session, monkeypatch):
    session.paint(1, "ana", Stroke("invert"))
    monkeypatch.setattr("hkmap.editor.server.QUIET", 0)
    asked, outlook, both = [], session.outlook, threading.Event()
    monkeypatch.setattr(session, "outlook", lambda *which: (both.wait(30), asked.append(which), outlook(*which))[2])
    with served.page() as page, served.page() as other:
        other.ask("open", "opened", n=0)
        both.set()
        known = [page.hear("known") for _ in range(3)]
        assert [other.hear("known") for _ in range(3)] == known
        assert asked == [(0, "ana"), (1, "ana"), (2, "ana")]
    monkeypatch.undo()
    for number, told in enumerate(known):
        before, now = session.seen(number).before, session.answer(number, session.open(number, "ana").edited)
        assert told == {"of": "known", "n": number, "prediction": before.argmax(), "now": now.argmax(),
                        "confidence": pytest.approx(before.max(), abs=1e-6)}
    listed = json.loads(served.get("/records.json")[2])["records"]
    assert [{key: record[key] for key in ("prediction", "confidence", "now")} for record in listed] == [
        {key: told[key] for key in ("prediction", "confidence", "now")} for told in known
    ]


def test_a_class_is_a_text_for_the_page(tmp_path):
    with site(EditSession([{"id": "0", "class": 5}, {"id": "1", "class": None}], tmp_path / "out")) as served:
        listed = json.loads(served.get("/records.json")[2])["records"]
    assert [record["class"] for record in listed] == ["5", None]


def test_a_server_that_starts_again_knows_where_a_person_was(session):
    session.paint(2, "ana", Stroke("add"))
    with site(EditSession(session.records, session.folder.out)) as again:
        listed = json.loads(again.get("/records.json")[2])
    assert (listed["at"], listed["network"], listed["classes"]) == (2, None, [])


def test_who_comes_first_begins_with_the_first_of_the_order(session):
    with site(session, orders={"given": [0, 1, 2], "confidence": [2, 0, 1]}, order="confidence") as served:
        listed = json.loads(served.get("/records.json")[2])
    assert (listed["at"], listed["order"], listed["orders"]["confidence"]) == (2, "confidence", [2, 0, 1])


# painting


def test_answers_equal_the_network_with_the_painted_map(tmp_path):
    live = network()
    records = images(tmp_path, size=(16, 16))
    with site(EditSession(records, tmp_path / "out", network=live)) as served, served.page() as page:
        opened = page.ask("open", "opened", n=1)
        own = page.hear("answer")
        stroke = {**DAB, "points": [[3, 12], [9, 4]], "strength": 0.8}
        page.ask("paint", "saved", n=1, revision=0, stroke=stroke)
        edited = page.hear("answer")
    model = live.model
    base = base_of(opened)
    painted = paint([Stroke("add", ((3, 12), (9, 4)), 6, strength=0.8)], Weighted(base, None), (16, 16)).map
    image = np.asarray(Image.open(records[1]["image"]).convert("RGB")) / 255
    inputs = (image - np.array(model.preprocessing.mean)) / np.array(model.preprocessing.std)
    batch = torch.from_numpy(inputs.transpose(2, 0, 1)[None].astype(np.float32))
    for answer, values in ((own, base), (edited, painted)):
        with torch.inference_mode():
            wanted = model.network(batch, attention=torch.from_numpy(values)[None, None]).logits.softmax(1)[0].numpy()
        top = answer["top"]
        assert [guess["label"] for guess in top] == list(np.argsort(-wanted))
        assert np.abs([guess["probability"] - wanted[guess["label"]] for guess in top]).max() < 1e-5
        assert [guess["name"] for guess in top] == ["abc"[guess["label"]] for guess in top]
    assert own["tick"] is None
    assert edited["top"][0]["probability"] != edited["top"][0]["before"]


def test_a_stroke_under_way_is_answered_and_not_kept(served, session):
    with served.page() as page:
        page.ask("open", "opened", n=0)
        first = page.hear("answer")
        begun = page.ask("draw", "answer", n=0, tick=7, stroke=DAB)
        moved = page.ask("draw", "answer", n=0, tick=8, points=[[20, 12], [28, 20]])
        assert (begun["tick"], moved["tick"]) == (7, 8)
        given_up = page.ask("lift", "answer", n=0)
        page.say("draw", n=0, tick=9, points=[[1, 1]])     # of no stroke
        page.ask("paint", "saved", n=0, revision=0, stroke={**DAB, "points": [[12, 9], [20, 12], [28, 20]]})
        kept = page.hear("answer")
    assert given_up == first
    assert [guess["probability"] for guess in kept["top"]] == [guess["probability"] for guess in moved["top"]]
    assert len(WorkFolder(session.folder.out).read("ana", "r0").strokes) == 1


def test_only_the_newest_map_is_answered_and_saving_waits_for_no_answer(served, session, monkeypatch):
    go_on, found = threading.Event(), session.guesses

    def slow(number, edited):
        assert go_on.wait(30)
        return found(number, edited)

    with served.page() as page:
        page.ask("open", "opened", n=0)
        page.hear("answer")
        monkeypatch.setattr(session, "guesses", slow)
        page.say("draw", n=0, tick=1, stroke=DAB)
        for tick in range(2, 40):
            page.say("draw", n=0, tick=tick, points=[[tick / 2, 9]])
        saved = page.ask("mark", "saved", n=0, revision=0, state="skipped")
        assert saved == {"of": "saved", "n": 0, "revision": 1, "state": "skipped"}
        go_on.set()
        ticks = [page.hear("answer")["tick"]]
        while ticks[-1] is not None:
            ticks.append(page.hear("answer")["tick"])
    assert len(ticks) <= 3


def test_each_change_is_on_the_disk_when_it_is_acknowledged(served, session):
    changes = [
        ("paint", {"stroke": DAB}), ("paint", {"stroke": {"tool": "invert", "strength": 1.0}}), ("undo", {}),
        ("redo", {}), ("reset", {}), ("start", {"start": "empty"}), ("mark", {"state": "confirmed"}),
    ]
    with served.page() as page:
        page.ask("open", "opened", n=0)
        for revision, (do, what) in enumerate(changes):
            saved = page.ask(do, "saved", n=0, revision=revision, **what)
            kept = WorkFolder(session.folder.out).read("ana", "r0")
            assert (saved["revision"], saved["state"]) == (revision + 1, kept.state)
            assert kept.revision == revision + 1
            if do == "start":
                assert not base_of(page.hear("opened")).any()
    assert (kept.start, len(kept.undone), kept.state) == ("empty", 2, "confirmed")
    assert not load_map(str(session.folder.out / "r0.npy")).any()


def test_a_change_of_what_another_window_has_changed_is_not_made(served, session):
    with served.page() as one, served.page() as two, served.page("ben") as other:
        one.ask("open", "opened", n=0)
        two.ask("open", "opened", n=0)
        one.ask("paint", "saved", n=0, revision=0, stroke=DAB)
        told = two.ask("paint", "opened", n=0, revision=0, stroke={**DAB, "points": [[1, 1]]})
        assert (told["revision"], told["strokes"]) == (1, [DAB])
        assert other.ask("paint", "saved", n=0, revision=0, stroke=DAB)["revision"] == 1
    assert len(session.open(0, "ana").work.strokes) == 1


def test_a_full_disk_is_told_keeps_what_was_and_heals(served, session, monkeypatch):
    write = WorkFolder.write

    def full(self, user, identifier, work):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/else")

    with served.page() as page:
        page.ask("open", "opened", n=0)
        page.ask("paint", "saved", n=0, revision=0, stroke=DAB)
        monkeypatch.setattr(WorkFolder, "write", full)
        more = {**DAB, "points": [[25, 5]]}
        trouble = page.ask("paint", "trouble", n=0, revision=1, stroke=more)
        assert trouble == {"of": "trouble", "n": 0, "what": "disk", "text": "No space left on device"}
        assert session.open(0, "ana").work.revision == WorkFolder(session.folder.out).read("ana", "r0").revision == 1
        monkeypatch.setattr(WorkFolder, "write", write)
        assert page.ask("paint", "saved", n=0, revision=1, stroke=more)["revision"] == 2
    assert len(WorkFolder(session.folder.out).read("ana", "r0").strokes) == 2


def test_a_change_that_cannot_be_made_is_refused_and_the_page_is_told_what_stands(served, session):
    with served.page() as page:
        page.say("start", n=1, revision=0, start="map")
        trouble, opened = page.hear("trouble"), page.hear("opened")
    assert (trouble["what"], opened["revision"], opened["start"]) == ("message", 0, "attention")
    assert trouble["text"] == 'record "r1": has no map under "map", from which its strokes start'


def test_strokes_under_way_have_an_end(served, monkeypatch):
    monkeypatch.setattr("hkmap.editor.server.MOST_POINTS", 10)
    with served.page() as page:
        page.ask("draw", "answer", n=0, tick=0, stroke=DAB)
        page.ask("draw", "answer", n=0, tick=1, points=[[1, 1]] * 9)
        trouble = page.ask("draw", "trouble", n=0, tick=2, points=[[1, 1]])
    assert (trouble["what"], trouble["text"]) == (
        "record", "the stroke under way: over 10 points; release it, and begin another"
    )


# images


def test_images_pass_as_browsers_take_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    alpha = np.full((150, 200, 1), 100, np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    saved = {
        "a.jpg": (Image.fromarray(pixels), {"exif": turned}), "b.png": (Image.fromarray(pixels), {}),
        "c.webp": (Image.fromarray(pixels), {"lossless": True}), "d.tif": (Image.fromarray(pixels), {}),
        "e.png": (Image.fromarray(np.concatenate((pixels, alpha), 2)), {}),
        "f.png": (Image.fromarray(pixels), {"exif": turned}),
        "g.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
    }
    types = ["image/jpeg", "image/png", "image/webp", *["image/png"] * 4]
    for name, (image, more) in saved.items():
        image.save(tmp_path / name, **more)
    records = [{"id": name, "image": str(tmp_path / name)} for name in saved]
    with site(EditSession(records, tmp_path / "out")) as served:
        for number, (name, media_type) in enumerate(zip(saved, types, strict=True)):
            status, headers, body = served.get(f"/image/{number}")
            assert (status, headers["Content-Type"]) == (200, media_type), name
            assert (body == (tmp_path / name).read_bytes()) == (number < 3), name
            shown = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            wanted = {"f.png": np.rot90(pixels, -1), "g.png": pixels[..., :1].repeat(3, 2)}.get(name, pixels)
            assert number == 0 or np.array_equal(shown, wanted), name
        small = cv2.imdecode(np.frombuffer(served.get("/thumbnail/0")[2], np.uint8), cv2.IMREAD_COLOR)
        assert small.shape == (96, 72, 3)
        tag = served.get("/image/1")[1]["ETag"]
        assert served.get("/image/1", {"If-None-Match": tag})[0] == 304


def test_a_record_without_an_image_that_can_be_shown_is_told_and_the_others_go_on(tmp_path):
    records = images(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    records.append({"id": "bare", "size": [4, 4]})
    with site(EditSession(records, tmp_path / "out", network=network())) as served, served.page() as page:
        assert served.get("/image/1")[0] == served.get("/thumbnail/1")[0] == 422
        assert "starts with b'no image', expected an image" in served.get("/image/1")[2].decode()
        assert 'record "bare": no key "image" with a path' in served.get("/image/3")[2].decode()
        trouble = page.ask("open", "trouble", n=1)
        assert (trouble["what"], trouble["n"]) == ("record", 1)
        assert "expected an image" in trouble["text"]
        assert page.ask("open", "opened", n=2)["id"] == "r2"


# the end


def test_the_end_comes_when_all_are_done_and_a_change_takes_it_back(served):
    with served.page() as ana, served.page("ben") as ben:
        assert ana.ask("done", "done")["waiting_for"] == ["ben"]
        ana.ask("mark", "saved", n=0, revision=0, state="skipped")
        assert ben.ask("done", "done")["waiting_for"] == ["ana"]
        assert not served.editor.done.is_set()
        ana.say("done")
        assert ana.hear("done")["waiting_for"] == ben.hear("done")["waiting_for"] == []
        assert served.editor.done.wait(10)


def test_without_a_network_there_is_no_answer_but_all_else(tmp_path):
    with site(EditSession(images(tmp_path), tmp_path / "out")) as served, served.page() as page:
        opened = page.ask("open", "opened", n=0)
        assert (opened["starts"], page.hear("answer")["top"]) == (["map", "empty"], [])
        page.say("draw", n=0, tick=1, stroke=DAB)
        assert page.ask("paint", "saved", n=0, revision=0, stroke=DAB)["revision"] == 1

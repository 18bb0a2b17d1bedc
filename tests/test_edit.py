"""`hkmap edit`: strokes of a script, or of people on a page, become maps, and who painted what stays with the record.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import lines
from editor_client import DAB as BRUSH
from editor_client import SECRET, images, site_of

import hkmap.editor
from hkmap.files.atomic import locked
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, paint
from hkmap.stream.references import load_certainty, load_map

DAB = {"tool": "add", "points": [[30, 20]], "radius": 12}


@pytest.fixture
def records(tmp_path):
    """Three records of 64 x 48 pixels, the first with a map and an attention."""
    rng = np.random.default_rng(0)
    for name in ("map", "attention"):
        np.save(tmp_path / f"{name}.npy", rng.random((6, 8), np.float32))
    first = {"map": str(tmp_path / "map.npy"), "attention": str(tmp_path / "attention.npy")}
    return [{"id": str(number), "size": [64, 48], **(first if number == 0 else {})} for number in range(3)]


@pytest.fixture
def edit(hk, records, tmp_path):
    def run(*lines, options=()):
        script = tmp_path / "strokes.jsonl"
        script.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return hk("edit", "--script", script, "--out", tmp_path / "edited", "--overwrite", *options, stdin=records)

    return run


def test_strokes_make_the_map_and_are_referred_to(edit, records, tmp_path):
    made = edit({"id": "0", "strokes": [DAB], "edited_by": "ana", "edited_at": "2026-11-26T10:00:00Z"},
                {"id": "2", "strokes": [DAB]}, options=("--size", "8x6"))
    assert made.exit_code == 0, made.stderr
    first, second, third = made.records
    base = Weighted(np.load(tmp_path / "map.npy"), None)
    wanted = paint([Stroke("add", ((30.0, 20.0),), radius=12.0)], base, (64, 48)).map
    assert np.array_equal(load_map(first["map"]), wanted)
    assert (wanted != base.map).any()
    assert first["strokes"] == f"{tmp_path / 'strokes.jsonl'}#0"
    assert (first["edited_by"], first["edited_at"]) == ("ana", "2026-11-26T10:00:00Z")
    assert first["attention"] == records[0]["attention"]
    assert second == records[1]
    assert third["strokes"].endswith("#1")
    drawn = load_map(third["map"])
    assert drawn.shape == (6, 8)
    assert drawn[2, 3] > 0.9
    assert drawn[0, 7] == 0


def test_strokes_start_from_another_map_or_from_none(edit, tmp_path):
    made = edit({"id": "0", "strokes": [], "start": "attention"})
    assert np.array_equal(load_map(made.records[0]["map"]), np.load(tmp_path / "attention.npy"))
    made = edit({"id": "0", "strokes": [{"tool": "add", "strength": 0.25}], "start": "empty"}, options=("--size", "3"))
    assert np.allclose(load_map(made.records[0]["map"]), np.full((3, 3), 0.25))
    made = edit({"id": "0", "strokes": [], "start": "empty"}, {"id": "1", "strokes": []})
    assert [load_map(record["map"]).shape for record in made.records[:2]] == [(6, 8), (14, 14)]
    missing = edit({"id": "1", "strokes": [], "start": "attention"})
    assert missing.exit_code == 1
    assert 'record "1": has no map under "attention", from which its strokes start' in missing.stderr


def test_what_nobody_knows_becomes_a_certainty_and_goes_on(edit, tmp_path):
    unknown = {"tool": "unknown", "points": [[0, 0], [32, 0], [32, 48], [0, 48]], "outline": True}
    once = edit({"id": "0", "strokes": [unknown]})
    certainty = load_certainty(once.records[0]["certainty"])
    assert (certainty[:, :4] == 0).all()
    assert (certainty[:, 4:] == 1).all()
    values = load_map(once.records[0]["map"])
    assert (values[:, :4] == 0).all()
    assert np.array_equal(values[:, 4:], np.load(tmp_path / "map.npy")[:, 4:])


@pytest.mark.parametrize(("lines", "told"), [
    ([{"id": "0", "strokes": [{"tool": "ad"}]}], "tool 'ad' is unknown; did you mean 'add'"),
    ([{"id": "0", "strokes": [{"tool": "add", "points": [[1, 2]]}]}], "line 1, stroke 1: a brush without a radius"),
    ([{"id": "0"}], "line 1: strokes is None; expected a list of strokes"),
    ([{"id": "0", "strokes": [], "start": 3}], "line 1: start is 3; expected a text"),
    ([{"id": "0", "strokes": []}, {"id": "0", "strokes": []}], 'line 2: record "0" comes a second time'),
    ([{"strokes": []}], "line 1"), ([[1]], "line 1"),
])
def test_a_script_that_is_wrong_is_one_sentence(edit, lines, told):
    made = edit(*lines)
    assert made.exit_code == 1
    assert told in made.stderr
    assert "Traceback" not in made.stderr


def test_strokes_whose_record_does_not_come_are_told(edit):
    none = edit({"id": "7", "strokes": [DAB]}, {"id": "8", "strokes": []})
    assert none.exit_code == 1
    assert 'has strokes for "7" and others, and no such record came' in none.stderr
    some = edit({"id": "0", "strokes": [DAB]}, {"id": "7", "strokes": [DAB]})
    assert some.exit_code == 0
    assert "has strokes for 1 records that did not come" in " ".join(some.stderr.split())
    assert edit({"id": "7", "strokes": []}, options=("--on-error", "skip")).exit_code == 1


# the page


@contextmanager
def editing(folder, *options, stdin=None):
    """Run `hkmap edit` in a folder; yield the process, its server, and what it has said so far."""
    command = [sys.executable, "-m", "hkmap", "edit", "--out", "out", "--user", "ana", *options]
    browser = "sh -c 'echo open $0 > opened' %s"
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "HKMAP_EDIT_TOKEN": SECRET, "BROWSER": browser}
    environment = {**os.environ, **own}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        run.stdin.write(lines(stdin or []))
        run.stdin.close()
        said = run.stderr.readline()
        try:
            yield run, site_of(said.split()[-1], folder / "out"), said
        finally:
            run.kill()


def ended(run):
    """Return the exit code, the records and what was said of a run that ends."""
    out, said = run.stdout.read(), run.stderr.read()
    return run.wait(60), [json.loads(line) for line in out.splitlines()], said


def test_people_edit_on_a_page_until_they_are_done_and_the_page_finds_the_editor_again(tmp_path):
    records = images(tmp_path)
    with editing(tmp_path, "-q", stdin=records) as (run, found, said):
        assert said.startswith("open http://127.0.0.1:")
        assert "ana" in said
        with found.page() as page:
            page.ask("open", "opened", n=0)
            page.ask("paint", "saved", n=0, revision=0, stroke=BRUSH)
            page.ask("mark", "saved", n=1, revision=0, state="skipped")
        run.send_signal(signal.SIGINT)
        code, first, told = ended(run)
    assert (code, told) == (0, "")
    base = Weighted(np.load(tmp_path / "human.npy"), None)
    wanted = paint([Stroke("add", ((12.0, 9.0),), 6.0)], base, (32, 24)).map
    assert np.array_equal(np.load(tmp_path / first[0]["map"]), wanted)
    assert (first[0]["edited_by"], first[0]["strokes"]) == ("ana", "out/strokes/ana/r0.jsonl#0")
    assert first[1:] == records[1:]

    os.mkfifo(tmp_path / "opened")
    with editing(tmp_path, "--open", stdin=records) as (run, again, said):
        assert (tmp_path / "opened").read_text() == said
        assert again.address == found.address
        with again.page() as page:
            assert page.ask("open", "opened", n=0)["revision"] == 1
            page.ask("undo", "saved", n=0, revision=1)
            page.ask("mark", "saved", n=0, revision=2, state="confirmed")
            assert page.ask("done", "done")["waiting_for"] == []
        code, second, told = ended(run)
    assert code == 0
    assert np.array_equal(np.load(tmp_path / second[0]["map"]), base.map)
    assert "last change" in told
    assert [word for word in told.split() if word.isdigit()] == ["1", "0", "1", "0"]


def test_a_shard_is_edited_with_a_network_and_a_stop_keeps_the_work(hk, tmp_path, make_shard):
    small = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 32, "--epochs", 1)
    assert hk("train", make_shard("train.h5", 4), *small, "--out", tmp_path / "run").exit_code == 0
    options = ("train.h5", "--from", "run", "--order", "edit_response", "--start", "attention", "--user", "ben")
    with editing(tmp_path, *options) as (run, found, said):
        assert said.startswith("ana: http://127.0.0.1:")
        listed = json.loads(found.get("/records.json")[2])
        assert (listed["order"], sorted(listed["orders"]["edit_response"])) == ("edit_response", [0, 1, 2, 3])
        with found.page() as page:
            assert page.ask("open", "opened", n=3)["start"] == "attention"
            assert len(page.hear("answer")["top"]) == 2
            page.ask("paint", "saved", n=3, revision=0, stroke=BRUSH)
            run.send_signal(signal.SIGTERM)
            code, records, told = ended(run)
    assert (code, records) == (143, [{"error": "terminated"}])
    assert told.splitlines()[-1] == "terminated"
    assert "put `hkmap resize --size 8x8 --out DIR` before `hkmap pack`" in told
    kept = json.loads((tmp_path / "out/strokes/ana/train.h5-3.jsonl").read_text())
    assert (kept["start"], kept["strokes"]) == ("attention", [BRUSH])


@pytest.mark.parametrize(("options", "told"), [
    (("--script", "s.jsonl", "--user", "ana"), "--user is for the page; omit it, or --script."),
    (("--script", "s.jsonl", "--from", "."), "--from is for the page"),
    (("--jobs", 2), "--jobs belongs to --script."), (("--overwrite",), "--overwrite belongs to --script."),
    (("--device", "cpu"), "--device is where the network of --from answers"),
    (("--token", "short"), "--token has 5 characters; expected 16 or more, such as --token "),
    (("--host", "0.0.0.0"), "--host 0.0.0.0 lets others reach the page; give a secret too, such as --token "),
    (("--user", "a", "--user", "a"), "a name comes twice"), (("--user", " "), "expected a name that can be read"),
    (("--user", "\x1b[2J"), "expected a name"), (("--order", "size"), "order 'size' is unknown"),
    (("--out", "maps.h5"), "--out maps.h5: expected a folder, for strokes and maps"),
    (("--out", "s.jsonl"), "--out s.jsonl: expected a folder"),
])
def test_options_that_do_not_belong_together_are_refused(hk, here, options, told):
    (here / "s.jsonl").write_text('{"id": "0", "strokes": []}\n')
    own = () if "--out" in options else ("--out", "out")
    made = hk("edit", *own, *options, stdin=[{"id": "0"}])
    assert made.exit_code == 2
    assert told in " ".join(made.stderr.split())
    assert not (here / "out").exists()


def test_a_person_whose_strokes_no_folder_could_keep_is_refused_at_once(hk, here):
    made = hk("edit", "--out", "out", "--user", "..", stdin=images(here))
    assert made.exit_code == 1
    assert "the person '..': no folder can have this name; give a shorter or plainer --user" in made.stderr


def test_where_all_records_were_skipped_no_page_opens(hk, here):
    made = hk("edit", "--out", "out", "--on-error", "skip", stdin=[{"id": "0", "label": "cat"}])
    assert made.exit_code == 1
    assert "no record is left to edit: all were skipped; expected one or more" in made.stderr


def test_a_port_that_is_taken_is_one_sentence(hk, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = hk("edit", "--out", "out", "--port", port, stdin=images(here))
    assert made.exit_code == 1
    told = f"127.0.0.1 port {port}: Address already in use; choose another --port or --host, or omit them"
    assert told in made.stderr


def test_an_address_of_another_machine_is_one_sentence(hk, here):
    made = hk("edit", "--out", "out", "--host", "203.0.113.1", "--token", SECRET, stdin=images(here))
    assert made.exit_code == 1
    assert "203.0.113.1 port 0: Cannot assign requested address; choose another" in made.stderr


def test_a_second_editor_of_a_folder_is_refused(hk, here):
    with locked(here / "out" / "strokes"):
        made = hk("edit", "--out", "out", stdin=images(here))
    assert made.exit_code == 1
    assert "out/strokes: another run is writing it; wait for its end, or choose another name" in made.stderr


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "websockets"])
def test_without_its_packages_the_page_says_what_to_install(hk, here, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] in (package, "uvicorn")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("access", "server", "serving"):
        monkeypatch.delattr(hkmap.editor, name, raising=False)
        monkeypatch.delitem(sys.modules, f"hkmap.editor.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    made = hk("edit", "--out", "out", stdin=images(here))
    assert made.exit_code == 1
    assert f"the page needs {package}; pip install 'hkmap[edit]'" in made.stderr

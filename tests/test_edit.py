"""`hkmap edit`: strokes of a script become maps, and who painted what stays with the record."""

from __future__ import annotations

import json

import numpy as np
import pytest

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

"""An editor killed at any moment: all that it said it had kept is there, at most one change more, and no half file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from hkmap.editor.session import EditSession
from hkmap.editor.work import Work, to_line
from hkmap.stream.references import load_map

KILLS = 50


def killed(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Paint in another process, kill it at a random moment, and return the works that it said it had kept."""
    dice = random.Random(seed)
    program = [sys.executable, str(ROOT / "tests/killed_editor.py"), "records.jsonl", "out", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, cwd=folder, env=environment, stdout=subprocess.PIPE) as painting:
        assert painting.stdout is not None
        said = [painting.stdout.readline() for _ in range(dice.randrange(1, 60))]
        with pytest.raises(subprocess.TimeoutExpired):      # it paints until it is killed
            painting.wait(timeout=dice.uniform(0, 0.02))
        painting.kill()
        said += painting.stdout.readlines()
    return [json.loads(line) for line in said if line.endswith(b"\n")]      # the last may be cut off


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=pytest.mark.soak)])
def test_a_killed_editor_loses_at_most_the_change_in_flight(tmp_path, monkeypatch, kills):
    monkeypatch.chdir(tmp_path)
    np.save("map.npy", np.random.default_rng(0).random((14, 14), np.float32))
    records = [{"id": f"a/{number}", "size": [64, 64], "map": "map.npy"} for number in range(3)]
    Path("records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kept = {record["id"]: to_line(Work("map"), record["id"], "ana") for record in records}
    for seed in range(kills):
        kept |= {line["id"]: line for line in killed(tmp_path, seed)}
        session, ahead = EditSession(records, Path("out")), 0
        for number, record in enumerate(records):
            found, told = to_line(session.open(number, "ana").work, record["id"], "ana"), kept[record["id"]]
            assert found["revision"] - told["revision"] in (0, 1)
            assert found == told or found["revision"] > told["revision"]
            ahead += found["revision"] - told["revision"]
            kept[record["id"]] = found
        assert ahead <= 1
        assert not list(Path("out").rglob("*.part"))
        for path in Path("out").glob("*.npy"):
            assert load_map(str(path)).shape == (14, 14)
    assert sum(line["revision"] for line in kept.values()) > kills
    assert len(list(session.records_out())) == 3

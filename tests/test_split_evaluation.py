"""`hkmap eval` and `hkmap predict` on several ranks: what one process says, said once."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from test_ranks import on_ranks  # noqa: F401  (a fixture)

from hkmap.cli.main import hkmap
from hkmap.engine.data import make_data
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.ranks import joined
from hkmap.engine.runs import load_model, new_model, save_model
from hkmap.engine.validation import accuracy
from hkmap.networks.backbone import Architecture
from hkmap.shards.sequence import ShardSequence

METRICS = ["--metric", "top1", "--metric", "mse", "--metric", "insertion", "--step", "64"]
FIGURES = {"metrics", "attention_mean", "confidence"}


def work(shard, run, records):
    """Measure and predict as a rank; each command's exit code and what it printed and said, and a validation."""
    found = []
    for arguments in (
        ["eval", str(shard), "--from", str(run), *METRICS, "--batch-size", "2", "--device", "cpu"],
        ["predict", str(records), "--from", str(run), "--batch-size", "2", "--device", "cpu",
         "--out", f"{records}.maps", "--overwrite", "--on-error", "skip", "--max-errors", "1"],
    ):
        done = CliRunner().invoke(hkmap, arguments)
        found.append((done.exit_code, done.stdout, done.stderr))
    model, shards = load_model(run), ShardSequence([shard])
    with joined("cpu") as device:
        return found, accuracy(model.network, make_data(model, shards, shards).validation, device, 2, gamma=1.0)


def test_ranks_say_together_what_one_process_says(on_ranks, hk, make_shard, tmp_path):  # noqa: F811
    shard = make_shard("a.h5", 7, classes=3, maps=4)        # two records for each of three ranks, then one for one
    architecture = Architecture("resnet8+abn", 3, stem="small", width=4)
    classes = tuple(f"class {number}" for number in range(3))
    save_model(tmp_path / "last.safetensors", new_model(architecture, Preprocessing(16, 16), classes, 0))
    records = hk("unpack", shard).records
    records[2]["image"] = "missing.png"
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = (shard, tmp_path / "last.safetensors", tmp_path / "records.jsonl")
    commands, validated = work(*given)
    first, *others = on_ranks(work, 3, *given)
    for (code, printed, said), found in zip(commands, first[0], strict=True):
        assert found[0] == code == 0, found[2]
        lines = (map(json.loads, text.splitlines()) for text in (found[1], printed))
        for one, other in zip(*lines, strict=True):
            near = {key: pytest.approx(other[key], abs=1e-5) for key in FIGURES & other.keys()}
            assert one == {**other, **near}
        assert found[2].count("missing.png") == said.count("missing.png")
    assert "missing.png" in commands[1][2]
    for rank in others:
        assert [found[:2] for found in rank[0]] == [(0, "")] * 2       # the first one prints and talks
        assert "missing.png" not in rank[0][1][2]
        assert rank[1] == first[1]        # to the bit
    assert first[1] == pytest.approx(validated, abs=1e-6)


def test_ranks_cannot_share_a_pipe(hk, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = hk("predict", "--from", tmp_path, stdin=[{"id": "1"}])
    assert (result.exit_code, "cannot share stdin or a pipe; name a file of records" in result.stderr) == (2, True)

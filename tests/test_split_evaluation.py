"""`hkmap eval` and `hkmap predict` on several ranks: what one process says, said once."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from test_ranks import on_ranks  # noqa: F401  (a fixture)
from test_rows import untrained

from hkmap.cli.main import hkmap
from hkmap.engine.data import make_data
from hkmap.engine.ranks import joined
from hkmap.engine.runs import load_model, save_model
from hkmap.engine.validation import accuracy
from hkmap.results.folder import read_results
from hkmap.shards.sequence import ShardSequence

METRICS = ["--metric", "top1,mse,insertion,edit-response", "--step", "64"]


def near(value):
    """What equals a JSON value whose numbers differ by rounding."""
    if isinstance(value, dict):
        return {name: near(one) for name, one in value.items()}
    if isinstance(value, list):
        return [near(one) for one in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


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
    save_model(tmp_path / "last.safetensors", untrained())
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
            assert one == near(other)
        assert found[2].count("missing.png") == said.count("missing.png")
    assert "missing.png" in commands[1][2]
    for rank in others:
        assert [found[:2] for found in rank[0]] == [(0, "")] * 2       # the first one prints and talks
        assert "missing.png" not in rank[0][1][2]
        assert rank[1] == first[1]        # to the bit
    assert first[1] == pytest.approx(validated, abs=1e-6)


def kept(shard, run, out, *more):
    """Measure what is misclassified as a rank, into a folder; the exit code and what was printed."""
    done = CliRunner().invoke(hkmap, [
        "eval", str(shard), "--from", str(run), *METRICS, "--batch-size", "2", "--device", "cpu", "--only",
        "misclassified", "--out", str(out), "--per-record", f"{out}.csv", *more,
    ])
    return done.exit_code, done.stdout, done.stderr


def test_ranks_keep_one_folder_of_results_and_go_on_with_it(on_ranks, make_shard, tmp_path):  # noqa: F811
    shard, out = make_shard("a.h5", 15, classes=3, maps=9), tmp_path / "together"
    save_model(tmp_path / "last.safetensors", untrained())
    given = (shard, tmp_path / "last.safetensors")
    _, printed, _ = kept(*given, tmp_path / "alone")
    first, second = on_ranks(kept, 2, *given, out)
    assert (first[0], second[:2]) == (0, (0, "")), first[2]
    report = json.loads(first[1])
    assert report == near(json.loads(printed))
    assert 4 < report["samples"] < 15
    rows, ours = read_results(out).rows, read_results(tmp_path / "alone").rows
    assert [row["id"] for row in rows] == [row["id"] for row in ours]
    whole, table = (out / "records.jsonl").read_bytes(), (tmp_path / "together.csv").read_bytes()
    for lines in (1, 6):          # of records that are measured four at a time
        cut = sum(map(len, whole.splitlines(keepends=True)[: lines + 1]))
        (out / "records.jsonl").write_bytes(whole[: cut + 30])
        again, other = on_ranks(kept, 2, *given, out, "--resume")
        assert (again[:2], other[:2]) == (first[:2], (0, "")), again[2]
        assert (out / "records.jsonl").read_bytes() == whole
        assert (tmp_path / "together.csv").read_bytes() == table
    code, _, said = kept(*given, out, "--resume")
    assert (code, "batches.processes is 1, the evaluation to go on with had 2" in said) == (1, True)


def test_ranks_cannot_share_a_pipe(hk, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = hk("predict", "--from", tmp_path, stdin=[{"id": "1"}])
    assert (result.exit_code, "cannot share stdin or a pipe; name a file of records" in result.stderr) == (2, True)

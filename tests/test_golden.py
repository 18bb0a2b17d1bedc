"""What must not change: layout 1, map files, runs, and what every command makes of the golden inputs.

What a file or a command holds is stored in tests/golden under the names of layout 1. Where a name changes, its right
side here changes, and nothing in tests/golden.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden.cases import (
    CASES,
    NETWORK_CASES,
    SHARDS,
    TRAINING,
    Names,
    Run,
    damage,
    describe_shard,
    differences,
    run_case,
    sha256,
)

GOLDEN = Path(__file__).parent / "golden"

# The names of layout 1: what they are called today.
COMMANDS = {
    "weights": "certainty", "view": "crop", "ceiling": "agreement", "validate": "check", "verify": "check",
    "points2map": "bubbles2map --key points",
}
KEYS = {"weights": "certainty"}        # of records, of shards (a data set), and of what commands print
TEXTS = {
    "+weights": "+certainty", ".weights.npy": ".certainty.npy", "weights/": "certainty/",
    "empty-weights": "empty-certainty",
    "9x7": "7x9", "4x13": "13x4", "10x12": "12x10",      # of --size, WIDTHxHEIGHT today
}

NAMES = Names(COMMANDS, KEYS, TEXTS)
STORED = json.loads((GOLDEN / "outputs.json").read_text(encoding="utf-8"))
DIGESTS = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
EXACT = 0.0
ROUNDING, NETWORK, LEARNING = 1e-5, 1e-4, 1e-3      # of sums, of a network's answers, of a network that learns


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden inputs, their records with the keys of today."""
    data = Path(shutil.copytree(GOLDEN / "data", tmp_path_factory.mktemp("golden") / "data"))
    for path in data.glob("*.jsonl"):
        records = [in_keys_of_today(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return data


def in_keys_of_today(record: dict[str, Any]) -> dict[str, Any]:
    return {KEYS.get(key, key): value for key, value in record.items()}


@pytest.fixture
def data(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: the golden inputs, and an empty place for products."""
    monkeypatch.chdir(copied)
    damage()
    yield copied
    shutil.rmtree("out", ignore_errors=True)


@pytest.fixture
def run(hk: Callable[..., Any]) -> Run:
    def call(arguments: list[str], stdin: bytes) -> tuple[int, bytes]:
        result = hk(*arguments, stdin=stdin)
        return result.exit_code, result.stdout.encode()

    return call


# what was written stays readable, to the bit


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_layout_1_is_read_whole(hk, data: Path, name: str) -> None:
    """`merge` reads and checks everything, and writes it in the layout of today."""
    assert hk("merge", "out/copy.h5", f"shards/{name}.h5").exit_code == 0
    expected = {key: value for key, value in DIGESTS["shards"][name].items() if key != "content_sha256"}
    assert_as_stored(describe_shard(Path("out/copy.h5"), NAMES), expected, within=EXACT)


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_layout_1_keeps_its_content_digest(hk, data: Path, name: str) -> None:
    """As it lies there, and after unpack | pack, twice."""
    expected = DIGESTS["shards"][name]["content_sha256"]
    if expected is not None:       # a file without a user block has a digest only once it is packed
        assert content_digest(hk, f"shards/{name}.h5") == expected
    store = ["--store", "pixels", "--size", 16] if name == "pixels" else []
    hk("pack", "out/1.h5", *store, stdin=hk("unpack", f"shards/{name}.h5").stdout)
    hk("pack", "out/2.h5", *store, stdin=hk("unpack", "out/1.h5", "--out", "out/files").stdout)
    of_packed = DIGESTS["shards"]["plain" if name == "contiguous" else name]["content_sha256"]
    assert [content_digest(hk, f"out/{number}.h5") for number in (1, 2)] == [of_packed, of_packed]


def content_digest(hk, path: str) -> str:
    return hk("info", "--full", path).records[0]["content_sha256"]


@pytest.mark.parametrize("records", ["weighed", "annotated", "plain", "in-h5", "in-png"])
def test_map_files_are_read_to_the_bit(hk, data: Path, records: str) -> None:
    assert hk("pack", "out/maps.h5", f"{records}.jsonl").exit_code == 0
    named = [json.loads(line) for line in Path(f"{records}.jsonl").read_text(encoding="utf-8").splitlines()]
    with h5py.File("out/maps.h5") as file:
        weights = file.get(KEYS["weights"])
        for row, record in enumerate(named):
            for reference, values in ((record.get("map"), file["maps"]), (record.get(KEYS["weights"]), weights)):
                if reference is not None:
                    assert sha256(np.asarray(values[row]).tobytes()) == DIGESTS["maps"][reference], reference


# every command makes what it made


@pytest.mark.parametrize("name", CASES)
def test_a_command_makes_what_it_made(run: Run, data: Path, name: str) -> None:
    assert_as_stored(run_case(CASES[name], run, NAMES), STORED["cases"][name], within=ROUNDING)


@pytest.mark.parametrize("name", NETWORK_CASES)
def test_a_golden_run_says_what_it_said(run: Run, data: Path, name: str) -> None:
    assert_as_stored(run_case(NETWORK_CASES[name], run, NAMES), STORED["network"][name], within=NETWORK)


@pytest.mark.parametrize("name", TRAINING)
def test_the_same_training_makes_the_same_run(run: Run, data: Path, name: str) -> None:
    assert_as_stored(run_case(f"{TRAINING[name]} out/run", run, NAMES), STORED["training"][name], within=LEARNING)


@pytest.mark.parametrize("command", ["train", "finetune --from trained/run"])
def test_a_golden_run_is_resumed_with_what_its_config_does_not_name(hk, data: Path, command: str) -> None:
    """Its config.toml has no map_loss, schedule or optimizer; its best.pt is that of its last epoch."""
    golden, run = Path("trained/run" if command == "train" else "trained/tuned"), Path("out/run")
    run.mkdir(parents=True)
    shutil.copy(golden / "best.pt", run / "last.pt")
    config = (golden / "config.toml").read_text(encoding="utf-8").replace("epochs = 2", "epochs = 3")
    (run / "config.toml").write_text(config, encoding="utf-8")
    log = shutil.copy(golden / "log.jsonl", run / "log.jsonl")
    before = len(log.read_text(encoding="utf-8").splitlines())
    shards = ["shards/series-00000.h5", "shards/series-00001.h5"]
    resume = [*command.split(), *shards, "--config", run / "config.toml", "--out", run, "--resume"]
    refused = hk(*resume, "--lr", 0.5)
    assert "lr is 0.5, the run to resume had 0.05; repeat its options" in refused.stderr
    resumed = hk(*resume)
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.records[0]["epochs"] == 3
    assert len(log.read_text(encoding="utf-8").splitlines()) == before / 2 * 3


def assert_as_stored(got: dict[str, Any], stored: dict[str, Any], *, within: float) -> None:
    found = differences(got, NAMES.value(stored), within=within)
    assert not found, "\n".join(found[:20])


def test_every_case_is_stored() -> None:
    assert [set(STORED[kind]) for kind in ("cases", "network", "training")] == [
        set(CASES), set(NETWORK_CASES), set(TRAINING)
    ]

"""Altered checkpoints and configs of run folders: a sentence of hkmap's or a run; no traceback, hang or growth."""

from __future__ import annotations

import random
import resource
import shutil
from pathlib import Path

import pytest
from mutate_runs import altered, altered_text, content_of, meet, meet_config, written

pytestmark = pytest.mark.soak
GOLDEN = Path(__file__).parent.parent / "golden/data/trained"
BATCHES = 10
CHECKPOINTS, CONFIGS = 400, 800        # a batch
MOST_GROWTH = 300 * 1024        # KiB


@pytest.mark.parametrize("seed", range(BATCHES))
def test_an_altered_checkpoint_is_a_run_or_a_sentence(tmp_path: Path, seed: int) -> None:
    dice, folder = random.Random(seed), tmp_path / "altered"
    run = shutil.copytree(GOLDEN / ("tuned" if seed % 2 else "run"), tmp_path / "run")
    shutil.copy(run / "best.pt", run / "last.pt")      # of its last epoch
    folder.mkdir()
    content, before = content_of(run), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = done = 0
    for _ in range(CHECKPOINTS):
        changed, what = altered(content, dice)
        if not written(folder, changed, dice):
            continue
        shutil.copy(run / "log.jsonl", folder / "log.jsonl")
        try:
            sentence = meet(run, folder)
        except Exception as error:
            raise AssertionError(what) from error
        assert sentence is None or ("\n" not in sentence and str(folder) in sentence), (what, sentence)
        refused, done = refused + (sentence is not None), done + 1
    assert refused > 0.6 * done > 0.4 * CHECKPOINTS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH


@pytest.mark.parametrize("seed", range(BATCHES))
def test_an_altered_config_is_options_or_a_sentence(tmp_path: Path, seed: int) -> None:
    dice, path = random.Random(seed), tmp_path / "config.toml"
    before = (GOLDEN / "tuned/config.toml").read_bytes()
    refused = 0
    for _ in range(CONFIGS):
        path.write_bytes(data := altered_text(before, dice))
        try:
            sentence = meet_config(path)
        except Exception as error:
            raise AssertionError(data) from error
        refused += sentence is not None
    assert 0.2 * CONFIGS < refused < CONFIGS

"""Arms in brief: compare makes the same of them as of the results, and refuses what they cannot tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare import FAST, Hk, write_arms, write_results

from hkmap.errors import RunError
from hkmap.results.brief import write_arm
from hkmap.results.comparison import ComparisonOptions, compare, find_arms

EFFECTS = {"none": 0.0, "human": -0.2, "shuffled": -0.1}


def kept(root: Path, words: list[str]) -> list[str]:
    """Keep the arms, and return the words that name the files."""
    for arm in find_arms(words):
        write_arm(root / f"{arm.name}.json", arm.results)
    return [f"{word.partition('=')[0]}={root}/{word.partition('=')[0]}.json" for word in words]


def alike(one: Any, two: Any) -> bool:
    """Whether two comparisons say the same, but for where the runs are."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(key == "runs" or alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(alike, one, two))
    return one == (pytest.approx(two, rel=1e-3, abs=1e-5) if isinstance(one, float) else two)


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("group", [None, "patient"])
def test_compare_makes_the_same_of_them(tmp_path: Path, seeds: int, group: str | None) -> None:
    words = write_arms(tmp_path, EFFECTS, seeds=seeds, records=200)
    options = ComparisonOptions(resamples=400, group=group)
    one, two = compare(find_arms(words), options), compare(find_arms(kept(tmp_path, words)), options)
    assert alike(one, two)
    assert one["comparisons"][0]["p"] < 0.05        # so that it could differ


@pytest.mark.parametrize("random", [0, 1, 2, 3])
def test_seeds_that_tie_are_not_better(tmp_path: Path, random: int) -> None:
    """Of 12 seeds, 2 are better by three records of 260, 1 is worse, and the others are right as often elsewhere."""
    rng, more = np.random.default_rng(random), [3, 0, 0, 3, -3, *[0] * 7]
    for seed, own in enumerate(more):
        for arm, right in (("none", 160 + seed), ("human", 160 + seed + own)):
            values = rng.permutation(np.repeat([1, 0], [right, 260 - right])).tolist()
            write_results(tmp_path / f"{arm}-{seed}", {"top1": values}, seed=seed)
    words = [f"{arm}={tmp_path}/{arm}-*" for arm in ("none", "human")]
    for found in (compare(find_arms(words), FAST), compare(find_arms(kept(tmp_path, words)), FAST)):
        (entry,) = found["comparisons"]
        assert (entry["better_seeds"], entry["seeds"]) == (2, 12)
        assert entry["per_seed"] == pytest.approx(np.array(more) / 260, abs=5e-6)


def test_a_single_record_that_differs_is_not_found(tmp_path: Path) -> None:
    """Of one seed, whose mean has more digits than are kept: all other records tie, before and after."""
    right = [1.0] * 226 + [0.0] * 21
    words = [f"{arm}={write_results(tmp_path / arm, {'top1': values})}"
             for arm, values in (("none", right), ("human", [0.0, *right[1:]]))]
    for found in (compare(find_arms(words), FAST), compare(find_arms(kept(tmp_path, words)), FAST)):
        assert [(entry["p"], entry["found"]) for entry in found["comparisons"]] == [(1.0, False)]


def test_a_file_is_small_beside_the_results(tmp_path: Path) -> None:
    words = write_arms(tmp_path, {"none": 0}, seeds=20, records=100)
    kept(tmp_path, words)
    results = sum(path.stat().st_size for path in tmp_path.rglob("records.jsonl"))
    assert (tmp_path / "none.json").stat().st_size < results / 50


def test_records_without_a_figure_stay_without(tmp_path: Path) -> None:
    values = {"top1": [1, 0, 1, 1], "spearman": [0.5, None, 0.25, None]}
    words = [f"{name}={write_results(tmp_path / name, values)}" for name in ("a", "b")]
    found = compare(find_arms(kept(tmp_path, words)), FAST)
    assert {entry["figure"]: (entry["records"], entry["mean"]) for entry in found["comparisons"]} == {
        "top1": (4, 0.75), "spearman": (2, 0.375),
    }


def test_figures_of_other_records_are_refused(tmp_path: Path) -> None:
    spearman = {"a": [0.5, None, 0.25, 0.5], "b": [0.5, 0.5, 0.25, 0.5]}
    words = [f"{name}={write_results(tmp_path / name, {'spearman': own})}" for name, own in spearman.items()]
    files = kept(tmp_path, words)
    with pytest.raises(RunError, match=r"b\.json: kept spearman of other records than all arms have it of; compare "):
        compare(find_arms(files), FAST)


def test_what_single_seeds_would_tell_is_refused(tmp_path: Path) -> None:
    words = kept(tmp_path, write_arms(tmp_path, EFFECTS, seeds=2, records=20))
    with pytest.raises(RunError, match=r"none\.json: an arm in brief, which does not tell .* omit --by"):
        compare(find_arms(words), ComparisonOptions(by="class"))


def test_figures_of_all_records_are_not_kept(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "a", {"top1": [1, 0, 1]}, metrics=["top1", "auroc"])
    kept(tmp_path, [f"a={folder}"])
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == ["top1"]


@pytest.mark.parametrize(("change", "said"), [
    (lambda arm: "no JSON", "no arm as `hkmap compare --keep` writes it; run it again"),
    (lambda arm: {**arm, "hkmap_arm": 9}, "an arm of version 9, expected 1; use the hkmap that wrote it"),
    (lambda arm: {**arm, "seeds": []}, "no arm"),
    (lambda arm: {**arm, "seeds": [0, 1, 2]}, "no arm"),
    (lambda arm: {**arm, "metrics": ["topp"]}, "no arm"),
    (lambda arm: {**arm, "figures": {}}, "no arm"),
    (lambda arm: {**arm, "classes": ["a"]}, "no arm"),
    (lambda arm: {**arm, "keys": {"patient": ["p0"]}}, "no arm"),
    (lambda arm: {**arm, "records": {**arm["records"], "id": ["r0"] * 20}}, "no arm"),
    (lambda arm: {key: value for key, value in arm.items() if key != "control"}, "no arm"),
])
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    words = kept(tmp_path, write_arms(tmp_path, {"none": 0}, seeds=2, records=20))
    path = tmp_path / "none.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RunError, match=r"^\S+none\.json: ") as refused:
        find_arms(words)
    assert said in str(refused.value)


def test_the_command_keeps_and_reads_them(here: Path, hk: Hk) -> None:
    words = write_arms(here, EFFECTS, seeds=5, records=100)
    done = hk("compare", *words, "--keep", "kept", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    again = hk("compare", "kept/none.json", *(f"{name}=kept/{name}.json" for name in ("human", "shuffled")),
               "--format", "csv")
    assert again.exit_code == 0, again.stderr
    assert "human is better than kept/none in log_loss" in again.stderr
    rows, others = (np.array([line.split(",") for line in text.stdout.splitlines()[1:]]) for text in (done, again))
    assert np.allclose(rows[:, 5:8].astype(float), others[:, 5:8].astype(float), atol=1e-5)

"""hkmap compare: what it finds in generated results of a known effect, and what it says of shams, seeds and groups."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from scipy.special import stdtrit
from scipy.stats import t, ttest_1samp
from sklearn.metrics import roc_auc_score

from hkmap.engine.inputs import Preprocessing
from hkmap.errors import ChoiceError, HkmapError, RecordError, RunError
from hkmap.evaluation.metrics import METRICS, SampleMetric, SetMetric
from hkmap.report.verdicts import csv_text, escaped, latex_text, sentences
from hkmap.results import comparison
from hkmap.results.comparison import ComparisonOptions, compare, find_arms, pairs, sureness

Hk = Callable[..., Result]
Values = Mapping[str, Sequence[float | None]]
FAST = ComparisonOptions(resamples=400)
SETTINGS = {"step": 8, "blur": "rise", "image_size": [16, 16], "map_size": [4, 4]}
SHAM = "The sham control (shuffled)"


def write_results(
    folder: Path, values: Values, *, metrics: Sequence[str] | None = None, seed: int | None = 0, control: str = "none",
    learnt: bool = False, ids: str = "r", more: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None, curves: Sequence[str] = (), arch: str = "resnet8+abn",
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder of results as `hkmap eval --out` leaves it.

    ``more`` is what each record's line has besides, ``about`` what the header has.
    """
    count = len(next(iter(values.values())))
    header = {
        "hkmap_results": 1, "classes": ["a", "b"], "shards": [{"path": "t.h5", "sha256": "0"}],
        "preprocessing": asdict(Preprocessing()),
        "run": {"path": str(folder), "seed": seed, "control": control, "arch": arch, "maps_learnt": learnt},
        "metrics": list(metrics or values), "settings": {**SETTINGS, **(settings or {})},
        **(about or {}),
    }
    lines = [
        {"id": f"{ids}{number}", "number": number, "label": number % 2, "class": "ab"[number % 2], "prediction": 0,
         "predicted_class": "a", "confidence": 0.5, "attention_mean": None, "probabilities": [0.5, 0.5], "map": None,
         "values": {name: column[number] for name, column in values.items()},
         "curves": {name: [0, 1] for name in curves}, "keys": {"patient": f"p{number // 10}"},
         **(more[number] if more else {})}
        for number in range(count)
    ]
    present = {name: [value for value in column if value is not None] for name, column in values.items()}
    means = dict.fromkeys(metrics or ()) | {name: float(np.mean(own)) if own else None for name, own in present.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    report = {"samples": count, "metrics": means, "counts": dict.fromkeys(means, count), "settings": SETTINGS}
    (folder / "eval.json").write_text(json.dumps(report))
    return folder


ARMS: dict[str, dict[str, Any]] = {
    "none": {}, "human": {"learnt": True}, "shuffled": {"learnt": True, "control": "shuffled"},
}


def write_arms(
    root: Path, effects: Mapping[str, float], *, seeds: int = 5, records: int = 200, noise: float = 0.3,
    of_seed: float = 0.02, random: int = 0, figure: str = "log_loss",
) -> list[str]:
    """Write results of arms whose figure is an effect, plus what is of the record, of the seed, and noise."""
    rng = np.random.default_rng(random)
    hard = rng.normal(0, 1, records)
    for arm, effect in effects.items():
        for seed in range(seeds):
            values = hard + effect + rng.normal(0, of_seed) + rng.normal(0, noise, records)
            write_results(root / f"{arm}-{seed}" / "eval", {figure: values.tolist()}, seed=seed, **ARMS[arm])
    return [f"{arm}={root}/{arm}-*" for arm in effects]


def by_pair(found: Mapping[str, Any], figure: str = "log_loss") -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["arm"], entry["against"]): entry for entry in found["comparisons"] if entry["figure"] == figure}


# finding


def test_a_known_effect_is_found_and_its_absence_is_not(tmp_path: Path) -> None:
    """Human maps lower the loss by 0.3, their sham does nothing."""
    arms = find_arms(write_arms(tmp_path, {"none": 1.0, "human": 0.7, "shuffled": 1.0}))
    found = compare(arms, FAST)
    entries = by_pair(found)
    assert list(entries) == [("human", "none"), ("shuffled", "none"), ("human", "shuffled")]
    for against in ("none", "shuffled"):
        entry = entries["human", against]
        assert entry["found"]
        assert entry["difference"] == pytest.approx(-0.3, abs=0.05)
        assert entry["interval"][0] < -0.3 < entry["interval"][1] < 0
        assert entry["p"] < entry["p_holm"] < 0.01
        assert (entry["better_seeds"], entry["seeds"], entry["records"]) == (5, 5, 200)
    assert not entries["shuffled", "none"]["found"]
    said = sentences(found)
    assert said[0].startswith("human is better than none in log_loss by 0.")
    assert "human is better with 5 of 5 seeds" in said[0]
    assert said[1].startswith("No difference was found between shuffled and none in log_loss: shuffled - none = ")
    assert not any(SHAM in sentence for sentence in said)


def test_without_an_effect_nothing_is_found_and_the_sham_is_told(tmp_path: Path) -> None:
    found = compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 1.0, "shuffled": 1.0})), FAST)
    assert not any(entry["found"] for entry in found["comparisons"])
    said = [sentence for sentence in sentences(found) if SHAM in sentence]
    assert len(said) == 1
    assert re.fullmatch(
        r"The sham control \(shuffled\) was not found to do worse than the human maps in log_loss: "
        r"human - shuffled [+-]0\.\d+ \[-0\.\d+, \+0\.\d+\]; "
        r"so nothing shows that a gain comes from where people looked\.", said[0]
    )


def test_a_sham_that_helps_as_much_is_told_although_human_maps_help(tmp_path: Path) -> None:
    found = compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 0.7, "shuffled": 0.7})), FAST)
    assert by_pair(found)["human", "none"]["found"]
    assert sum(SHAM in sentence for sentence in sentences(found)) == 1


def test_a_sham_that_is_better_is_told_so(tmp_path: Path) -> None:
    found = compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 1.0, "shuffled": 0.7})), FAST)
    assert any(f"{SHAM} does better than the human maps" in sentence for sentence in sentences(found))
    assert by_pair(found)["human", "shuffled"]["found"]


def test_a_missing_sham_is_told_where_human_maps_were_learnt(tmp_path: Path) -> None:
    said = sentences(compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 0.7})), FAST))
    assert any(sentence.startswith("A sham control is missing") and "human" in sentence for sentence in said)
    others = [f"{name}={write_results(tmp_path / name, {'top1': [0, 1, 1]})}" for name in ("x", "y")]
    assert not any("sham" in sentence for sentence in sentences(compare(find_arms(others), FAST)))


@pytest.mark.parametrize(("seeds", "of_seed"), [(2, 0.5), (3, 0.3), (5, 0.0), (5, 0.3)])
def test_a_difference_is_rarely_found_where_there_is_none(seeds: int, of_seed: float) -> None:
    """In 200 calls that compare three arms; networks differ by their seed not at all, or more than records do."""
    rng, found = np.random.default_rng(3), []
    for _ in range(200):
        values = {name: rng.normal(0, 0.3, (seeds, 40)) + rng.normal(0, of_seed, (seeds, 1)) for name in ARMS}
        means = {name: comparison._mean(own) for name, own in values.items()}
        figure = comparison.Figure("log_loss", False, np.arange(40), means, values)
        none, human, shuffled = (comparison.Arm(name, ()) for name in ARMS)
        entries = [
            comparison.compared(figure, *pair, None, None, ComparisonOptions(resamples=100))
            for pair in ((human, none), (shuffled, none), (human, shuffled))
        ]
        comparison.judge(entries)
        found.append(any(entry["found"] for entry in entries))
    assert np.mean(found) <= 0.07       # of 200 calls of 5 % at most 14, but for one in 10


def test_networks_that_differ_by_their_seed_alone_are_said_to(tmp_path: Path) -> None:
    found = compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 1.0}, of_seed=0.3, seeds=3)), FAST)
    (entry,) = found["comparisons"]
    assert entry["p"] < 0.01
    assert entry["p_holm"] == entry["p_seeds"] > 0.05
    assert not entry["found"]
    assert sentences(found)[0].endswith("; these networks differ (p < 0.001), but those of other seeds may not.")


def test_an_interval_that_excludes_0_without_a_find_is_explained(tmp_path: Path) -> None:
    found = compare(find_arms(write_arms(tmp_path, {"none": 1.0, "human": 1.2}, seeds=2)), FAST)
    (entry,) = found["comparisons"]
    entry |= {"interval": (0.1, 0.3), "p": 0.001, "p_seeds": 0.02, "p_holm": 0.2, "found": False}
    said = "; the interval excludes 0, but p after the correction is not below 0.05."
    assert sentences(found)[0].endswith(f"(p = 0.200 after Holm){said}")


# the numbers


def test_figures_equal_a_slow_computation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 2, (3, 12)).astype(float) for name in ("x", "y")}
    for name, own in values.items():
        for seed, row in enumerate(own):
            write_results(tmp_path / f"{name}{seed}", {"top1": row.tolist()}, seed=seed)
    entry = by_pair(compare(find_arms([f"x={tmp_path}/x*", f"y={tmp_path}/y*"]), FAST), "top1")["y", "x"]
    assert entry["mean"] == pytest.approx(values["y"].mean())
    assert entry["mean_against"] == pytest.approx(values["x"].mean())
    differences = values["y"] - values["x"]
    assert entry["difference"] == pytest.approx(differences.mean())
    assert entry["per_seed"] == pytest.approx(differences.mean(axis=1).tolist())
    assert entry["better_seeds"] == sum(row.mean() > 0 for row in differences)
    hits, means = 0, differences.mean(axis=0)
    for signs in range(2**12):
        flipped = [value if signs >> place & 1 else -value for place, value in enumerate(means)]
        hits += abs(sum(flipped)) >= abs(sum(means)) - 1e-12
    assert entry["p"] == pytest.approx(hits / 2**12)


def test_the_interval_over_seeds_is_students_where_records_do_not_vary() -> None:
    means = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    ends, p = sureness(lambda weights: np.tile(means, (len(weights), 1)), 1000, None, ComparisonOptions())
    half = t.ppf(0.975, 4) * means.std(ddof=1) / np.sqrt(5)
    assert ends == pytest.approx((0.3 - half, 0.3 + half))
    assert p == pytest.approx(ttest_1samp(means, 0).pvalue)


def test_the_interval_over_seeds_and_records_has_both_variances() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, (3, 50)) + np.array([[0.1], [0.4], [-0.3]])
    options = ComparisonOptions(resamples=20_000)
    ends, p = sureness(comparison._mean(values), 50, None, options)

    def half(level: float) -> float:
        parts = [(values.mean(axis=1), 3), (values.mean(axis=0), 50)]
        return float(np.sqrt(sum(stdtrit(n - 1, level / 2) ** 2 * each.var(ddof=1) / n for each, n in parts)))

    assert ends == pytest.approx((values.mean() - half(0.05), values.mean() + half(0.05)), rel=0.02)
    assert p is not None
    assert half(p) == pytest.approx(abs(values.mean()), rel=0.02)


def test_no_difference_at_all_has_a_p_of_one() -> None:
    assert sureness(lambda weights: np.zeros((len(weights), 3)), 9, None, FAST) == ((0, 0), 1)


def test_groups_are_drawn_and_flipped_as_a_whole(tmp_path: Path) -> None:
    """The difference is the patient's: 10 records of a patient say no more than one."""
    rng = np.random.default_rng(1)
    differences = np.repeat(rng.normal(0.5, 1, 8), 10)
    words = [str(write_results(tmp_path / "x", {"log_loss": [0.0] * 80})),
             str(write_results(tmp_path / "y", {"log_loss": differences.tolist()}))]
    alone, grouped = (compare(find_arms(words), ComparisonOptions(group=group)) for group in (None, "patient"))
    (one,), (two,) = alone["comparisons"], grouped["comparisons"]
    assert two["interval"][1] - two["interval"][0] > 2 * (one["interval"][1] - one["interval"][0])
    assert two["p"] > 10 * one["p"]
    assert (grouped["group"], grouped["groups"], alone["groups"]) == ("patient", 8, None)
    assert "a bootstrap of groups alone" in sentences(grouped)[-1]


def test_the_worst_group_is_where_the_arm_loses_most(tmp_path: Path) -> None:
    """Human maps help all patients but one; a patient of fewer than five records does not count."""
    gains = np.repeat([0.3, 0.2, -0.4, 0.3], 10)
    gains = np.concatenate([gains, [-5.0] * 4])
    words = [str(write_results(tmp_path / "x", {"insertion": [0.5] * 44})),
             str(write_results(tmp_path / "y", {"insertion": (0.5 + gains).tolist()}))]
    found = compare(find_arms(words), ComparisonOptions(by="patient"))
    assert found["comparisons"][0]["worst_group"] == {
        "name": "p2", "records": 10, "difference": pytest.approx(-0.4), "interval": pytest.approx((-0.4, -0.4)),
    }
    assert any('patient "p2" (10 records): -0.400' in sentence for sentence in sentences(found))
    assert compare(find_arms(words), ComparisonOptions(by="class"))["comparisons"][0]["worst_group"]["records"] == 22
    assert compare(find_arms(words), ComparisonOptions(by="id"))["comparisons"][0]["worst_group"] is None


def test_a_figure_is_compared_where_all_results_have_it(tmp_path: Path) -> None:
    values = {"x": [0.1, None, 0.3, 0.4], "y": [0.2, 0.2, None, 0.5]}
    words = [
        str(write_results(tmp_path / name, {"mse": own, "mse_of_zeros": [0.9] * 4}, metrics=["mse"]))
        for name, own in values.items()
    ]
    found = compare(find_arms(words), FAST)
    assert [entry["figure"] for entry in found["comparisons"]] == ["mse"]       # no network has a part in mse_of_zeros
    entry = found["comparisons"][0]
    assert entry["records"] == 2
    assert (entry["mean"], entry["mean_against"]) == pytest.approx((0.35, 0.25))


def test_a_figure_of_all_records_has_an_interval_and_no_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def auroc(answers: Any, weights: np.ndarray) -> np.ndarray:
        return np.array([
            roc_auc_score(answers.labels, answers.probabilities[:, 1], sample_weight=row) for row in weights
        ])

    monkeypatch.setitem(METRICS._rows, "area", SetMetric("The area", auroc, higher=True))     # type: ignore[attr-defined]
    words, areas = [], {}
    for name, skill in (("x", 0.2), ("y", 3.0)):
        scores = [1 / (1 + np.exp(-skill * (2 * (number % 2) - 1) + rng.normal())) for number in range(60)]
        more = [{"probabilities": [1 - score, score]} for score in scores] + [{"label": None, "class": None}]
        write_results(tmp_path / name, {"top1": [1.0] * 60 + [None]}, metrics=["top1", "area"], more=more)
        words.append(f"{name}={tmp_path / name}")
        areas[name] = roc_auc_score([number % 2 for number in range(60)], scores)
    found = compare(find_arms(words), FAST)
    entry = by_pair(found, "area")["y", "x"]
    assert (entry["mean"], entry["mean_against"]) == pytest.approx((areas["y"], areas["x"]))
    assert entry["interval"][0] < entry["difference"] < entry["interval"][1]
    assert (entry["p"], entry["p_holm"], entry["found"], entry["records"]) == (None, None, True, 60)
    assert "(area) has no signs to flip and so no p" in sentences(found)[-1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_record_or_group_has_no_interval(tmp_path: Path, seeds: int) -> None:
    words = write_arms(tmp_path, {"none": 1.0, "human": 0.1}, seeds=seeds, records=1)
    found = compare(find_arms(words), FAST)
    (entry,) = found["comparisons"]
    assert (entry["interval"], entry["found"], entry["p"]) == (None, False, 1)
    said = r"No difference was found .*: human - none = [+-]\d\.\d{3} \(p = 1\.000 after Holm\)\."
    assert re.fullmatch(said, sentences(found)[0])
    assert next(csv.DictReader(io.StringIO(csv_text(found))))["low"] == ""
    assert " & none & " in latex_text(found)
    words = write_arms(tmp_path, {"none": 1.0, "human": 0.1}, seeds=seeds, records=9)
    (entry,) = compare(find_arms(words), ComparisonOptions(group="patient"))["comparisons"]
    assert entry["interval"] is None


def test_holm_is_over_all_figures_and_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = []
    for name in "xyz":
        values = {figure: rng.normal(0, 1, 30).tolist() for figure in ("top1", "log_loss")}
        words.append(f"{name}={write_results(tmp_path / name, values)}")
    entries = compare(find_arms(words), FAST)["comparisons"]
    assert len(entries) == 4
    smallest = min(entries, key=lambda entry: entry["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 4 * smallest["p"]))


def test_the_seed_determines_all_draws(tmp_path: Path) -> None:
    arms = find_arms(write_arms(tmp_path, {"none": 1.0, "human": 0.95}, seeds=2, records=30))
    assert compare(arms, FAST) == compare(arms, FAST)
    other = ComparisonOptions(resamples=400, seed=1)
    assert compare(arms, other)["comparisons"][0]["interval"] != compare(arms, FAST)["comparisons"][0]["interval"]


# arms and pairs


@pytest.mark.parametrize(("names", "expected"), [
    (["none", "human", "shuffled"], ["human-none", "shuffled-none", "human-shuffled"]),
    (["human", "none", "shuffled"], ["human-none", "human-shuffled"]),
    (["shuffled", "none", "human"], ["none-shuffled", "human-shuffled"]),
    (["none", "human"], ["human-none"]),
])
def test_which_arms_are_compared(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    """Each with the first, and human maps with the sham; each pair once, human maps first."""
    arms = find_arms(write_arms(tmp_path, dict.fromkeys(names, 1.0), seeds=1, records=3))
    assert [f"{one.name}-{two.name}" for one, two in pairs(arms)] == expected


def test_an_arm_is_called_by_its_pattern_or_its_name(here: Path) -> None:
    for name in ("human-0", "human-1", "none-0", "none-1"):
        write_results(Path("runs") / name / "eval", {"top1": [1, 0]}, seed=None)
    Path("runs/human-notes.txt").touch()
    assert [arm.name for arm in find_arms(["runs/human-*", "plain=runs/none-*"])] == ["runs/human", "plain"]
    write_results(Path("runs/gamma=1"), {"top1": [1, 0]})
    assert [arm.name for arm in find_arms(["runs/gamma=1", "runs/none-0/eval"])] == ["runs/gamma=1", "runs/none-0/eval"]


def test_seeds_are_paired_by_the_runs_and_not_by_their_names(tmp_path: Path) -> None:
    for name, seed in (("x-a", 1), ("x-b", 0), ("y-a", 0), ("y-b", 1)):
        write_results(tmp_path / name, {"top1": [float(seed)] * 4}, seed=seed)
    words = [f"x={tmp_path}/x-*", f"y={tmp_path}/y-*"]
    found = compare(find_arms(words), FAST)
    assert found["paired_by"] == "seed"
    assert found["comparisons"][0]["per_seed"] == [0, 0]
    assert [arm["seeds"] for arm in found["arms"]] == [[0, 1], [0, 1]]
    write_results(tmp_path / "x-a", {"top1": [1.0] * 4}, seed=None)
    found = compare(find_arms(words), FAST)
    assert found["paired_by"] == "name"
    assert found["comparisons"][0]["per_seed"] == [-1, 1]


def test_single_runs_of_other_seeds_are_compared_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"{name}={write_results(tmp_path / name, {'top1': [1, 0]}, seed=seed)}" for seed, name in enumerate("xy")]
    compare(find_arms(words), FAST)
    assert 'the arm "y" is of the seeds 1, x of 0; part of a difference may be the seed' in caplog.text


# refused


def refusal(words: Sequence[str], options: ComparisonOptions = FAST, kind: type[HkmapError] = RunError) -> str:
    with pytest.raises(kind) as caught:
        compare(find_arms(words), options)
    return str(caught.value)


def two(tmp_path: Path, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [str(write_results(tmp_path / name, **{"values": {"top1": [1, 0]}, **given}))
            for name, given in (("x", one), ("y", other))]


def test_results_of_other_records_are_refused(tmp_path: Path) -> None:
    words = two(tmp_path, {}, {"ids": "s"})
    assert all(word in refusal(words) for word in words)
    words = two(tmp_path, {}, {"values": {"top1": [1, 0, 1]}})
    assert all(word in refusal(words) for word in words)


def test_arms_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    write_arms(tmp_path, {"none": 1.0, "human": 1.0}, seeds=3, records=2)
    one, other = f"none={tmp_path}/none-*", f"human={tmp_path}/human-[01]"
    assert refusal([one, other]) == 'the arm "human" has 2 results, none has 3; expected one per seed in each arm'
    write_results(tmp_path / "human-2" / "eval", {"log_loss": [1, 2]}, seed=7, learnt=True)
    assert refusal([one, f"human={tmp_path}/human-*"]) == (
        'the arm "human" is of the seeds 0, 1, 7, none of 0, 1, 2; expected the same seeds in each arm'
    )


def test_an_arm_without_a_match_or_with_two_ways_of_training_is_refused(tmp_path: Path) -> None:
    word = str(write_results(tmp_path / "x", {"top1": [1]}))
    assert refusal([word, f"y={tmp_path}/nothing-*"]) == (
        f"{tmp_path}/nothing-*: matches nothing; expected run folders, folders of `hkmap eval --out` or files of "
        "`hkmap compare --keep`"
    )
    (tmp_path / "empty").mkdir()
    assert "has no results" in refusal([word, f"{tmp_path}/empty"])
    assert f'two arms are called "{word}"; give each a name of its own, as NAME=RUN' in refusal([word, word])
    write_results(tmp_path / "xx", {"top1": [1]}, seed=1, control="shuffled", learnt=True)
    message = refusal([f"{tmp_path}/x*", word])
    assert message.startswith(f"{tmp_path}/xx: was trained on other maps than {tmp_path}/x in the same arm")


def test_curves_of_other_steps_are_refused_and_other_settings_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"values": {"insertion": [0.5, 0.4], "top1": [1, 0]}, "curves": ["insertion"]}
    words = two(tmp_path, given, {**given, "settings": {"step": 9}})
    assert refusal(words) == (
        f"{words[0]}: the step of insertion is not that of all results (8, 9); evaluate all with the same, or choose "
        "other figures by --metric"
    )
    assert compare(find_arms(words), ComparisonOptions(("top1",), resamples=50))["comparisons"]
    assert "differ" not in caplog.text
    compare(find_arms(two(tmp_path, given, {**given, "settings": {"maps": "gradcam"}})), FAST)
    assert "the results differ in maps (None, gradcam)" in caplog.text


def test_figures_that_are_unknown_or_missing_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = two(tmp_path, {"values": {"top1": [1, 0], "mse": [0.1, 0.1], "insertion": [1, 1]}},
                {"values": {"top1": [1, 0], "mse": [0.2, 0.1]}})
    assert [entry["figure"] for entry in compare(find_arms(words), FAST)["comparisons"]] == ["top1", "mse"]
    assert "not all arms have insertion, which is not compared" in caplog.text
    message = refusal(words, ComparisonOptions(("tpo1",)), ChoiceError)
    assert message.startswith("figure 'tpo1' is unknown; did you mean 'top1'?")
    assert refusal(words, ComparisonOptions(("insertion",))) == (
        f"{words[1]}: has no insertion; evaluate with --metric insertion, as other arms did"
    )
    message = refusal(two(tmp_path, {}, {"values": {"error": [1, 0]}}))
    assert "has no figure that all arms have" in message
    message = refusal(two(tmp_path, {}, {"values": {"top1": [None, None]}}))
    assert "has no figure that all arms have" in message
    assert "top1 applies to no record of all arms" in caplog.text


def test_a_metric_of_several_figures_stands_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = SampleMetric("How it moves", lambda answered: {}, higher=None, figures=("move_up", "move_down"))
    monkeypatch.setitem(METRICS._rows, "move", metric)     # type: ignore[attr-defined]
    given = {"values": {"move_up": [1, 0], "move_down": [0, 1]}, "metrics": ["move"]}
    for folder in (words := two(tmp_path, given, given)):
        report = json.loads((Path(folder) / "eval.json").read_text())
        del report["metrics"]["move"]
        (Path(folder) / "eval.json").write_text(json.dumps(report))
    for metrics, figures in ((("move",), ["move_up", "move_down"]), (("move_down",), ["move_down"])):
        entries = compare(find_arms(words), ComparisonOptions(metrics, resamples=50))["comparisons"]
        assert [entry["figure"] for entry in entries] == figures
    assert entries[0]["better_seeds"] is None


def test_a_figure_without_a_better_direction_is_higher_or_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS._rows, "move", SampleMetric("", dict, higher=None))     # type: ignore[attr-defined]
    arms = find_arms(write_arms(tmp_path, {"none": 1.0, "human": 0.7, "shuffled": 0.7}, figure="move"))
    said = sentences(compare(arms, FAST))
    assert said[0].startswith("human is lower than none in move by 0.")
    assert not any(SHAM in sentence for sentence in said)


@pytest.mark.parametrize("option", ["group", "by"])
def test_a_key_that_a_record_lacks_is_refused(tmp_path: Path, option: str) -> None:
    message = refusal(two(tmp_path, {}, {}), ComparisonOptions(**{option: "hospital"}), RecordError)
    assert message == 'record "r0": has no text or number under "hospital", expected in every record'


# what is printed


def test_the_command_prints_json_and_tells_people(tmp_path: Path, hk: Hk) -> None:
    words = write_arms(tmp_path, {"none": 1.0, "human": 0.7, "shuffled": 1.0}, seeds=3, records=60)
    result = hk("compare", *words, "--resamples", 200, "--by", "patient")
    assert result.exit_code == 0
    (found,) = result.records
    assert found["sentences"] == sentences(found)
    assert found["sentences"][0] in result.stderr
    assert "arm minus against" in result.stderr
    assert json.loads(json.dumps(found)) == found
    assert hk("compare", *words, "-q").stderr == ""


def test_forms_of_the_output(tmp_path: Path, hk: Hk) -> None:
    words = write_arms(tmp_path, {"none": 1.0, "human": 0.7}, seeds=3, records=60)
    rows = list(csv.DictReader(io.StringIO(hk("compare", *words, "--format", "csv", "--by", "patient").stdout)))
    assert len(rows) == 1
    assert [rows[0][name] for name in ("arm", "against", "found", "records")] == ["human", "none", "True", "60"]
    assert float(rows[0]["low"]) < float(rows[0]["difference"]) < float(rows[0]["high"])
    assert rows[0]["worst_group"].startswith("p")
    assert hk("compare", *words, "--format", "csv", "--metric", "log_loss").stdout.count("\n") == 2
    table = hk("compare", *words, "--format", "table")
    assert "log_loss" in table.stdout
    assert "arm minus against" not in table.stderr
    latex = hk("compare", *words, "--format", "latex").stdout
    assert latex.startswith("\\begin{tabular}{llrlrrrr}\n\\toprule\n")
    assert latex.endswith("\\bottomrule\n\\end{tabular}\n")
    assert latex.count("\\textbf{") == 1
    line = latex.splitlines()[4]
    assert line.startswith("log\\_loss & human & \\textbf{0.")
    assert line.count("&") == 7
    assert line.endswith("\\\\")


def test_names_are_escaped_in_latex_and_quoted_in_csv(tmp_path: Path) -> None:
    nasty = 'a_b & 50 % {"$#~^\\,\n'
    words = [f"{name}={folder}" for name, folder in zip((nasty, "y"), two(tmp_path, {}, {}), strict=True)]
    found = compare(find_arms(words), FAST)
    assert next(csv.DictReader(io.StringIO(csv_text(found))))["against"] == nasty
    line = latex_text(found).splitlines()[4]
    assert escaped(nasty) in line
    assert line.count(" & ") == 7
    assert escaped(nasty) == r'a\_b \& 50 \% \{"\$\#\textasciitilde{}\textasciicircum{}\textbackslash{}, '
    assert latex_text(found).count("textbf") == 0


def test_the_command_is_called_wrongly(tmp_path: Path, hk: Hk) -> None:
    word = str(write_results(tmp_path / "x", {"top1": [1]}))
    result = hk("compare", word)
    assert result.exit_code == 2
    assert "name at least two arms" in result.stderr
    result = hk("compare", word, "nothing")
    assert result.exit_code == 1
    assert result.stderr.count("Error: ") == 1

"""A page that shows evaluations: what was measured and how, figures, curves, calibration, confusions, and records."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hkmap.engine.controls import told
from hkmap.engine.folders import FORMER_FILES, read_info
from hkmap.engine.runs import BEST, LAST
from hkmap.errors import RunError
from hkmap.evaluation.evaluate import BEFORE
from hkmap.evaluation.human import OF_PEOPLE
from hkmap.evaluation.metrics import METRICS
from hkmap.evaluation.sets import BINS, Answers, calibration_error
from hkmap.evaluation.summary import OWN
from hkmap.files.opening import file_content
from hkmap.records import text_of
from hkmap.report.charts import Band, Panel, curves_figure, reliability, reliability_figure, shares_of
from hkmap.report.learning import COLOURS, Curves, curves_of, learning_figure, read_log
from hkmap.report.page import drawing, rendered
from hkmap.results.folder import INSIDE, OF_CURVES, Results, read_results, same_data, unlike
from hkmap.results.gains import sheet

MOST_CLASSES = 20       # of a confusion matrix
LONGEST = 70            # characters of the runs' names in the title
MOST_CONFUSIONS = 20    # that a table names where there are more
SHARES = "share_of_people"      # of a report
ARROWS = {True: "↑", False: "↓", None: ""}      # which way is better
_ANSWER = ("label", "prediction", "probabilities")      # of a row


@dataclass(frozen=True)
class Run:
    """An evaluation on the page: its results, its path as it was given, its name there, and its number, from 1."""

    results: Results
    path: str
    name: str
    number: int

    @property
    def about(self) -> dict[str, Any]:
        """What the header says about the network."""
        about: dict[str, Any] = self.results.header["run"]
        return about

    @property
    def colour(self) -> str:
        return COLOURS[(self.number - 1) % len(COLOURS)]

    @property
    def sham(self) -> str | None:
        """What must be told of a sham control, None for another network."""
        return told(self.about["control"])

    @cached_property
    def folder(self) -> Path | None:
        """The folder of the training, where it still has the weights that were measured."""
        inside, measured = self.results.path, self.about.get("weights")
        folders = [Path(self.about["path"]), *([inside.parent] if inside.name == INSIDE else [])]
        files = (folder / name for folder in folders for name in (BEST, LAST, *FORMER_FILES))
        return next((
            file.parent for file in files if os.path.exists(file) and os.path.exists(file.parent / "log.jsonl")
            and hashlib.sha256(file_content(file)).hexdigest() == measured
        ), None)

    @cached_property
    def answers(self) -> Answers:
        """The answers to all records with a label."""
        rows = [row for row in self.results.rows if row["label"] is not None]
        labels, answers, shares = (np.array([row[key] for row in rows]) for key in _ANSWER)
        return Answers(labels, answers, shares)


Cell = tuple[float, list[float] | None, int | None]     # a value, its interval, and of how many records it is


class Figure(NamedTuple):
    """A line of the table: a figure, what it is, which way is better, and for each run what it is there."""

    name: str
    what: str
    better: str
    cells: list[Cell | None]


def page(paths: Sequence[Path]) -> bytes:
    """Return a report of results, or of the run folders that hold them, as one HTML page that needs no other file.

    Raises RunError where results are missing, damaged, or of different records, or where one is named twice.
    """
    runs = _runs(paths)
    shams = [run.sham is not None for run in runs]
    shards = [(shard["path"], shard["sha256"]) for run in runs for shard in run.results.header["shards"]]
    panels = curve_panels([run.results.report for run in runs])
    names = ", ".join(run.name for run in runs)
    return rendered(
        title=f"Evaluation of {names if len(names) <= LONGEST else f'{len(runs)} networks'}",
        said=_said(runs), runs=runs, samples=len(runs[0].results.rows),
        shards=list(dict.fromkeys(shards)),
        facts=list(_facts(runs)), figures=list(_figures(runs)), learning=_learning(runs),
        curves=[(panel.title, drawing(curves_figure([panel], shams), f"curve{number}"))
                for number, panel in enumerate(panels)],
        unlike=unlike([run.results for run in runs], OF_CURVES),
        banded=any(band and band.low is not None for panel in panels for band in panel.bands),
        reliability=list(_reliability(runs)), **_confusions(runs),
        sheet=sheet([run.results for run in runs], [run.name for run in runs], shams),
        compare=shlex.join(["hkmap", "compare", *(run.path for run in runs)]),
    )


def curve_panels(reports: Sequence[dict[str, Any]]) -> list[Panel]:
    """Return a panel for each figure whose curves are in the reports of evaluations, in order."""
    names = dict.fromkeys(name for report in reports for name in report.get("curves", {}))
    return [_panel(name, reports) for name in names]


def _panel(name: str, reports: Sequence[dict[str, Any]]) -> Panel:
    kind, _, measure = name.partition("_")
    changed = {"insertion": "pixels inserted, %", "deletion": "pixels deleted, %"}.get(kind, "pixels changed, %")
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[_higher(name)]
    return Panel(
        f"{name.replace('_', ', ')}{better}", changed,
        "share answered as the class" if measure == "accuracy" else "probability of the class",
        [_band(report.get("curves", {}).get(name), report["settings"]) for report in reports],
    )


def _band(curve: dict[str, Any] | None, settings: dict[str, Any]) -> Band | None:
    if curve is None:
        return None
    shares = shares_of(len(curve["mean"]), settings["step"], settings["image_size"])
    return Band(shares, curve["mean"], curve.get("low"), curve.get("high"))


def _runs(paths: Sequence[Path]) -> list[Run]:
    results = [read_results(path) for path in paths]
    for path, found in zip(paths, results, strict=True):
        if [other.path.resolve() for other in results].count(found.path.resolve()) > 1:
            raise RunError(f"{path}: these results are named twice; name each run once")
    same_data(results)
    texts = [text_of(path) for path in paths]
    parent = os.path.commonpath([Path(text).absolute().parent for text in texts])
    names = [os.path.relpath(text, parent) for text in texts]
    return [Run(*each, number) for number, each in enumerate(zip(results, texts, names, strict=True), start=1)]


def _said(runs: Sequence[Run]) -> str:
    """Return a sentence about what was measured on how many records."""
    report, labels = runs[0].results.report, {row["label"] for row in runs[0].results.rows} - {None}
    who, whose = ("each network is", "their maps are") if len(runs) > 1 else ("the network is", "its maps are")
    records = "one record" if report["samples"] == 1 else f"{report['samples']:,} records"
    said = f"How often {who} right, and how honest {whose}, measured on {records}"
    said += f" of {len(labels)} {'class' if len(labels) == 1 else 'classes'}" if labels else ""
    if only := report.get("only"):
        said += f", those of {only['of']:,} that {only['baseline'] or 'the network itself'} misclassifies"
    return f"{said}."


def _facts(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield what is known of how the networks were made and measured, and the words for each run."""
    yield "network", [run.about["arch"] for run in runs]
    yield "learnt", [run.sham or ("human maps" if run.about["maps_learnt"] else "no human maps") for run in runs]
    yield "training seed", [_words(run.about["seed"]) for run in runs]
    yield "run", [run.about["path"] for run in runs]
    yield "trained", [_session(read_info(run.folder)["sessions"] if run.folder else []) for run in runs]
    yield "evaluated", [_session([run.results.header.get("session")]) for run in runs]
    kept = [{**run.results.header["preprocessing"], **run.results.header["settings"]} for run in runs]
    for name in dict.fromkeys(name for settings in kept for name in settings if name not in ("height", "width")):
        yield name.replace("_", " "), [_words(settings.get(name)) for settings in kept]


def _session(sessions: Sequence[dict[str, Any] | None]) -> str:
    """Return in words when, on what and by which versions the last session went on."""
    last = sessions[-1] if sessions else None
    if not isinstance(last, dict):
        return "not known"
    versions = ", ".join(f"{name} {last[name]}" for name in ("hkmap", "torch", "numpy", "opencv") if name in last)
    return f"{str(last.get('started'))[:10]}, on {last.get('device')}, by {versions}"


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return {"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value))


def _figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """Yield the lines of the table: the figures, and those that are shares of what people agree."""
    reports = [run.results.report for run in runs]
    values = [report["metrics"] | {name: report[name] for name in (OWN,) if name in report} for report in reports]
    for name in dict.fromkeys(name for own in values for name in own):
        cells = [
            _cell(own.get(name), report.get("intervals", {}).get(name), report["counts"].get(name))
            for own, report in zip(values, reports, strict=True)
        ]
        yield Figure(name, _what(name, runs), ARROWS[_higher(name)], cells)
    shares, ends = ([report.get(key) or {} for report in reports] for key in (SHARES, f"{SHARES}_intervals"))
    for name in dict.fromkeys(name for own in shares for name in own):
        said = "As a share of how well people agree with each other; 1: as well as they do"
        cells = [_cell(own.get(name), low_high.get(name)) for own, low_high in zip(shares, ends, strict=True)]
        yield Figure(f"{name}, {SHARES.replace('_', ' ')}", said, ARROWS[True], cells)


def _cell(value: float | None, ends: list[float] | None = None, count: int | None = None) -> Cell | None:
    return None if value is None else (value, ends, count)


def _what(figure: str, runs: Sequence[Run]) -> str:
    """Return what is known of a figure: its metric's own words, or which metric it comes with."""
    if figure.endswith(BEFORE):
        return "The same, with the network's own maps"
    if figure.endswith(OF_PEOPLE):
        return "The same, of the annotators among each other"
    if figure in METRICS:
        return METRICS[figure].what
    chosen = [name for run in runs for name in run.results.header["metrics"] if name in METRICS]
    return next((f"Given with {name}" for name in chosen if figure in METRICS[name].figures), "")


def _higher(figure: str) -> bool | None:
    """Return whether higher is better for a figure of a metric, None where neither is, or nobody knows."""
    name = figure.removesuffix(BEFORE)
    return METRICS[name].higher if name in METRICS else None


def _learning(runs: Sequence[Run]) -> Any:
    """Return the learning curves of the runs whose logs are there; the others keep their colours."""
    curves = {run.name: curves_of(read_log(run.folder)) if run.folder else Curves() for run in runs}
    if not any(found.epochs for found in curves.values()):
        return None
    return drawing(learning_figure(curves, abreast=3), "learning")


def _reliability(runs: Sequence[Run]) -> Iterator[tuple[str, float, Any]]:
    """Yield for each run its name, its calibration error and a diagram."""
    for run in runs:
        labels, answers, probabilities, _ = run.answers
        if len(labels):
            error = float(calibration_error(run.answers, np.ones((1, len(labels))))[0])
            bins = reliability(probabilities[np.arange(len(labels)), answers], labels == answers, BINS)
            figure = reliability_figure(bins, f"calibration error {error:.4f}", run.colour)
            yield run.name, error, drawing(figure, f"reliability{run.number}")


def _confusions(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the ``matrices`` of the runs, or where they were too large the most frequent ``confusions``.

    A matrix has for each class in ``classes``, as a label, how often each was the answer: counts, and shares in %.
    """
    there = sorted({label for run in runs for labels in run.answers[:2] for label in labels.tolist()})
    if not there or len(there) > MOST_CLASSES:
        return {"matrices": [], "confusions": _most_frequent(runs)}
    names, matrices = [_class_names(runs)[label] for label in there], []
    for run in runs:
        labels, answers = run.answers[:2]
        counts = np.zeros((len(there), len(there)), np.int64)
        np.add.at(counts, (np.searchsorted(there, labels), np.searchsorted(there, answers)), 1)
        shares = 100 * counts // np.maximum(counts.sum(axis=1, keepdims=True), 1)
        matrices.append((run, list(zip(names, counts.tolist(), shares.tolist(), strict=True))))
    return {"classes": names, "matrices": matrices, "confusions": []}


def _most_frequent(runs: Sequence[Run]) -> list[tuple[str, str, list[int]]]:
    """Return label, wrong answer and how often each run gave it, the most frequent in any run first."""
    counts = [Counter(zip(*(found.tolist() for found in run.answers[:2]), strict=True)) for run in runs]
    wrong = {pair for each in counts for pair in each if pair[0] != pair[1]}
    most = sorted(wrong, key=lambda pair: (-max(each[pair] for each in counts), pair))[:MOST_CONFUSIONS]
    names = _class_names(runs)
    return [(names[label], names[answer], [each[label, answer] for each in counts]) for label, answer in most]


def _class_names(runs: Sequence[Run]) -> dict[int, str]:
    """Return the names of all labels and answers."""
    classes = [found for run in runs for found in enumerate(run.results.header["classes"])]
    return {label: name or f"label {label}" for label, name in classes}

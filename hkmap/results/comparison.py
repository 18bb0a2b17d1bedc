"""Whether one way of training is better than another: results of several seeds, compared record by record."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import RecordError, RunError
from hkmap.evaluation.evaluate import BEFORE
from hkmap.evaluation.metrics import METRICS, Metric, SetMetric
from hkmap.evaluation.sets import Answers
from hkmap.report.verdicts import SIGNIFICANT
from hkmap.results.brief import is_kept, read_arm
from hkmap.results.folder import OF_CURVES, Results, read_results, same_data, unlike
from hkmap.statistics import COVERAGE, Interval, Resampling, holm, interval, sign_flip

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
#: How often each record counts (draws, n) → a figure in each draw, of each seed (draws, seeds).
OfDraws = Callable[[Array], Array]

FEWEST = 5              # records of a group that can be the worst
MOST_DRAWS = 0.8        # of the draws must have a figure
LEAST_P = 1e-12         # over seeds
KEPT = ".json"          # ends the name of an arm in brief
OF_DATA = "_of_zeros"   # ends the names of figures that no network has a part in
TOLD = ("maps", "layer", "use_maps", "hold_attention", "dtype", "image_size", "map_size")   # a difference is a warning

HUMAN = ("none", True)      # what taught an arm, where human maps did

logger = logging.getLogger("hkmap")


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of training: its results, one per seed, in the same order of seeds in all arms."""

    name: str
    results: tuple[Results, ...]

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [found.header["run"] for found in self.results]

    @property
    def taught(self) -> tuple[str, bool | None]:
        """Which control it is, "none" for no sham, and whether it learnt maps, human ones or a sham's."""
        return _taught(self.results[0])


@dataclass(frozen=True)
class ComparisonOptions:
    """What to compare, and how.

    ``metrics`` are names of metrics or figures; without any, all figures that all arms have. ``group`` is a key of the
    records, whose groups are drawn and flipped as a whole; ``by`` one in whose groups the worst is looked for.
    """

    metrics: tuple[str, ...] = ()
    group: str | None = None
    by: str | None = None
    resamples: int = 2000
    seed: int = 0


class Figure(NamedTuple):
    """A figure of all arms: on which records (n,) it is compared, and what it is for each arm by name.

    ``values`` (seeds, n) are of these records; a figure of all records together has none.
    """

    name: str
    higher: bool | None
    records: Indices
    arms: Mapping[str, OfDraws]
    values: Mapping[str, Array] | None


# arms


def find_arms(words: Sequence[str]) -> list[Arm]:
    """Read the arms [NAME=]PATTERN; a pattern matches run folders or folders of results, one per seed.

    A file of `brief.write_arm` is a whole arm. Seeds are paired by the runs' seeds where all runs have one, else by the
    order of the folders' names. Raises RunError where nothing matches, or arms cannot be paired.
    """
    arms = [_arm(word) for word in words]
    names = [arm.name for arm in arms]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RunError(f'two arms are called "{repeated[0]}"; give each a name of its own, as NAME=RUN')
    return _paired(arms)


def _arm(word: str) -> Arm:
    name, pattern = "", word
    if not (places := _places(word)) and "=" in word:
        name, _, pattern = word.partition("=")
        places = _places(pattern)
    if not places:
        expected = "expected run folders, folders of `hkmap eval --out` or files of `hkmap compare --keep`"
        raise RunError(f"{pattern}: matches nothing; {expected}")
    read = chain.from_iterable(read_arm(path) if path.suffix == KEPT else [read_results(path)] for path in places)
    arm = Arm(name or pattern.removesuffix(KEPT).replace("*", "").rstrip("-_/") or pattern, tuple(read))
    for found in arm.results:
        if _taught(found) != arm.taught:
            raise RunError(
                f'{found.path}: was trained on other maps than {arm.results[0].path} in the same arm "{arm.name}"; '
                "compare them as two arms"
            )
    return arm


def _taught(found: Results) -> tuple[str, bool | None]:
    return found.header["run"]["control"], found.header["run"]["maps_learnt"]


def _places(pattern: str) -> list[Path]:
    """Return the folders, and the files of arms in brief, that a pattern matches."""
    paths = [pattern] if os.path.exists(pattern) else sorted(glob(pattern))      # noqa: PTH207  (see find_shards)
    return [Path(path) for path in paths if os.path.isdir(path) or path.endswith(KEPT)]


def _paired(arms: list[Arm]) -> list[Arm]:
    """Return the arms with their results in the same order of seeds."""
    first = arms[0]
    for arm in arms:
        if len(arm.results) != len(first.results):
            counts = f"{len(arm.results)} results, {first.name} has {len(first.results)}"
            raise RunError(f'the arm "{arm.name}" has {counts}; expected one per seed in each arm')
    if not by_seed(arms):
        return arms
    ordered = [Arm(arm.name, tuple(sorted(arm.results, key=lambda found: found.header["run"]["seed"]))) for arm in arms]
    seeds = [[run["seed"] for run in arm.runs] for arm in ordered]
    for arm, own in zip(ordered, seeds, strict=True):
        said = f'the arm "{arm.name}" is of the seeds {_listed(own)}, {first.name} of {_listed(seeds[0])}'
        if own != seeds[0] and len(own) > 1:
            raise RunError(f"{said}; expected the same seeds in each arm")
        if own != seeds[0]:
            logger.warning("%s; part of a difference may be the seed", said)
    return ordered


def by_seed(arms: Sequence[Arm]) -> bool:
    """Return whether results are paired by the seeds of their runs: all have one, and none of an arm the same."""
    seeds = [[run["seed"] for run in arm.runs] for arm in arms]
    return all(None not in own and len(set(own)) == len(own) for own in seeds)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items))


def pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return which arm is compared against which: each with the first, and what learnt human maps with every sham.

    What learnt human maps comes before what did not; else the first arm comes last.
    """
    first, *others = arms
    humans, shams = [arm for arm in arms if arm.taught == HUMAN], [arm for arm in arms if arm.taught[0] != "none"]
    asked = [*((arm, first) for arm in others), *product(humans, shams)]
    return list(dict.fromkeys((two, one) if two in humans and one not in humans else (one, two) for one, two in asked))


# figures


def figures_of(results: Sequence[Results]) -> dict[str, Metric]:
    """Return the metric of each figure that the results have and that networks have a part in, in order."""
    owners: dict[str, Metric] = {}
    for name in dict.fromkeys(name for found in results for name in found.header["metrics"]):
        for figure in METRICS[name].figures or (name,):
            owners |= {figure: METRICS[name], figure + BEFORE: METRICS[name]}
    names = dict.fromkeys(name for found in results for name in found.report["metrics"])
    return {name: owners[name] for name in names if name in owners and not name.endswith(OF_DATA)}


def chosen_figures(results: Sequence[Results], metrics: Sequence[str]) -> dict[str, Metric]:
    """Return the figures to compare, with their metrics.

    Raises ChoiceError for an unknown name, and RunError where some results lack a chosen figure.
    """
    known = figures_of(results)
    lacking = {name: found for found in results for name in known if name not in found.report["metrics"]}
    if not metrics:
        if lacking:
            logger.warning("not all arms have %s, which is not compared", _listed(list(lacking)))
        return {name: metric for name, metric in known.items() if name not in lacking}
    several = {name: METRICS[name].figures for found in results for name in found.header["metrics"]}
    Choices("figure", dict.fromkeys([*known, *(name for name, figures in several.items() if figures)])).check(*metrics)
    names = dict.fromkeys(one for name in metrics for one in ([name] if name in known else several[name]))
    for name in names:
        if name in lacking:
            raise RunError(f"{lacking[name].path}: has no {name}; evaluate with --metric {name}, as other arms did")
    return {name: known[name] for name in names if name in known}


def check_settings(results: Sequence[Results], figures: Sequence[str]) -> None:
    """Raise RunError where curves were measured in different ways; warn of other differences."""
    curves = [name for name in figures if any(name in row["curves"] for row in results[0].rows)]
    for name, values in unlike(results, OF_CURVES if curves else ()).items():
        raise RunError(
            f"{results[0].path}: the {name} of {curves[0]} is not that of all results ({values}); evaluate all with "
            "the same, or choose other figures by --metric"
        )
    for name, values in unlike(results, TOLD).items():
        logger.warning("the results differ in %s (%s), which may be part of a difference", name, values)


def read_figure(arms: Sequence[Arm], name: str, metric: Metric) -> Figure | None:
    """Return a figure of all arms, on the records that have it in all; None where it is of none."""
    if isinstance(metric, SetMetric):
        labels = [row["label"] for row in arms[0].results[0].rows]
        records = np.array([at for at, label in enumerate(labels) if label is not None], np.intp)
        of_sets, ones = {arm.name: _of_set(arm, metric, records) for arm in arms}, np.ones((1, len(records)))
        there = len(records) and all(np.isfinite(of_draws(ones)).all() for of_draws in of_sets.values())
        return Figure(name, metric.higher, records, of_sets, None) if there else None
    every = {
        arm.name: np.array([[row["values"].get(name) for row in found.rows] for found in arm.results], np.float64)
        for arm in arms
    }
    known = ~np.isnan(np.concatenate([*every.values()])).any(axis=0)
    for arm in arms:
        if is_kept(arm.results[0]) and (known != ~np.isnan(every[arm.name][0])).any():
            raise RunError(f"{arm.results[0].path}: kept {name} of other records than all arms have it of; compare the "
                           "results themselves, or choose other figures by --metric")
    records = np.flatnonzero(known)
    values = {arm: own[:, records] for arm, own in every.items()}
    means = {arm: _mean(own) for arm, own in values.items()}
    return Figure(name, metric.higher, records, means, values) if len(records) else None


def _mean(values: Array) -> OfDraws:
    return lambda weights: (weights @ values.T) / weights.sum(axis=1, keepdims=True)


def _of_set(arm: Arm, metric: SetMetric, records: Indices) -> OfDraws:
    answers = []
    for found in arm.results:
        rows = [found.rows[at] for at in records]
        labels, predictions = (np.array([row[key] for row in rows], np.int64) for key in ("label", "prediction"))
        answers.append(Answers(labels, predictions, np.array([row["probabilities"] for row in rows], np.float64)))
    return lambda weights: np.stack([metric.measure(own, weights) for own in answers], axis=1)


def names_under(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the text or number that each record has under ``key``; raise RecordError where one has none."""
    found = [row["keys"].get(key, row.get(key) if key in ("class", "label", "id") else None) for row in rows]
    for row, name in zip(rows, found, strict=True):
        if name is None:
            raise RecordError(f'record "{row["id"]}": has no text or number under "{key}", expected in every record')
    return list(map(str, found))


# comparisons


def compare(arms: Sequence[Arm], options: ComparisonOptions) -> dict[str, Any]:
    """Compare arms in each figure, record by record and seed by seed; return what `hkmap compare` prints.

    Raises RunError for results of other records, or measured in other ways.
    """
    results = [found for arm in arms for found in arm.results]
    same_data(results)
    brief = next(filter(is_kept, results), None)
    if brief is not None and options.by is not None:
        raise RunError(f"{brief.path}: an arm in brief, which does not tell how seeds differ in a group; omit --by")
    chosen = chosen_figures(results, options.metrics)
    check_settings(results, [*chosen])
    read = {name: read_figure(arms, name, metric) for name, metric in chosen.items()}
    if left_out := [name for name, figure in read.items() if figure is None]:
        logger.warning("%s applies to no record of all arms, and is not compared", _listed(left_out))
    figures = [figure for figure in read.values() if figure is not None]
    if not figures:
        raise RunError(f"{results[0].path}: has no figure that all arms have; evaluate with the same --metric")
    rows = results[0].rows
    groups, parts = (None if key is None else names_under(rows, key) for key in (options.group, options.by))
    entries = [compared(figure, *pair, groups, parts, options) for figure, pair in product(figures, pairs(arms))]
    judge(entries)
    return {
        "arms": [
            {"name": arm.name, "runs": [run["path"] for run in arm.runs], "seeds": [run["seed"] for run in arm.runs],
             "control": arm.taught[0], "maps_learnt": arm.taught[1]} for arm in arms
        ],
        "paired_by": "seed" if by_seed(arms) else "name",
        "samples": len(rows),
        "group": options.group, "groups": None if groups is None else len(set(groups)),
        "by": options.by, "resamples": options.resamples, "seed": options.seed,
        "comparisons": entries,
    }


def compared(
    figure: Figure, arm: Arm, against: Arm, groups: Sequence[str] | None, parts: Sequence[str] | None,
    options: ComparisonOptions,
) -> dict[str, Any]:
    """Return ``arm`` minus ``against`` in a figure; ``groups`` and ``parts`` are names of all records."""
    one, two = figure.arms[arm.name], figure.arms[against.name]
    ones = np.ones((1, len(figure.records)))
    means, others = one(ones)[0], two(ones)[0]          # (seeds,)
    own = None if groups is None else [groups[at] for at in figure.records]
    differences = None if figure.values is None else figure.values[arm.name] - figure.values[against.name]
    ends, p_seeds = sureness(lambda weights: one(weights) - two(weights), len(figure.records), own, options)
    sign = -1 if figure.higher is False else 1
    better = sign * (means - others) > 2e-6 * np.abs(others)        # less is rounding, where an arm is in brief
    return {
        "figure": figure.name, "higher_is_better": figure.higher, "arm": arm.name, "against": against.name,
        "records": len(figure.records), "seeds": len(means),
        "mean": float(means.mean()), "mean_against": float(others.mean()),
        "difference": float((means - others).mean()), "interval": ends,
        "p": None if differences is None else sign_flip(differences.mean(axis=0), groups=own, seed=options.seed),
        "p_seeds": p_seeds,
        "per_seed": (means - others).tolist(),
        "better_seeds": None if figure.higher is None else int(np.count_nonzero(better)),
        "worst_group": None if parts is None or differences is None or figure.higher is None else worst_group(
            differences, [parts[at] for at in figure.records], own, options, sign=sign
        ),
    }


def sureness(
    of_draws: OfDraws, count: int, groups: Sequence[str] | None, options: ComparisonOptions
) -> tuple[Interval | None, float | None]:
    """Return the interval of a difference of ``count`` records, and with several seeds a p that speaks of others too.

    Of one seed it is a bootstrap of the records. Of several it has the half width sqrt(t1² v1 + t2² v2): v1 is the
    variance of the mean over the seeds, v2 that of its bootstrap over the records, and t1 and t2 are Student's t of
    seeds - 1 and records - 1. It holds at least what it says (Banerjee, Sankhya 22, 1960); what is chance of a record
    and a seed together is counted twice, so it is rather too wide. No interval of a single record or group, or where
    many draws have no figure.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    resampling = Resampling(count, groups=groups, resamples=options.resamples, seed=options.seed)
    figures, units = of_draws(np.ones((1, count)))[0], int(resampling.units().max()) + 1
    if len(figures) == 1:
        return interval(lambda weights: of_draws(weights)[:, 0], resampling), None
    drawn = np.concatenate([of_draws(weights).mean(axis=1) for weights in resampling.weights()])
    there = drawn[~np.isnan(drawn)]
    if units == 1 or len(there) < MOST_DRAWS * len(drawn):
        return None, None
    freedom = np.array([len(figures), units]) - 1
    variances = np.array([figures.var(ddof=1) / len(figures), there.var() * units / (units - 1)])

    def half_width(p: float) -> float:
        return math.sqrt(stdtrit(freedom, p / 2) ** 2 @ variances)

    mean, half = float(figures.mean()), half_width(1 - COVERAGE)
    if mean == 0 or half_width(LEAST_P) < abs(mean):
        return (mean - half, mean + half), 1.0 if mean == 0 else LEAST_P
    return (mean - half, mean + half), math.exp(
        brentq(lambda power: half_width(math.exp(power)) - abs(mean), math.log(LEAST_P), 0)
    )


def worst_group(
    differences: Array, parts: Sequence[str], groups: Sequence[str] | None, options: ComparisonOptions, *, sign: int
) -> dict[str, Any] | None:
    """Return the part of at least FEWEST records whose mean difference (seeds, n) times ``sign`` is the lowest."""
    names, numbers, counts = np.unique(np.array(parts, dtype=object), return_inverse=True, return_counts=True)
    means = np.bincount(numbers, weights=differences.mean(axis=0)) / counts
    large = np.flatnonzero(counts >= FEWEST)
    if not len(large):
        return None
    worst = large[np.argmin(sign * means[large])]
    places = np.flatnonzero(numbers == worst).tolist()
    own = None if groups is None else [groups[at] for at in places]
    return {
        "name": names[worst], "records": len(places), "difference": float(means[worst]),
        "interval": sureness(_mean(differences[:, places]), len(places), own, options)[0],
    }


def judge(comparisons: list[dict[str, Any]]) -> None:
    """Add whether a difference was found: its interval excludes 0, and p_holm is below SIGNIFICANT.

    That is the larger p, of these networks or of other seeds, after Holm's correction for all comparisons.
    """
    larger = [max((p for p in (entry["p"], entry["p_seeds"]) if p is not None), default=None) for entry in comparisons]
    corrected = iter(holm([p for p in larger if p is not None]))
    for entry, tested in zip(comparisons, larger, strict=True):
        entry["p_holm"] = p = None if tested is None else next(corrected)
        ends = entry["interval"]
        entry["found"] = ends is not None and not ends[0] <= 0 <= ends[1] and (p is None or p < SIGNIFICANT)

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
from hkmap.results.folder import Results, read_results, same_data
from hkmap.statistics import COVERAGE, Resampling, holm, interval, sign_flip

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
#: How often each record counts (draws, n) → an arm's figure in each draw (draws, seeds).
OfDraws = Callable[[Array], Array]

FEWEST = 5              # records of a group that can be the worst
MOST_DRAWS = 0.8        # of the draws must have a figure
OF_DATA = ("_of_zeros", "_of_people")       # end the names of figures that no network has a part in
OF_CURVES = ("step", "blur", "target")      # settings without which curves cannot be compared
TOLD = ("maps", "layer", "use_maps", "hold_attention", "dtype", "image_size", "map_size")   # a difference is a warning

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
    def control(self) -> str:
        return str(self.runs[0]["control"])

    @property
    def learnt(self) -> bool:
        """Whether it learnt from human maps, not from a sham's."""
        return self.control == "none" and bool(self.runs[0]["maps_learnt"])


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
    """A figure of all arms: on which records it is compared, and what it is for each arm by name.

    ``values`` (seeds, n) are of the n records; a figure of all records together has none.
    """

    name: str
    higher: bool | None
    records: Indices                    # (n,)
    arms: dict[str, OfDraws]
    values: dict[str, Array] | None


# arms


def find_arms(words: Sequence[str]) -> list[Arm]:
    """Read the arms [NAME=]PATTERN; a pattern matches run folders or folders of results, one per seed.

    Seeds are paired by the runs' seeds where all runs have one, else by the order of the folders' names. Raises
    RunError where nothing matches, or arms cannot be paired.
    """
    arms = [_arm(word) for word in words]
    names = [arm.name for arm in arms]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RunError(f'two arms are called "{repeated[0]}"; give each a name of its own, as NAME=RUN')
    return _paired(arms)


def _arm(word: str) -> Arm:
    given, equals, pattern = word.partition("=")
    if not equals or os.path.isdir(word):
        given, pattern = "", word
    name = given or pattern.replace("*", "").rstrip("-_/") or pattern
    paths = [pattern] if os.path.isdir(pattern) else sorted(glob(pattern))      # noqa: PTH207  (see find_shards)
    folders = [Path(path) for path in paths if os.path.isdir(path)]
    if not folders:
        raise RunError(f"{pattern}: matches no folder; expected run folders or folders of `hkmap eval --out`")
    arm = Arm(name, tuple(map(read_results, folders)))
    for found, run in zip(arm.results, arm.runs, strict=True):
        if (run["control"], run["maps_learnt"]) != (arm.control, arm.runs[0]["maps_learnt"]):
            raise RunError(
                f'{found.path}: was trained on other maps than {arm.results[0].path} in the same arm "{name}"; '
                "compare them as two arms"
            )
    return arm


def _paired(arms: list[Arm]) -> list[Arm]:
    """Return the arms with their results in the same order of seeds."""
    first = arms[0]
    for arm in arms:
        if len(arm.results) != len(first.results):
            counts = f"{len(arm.results)} results, {first.name} has {len(first.results)}"
            raise RunError(f'the arm "{arm.name}" has {counts}; expected one per seed in each arm')
    if not by_seed(arms):
        return arms
    ordered = [Arm(arm.name, tuple(sorted(arm.results, key=_seed))) for arm in arms]
    for arm in ordered:
        if (own := list(map(_seed, arm.results))) != (others := list(map(_seed, ordered[0].results))):
            seeds = f"of the seeds {_listed(own)}, {first.name} of {_listed(others)}"
            if len(own) > 1:
                raise RunError(f'the arm "{arm.name}" is {seeds}; expected the same seeds in each arm')
            logger.warning('the arm "%s" is %s; part of a difference may be the seed', arm.name, seeds)
    return ordered


def by_seed(arms: Sequence[Arm]) -> bool:
    """Return whether results are paired by the seeds of their runs: all have one, and none of an arm the same."""
    seeds = [[run["seed"] for run in arm.runs] for arm in arms]
    return all(None not in own and len(set(own)) == len(own) for own in seeds)


def _seed(found: Results) -> int:
    seed: int = found.header["run"]["seed"]
    return seed


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items))


def pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return which arm is compared against which: each with the first, and what learnt human maps with every sham.

    What learnt human maps comes before what did not; else the first arm comes last.
    """
    first, *others = arms
    humans, shams = [arm for arm in arms if arm.learnt], [arm for arm in arms if arm.control != "none"]
    asked = [*((arm, first) for arm in others), *product(humans, shams)]
    turned = [(two, one) if two.learnt and not one.learnt else (one, two) for one, two in asked]
    return list(dict.fromkeys(turned))


# figures


def metrics_of(arms: Sequence[Arm]) -> dict[str, Metric]:
    """Return the metric of each figure that results may have."""
    names = dict.fromkeys(name for arm in arms for found in arm.results for name in found.header["metrics"])
    owners: dict[str, Metric] = {}
    for name in names:
        metric = METRICS[name]
        for figure in metric.figures or (name,):
            owners |= {figure: metric, figure + BEFORE: metric}
    return owners


def chosen_figures(arms: Sequence[Arm], metrics: Sequence[str]) -> list[str]:
    """Return the figures to compare, in the order of the first results.

    Raises ChoiceError for an unknown name, and RunError where some results lack a chosen figure.
    """
    results, metric_of = [found for arm in arms for found in arm.results], metrics_of(arms)
    names = dict.fromkeys(name for found in results for name in found.report["metrics"])
    known = dict.fromkeys(name for name in names if name in metric_of and not name.endswith(OF_DATA))
    lacking = {name: found for found in results for name in known if name not in found.report["metrics"]}
    if metrics:
        measured = (name for found in results for name in found.header["metrics"])
        Choices("figure", dict.fromkeys((*known, *measured))).check(*metrics)
        chosen = [(name,) if name in known else METRICS[name].figures for name in metrics]
        known = {name: None for name in chain.from_iterable(chosen) if name in known}
        for name in known:
            if name in lacking:
                raise RunError(f"{lacking[name].path}: has no {name}; evaluate with --metric {name}, as other arms did")
        return list(known)
    if lacking:
        logger.warning("not all arms have %s, which is not compared", _listed(list(lacking)))
    return [name for name in known if name not in lacking]


def check_settings(arms: Sequence[Arm], figures: Sequence[str]) -> None:
    """Raise RunError where curves were measured in different ways; warn of other differences."""
    first, *others = (found for arm in arms for found in arm.results)
    curves = [name for name in figures if any(name in row["curves"] for row in first.rows)]
    for found, name in product(others, OF_CURVES if curves else ()):
        one, two = (each.header["settings"].get(name) for each in (first, found))
        if one != two:
            raise RunError(
                f"{found.path}: {curves[0]} has the {name} {two}, in {first.path} {one}; evaluate both with the same, "
                "or choose other figures by --metric"
            )
    for name in TOLD:
        given = dict.fromkeys(str(found.header["settings"].get(name)) for found in (first, *others))
        if len(given) > 1:
            logger.warning("the results differ in %s (%s), which may be part of a difference", name, _listed([*given]))


def read_figure(arms: Sequence[Arm], name: str, metric: Metric) -> Figure | None:
    """Return a figure of all arms, on the records that have it in all; None where it is of none."""
    higher = metric.higher
    if isinstance(metric, SetMetric):
        rows = arms[0].results[0].rows
        records = np.array([at for at, row in enumerate(rows) if row["label"] is not None], np.intp)
        found = Figure(name, higher, records, {arm.name: _of_set(arm, metric, records) for arm in arms}, None)
        ones = np.ones((1, len(records)))
        there = len(records) and all(np.isfinite(of_draws(ones)).all() for of_draws in found.arms.values())
        return found if there else None
    every = {arm.name: _values(arm, name) for arm in arms}
    records = np.flatnonzero(~np.isnan(np.concatenate([*every.values()])).any(axis=0))
    values = {arm: own[:, records] for arm, own in every.items()}
    if not len(records):
        return None
    return Figure(name, higher, records, {arm: _mean(own) for arm, own in values.items()}, values)


def _values(arm: Arm, name: str) -> Array:
    """Return the values (seeds, n) of all records, NaN where a record has none."""
    return np.array([[row["values"].get(name) for row in found.rows] for found in arm.results], np.float64)


def _mean(values: Array) -> OfDraws:
    return lambda weights: (weights @ values.T) / weights.sum(axis=1, keepdims=True)


def _of_set(arm: Arm, metric: SetMetric, records: Indices) -> OfDraws:
    answers = []
    for found in arm.results:
        rows = [found.rows[at] for at in records]
        labels, predictions = (np.array([row[key] for row in rows], np.int64) for key in ("label", "prediction"))
        answers.append(Answers(labels, predictions, np.array([row["probabilities"] for row in rows])))
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

    A difference is "found" where its interval excludes 0 and its p, after Holm's correction over all comparisons of the
    call, is below SIGNIFICANT. Raises RunError for results of other records, or measured in other ways.
    """
    same_data([found for arm in arms for found in arm.results])
    names, owners = chosen_figures(arms, options.metrics), metrics_of(arms)
    check_settings(arms, names)
    read = {name: read_figure(arms, name, owners[name]) for name in names}
    if left_out := [name for name, figure in read.items() if figure is None]:
        logger.warning("%s applies to no record of all arms, and is not compared", _listed(left_out))
    figures = [figure for figure in read.values() if figure is not None]
    if not figures:
        raise RunError(f"{arms[0].results[0].path}: has no figure that all arms have; evaluate with the same --metric")
    rows = arms[0].results[0].rows
    groups, parts = (None if key is None else names_under(rows, key) for key in (options.group, options.by))
    entries = [compared(figure, *pair, groups, parts, options) for figure, pair in product(figures, pairs(arms))]
    _judge(entries)
    return {
        "arms": [
            {"name": arm.name, "runs": [run["path"] for run in arm.runs], "seeds": [run["seed"] for run in arm.runs],
             "control": arm.control, "maps_learnt": arm.runs[0]["maps_learnt"]} for arm in arms
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
    sign = -1 if figure.higher is False else 1
    return {
        "figure": figure.name, "higher_is_better": figure.higher, "arm": arm.name, "against": against.name,
        "records": len(figure.records), "seeds": len(means),
        "mean": float(means.mean()), "mean_against": float(others.mean()),
        "difference": float((means - others).mean()),
        "interval": crossed_interval(lambda weights: one(weights) - two(weights), len(figure.records), own, options),
        "p": None if differences is None else sign_flip(differences.mean(axis=0), groups=own, seed=options.seed),
        "per_seed": (means - others).tolist(),
        "better_seeds": None if figure.higher is None else int(np.count_nonzero(sign * (means - others) > 0)),
        "worst_group": None if parts is None or differences is None or figure.higher is None else worst_group(
            differences, [parts[at] for at in figure.records], own, options, sign=sign
        ),
    }


def crossed_interval(
    of_draws: OfDraws, count: int, groups: Sequence[str] | None, options: ComparisonOptions
) -> tuple[float, float] | None:
    """Return the bootstrap interval of a mean over seeds, which draws ``count`` records, and seeds too if several.

    Both are drawn on their own and crossed (the pigeonhole bootstrap of Owen, Annals of Applied Statistics 1, 2007),
    which is rather too wide than too narrow. Draws of few seeds are too narrow; their weights are spread until they
    have the width of Student's t. None of a single record or group, and where many draws have no figure.
    """
    from scipy.special import ndtri, stdtrit

    resampling = Resampling(count, groups=groups, resamples=options.resamples, seed=options.seed)
    seeds = of_draws(np.ones((1, count))).shape[1]
    if seeds == 1:
        return interval(lambda weights: of_draws(weights)[:, 0], resampling)
    tails, random = (1 - COVERAGE) / 2, np.random.default_rng((options.seed, 1))
    spread = math.sqrt(seeds / (seeds - 1)) * stdtrit(seeds - 1, tails) / ndtri(tails)
    drawn = []
    for weights in resampling.weights():
        often = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights))
        drawn.append((of_draws(weights) * (1 + spread * (often - 1))).mean(axis=1))
    figures = np.concatenate(drawn)
    there = figures[~np.isnan(figures)]
    if resampling.units().max() == 0 or len(there) < MOST_DRAWS * len(figures):
        return None
    low, high = np.quantile(there, [tails, 1 - tails]).tolist()
    return low, high


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
        "interval": crossed_interval(_mean(differences[:, places]), len(places), own, options),
    }


def _judge(comparisons: list[dict[str, Any]]) -> None:
    """Add Holm's p and whether a difference was found."""
    tested = [entry for entry in comparisons if entry["p"] is not None]
    corrected = dict(zip(map(id, tested), holm([entry["p"] for entry in tested]), strict=True))
    for entry in comparisons:
        entry["p_holm"] = p = corrected.get(id(entry))
        ends = entry["interval"]
        apart = ends is not None and not ends[0] <= 0 <= ends[1]
        entry["found"] = apart and (p is None or p < SIGNIFICANT)

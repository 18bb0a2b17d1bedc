"""Print the papers' tables for evaluated runs, with the papers' own figures beside them where the row is the same.

    python examples/tables.py runs/ --table 4

A run has a row if `hkmap eval --out` wrote its results below the folder; runs that differ by their seed are averaged. A
row is told by the results: the architecture, whether human maps or a sham of them taught it, mining, and --maps. The
baselines CAM and Grad-CAM are those of a network without attention branch. Whether a network was trained from scratch
or pre-trained, and on which data, the results do not tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from hkmap.errors import HkmapError, RunError
from hkmap.results.folder import OF_CURVES, REPORT, Results, read_results, same_data, unlike

METHODS = ("plain", "CAM", "Grad-CAM", "+ABN", "+ABN, mining", "proposed", "sham")
MAPS = {"cam": "CAM", "gradcam": "Grad-CAM"}
SHARES = range(0, 101, 10)      # of the area, in figure 5

HUMAN = "Mitsuhara et al., arXiv 1905.03540v4"
MINING = "Iwayoshi et al., Attention Mining Branch for Optimizing Attention Map"
SIDES = "ResNet18 ResNet34 ResNet50"

Row = tuple[str, str]           # method, backbone


def rows(backbones: str, **methods: str) -> dict[Row, str]:
    """Return a paper's figures by row, from a text per method with a figure per backbone.

    >>> rows("ResNet18 ResNet34", plain="9.00, 9.60")
    {('plain', 'ResNet18'): '9.00', ('plain', 'ResNet34'): '9.60'}
    """
    names = {"ABN": "+ABN", "GradCAM": "Grad-CAM", "mining": "+ABN, mining"}
    return {
        (names.get(method, method), backbone): figure
        for method, text in methods.items()
        for backbone, figure in zip(backbones.split(), text.split(", "), strict=True)
    }


@dataclass(frozen=True)
class Table:
    """A table: its figures (names of metrics) as ``form`` writes them, and the columns of the paper.

    ``of_maps``: its rows are those of maps, else of answers. The curves of ``only`` are of misclassified samples.
    """

    title: str
    source: str
    figures: tuple[str, ...]
    form: str
    of_maps: bool = False
    only: bool = False
    paper: Mapping[str, Mapping[Row, str]] = field(default_factory=dict)


ACCURACY = "{0:.2%} ({1:.2%})"
TABLES = {
    "2": Table("top-1 error", f"{HUMAN}, table 2 (ImageNet)", ("error",), "{0:.2%}", paper={
        "paper, 10 of the 100 worst": rows(SIDES, plain="9.00, 9.60, 12.00", ABN="8.40, 7.60, 11.20",
                                           proposed="6.20, 7.40, 10.80"),
        "paper, 100 worst": rows("ResNet152", plain="31.90") | rows("ResNet152+SE", ABN="31.16", proposed="30.88"),
    }),
    "3": Table("top-1 (top-5) accuracy", f"{HUMAN}, table 3 (CUB-200-2010)", ("top1", "top5"), ACCURACY, paper={
        "paper, scratch": rows(
            SIDES, plain="28.38 (52.62), 27.39 (53.28), 28.02 (54.33)",
            ABN="32.38 (57.27), 30.99 (53.68), 31.68 (57.01)", proposed="36.96 (61.66), 38.15 (62.78), 37.42 (62.08)",
        ),
        "paper, pre-trained": rows(
            SIDES, plain="62.58 (83.25), 67.59 (85.13), 69.27 (88.39)",
            ABN="63.57 (83.45), 68.25 (87.73), 71.68 (89.09)", proposed="64.72 (83.71), 69.27 (87.88), 72.07 (90.37)",
        ),
    }),
    "4": Table("deletion (lower) / insertion (higher)", f"{HUMAN}, table 4 (CUB-200-2010)", ("deletion", "insertion"),
               "{0:.4f} / {1:.4f}", of_maps=True, paper={"paper": rows(
                   SIDES, GradCAM=".0719 / .3729, .1329 / .4784, .1480 / .3973",
                   ABN=".1560 / .3633, .0920 / .5734, .0706 / .6330",
                   proposed=".1039 / .4995, .0778 / .5842, .0564 / .6828",
               )}),
    "5": Table("map MSE", f"{HUMAN}, table 5 (CUB-200-2010)", ("mse",), "{0:.4f}", of_maps=True, paper={"paper": rows(
        SIDES, CAM=".6456, .7658, .6031", GradCAM=".4502, .4831, .3875", ABN=".1682, .3022, .5499",
        proposed=".1136, .1597, .2049",
    )}),
    "6": Table("accuracy", f"{HUMAN}, table 6 (IDRiD)", ("top1",), "{0:.2%}", paper={"paper": rows(
        f"AlexNet {SIDES}", plain="89.66, 89.78, 94.44, 95.83", ABN="93.11, 95.33, 96.88, 97.22",
        proposed="96.78, 96.88, 97.23, 99.17",
    )}),
    "7": Table("deletion (lower) / insertion (higher)", f"{HUMAN}, table 7 (IDRiD)", ("deletion", "insertion"),
               "{0:.4f} / {1:.4f}", of_maps=True, paper={"paper": rows(
                   SIDES, GradCAM=".3058 / .6201, .2958 / .7085, .2854 / .7465",
                   ABN=".4201 / .6028, .3900 / .6878, .3844 / .6524",
                   proposed=".2732 / .8704, .2978 / .8832, .3102 / .8923",
               )}),
    "8": Table("map MSE", f"{HUMAN}, table 8 (IDRiD)", ("mse",), "{0:.4f}", of_maps=True, paper={"paper": rows(
        SIDES, CAM=".3749, .3300, .2287", GradCAM=".1521, .1329, .1532", ABN=".1241, .1309, .1286",
        proposed=".0893, .0927, .0904",
    )}),
    "mining-1": Table("top-1 (top-5) accuracy", f"{MINING}, table 1", ("top1", "top5"), ACCURACY, paper={
        "paper, CUB-200-2010": rows("ResNet50", ABN="31.68 (57.01)", mining="33.53 (58.68)", proposed="37.42 (62.08)"),
        "paper, Stanford Dogs": rows("ResNet50", ABN="71.81 (93.02)", mining="71.99 (92.80)"),
    }),
    "mining-5": Table("probability of the label over the share inserted", f"{MINING}, figure 5", ("insertion",),
                      "{0:.4f}", of_maps=True, only=True),
}


class Found(NamedTuple):
    """Results, and the rows that they are of; None where they are no row of answers, or of maps."""

    results: Results
    answers: Row
    maps: Row | None


def found_in(folder: Path) -> list[Found]:
    """Return all results below a folder but those with human maps in place of the network's own."""
    results = [read_results(path.parent) for path in sorted(folder.rglob(REPORT))]
    found = [_told(one) for one in results if not one.header["settings"].get("use_maps")]
    if not found:
        raise RunError(f"{folder}: holds no results; expected some of `hkmap eval SHARD --from RUN --out RUN/eval`")
    return found


def _told(results: Results) -> Found:
    run, maps = results.header["run"], results.header["settings"]["maps"]
    arch, branch, _ = run["arch"].partition("+abn")
    backbone = arch.replace("resnet", "ResNet").replace("alexnet", "AlexNet").replace("+se", "+SE")
    if not branch:
        return Found(results, ("plain", backbone), (MAPS[maps], backbone) if maps in MAPS else None)
    method = "+ABN, mining" if run.get("mining") else "+ABN"
    if run["maps_learnt"]:
        method = "proposed" if run["control"] == "none" else "sham"
    return Found(results, (method, backbone), (method, backbone) if maps == "attention" else None)


def by_row(found: Sequence[Found], table: Table) -> dict[Row, list[Results]]:
    """Return the results of each row, one per seed, in the order of METHODS.

    Raises RunError where results are of other data or other curves, or two of one row of the same seed.
    """
    chosen: dict[Row, dict[str, Results]] = {}
    for results, answers, maps in found:
        row = maps if table.of_maps else answers
        has_all = all(results.report["metrics"].get(name) is not None for name in table.figures)
        if row is not None and has_all and ("only" in results.header) == table.only:
            chosen.setdefault(row, {}).setdefault(results.header["run"]["path"], results)
    rows = {row: list(chosen[row].values()) for row in sorted(chosen, key=lambda row: (row[1], METHODS.index(row[0])))}
    for row, several in rows.items():
        seeds = [one.header["run"]["seed"] for one in several]
        if len(set(seeds)) < len(seeds):
            both = " and ".join(str(one.path) for one in several)
            raise RunError(f"{both}: are all {' '.join(row)} and share a seed; keep what is no repetition elsewhere")
    every = [one for several in rows.values() for one in several]
    if every:
        same_data(every)
    for name, given in unlike(every, OF_CURVES if "insertion" in table.figures else ()).items():
        raise RunError(f"{every[0].path}: the {name} is not that of all rows ({given}); evaluate all with the same")
    return rows


def lines(found: Sequence[Found], table: Table) -> Iterator[str]:
    """Yield a table as Markdown."""
    rows = by_row(found, table)
    if not rows:
        how = ",".join(table.figures) + (" --only misclassified --baseline RUN" if table.only else "")
        yield f"No results fit; make some by `hkmap eval --metric {how} --out RESULTS`."
        return
    shares = [f"{share} %" for share in SHARES] if table.only else []
    yield _line(["backbone", "", "records", "seeds", "ours", *shares, *table.paper])
    yield _line(["---"] * (5 + len(shares) + len(table.paper)))
    for row, several in rows.items():
        figures = [mean(one.report["metrics"][name] for one in several) for name in table.figures]
        ours = table.form.format(*figures).replace("%", "")
        beside = [column.get(row, "") for column in table.paper.values()]
        counts = str(several[0].report["samples"]), str(len(several))
        yield _line([row[1], row[0], *counts, ours, *(_curve(several) if table.only else ()), *beside])


def _curve(several: Sequence[Results]) -> list[str]:
    """Return the mean insertion curve at SHARES; between two steps it is a straight line."""
    heights = []
    for share in SHARES:
        found = []
        for curve in (row["curves"]["insertion"] for one in several for row in one.rows):
            place = share / 100 * (len(curve) - 1)
            left = min(int(place), len(curve) - 2)
            found.append(curve[left] + (place - left) * (curve[left + 1] - curve[left]))
        heights.append(f"{mean(found):.3f}")
    return heights


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the papers' tables for evaluated runs, as Markdown.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", choices=TABLES, action="append", help="one of them; repeatable; all by default")
    parser.add_argument("--generated", action="store_true", help="say that the data were generated")
    given = parser.parse_args()
    try:
        found = found_in(given.folder)
        for name in given.table or TABLES:
            table = TABLES[name]
            print(f"\n### {table.title}\n\nThe form of {table.source}.\n")
            if given.generated:
                print("**Generated data and tiny networks: these numbers show the form, and nothing else.**\n")
            print(*lines(found, table), sep="\n")
    except HkmapError as error:
        parser.exit(1, f"Error: {error}\n")


if __name__ == "__main__":
    main()

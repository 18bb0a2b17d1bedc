"""The page and the figure of a study, from its arms in brief alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from hkmap.evaluation.metrics import METRICS
from hkmap.report.verdicts import reading, table_rows
from hkmap.results.comparison import (
    Arm,
    ComparisonOptions,
    compare,
    find_arms,
    names_under,
    read_figure,
    sureness,
)

TITLES = {"top1": "accuracy", "log_loss": "log loss", "spearman": "Spearman", "iou": "IoU", "kl": "KL",
          "insertion": "insertion", "deletion": "deletion", "edit_response_inverted": "edit response"}
FIGURES = {"edit_response_inverted": "edit_response"}       # whose metric has another name
COLUMNS = ("figure", "arm", "against", "difference", "95 % interval", "p (Holm)", "better seeds", "found")
LOUD = {"none": "#444444", "human": "#d1495b", "shuffled": "#8d99ae", "same-class": "#5c7cfa", "center": "#2a9d8f",
        "human-10": "#8b1e3f", "shuffled-10": "#4a5568"}


def page_of(study: Mapping[str, Any], kept: Path) -> str:
    """Return the page, in Markdown."""
    run = dict(sorted(json.loads((kept / "run.json").read_text()).items(), key=lambda item: order(item[0])))
    blocks = [f"# {study['title']}", NOTE.format(study["name"]), study["about"].strip(), *meaning(study)]
    blocks.append(f"![What maps and shams changed against labels alone]({study['name']}.svg)")
    for cell in cells_of(kept):
        blocks += [f"## {heading(cell)}", *cell_blocks(study, kept / cell, run.get(cell, {}).get("probe"))]
    return "\n\n".join([*blocks, "## How it was done", *how(study, run)]) + "\n"


NOTE = "<!-- Written by examples/studies/study.py from {0}/. Change that, or the study, not this file. -->"


def meaning(study: Mapping[str, Any]) -> list[str]:
    return [study["meaning"].strip()] if "meaning" in study else []


def cells_of(kept: Path) -> list[str]:
    """Return the names of the cells, by part and number of images."""
    return sorted((path.name for path in kept.iterdir() if path.is_dir()), key=order)


def order(cell: str) -> tuple[Any, ...]:
    """Return what a cell is sorted by: 5 images come before 10."""
    return tuple(int(word) if word.isdigit() else -1 for word in cell.split("-")), cell


def heading(cell: str) -> str:
    """Return a cell's name as a heading.

    >>> heading("5-per-class"), heading("birds-10-per-class-wrong"), heading("5-per-class-curves")
    ('5 images of each class', 'birds, 10 images of each class, wrong', '5 images of each class, curves')
    """
    words = cell.replace("-per-class", " images of each class,").replace("all", "all images,")
    start, _, rest = words.partition(",")
    part, _, number = start.rpartition("-")
    return ", ".join(word for word in (part, number, rest.strip("-")) if word)


def cell_blocks(
    study: Mapping[str, Any], folder: Path, probe: Mapping[str, Sequence[float]] | None
) -> Iterator[str]:
    """Yield the tables of a cell, and what was found."""
    arms = {arm.name: arm for arm in arms_in(folder, study["arms"])}
    first = next(iter(arms.values()))
    there, seeds = first.results[0], len(first.results)
    yield f"{len(there.rows)} test images, {seeds} seed{'s' * (seeds > 1)}; means with 95 % intervals."
    shown = [name for name in TITLES if name in there.report["metrics"]]
    rows = [[name, *(figure_cell(arm, figure, study.get("group")) for figure in shown), *shares(arm)]
            for name, arm in arms.items()]
    if probe:
        rows.append(["*linear probe*", *(f"{mean(probe[figure]):.3f}" if figure in probe else "" for figure in shown)])
    yield table(["arm", *(TITLES[name] for name in shown), *people(there)], rows)
    for family in study["families"].values():
        if len(chosen := [arms[name] for name in family if name in arms]) < 2:
            continue
        found = compared(study, chosen)
        yield table(COLUMNS, [[figure, arm, against, *more] for figure, arm, _, against, _, *more in table_rows(found)])
        yield f"{found_line(found['comparisons'])} {reading(found)}"


def arms_in(folder: Path, names: Iterable[str]) -> list[Arm]:
    """Return the arms of these names that a cell has."""
    return find_arms([f"{name}={folder}/{name}.json" for name in names if (folder / f"{name}.json").exists()])


def compared(study: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    """Compare arms in the figures that the study shows, or of curves in all that there are."""
    there = arms[0].results[0].report["metrics"]
    figures = [name for name in study["shown"] if name in there] or [name for name in TITLES if name in there]
    return compare(arms, ComparisonOptions(tuple(figures), group=study.get("group")))


def found_line(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the differences that were found, as a sentence."""
    pairs: dict[str, list[str]] = {}
    for entry in entries:
        if entry["found"]:
            better = (entry["difference"] > 0) == entry["higher_is_better"]
            pair = f"{entry['arm']} {'better' if better else 'worse'} than {entry['against']}"
            pairs.setdefault(pair, []).append(entry["figure"])
    said = "; ".join(f"{pair} in {', '.join(names)}" for pair, names in pairs.items())
    return f"Found: {said or 'nothing'}."


def people(found: Any) -> list[str]:
    return ["share of people"] if "spearman_of_people" in found.rows[0]["values"] else []


def shares(arm: Arm) -> list[str]:
    """Return the rank correlation as a share of that of people with one another, where there are several."""
    if not people(arm.results[0]):
        return []
    own, theirs = (
        np.nanmean([[row["values"][name] for row in found.rows] for found in arm.results], dtype=float)
        for name in ("spearman", "spearman_of_people")
    )
    return [f"{own / theirs:.2f}"]


def figure_cell(arm: Arm, name: str, group: str | None) -> str:
    """Return a figure's mean with its interval, over the records (or their groups) and the seeds."""
    figure = read_figure([arm], name, METRICS[FIGURES.get(name, name)])
    if figure is None:
        return "none"
    ones = np.ones((1, len(figure.records)))
    of_draws = figure.arms[arm.name]
    own = None if group is None else names_under([arm.results[0].rows[at] for at in figure.records], group)
    ends, _ = sureness(of_draws, len(figure.records), own, ComparisonOptions())
    middle = float(of_draws(ones).mean())
    return f"{middle:.3f}" if ends is None else f"{middle:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def how(study: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    """Yield how settings were chosen, what the arms are, and on what machine how long it took."""
    yield HOW.format(image_size=study["image_size"], batch_size=study["batch_size"], gate=study["gate"])
    yield table(["arm", "options of `hkmap finetune`"], [[name, f"`{words}`"] for name, words in study["arms"].items()])
    tuning = {cell: about["tuning"] for cell, about in run.items()}
    for cell, found in tuning.items():
        chosen = ", ".join(f"{name} {value:g}" for name, value in found["chosen"].items())
        own = cell == found["with"]
        more = "What was tried, with the log loss of each seed:" if own else f"That is of {heading(found['with'])}."
        yield f"Chosen for {heading(cell)}: {chosen}. {more}"
        if own:
            yield table(["setting", "value", "arm", "mean log loss", "of each seed"], [
                [one["setting"], f"{one['value']:g}", one["arm"], f"{mean(one['log_loss']):.4f}",
                 ", ".join(f"{loss:.4f}" for loss in one["log_loss"])] for one in found["tried"]
            ])
    choices = {found["with"]: found for found in tuning.values()}.values()
    trainings = [sum(one["trainings"] for one in of) for of in (run.values(), choices)]
    hours = [sum(one["seconds"] for one in of) / 3600 for of in (run.values(), choices)]
    machines = list({json.dumps(about["machine"]): about["machine"] for about in run.values()}.values())
    on = " and ".join(MACHINE.format(**machine) for machine in machines)
    yield TOOK.format(trainings, hours, on)
    yield AGAIN.format(study["name"])


HOW = """The network is EfficientNet-Lite0 with its real ImageNet weights, which stay as they are: trained are the
attention branch and, on the average of the features weighted by the attention, the classifier
(`examples/studies/network.py`). Images have {image_size} pixels, batches {batch_size} images; the gate is `{gate}`
where no heading names another. The weight decay is of the classifier; the attention branch, which a strong one kills,
has the paper's 0.0001. A seed draws the images and the weights of the new layers. For each seed a base is trained on
labels alone, and every arm is fine-tuned from it with the same options, so arms differ in nothing but what stands here.
The linear probe is a logistic regression on the same features, not weighted
(`examples/studies/probe.py`): what the images give without an attention branch. Settings were chosen on other seeds
and on images that are not of the test; a gamma was chosen for the human maps, and their shams take the same:"""

TOOK = """These {0[0]} trainings and their evaluation took {1[0]:.1f} hours of processor time, and {0[1]} to choose
settings by another {1[1]:.1f}, on {2}."""

MACHINE = "{processor} ({cores} cores, {threads} used), with Python {python}, torch {torch} and hkmap {hkmap}"

AGAIN = """The statistics can be made again from the files in [{0}/]({0}/), such as

```sh
cd docs/results/{0} && hkmap compare none=CELL/none.json human=CELL/human.json shuffled=CELL/shuffled.json
```

and the whole page by `python examples/studies/study.py page examples/studies/{0}.toml`."""


def figure_of(study: Mapping[str, Any], kept: Path) -> None:
    """Draw what maps and shams changed against labels alone: a row for each figure, a column for each group."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures, columns = [name for name in study["shown"] if name in ("top1", "log_loss", "kl")], columns_of(kept)
    width = sum(1.2 + len(cells) for cells in columns.values())
    with mpl.rc_context({"svg.hashsalt": "study", "font.size": 10}):
        figure, axes = plt.subplots(
            len(figures), len(columns), figsize=(max(6, width), 2.8 * len(figures)), squeeze=False, sharex="col",
            layout="constrained",
        )
        for at, (group, cells) in enumerate(columns.items()):
            found = [[entry for family in study["drawn"] for entry in
                      compared(study, arms_in(kept / cell, study["families"][family]))["comparisons"]]
                     for cell in cells.values()]
            for axis, name in zip(axes[:, at], figures, strict=True):
                draw_differences(axis, name, found)
            axes[0, at].set_title(group)
            axes[-1, at].set_xticks(range(len(cells)), list(cells))
            axes[-1, at].set_xlabel("images of each class" if all(label.isdigit() for label in cells) else "")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(kept.parent / f"{study['name']}.svg", metadata={"Date": None})
        plt.close(figure)


def columns_of(kept: Path) -> dict[str, dict[str, str]]:
    """Return the cells without curves: their names by what stands below them, by their group."""
    columns: dict[str, dict[str, str]] = {}
    for cell in cells_of(kept):
        label, _, group = cell.partition("-per-class")
        if group != "-curves":
            columns.setdefault(group.strip("-"), {})[label.replace("-", "\n")] = cell
    return columns


def draw_differences(axis: Any, figure: str, found: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Draw each arm minus labels alone with its 95 % interval; the cells stand side by side."""
    drawn = [[entry for entry in cell if (entry["figure"], entry["against"]) == (figure, "none")] for cell in found]
    names = [entry["arm"] for entry in drawn[0]]
    axis.axhline(0, color=LOUD["none"], linewidth=1)
    for place, name in enumerate(names):
        entries = [entry for cell in drawn for entry in cell if entry["arm"] == name]
        middle = np.array([entry["difference"] for entry in entries])
        ends = np.array([entry["interval"] for entry in entries])
        at = np.arange(len(entries)) + 0.15 * (place - (len(names) - 1) / 2)
        axis.errorbar(at, middle, [middle - ends[:, 0], ends[:, 1] - middle], label=name, color=LOUD[name], fmt="o",
                      capsize=3)
    axis.set_ylabel(f"{TITLES[figure]} - labels alone")

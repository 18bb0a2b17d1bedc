"""What a comparison of arms says: in sentences, as a table, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from typing import Any

COLUMNS = ("figure", "arm", "mean", "against", "its mean", "difference", "95 % interval", "p (Holm)", "seeds", "found")
_PLAIN = ("figure", "arm", "against", "records", "seeds", "mean", "mean_against", "difference", "p", "p_seeds",
          "p_holm", "better_seeds", "found")      # columns of CSV
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", **{mark: f"\\{mark}" for mark in "&%$#_{}"}}

SIGNIFICANT = 0.05      # a p below it, after Holm's correction

Entry = Mapping[str, Any]       # of a comparison's "comparisons"


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """Return what was found, figure by figure, what the sham controls say, and how the numbers are to be read."""
    entries = comparison["comparisons"]
    said = [verdict(entry) for entry in entries]
    said += [f'Where {entry["arm"]} does worst against {entry["against"]} in {entry["figure"]}: '
             f'{comparison["by"]} "{worst["name"]}" ({worst["records"]} records): {apart(worst)}.'
             for entry in entries if (worst := entry["worst_group"]) is not None]
    return [*said, *shams(comparison), reading(comparison)]


def verdict(entry: Entry) -> str:
    """Say what a comparison found, so that it can be quoted."""
    arm, against, figure = entry["arm"], entry["against"], entry["figure"]
    sure = "" if entry["p_holm"] is None else f" ({_p(entry['p_holm'])} after Holm)"
    if not entry["found"]:
        return (f"No difference was found between {arm} and {against} in {figure}: {arm} - {against} = {apart(entry)}"
                f"{sure}{_but(entry)}.")
    higher, up = entry["higher_is_better"], entry["difference"] > 0
    how = ("higher" if up else "lower") if higher is None else ("better" if up == higher else "worse")
    places = _places(entry)
    low, high = sorted(map(abs, entry["interval"]))
    by = f"{abs(entry['difference']):.{places}f} [{low:.{places}f}, {high:.{places}f}]"
    seeds = "" if entry["seeds"] == 1 or higher is None else f", {arm} is better with {_of_seeds(entry)} seeds"
    return f"{arm} is {how} than {against} in {figure} by {by}{sure}{seeds}."


def _but(entry: Entry) -> str:
    """Say what seems to show a difference that was not found."""
    if entry["p"] is not None and entry["p"] < SIGNIFICANT <= (entry["p_seeds"] or 0):
        return f"; these networks differ ({_p(entry['p'])}), but those of other seeds may not"
    ends = entry["interval"]
    if ends is not None and not ends[0] <= 0 <= ends[1]:
        return f"; the interval excludes 0, but p after the correction is not below {SIGNIFICANT}"
    return ""


def shams(comparison: Mapping[str, Any]) -> list[str]:
    """Say where human maps were not found to do better than a sham control, or that there is none."""
    arms = {arm["name"]: arm for arm in comparison["arms"]}
    humans = [name for name, arm in arms.items() if arm["maps_learnt"] and arm["control"] == "none"]
    if humans and all(arm["control"] == "none" for arm in arms.values()):
        return [f"A sham control is missing: without one (`hkmap finetune --control shuffled`) nothing shows that what "
                f"{' and '.join(humans)} gained comes from where people looked."]
    said = []
    for entry in comparison["comparisons"]:
        higher, control = entry["higher_is_better"], arms[entry["against"]]["control"]
        if entry["arm"] not in humans or control == "none" or higher is None:
            continue
        up = entry["difference"] > 0
        if not (entry["found"] and up == higher):
            does = "does better" if entry["found"] else "was not found to do worse"
            said.append(
                f"The sham control ({entry['against']}) {does} than the human maps in {entry['figure']}: "
                f"{entry['arm']} - {entry['against']} {apart(entry)}; so nothing shows that a gain comes from where "
                "people looked."
            )
    return said


def reading(comparison: Mapping[str, Any]) -> str:
    """Say what the intervals and p speak of."""
    entries, unit = comparison["comparisons"], "records" if comparison["group"] is None else "groups"
    tests = sum(entry["p_holm"] is not None for entry in entries)
    if entries[0]["seeds"] > 1:
        said = f"95 % intervals and p are of {unit} and seeds, so that they speak of other {unit} and of other seeds"
    else:
        said = f"95 % intervals: a bootstrap of {unit} alone, so that they say nothing about other seeds"
    said += ". A difference is found where its interval excludes 0"
    if tests:
        said += f" and p is below {SIGNIFICANT} after Holm's correction for {tests} test{'s' * (tests > 1)}"
    if without := list(dict.fromkeys(entry["figure"] for entry in entries if entry["p_holm"] is None)):
        said += f". A figure of all records together ({', '.join(without)}) has no signs to flip and so no p"
    return f"{said}. The intervals are not corrected for the number of comparisons."


def table_rows(comparison: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of COLUMNS of each comparison."""
    return [_cells(entry) for entry in comparison["comparisons"]]


def csv_text(comparison: Mapping[str, Any]) -> str:
    """Return CSV with a header and a line per comparison and figure; what does not exist is empty."""
    rows = []
    for entry in comparison["comparisons"]:
        worst = entry["worst_group"] or dict.fromkeys(("name", "records", "difference", "interval"))
        (low, high), (worst_low, worst_high) = (one["interval"] or (None, None) for one in (entry, worst))
        rows.append({
            **{name: entry[name] for name in _PLAIN}, "low": low, "high": high, "worst_group": worst["name"],
            "worst_records": worst["records"], "worst_difference": worst["difference"], "worst_low": worst_low,
            "worst_high": worst_high,
        })
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def latex_text(comparison: Mapping[str, Any]) -> str:
    r"""Return a tabular for \usepackage{booktabs}; of two means the better is bold where the difference was found."""
    lines = [r"\begin{tabular}{llrlrrrr}", r"\toprule",
             r"Figure & Arm & Mean & Against & Mean & Difference & 95\,\% interval & $p$ (Holm) \\", r"\midrule"]
    for entry in comparison["comparisons"]:
        figure, arm, mean, against, other, difference, ends, p, _, _ = map(escaped, _cells(entry))
        if entry["found"] and entry["higher_is_better"] is not None:
            better = (entry["difference"] > 0) == entry["higher_is_better"]
            mean, other = (rf"\textbf{{{mean}}}", other) if better else (mean, rf"\textbf{{{other}}}")
        signed = (re.sub(r"[+-][\d.]+", r"$\g<0>$", cell) for cell in (difference, ends))     # a minus, not a hyphen
        lines.append(" & ".join((figure, arm, mean, against, other, *signed, p)) + r" \\")
    return "\n".join((*lines, r"\bottomrule", r"\end{tabular}", ""))


def escaped(text: str) -> str:
    r"""Return a text as LaTeX sets it.

    >>> escaped("top_1 & 50 %")
    'top\\_1 \\& 50 \\%'
    """
    return re.sub(r"[\\~^<>&%$#_{}]", lambda mark: _LATEX[mark[0]], re.sub(r"\s+", " ", text))


def _cells(entry: Entry) -> tuple[str, ...]:
    places = _places(entry)
    ends = "none" if entry["interval"] is None else "[{:+.{p}f}, {:+.{p}f}]".format(*entry["interval"], p=places)
    p = "none" if entry["p_holm"] is None else _p(entry["p_holm"]).removeprefix("p ").removeprefix("= ")
    return (
        entry["figure"], entry["arm"], f"{entry['mean']:.{places}f}", entry["against"],
        f"{entry['mean_against']:.{places}f}", f"{entry['difference']:+.{places}f}", ends, p, _of_seeds(entry),
        "yes" if entry["found"] else "no",
    )


def _of_seeds(entry: Entry) -> str:
    better = entry["better_seeds"]
    return str(entry["seeds"]) if better is None else f"{better} of {entry['seeds']}"


def apart(entry: Entry) -> str:
    """Return a difference with its interval."""
    places = _places(entry)
    ends = "" if entry["interval"] is None else " [{:+.{p}f}, {:+.{p}f}]".format(*entry["interval"], p=places)
    return f"{entry['difference']:+.{places}f}{ends}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _places(entry: Entry) -> int:
    """Return how many decimals a difference needs: two digits of its interval's width, and at least 3."""
    low, high = entry["interval"] or (0.0, 0.0)
    return 3 if high == low else min(9, max(3, 1 - math.floor(math.log10(high - low))))

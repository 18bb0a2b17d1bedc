"""Write docs/when.md: what all studies say of when human maps help, as two tables among the text of when.md.

    python examples/studies/summary.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page import arms_in, cells_of, compared, heading, table
from study import HERE, RESULTS, read_study

from hkmap.report.verdicts import apart

#: The tables by their place in when.md: of each figure the mean on labels alone, and what human maps change.
TABLES = {"right": {"top1": "accuracy", "log_loss": "log loss"}, "likeness": {"kl": "KL from people's maps"}}


def page_of_all(results: Path) -> str:
    """Return the page, with a row for each cell of all studies that have results."""
    text = (HERE / "when.md").read_text()
    studies = [read_study(path)[0] for path in sorted(HERE.glob("*.toml")) if (results / path.stem).exists()]
    for place, figures in TABLES.items():
        columns = ["study", *(word for title in figures.values()
                              for word in (f"{title} on labels alone", "human - labels", "human - shuffled"))]
        rows = [row_of(study, cell, results / study["name"] / cell, list(figures))
                for study in studies if figures.keys() <= set(study["shown"])
                for cell in cells_of(results / study["name"]) if not cell.endswith("-curves")]
        text = text.replace(f"{{{place}}}", table(columns, rows))
    return NOTE + text


NOTE = "<!-- Written by examples/studies/summary.py from results/ and examples/studies/when.md. Change these. -->\n\n"


def row_of(study: Mapping[str, Any], cell: str, folder: Path, figures: Sequence[str]) -> list[str]:
    """Return the row of a cell, of the comparisons that the study's own page has; bold is what was found."""
    entries = {(entry["figure"], entry["arm"], entry["against"]): entry
               for entry in compared(study, arms_in(folder, study["families"]["maps"]))["comparisons"]}
    row = [f"[{study['name']}](results/{study['name']}.md), {heading(cell).replace('images of each class', 'a class')}"]
    for figure in figures:
        chosen = [entries[figure, "human", against] for against in ("none", "shuffled")]
        row.append(f"{chosen[0]['mean_against']:.3f}")
        row += [f"**{apart(entry)}**" if entry["found"] else apart(entry) for entry in chosen]
    return row


if __name__ == "__main__":
    (RESULTS.parent / "when.md").write_text(page_of_all(RESULTS))

"""Count the lines and modules of the code, beside their budgets and what they were; exit code 1 if one is exceeded.

    python benchmarks/lines.py

Every line of a *.py file counts, also blank lines and comments, and every file is a module, also `__init__.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CELLAR = "files + shards"
# The move ended within 14,500 and 3,300 lines; what came since is on top: any folder, and never wrong in silence
# (19,000 and 4,000), then every network and training of the papers, seen, resumed and shared out over processes
# (23,500), then any network and map evaluated by the papers' and the field's measures, with statistics and a page
# (27,900), then the editor: strokes, sessions, live answers, a server for several people (30,100), then what a bug
# report needs, planted shortcuts, and arms in brief.
LINES = {"hkmap": 30_600, CELLAR: 4_050}
MODULES = 14                        # of a package
UNBOUNDED = ("cli", "sources")      # one file per command, per data set or format


class Size(NamedTuple):
    lines: int
    modules: int


#: At ff8f285, the last commit before the move. What files, shards and stream do now was one package, storage.
BEFORE = {
    "hkmap": Size(17_175, 143),
    "  cli": Size(3_308, 38),
    "  engine": Size(1_856, 15),
    "  maps": Size(1_609, 14),
    "  parallel": Size(567, 6),
    "  report": Size(856, 6),
    "  sources": Size(2_664, 20),
    CELLAR: Size(5_919, 40),
    "tests": Size(17_071, 67),
}
#: At 3249e7e, the last commit of the move.
MOVED = {
    "hkmap": Size(14_363, 117),
    "  cli": Size(2_658, 32),
    "  engine": Size(1_880, 14),
    "  files": Size(1_299, 7),
    "  maps": Size(1_635, 13),
    "  parallel": Size(348, 3),
    "  report": Size(742, 6),
    "  shards": Size(2_001, 10),
    "  sources": Size(2_578, 21),
    "  stream": Size(688, 6),
    CELLAR: Size(3_300, 17),
    "tests": Size(16_236, 75),
}


def size_of(paths: Iterable[Path]) -> Size:
    """Return what these files hold together."""
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    return Size(sum(lines), len(lines))


def sizes(root: Path) -> dict[str, Size]:
    """Return the size of the whole, of each package, of files and shards together, and of the tests."""
    house = root / "hkmap"
    folders = [folder for folder in sorted(house.iterdir()) if (folder / "__init__.py").exists()]
    packages = {f"  {folder.name}": size_of(folder.rglob("*.py")) for folder in folders}
    cellar = size_of(path for name in ("files", "shards") for path in (house / name).rglob("*.py"))
    tests = size_of((root / "tests").rglob("*.py"))
    return {"hkmap": size_of(house.rglob("*.py")), **packages, CELLAR: cellar, "tests": tests}


def budgets(name: str, size: Size) -> list[str]:
    """Return the budgets of a row of the table, and by how much it is over."""
    bounds = [(size.lines, LINES[name], "lines")] if name in LINES else []
    if name.startswith(" ") and name.strip() not in UNBOUNDED:
        bounds.append((size.modules, MODULES, "modules"))
    return [f"at most {most:,} {unit}" + f": {count - most:,} OVER" * (count > most) for count, most, unit in bounds]


def main(root: Path) -> int:
    """Print the table; return the exit code."""
    print(f"{'':16}{'lines':>8}{'modules':>9}{'before, ff8f285':>18}{'moved, 3249e7e':>18}   budget")
    rows = []
    for name, size in sizes(root).items():
        then = ("{:,}  {:4}".format(*table[name]) if name in table else "" for table in (BEFORE, MOVED))
        past = "".join(f"{one:>18}" for one in then)
        rows.append(f"{name:16}{size.lines:8,}{size.modules:9}{past}   {', '.join(budgets(name, size))}".rstrip())
    print("\n".join(rows))
    return int(any("OVER" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))

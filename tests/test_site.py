"""The docs as a site: its navigation, its links, what it shows of the repository, pictures, and the notebook."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import runpy
import tempfile
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from hkmap.choices import TABLES, table

DOCS = ROOT / "docs"
CHOICES = (DOCS / "choices.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LARGEST = 300 * 1024        # bytes of a picture


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("site_pages")


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("site_links")


# the page of choices


def test_the_page_of_choices_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "generate_choices.py"))["page"]()
    assert page == CHOICES, "docs/choices.md is not what the tables say: run `make docs`"


def test_the_page_of_choices_has_every_table_and_row_of_ours() -> None:
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", CHOICES, re.MULTILINE))
    assert [title.lower().replace(" ", "_") for title in sections] == list(TABLES)
    assert re.findall(r"^\| `(.*?)` \|", sections["Gates"], re.MULTILINE) == list(table("gates"))
    assert "`train --gate`" in sections["Gates"]
    assert "hkmap.metrics" in sections["Metrics"]


def test_what_another_package_adds_is_not_on_the_page(installed) -> None:
    installed("wide", "def wide(*_):\n    'Very wide.'\n    return 1.0\n", group="hkmap.bandwidths", wide="wide:wide")
    assert "wide" in table("bandwidths")
    rows = runpy.run_path(str(DOCS / "generate_choices.py"))["rows"]
    assert not any("Very wide" in row for row in rows(table("bandwidths")))


# the navigation, and how it is built


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"^ +- .*: (\S+\.md)$", SETTINGS.partition("\nnav:")[2], re.MULTILINE)
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(page for page in listed if not page.startswith("repository/")) == sorted([*written, "reference.md"])
    for page in listed:
        path = page.removeprefix("repository/")
        assert path == page or (ROOT / path).exists() or (ROOT / path.removesuffix(".md")).exists(), page


def test_nothing_is_loaded_from_elsewhere_and_every_warning_is_an_error() -> None:
    assert re.search(r"^  font: false", SETTINGS, re.MULTILINE)
    assert "http" not in SETTINGS
    assert re.search(r"^site:.*\n\t.*mkdocs build --strict", MAKEFILE, re.MULTILINE)
    assert re.search(r"links: \{not_found: warn, anchors: warn", SETTINGS)


def test_the_site_is_an_extra_of_its_own() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(line.startswith("mkdocs-material") for line in extras["site"])
    assert not any("mkdocs" in line for line in extras["dev"])


# what it shows of the repository


def test_the_hooks_examples_hold(pages) -> None:
    assert doctest.testmod(pages).failed == 0


@pytest.mark.parametrize(("path", "text", "expected"), [
    ("docs/a.md", "[x](method.md#shams)", "[x](method.md#shams)"),
    ("docs/a.md", "[x](../CONTRIBUTING.md#house-rules)", "[x](repository/CONTRIBUTING.md#house-rules)"),
    ("docs/a.md", "[x](../examples/demo.sh), [y](../hkmap/training/recipes)",
     "[x](repository/examples/demo.sh.md), [y](repository/hkmap/training/recipes.md)"),
    ("examples/README.md", "[x](../docs/method.md#shams)", "[x](../../method.md#shams)"),
    ("examples/README.md", "[x](demo.sh)", "[x](demo.sh.md)"),
    ("README.md", "![x](docs/demo.png)", "![x](../demo.png)"),
    ("docs/a.md", "[x](https://example.org/a.md) `a[0](b)`", "[x](https://example.org/a.md) `a[0](b)`"),
    ("docs/a.md", "[x](../../outside.md)", "[x](../../outside.md)"),
])
def test_a_link_leads_to_the_page_of_its_file(pages, path: str, text: str, expected: str) -> None:
    assert pages.with_site_links(path, text) == expected


def test_a_file_is_shown_as_it_is(pages) -> None:
    script = (ROOT / "examples" / "demo.sh").read_text(encoding="utf-8")
    assert pages.text_of("examples/demo.sh") == f"# examples/demo.sh\n\n````bash\n{script}````\n"
    recipes = pages.text_of("hkmap/training/recipes")
    assert re.findall(r"^## (.*)\.toml$", recipes, re.MULTILINE) == sorted(table("recipes"))


def test_a_notebook_is_shown_with_its_outputs(pages) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [
            {"output_type": "stream", "text": ["printed\n"]},
            {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
            {"output_type": "display_data", "data": {"image/png": "QUJD\n", "text/plain": ["<Figure>"]}},
        ]},
    ]
    assert pages.notebook({"cells": cells}) == (
        "# Title\ntext\n\n```python\n1 + 1\n```\n\n```text\nprinted\n```\n\n```text\n2\n```\n\n"
        "![What the cell above draws](data:image/png;base64,QUJD)"
    )


def test_the_reference_has_what_the_page_on_python_uses(pages) -> None:
    named = re.findall(r"^::: (hkmap\..*)\.(\w+)$", pages.reference(), re.MULTILINE)
    assert {"kde_map", "evaluate", "Preprocessing", "summarise", "compare"} <= {name for _, name in named}
    assert len(named) == len(set(named))
    for module, name in named:
        assert getattr(importlib.import_module(module), name).__doc__, f"{module}.{name} says nothing"


# its links


def test_links_that_lead_nowhere_are_found(links, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="sub/b.html#there">1</a><a href="#top">2</a><a href="https://example.org">3</a>'
        '<img src="data:image/png;base64,AA"><a href="sub/none.html">4</a><a href="sub/b.html#gone">5</a>'
        '<img src="none.png"><script src="https://example.org/s.js"></script><a href="//example.org/">6</a>'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="there"><a href="../a.html">1</a><a href="../a.html#b%20c">2</a>')
    (tmp_path / "404.html").write_text('<a href="/anywhere.html">1</a>')
    assert list(links.broken(tmp_path)) == [
        "a.html links to sub/none.html, which is not there",
        "a.html links to sub/b.html#gone, an anchor that is not there",
        "a.html links to none.png, which is not there",
        "a.html loads https://example.org/s.js from elsewhere",
        "b.html links to ../a.html#b%20c, an anchor that is not there",
    ]


# pictures


def test_the_gallery_has_every_picture_and_what_makes_it() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    kinds = (".png", ".gif", ".webp", ".jpg")
    pictures = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*") if path.suffix in kinds}
    assert pictures == set(re.findall(r"!\[[^]]+\]\((\S+)\)", page))
    sections = page.split("\n## ")[1:]
    assert sections
    for section in sections:
        made = re.search(r"`make ([a-z-]+)`", section)
        assert made is not None, section
        assert re.search(rf"^{made[1]}:", MAKEFILE, re.MULTILINE)


def test_no_picture_is_large() -> None:
    large = {path.name: path.stat().st_size for path in DOCS.rglob("*.*") if path.suffix != ".md"}
    assert not {name: size for name, size in large.items() if size > LARGEST}


# the notebook


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scope: dict[str, object] = {}
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        for number, cell in enumerate(code_cells()):
            exec(compile("".join(cell["source"]), f"tour.ipynb, code cell {number}", "exec"), scope)
    torch.set_num_threads(threads)
    drawn = len(plt.get_fignums())
    plt.close("all")
    assert drawn == sum("image/png" in output.get("data", {}) for cell in code_cells() for output in cell["outputs"])
    output, batch = scope["found"]["human maps"]      # type: ignore[index]
    assert (output.logits.argmax(1) == batch["label"]).float().mean() > 0.5      # of five classes


def test_the_notebook_is_stored_as_it_ran_and_small() -> None:
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert "human maps      accuracy 0." in printed
    assert NOTEBOOK.stat().st_size < 500_000

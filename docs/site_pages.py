"""Give the site what docs/*.md link to in the rest of the repository, and the Python reference (a hook of mkdocs.yml).

A file of the repository is the page repository/PATH; a notebook is shown with what its cells print and draw.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hkmap

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")      # within the repository
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}
BEGINNING = ["CHANGELOG.md", "examples/tour.ipynb"]     # of what is followed, beside docs/*.md
PYTHON = re.compile(r"^from (hkmap[\w.]*) import (.+)$", re.MULTILINE)


def page_of(path: str) -> str:
    """Return the page that shows a file or folder of the repository.

    >>> page_of("docs/method.md"), page_of("CONTRIBUTING.md"), page_of("examples/demo.sh")
    ('method.md', 'repository/CONTRIBUTING.md', 'repository/examples/demo.sh.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def linked(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield each link of a file's text with the path in the repository that it leads to."""
    for target in LINK.findall(text):
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not place.startswith("..") and (ROOT / place).exists():
            yield target, place


def with_site_links(path: str, text: str) -> str:
    """Return a page's text with links to pages of the site."""
    here = posixpath.dirname(page_of(path))
    pages = {target: posixpath.relpath(page_of(place), here) for target, place in linked(path, text)}
    return LINK.sub(lambda link: pages.get(link[0], link[0]), text)


def text_of(path: str) -> str:
    """Return a file or folder of the repository in Markdown."""
    place = ROOT / path
    if place.is_dir():
        files = sorted(file.name for file in place.iterdir() if file.suffix in LANGUAGES)
        return f"# {path}/\n\n" + "\n".join(block(f"{path}/{name}", f"## {name}\n\n") for name in files)
    if place.suffix == ".md":
        return place.read_text(encoding="utf-8")
    if place.suffix == ".ipynb":
        return notebook(json.loads(place.read_text(encoding="utf-8")))
    return block(path, f"# {path}\n\n")


def block(path: str, title: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"{title}````{language}\n{(ROOT / path).read_text(encoding='utf-8')}````\n"


def notebook(content: dict[str, Any]) -> str:
    """Return a notebook in Markdown, with its outputs.

    >>> notebook({"cells": [{"cell_type": "markdown", "source": ["# A tour"]}]})
    '# A tour'
    """
    return "\n\n".join("\n\n".join(shown(cell)) for cell in content["cells"])


def shown(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", [])))
        if "image/png" in data:
            yield f"![What the cell above draws](data:image/png;base64,{''.join(data['image/png'].split())})"
        elif text:
            yield f"```text\n{text.rstrip()}\n```"


def reference() -> str:
    """Return the page of the library's face, and of the modules whose names docs/python.md imports."""
    parts = ["# Reference", "What [In Python](python.md) uses, with its arguments and results.", "## hkmap"]
    parts += [entry(f"hkmap.{hkmap._FACE[name]}.{name}", f"hkmap.{name}") for name in hkmap.__all__[1:]]
    modules: dict[str, list[str]] = {}
    for module, names in PYTHON.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8")):
        modules.setdefault(module, []).extend(name for name in names.split(", ") if name not in modules.get(module, []))
    for module, names in sorted(modules.items()):
        parts += [f"## {module}", *(entry(f"{module}.{name}", name) for name in names)]
    return "\n\n".join(parts) + "\n"


def entry(path: str, title: str) -> str:
    return f"::: {path}\n    options:\n      heading: {title}\n      toc_label: {title}"


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    todo = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + BEGINNING
    done = set(todo)
    while todo:
        path = todo.pop()
        text = text_of(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, page_of(path), content=with_site_links(path, text)))
        found = {place for _, place in linked(path, text) if not place.startswith("docs/")} - done
        todo += found if path.endswith((".md", ".ipynb")) else ()
        done |= found
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lead the links out of docs/ to their pages."""
    return markdown if page.file.generated_by else with_site_links(f"docs/{page.file.src_uri}", markdown)

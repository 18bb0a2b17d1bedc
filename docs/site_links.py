"""Check the links of the built site: each leads to a file and an anchor, and nothing is loaded from elsewhere.

A hook of mkdocs.yml. MkDocs checks what is written in Markdown; this checks the pages as a browser gets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__skip"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if value and (tag, name) in LOADED:
                self.loaded.append(value)
            elif value and (tag, name) == ("a", "href"):
                self.links.append(value)


def broken(site: Path) -> Iterator[str]:
    """Yield a sentence for each link of the folder's pages that leads nowhere, and each thing loaded from elsewhere."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":         # its links are from the server's root
            continue
        for link in page.links + page.loaded:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                if link in page.loaded and address.scheme != "data":
                    yield f"{path.name} loads {link} from elsewhere"
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not target.exists():
                yield f"{path.name} links to {link}, which is not there"
            elif target in pages and unquote(address.fragment) not in pages[target].anchors:
                yield f"{path.name} links to {link}, an anchor that is not there"


def on_post_build(*, config: Any) -> None:
    """End the build if a link leads nowhere."""
    from mkdocs.exceptions import PluginError

    if found := list(broken(Path(config.site_dir))):
        raise PluginError("\n".join(found))

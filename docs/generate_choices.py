"""Print the page of all choices by name, docs/choices.md, from the tables of hkmap.choices (`make docs`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hkmap.choices import Choices, table
from hkmap.cli.list import tables
from hkmap.networks.timm import PREFIX

NOTE = "<!-- Written by `make docs` from the tables of hkmap.choices. Change a row's title, not this file. -->"
INTRODUCTION = """\
Every choice by name, as `hkmap list` prints it. A name that is not here is an error that says what is. `--arch` also
takes [any network of timm](training.md#networks), as `timm/NAME`. Your own package can [add rows](extending.md) to the
tables that name an entry point."""


def rows(choices: Choices[Any]) -> Iterator[str]:
    """Yield our rows in Markdown; what other packages add depends on the machine."""
    for name, doc in choices.describe().items():
        if choices.origin(name) == "hkmap" and not name.startswith(PREFIX):
            source = getattr(choices[name], "source", "") if name in choices else ""
            text = f"{doc} ({source})" if source else doc
            yield f"| `{name}` | {text.replace('|', chr(92) + '|')} |"


def sentence(text: str) -> str:
    """Return a text with a capital at its start."""
    return f"{text[0].upper()}{text[1:]}"


def section(name: str, options: str) -> str:
    """Return the table of that name, with the options that take its rows."""
    choices = table(name)
    taken = ", ".join(f"`{option}`" for option in options.split(", ")) if "--" in options else sentence(options)
    added = f"; entry point `{choices.group}`" if choices.group else ""
    return "\n".join((f"## {sentence(name.replace('_', ' '))}", "", f"{taken}{added}.", "", "| name | what it is |",
                      "|---|---|", *rows(choices), ""))


def page() -> str:
    """Return the whole page, in Markdown."""
    sections = "\n".join(section(row["name"], row["doc"]) for row in tables())
    return f"# Choices\n\n{NOTE}\n\n{INTRODUCTION}\n\n{sections}"


if __name__ == "__main__":
    print(page(), end="")

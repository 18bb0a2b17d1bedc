"""Print the command reference, docs/commands.md, from what `--help` says (`make docs`)."""

from __future__ import annotations

import click

from hkmap.cli.main import OURS, SETTINGS, hkmap, load

WIDTH = 80      # of a line of help, whatever the terminal
NOTE = "<!-- Written by `make docs` from the commands' own --help. Change the help, not this file. -->"


def help_of(command: click.Command, *, parent: click.Context | None = None) -> str:
    """Return a command's help as a terminal of WIDTH columns shows it."""
    context = click.Context(
        command, info_name=command.name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH, **SETTINGS
    )
    return command.get_help(context)


def reference() -> str:
    """Return the whole page, in Markdown."""
    group = click.Context(hkmap, info_name="hkmap")
    sections = [("hkmap", help_of(hkmap))]
    sections += [(f"hkmap {name}", help_of(load(name), parent=group)) for name in OURS]
    links = "\n".join(f"- [{title}](#{title.replace(' ', '-')})" for title, _ in sections)
    blocks = "\n".join(f"\n## {title}\n\n```text\n{text}\n```" for title, text in sections)
    return f"# Commands\n\n{NOTE}\n\n{links}\n{blocks}\n"


if __name__ == "__main__":
    print(reference(), end="")
